"""The sentiment network. Empty on purpose: importing the features must not import torch."""
