"""Video reading and writing, the clip store, and windows of frames and signals as tensors."""
