"""Blind pairwise preference studies: a page for participants, and the evaluation of its answers."""
