"""Steps of sequences: in order, each exactly once."""
