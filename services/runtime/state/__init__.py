"""Where sequences are kept between two steps."""
