"""Processes, device and precision of a training run."""

from __future__ import annotations

import logging
import os

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from v2v.defaults import MINUTES
from v2v.errors import RunConflict, V2VError
from v2v.runtime import cores, cpu_has_bf16
from v2v.training.settings import Budget, TrainSettings


def launch(settings: TrainSettings) -> Fabric:
    """Set up processes, device and precision; joins processes that torchrun started."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # silence its start-up banner
    loop = settings.loop
    device = "auto" if loop.device == "auto" else {"cuda": "gpu"}.get(loop.device, loop.device)
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if loop.device == "auto" and on_cpu:
        device = "cpu"
    precision = "32-true" if loop.precision == "32" else "bf16-mixed"
    if loop.precision == "auto":
        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        has_bf16 = cpu_has_bf16() if on_cpu else on_gpu
        precision = "bf16-mixed" if has_bf16 else "32-true"
    devices, nodes = _processes(loop.devices)
    # Inactive scales and temporal discriminators with too long a stride get no gradients.
    strategy = "ddp_find_unused_parameters_true" if devices * nodes > 1 else "auto"
    try:
        fabric = Fabric(
            accelerator=device, devices=devices, num_nodes=nodes, strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
        )  # fmt: skip
        fabric.launch()
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        if isinstance(error, V2VError):
            raise
        raise RunConflict(
            f"cannot train on {loop.devices} x {loop.device}: {error}",
            hint="use -s loop.device=cpu or --devices 1, which work everywhere",
        ) from error
    if on_cpu:
        # Leave one core to the loader: threads spin while they wait for one another, so if one of
        # them has to wait for its core, convolutions take many times as long.
        torch.set_num_threads(loop.threads or max((cores() - 1) // devices, 1))
    return fabric


def _processes(devices: int) -> tuple[int, int]:
    """Processes per machine and number of machines; torchrun overrides both."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def with_budget(settings: TrainSettings) -> TrainSettings:
    """The settings, with the default budget if none is given."""
    if settings.budget.steps is None and settings.budget.minutes is None:
        return settings.model_copy(update={"budget": Budget(steps=None, minutes=MINUTES)})
    return settings
