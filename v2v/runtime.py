"""How the native libraries behave in a process of ours: quiet, frugal with page faults and cores.

`prepare_process` is for programs (the command line, worker processes, benchmarks): the library
leaves its caller's process alone. The rest only asks, or touches threads of the library's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h

_prepared = False


def prepare_process() -> None:
    """Call once, before torch is imported: its threads read their settings when they are made."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    # Spinning threads take the cores from codecs and networks that work at the same time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GLOG_minloglevel", "2")
    _keep_memory()
    if not os.environ.get("V2V_DEBUG"):
        _silence_native_logs()


def _keep_memory() -> None:
    """Have malloc reuse the memory of frames instead of returning it page by page.

    A frame is megabytes; handing it back and faulting it in again cost a tenth of the time that
    preprocessing took (`benchmarks/preprocessing.py pose`).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(M_ARENA_MAX, 1)


def _silence_native_logs() -> None:
    """Send what C and C++ code prints to standard error to nowhere, for the rest of the process.

    MediaPipe and the codecs log there past every Python setting, through the progress bars.
    Python's own `sys.stderr` goes on to the terminal. `V2V_DEBUG=1` leaves all as it is.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    sys.stderr = os.fdopen(terminal, "w", buffering=1)


def cpu_has_bf16() -> bool:
    """Whether bf16 multiplies in hardware; elsewhere it is emulated and slower than float32."""
    import torch

    flags = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, flag, lambda: False)() for flag in flags)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def lower_thread_priority() -> None:
    """Let this thread, and those that it starts, take only what the others leave (on Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
