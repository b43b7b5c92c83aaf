"""Evaluation: how near rendered video comes to the real one, and how steady it is."""
