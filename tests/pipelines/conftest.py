"""Models with random weights and drawn skeletons: see `model_fixtures`."""

from model_fixtures import (  # noqa: F401
    command,
    make_model,
    make_store,
    one_thread,
    skeletons,
    tiny_preset,
)
