"""The inference service: any model as raw tensors, for Triton's clients and for ours."""
