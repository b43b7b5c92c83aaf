"""Retargeting: the source's motion in the proportions of the target."""
