"""Training: schedule of resolution and window length, objective, loop, run folder."""
