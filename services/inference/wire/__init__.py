"""Messages of the Open Inference Protocol, in a pool of their own."""
