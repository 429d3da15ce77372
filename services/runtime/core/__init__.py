"""Errors, clocks and names: what every room may use."""
