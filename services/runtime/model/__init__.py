"""Exported networks: found, verified, run."""
