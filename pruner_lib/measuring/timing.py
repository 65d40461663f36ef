"""How long something takes: single times, several things in turn, and their quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def timed(once: Callable[[], object], device: torch.device | str) -> float:
    """Seconds of one call, waiting for the device at its end."""
    start = time.perf_counter()
    once()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str,
    *,
    warmup: int = 1,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time each call once a round, so that a slow moment of the machine strikes all of them.

    Args:    rounds: that count.    warmup: rounds before them, not timed.
             before: done before each call, not timed.
    Returns: name -> seconds of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warmup, rounds):
        for name, once in calls.items():
            before()
            took = timed(once, device)
            if number >= 0:
                seconds[name].append(took)
    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Give the lower quartile, the median and the upper quartile; one value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
