"""One thread a process, and small networks: see `model_fixtures`."""

from model_fixtures import one_thread, tiny_preset  # noqa: F401
