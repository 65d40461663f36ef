"""Benchmark, part a: memory and time of scoring, beside a plain forward and backward pass of the same batch.

A case is one size and one way; each has its process. The peak is the resident memory that the system saw from
the moment the weights were there to the end of the first pass: the interpreter and its libraries count. On a
GPU it is what PyTorch's allocator held. Then scoring and a plain pass take turns, so that a slow moment of
the machine strikes both. There the plain pass frees each gradient as soon as it is made, its fastest way, and
each pass starts as in a fresh process, with no free memory that an earlier one has left.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pruner_lib.evaluation.meters import in_turn, meter, timed
from pruner_lib.method.discover import discover
from pruner_lib.method.groups import CRITERIA
from pruner_lib.method.importance import estimate_members
from pruner_lib.method.memory import available_bytes, trim_heap
from pruner_lib.method.predict_memory import predict_memory
from tests.benchmarks.rows import Part
from tests.benchmarks.shapes import random_model, shape_config, weights_mb

SIZES = ("0.1", "0.5", "1", "3", "7")
CRITERIA_OF = {"vector": ("vector",), "element1": ("element1",), "all criteria": CRITERIA}
PLAIN = "plain"  # forward and backward pass with the gradients of all parameters, nothing scored
ENOUGH_S = 150.0  # about how long the repeats may take together, at least one is made
METHOD = (
    "importance",
    "saliency",
    "groups",
    "gradients",
    "module_gradients",
    "decoder",
    "predict_memory",
    "memory",
)
CODE = (
    *(f"pruner_lib.method.{name}" for name in METHOD),
    "pruner_lib.evaluation.meters",
    "tests.benchmarks.scoring",
    "tests.benchmarks.shapes",
)
BESIDE_MB = 1500.0  # interpreter, libraries and activations beside weights and gradients, at the most


def cases(options) -> list[dict[str, Any]]:
    """List the settings of all cases; plain comes first in each size."""
    shared = {"samples": options.samples, "tokens": options.tokens, "device": options.device}
    shared |= {"dtype": options.dtype, "kinds": options.kinds, "repeats": options.repeats}
    shared |= {"micro_batch": options.micro_batch, "checkpointing": options.checkpointing}
    sizes = options.sizes or SIZES
    return [{"size": size, "way": way, **shared} for size in sizes for way in (PLAIN, *CRITERIA_OF)]


def measure(
    size: str,
    way: str,
    *,
    samples: int,
    tokens: int,
    device: str,
    dtype: str,
    kinds: str,
    repeats: int,
    micro_batch: int,
    checkpointing: str,
) -> dict[str, Any]:
    """Measure one way on one size.

    Args:    kinds: of the axes that are scored, joined by "+", or "all".    micro_batch: 0 for the library's
             choice.    checkpointing: "yes", "no", or "" for the library's choice.
    Returns: a row: `_mb` in MiB, `_s` in seconds; `seconds` and `plain_s` are medians over the repeats,
             `time_to_plain` the median of their ratios.
    Raises:  ValueError: the weights alone would not fit.
    """
    kind = getattr(torch, dtype)
    needed = _bytes(size, kind) / 2**20
    _refuse_too_large(size, needed, device)
    model = random_model(size, kind, device)
    vocabulary = model.config.vocab_size
    ids = torch.randint(vocabulary, (samples, tokens), generator=torch.Generator().manual_seed(1)).to(device)
    predicted_mb = float("nan")  # nothing predicts a plain pass
    if way == PLAIN:
        freed = 2 * needed + BESIDE_MB > free_mb(device) + needed
        once, gradients = (lambda: _plain(model, ids, freed)), "freed" if freed else "kept"
    else:
        axes = discover(model)
        axes = axes if kinds == "all" else axes.of_kind(*kinds.split("+"))
        extra = {"micro_batch": micro_batch} if micro_batch else {}
        extra |= {"checkpointing": checkpointing == "yes"} if checkpointing else {}
        once = lambda: estimate_members(model, axes, ids, criteria=CRITERIA_OF[way], **extra)  # noqa: E731
        gradients = "reduced"
        cut = {member.parameter for axis in axes.values() for member in axis.members}
        trim_heap()
        predicted = predict_memory(model, samples, tokens, CRITERIA_OF[way], parameters=cut, **extra)
        predicted_mb = round(predicted.total / 2**20, 1)
    loaded_mb, peak = meter(device)
    first_s = timed(once, device)
    peak_mb = peak()
    rounds = max(1, min(repeats, int(ENOUGH_S / (2 * first_s))))
    calls = {PLAIN: lambda: _plain(model, ids, True), way: once}
    times = in_turn(calls, rounds, device, warmup=0, before=trim_heap)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "gradients": gradients,
        "weights_mb": round(weights_mb(model), 1),
        "loaded_mb": round(loaded_mb, 1),
        "peak_mb": round(peak_mb, 1),
        "predicted_mb": predicted_mb,
        "first_s": round(first_s, 3),
        **_compared(times[way], times[PLAIN]),
    }


def _compared(ours: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """Medians of the times, and of their ratio round by round."""
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    return {
        "seconds": round(statistics.median(ours), 3),
        "plain_s": round(statistics.median(plain), 3),
        "time_to_plain": round(statistics.median(ratios), 3),
        "n_times": len(ratios),
    }


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the ratios of the peak to the weights, and of what was predicted to the peak."""
    frame = frame.drop(columns=["peak_to_weights", "predicted_to_peak"], errors="ignore")
    frame["peak_to_weights"] = (frame.peak_mb / frame.weights_mb).round(3)
    frame["predicted_to_peak"] = (frame.predicted_mb / frame.peak_mb).round(3)
    return frame


PART = Part(
    "scoring",
    "Is a model scored in little more than the memory of its weights, and the time of one pass?",
    "tests.benchmarks.scoring:measure",
    CODE,
    cases,
    derive,
)


def _bytes(size: str, dtype: torch.dtype) -> int:
    """Bytes of the weights of a size, without building it."""
    config = shape_config(size)
    head = config.hidden_size // config.num_attention_heads
    attention = 2 * config.hidden_size * head * (config.num_attention_heads + config.num_key_value_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
    total = config.num_hidden_layers * layer + (2 * config.vocab_size + 1) * config.hidden_size
    return total * torch.empty((), dtype=dtype).element_size()


def free_mb(device: str) -> float:
    """Memory that a new allocation could get, in MiB; without end where that is not known."""
    available = available_bytes(torch.device(device))
    return float("inf") if available is None else available / 2**20


def _refuse_too_large(size: str, needed_mb: float, device: str) -> None:
    if needed_mb + BESIDE_MB > free_mb(device):
        raise ValueError(
            f"size {size} needs {needed_mb:,.0f} MiB for its weights and up to {BESIDE_MB:,.0f} beside them, "
            f"but {free_mb(device):,.0f} are free on {device}; leave it out with --sizes"
        )


def _plain(model: nn.Module, ids: Tensor, freed: bool) -> None:
    """Run forward and backward; gradients stay until all are there, or go as soon as each is made."""
    hooks = [p.register_post_accumulate_grad_hook(_forget) for p in model.parameters() if freed]
    try:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None
