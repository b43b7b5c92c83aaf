"""Video in and out, the clip store, and windows of frames and signals as tensors."""
