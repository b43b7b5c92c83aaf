"""The shipped configs, one YAML a task and size. A default is written here and nowhere else."""
