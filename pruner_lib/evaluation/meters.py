"""Measure memory (MiB) and time (seconds), and find batches that fit into memory; independent of models."""

import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from pruner_lib.method.memory import trim_heap

Call = Callable[[], object]
Device = torch.device | str
Result = TypeVar("Result")


def meter(device: Device) -> tuple[float, Callable[[], float]]:
    """Reset the peak-memory counter of a device.

    Args:    device: a GPU measures PyTorch's allocated memory, others the process's resident memory.
    Returns: the memory now, and a function that returns the peak since then, both in MiB.
    """
    trim_heap()
    if torch.device(device).type != "cuda":
        reset_peak()
        return resident_mb(), peak_mb
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) / 2**20
    return held, lambda: torch.cuda.max_memory_allocated(device) / 2**20


def reset_peak() -> None:
    """Reset the peak-memory counter of the process; do nothing on systems other than Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Read the highest resident memory in MiB: since `reset_peak` on Linux, since the start elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def resident_mb() -> float:
    """Read the resident memory of the process now, in MiB."""
    return psutil.Process().memory_info().rss / 2**20


def timed(call: Call, device: Device) -> float:
    """Time one call in seconds, synchronising with the device at its end."""
    start = time.perf_counter()
    call()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turn(
    calls: Mapping[str, Call], rounds: int, device: Device, *, warmup: int = 1, before: Call = lambda: None
) -> dict[str, list[float]]:
    """Time each call once per round, so that a slow moment of the machine affects all of them.

    Args:    warmup: additional rounds before, not timed.    before: called before each call, not timed.
    Returns: name -> seconds of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warmup, rounds):
        for name, call in calls.items():
            before()
            duration = timed(call, device)
            if number >= 0:
                seconds[name].append(duration)
    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the lower quartile, the median and the upper quartile."""
    return tuple(np.quantile(values, (0.25, 0.5, 0.75)).tolist())


def in_fitting_batches(run: Callable[[int], Result], batch_size: int, task: str) -> Result:
    """Call `run` with a batch size; whenever memory runs out, call it again with half the size.

    Unlike accelerate's `find_executable_batch_size`, this does not run the slow garbage collector first.

    Args:    run: takes the batch size.    batch_size: to start with.    task: names the work in messages.
    Returns: the result of `run`; a warning says if the batches were reduced.
    Raises:  ValueError: memory runs out with a batch of one.    Other errors of `run` are passed on.
    """
    while True:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not should_reduce_batch_size(error):
                raise
        if batch_size == 1:
            advice = "a smaller dtype, device_map='auto', or a machine with more memory"
            raise ValueError(f"{task} ran out of memory with a batch of one; use shorter texts, {advice}")
        batch_size //= 2
        clear_device_cache(garbage_collection=True)
        warnings.warn(f"{task} ran out of memory; it continues with batches of {batch_size}", stacklevel=3)
