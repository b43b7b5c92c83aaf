"""Raw footage in, clip stores out: one module a signal, and `build`, which runs them over clips."""
