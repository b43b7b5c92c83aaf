"""Turns raw footage into clip stores: one module per signal; `build` runs them on a clip."""
