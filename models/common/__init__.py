"""What all tasks share. Empty on purpose: importing the manifest must not import torch."""
