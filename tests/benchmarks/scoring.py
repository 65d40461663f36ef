"""Benchmark: memory and time of scoring, compared with a plain forward and backward pass of the same batch.

    python -m tests.benchmarks.scoring [--set size=0.1,7] [--again]

A case is one size and one way of scoring, in a separate process. The peak is the highest resident memory
between the loading of the weights and the end of the first pass, with interpreter and libraries; on a GPU it
is that of PyTorch's allocator. Then scoring and plain passes alternate, so that a slow moment of the machine
affects both. The plain pass frees each gradient as soon as it is computed, which is fastest, and free memory
is returned to the system before each pass.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pruner_lib.evaluation.meters import in_turn, meter, timed
from pruner_lib.method.discover import discover
from pruner_lib.method.importance import estimate_members
from pruner_lib.method.memory import available_bytes, trim_heap
from pruner_lib.method.names import CRITERIA
from pruner_lib.method.predict_memory import predict_memory
from tests.benchmarks.rows import DEVICE, Cases, run
from tests.benchmarks.shapes import meta_model, random_model, weights_mb

SIZES = ("0.1", "0.5", "1", "3", "7")
PLAIN = "plain"  # forward and backward pass with the gradients of all parameters, without scoring
WAYS = {"vector": ("vector",), "element1": ("element1",), "all criteria": CRITERIA}
ENOUGH_S = 150.0  # approximate time limit of all repeats; at least one is run
BESIDE_MB = 1500.0  # upper limit of the memory of interpreter, libraries and activations


def cases() -> Cases:
    """List the settings of all cases; plain comes first for each size."""
    shared = {"samples": 10, "tokens": 64, "device": DEVICE, "dtype": "bfloat16", "repeats": 3}
    return [{"size": size, "way": way, **shared} for size in SIZES for way in (PLAIN, *WAYS)]


def measure(
    size: str, way: str, *, samples: int, tokens: int, device: str, dtype: str, repeats: int
) -> dict[str, Any]:
    """Measure one way on one size.

    Returns: one row: `_mb` in MiB, `_s` in seconds; `seconds` and `plain_s` are medians over the repeats,
             `time_to_plain` the median of their ratios.
    Raises:  ValueError: the weights would not fit into memory.
    """
    needed = weights_mb(meta_model(size, getattr(torch, dtype)))
    refuse_too_large(size, needed, device)
    model = random_model(size, getattr(torch, dtype), device)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (samples, tokens), generator=generator).to(device)
    predicted_mb = float("nan")  # nothing predicts a plain pass
    if way == PLAIN:
        freed = needed + BESIDE_MB > free_mb(device)
        once, gradients = (lambda: plain_pass(model, ids, freed)), "freed" if freed else "kept"
    else:
        axes, gradients = discover(model), "reduced"
        once = lambda: estimate_members(model, axes, ids, criteria=WAYS[way])  # noqa: E731
        cut = {member.parameter for axis in axes.values() for member in axis.members}
        trim_heap()
        predicted = predict_memory(model, samples, tokens, WAYS[way], parameters=cut)
        predicted_mb = round(predicted.total / 2**20, 1)
    loaded_mb, peak = meter(device)
    first_s, peak_mb = timed(once, device), peak()
    rounds = max(1, min(repeats, int(ENOUGH_S / (2 * first_s))))
    calls = {PLAIN: lambda: plain_pass(model, ids, True), way: once}
    times = in_turn(calls, rounds, device, warmup=0, before=trim_heap)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "gradients": gradients,
        "weights_mb": round(needed, 1),
        "loaded_mb": round(loaded_mb, 1),
        "peak_mb": round(peak_mb, 1),
        "predicted_mb": predicted_mb,
        "first_s": round(first_s, 3),
        "seconds": round(statistics.median(times[way]), 3),
        "plain_s": round(statistics.median(times[PLAIN]), 3),
        "time_to_plain": round(median_ratio(times[way], times[PLAIN]), 3),
        "n_times": rounds,
    }


def median_ratio(ours: list[float], plain: list[float]) -> float:
    """Compare times round by round."""
    return statistics.median(a / b for a, b in zip(ours, plain, strict=True))


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the ratios of the peak to the weights, and of the prediction to the peak."""
    ratios = {"peak_to_weights": frame.peak_mb / frame.weights_mb}
    ratios |= {"predicted_to_peak": frame.predicted_mb / frame.peak_mb}
    return frame.assign(**{name: ratio.round(3) for name, ratio in ratios.items()})


def free_mb(device: str) -> float:
    """Return the free memory in MiB; infinite if it is unknown."""
    available = available_bytes(torch.device(device))
    return float("inf") if available is None else available / 2**20


def refuse_too_large(size: str, needed_mb: float, device: str) -> None:
    """Raise a ValueError with the numbers if the weights would not fit into memory."""
    if needed_mb + BESIDE_MB > free_mb(device):
        raise ValueError(
            f"size {size} needs {needed_mb:,.0f} MiB for its weights and up to {BESIDE_MB:,.0f} besides, "
            f"but {free_mb(device):,.0f} are free on {device}; choose smaller sizes by --set size=..."
        )


def plain_pass(model: nn.Module, ids: Tensor, freed: bool) -> None:
    """Run forward and backward; keep all gradients, or free each as soon as it is computed."""
    hooks = [p.register_post_accumulate_grad_hook(_forget) for p in model.parameters() if freed]
    try:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


if __name__ == "__main__":
    sys.exit(run("scoring", cases(), derive=derive))
