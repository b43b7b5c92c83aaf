"""Comparison videos: clips side by side on one time base."""
