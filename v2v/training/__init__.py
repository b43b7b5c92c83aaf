"""Training: the schedule in space and time, the objective, the loop, the run folder."""
