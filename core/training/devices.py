"""Which device, how many threads, which source: decided once per run and recorded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil
import torch

from cellweave.core.errors import SpecError

KEEP_FREE = 0.8  # share of the free memory that a run may plan with


def choose_device(wanted: str) -> torch.device:
    """Return the device of the run.

    Raises
    ------
    SpecError
        Where a device is asked for that this machine does not have.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if (wanted == "cuda" and not cuda) or (wanted == "mps" and not mps):
        raise SpecError(f"training.device is '{wanted}', but torch finds no such device on this machine.", "Set training.device = 'auto'.")
    return torch.device(wanted)


def describe_device(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return f"CUDA {device.index or 0} ({torch.cuda.get_device_name(device)})"
    return {"mps": "Apple GPU (MPS)", "cpu": "CPU"}.get(device.type, device.type)


def choose_precision(wanted: str, device: torch.device, native: Callable[[], bool] | None = None) -> str:
    """Return ``32`` or ``bf16``: for ``auto`` bf16 on a CPU that multiplies it natively, which is about twice as fast; elsewhere it is emulated.

    The processor is asked, not timed: the same spec must come out the same on a busy machine. On GPUs ``auto`` is ``32``, as nothing was
    measured there.

    Parameters
    ----------
    wanted
        ``training.precision``.
    device
        Of the run.
    native
        Says whether the CPU multiplies bf16 itself; None asks torch.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cpu" and (native or multiplies_bf16)() else "32"


def multiplies_bf16() -> bool:
    """Return whether this processor has AVX-512 BF16 or AMX; False where torch does not tell."""
    return any(bool(getattr(torch.cpu, name, bool)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def choose_source(wanted: str, device: torch.device, count_bytes: int) -> str:
    """Return ``memory``, ``device`` or ``disk``.

    On a CPU the main memory is the device's memory. On a GPU the counts stay there where they take less than
    half of what is free.
    """
    if wanted == "device" or wanted == "disk":
        return wanted
    if wanted == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if count_bytes < 0.5 * free:
            return "device"
    return "memory"


def candidate_threads() -> list[int]:
    """Return the thread counts worth trying: powers of two up to all cores but one, which is left to the window."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    physical = psutil.cpu_count(logical=False) or cores
    top = max(1, min(cores, physical) - 1)
    counts = [1]
    while counts[-1] * 2 <= top:
        counts.append(counts[-1] * 2)
    if counts[-1] != top:
        counts.append(top)
    return counts


def probe_threads(step: Callable[[], None], candidates: list[int], repeats: int = 3) -> int:
    """Return the number of threads with which ``step`` is fastest; fewer win where the gain is below a tenth.

    Parameters
    ----------
    step
        A training step on copies, without lasting effect.
    candidates
        Thread counts in rising order.
    repeats
        Timed steps per candidate, of which the best counts.
    """
    if len(candidates) == 1:
        return candidates[0]
    best, best_time = candidates[0], float("inf")
    for threads in candidates:
        torch.set_num_threads(threads)
        step()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        if min(times) < 0.9 * best_time:
            best, best_time = threads, min(times)
    return best
