"""How good a model is: what `v2v evaluate` does. It begins in evaluate.py."""
