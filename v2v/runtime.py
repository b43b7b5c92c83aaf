"""Settings of the process for native libraries: logs, memory allocation, threads.

`prepare_process` is for programs (the command line, worker processes, benchmarks): as a library,
`v2v` does not change its caller's process. The other functions only query the machine or affect
threads that `v2v` starts.
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
    """Call before torch is imported: its threads read their settings when they are created."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    # Spinning threads would take cores from codecs and networks that run at the same time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GLOG_minloglevel", "2")
    _keep_memory()
    if not os.environ.get("V2V_DEBUG"):
        _silence_native_logs()


def _keep_memory() -> None:
    """Make malloc reuse the memory of frames instead of returning it to the system.

    A frame has megabytes; returning and page-faulting it again took a tenth of the preprocessing
    time (`benchmarks/preprocessing.py pose`).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl lacks it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the maximum that glibc accepts
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(M_ARENA_MAX, 1)


def _silence_native_logs() -> None:
    """Discard what C and C++ code prints to standard error, for the rest of the process.

    MediaPipe and the codecs ignore Python's logging settings and would disturb the progress bars.
    Python's `sys.stderr` still reaches the terminal. `V2V_DEBUG=1` disables this.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    sys.stderr = os.fdopen(terminal, "w", buffering=1)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; if emulated, it is slower than float32."""
    import torch

    flags = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, flag, lambda: False)() for flag in flags)


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def lower_thread_priority() -> None:
    """Lower the priority of this thread and the threads that it starts (on Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
