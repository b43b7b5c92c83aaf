"""Model evaluation, the implementation of `v2v evaluate`. The entry point is evaluate.py."""
