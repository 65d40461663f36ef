"""Benchmark, part d: tokens a second of the perplexity evaluation, beside the model's bare forward pass.

Both see the same batches, in turn within one process; the share is the median over rounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pruner_lib.benchmark.bench_rows import Part
from pruner_lib.measuring.evaluation import automatic_batch, evaluating, perplexity_result, vocabulary_size
from pruner_lib.measuring.timing import in_turn, quartiles

if TYPE_CHECKING:
    from torch import Tensor, nn

LENGTHS = (128, 1024)  # tokens a window: the paper's, and a long one


def cases(options) -> list[dict[str, Any]]:
    """List the settings: one case for each length of a window and type of the weights."""
    shared = {"model": options.model, "device": options.device, "rounds": options.rounds}
    total = options.eval_tokens
    return [
        {"window": window, "windows": max(1, total // window), "dtype": dtype, **shared}
        for dtype in ("float32", "bfloat16")
        for window in LENGTHS
        if window <= total
    ]


def measure(model: str, *, window: int, windows: int, dtype: str, device: str, rounds: int) -> dict[str, Any]:
    """Time both on random tokens.

    Args:    window: tokens a window.    windows: how many.
    Returns: a row: tokens a second of each at the median, and the share with its quartiles.
    """
    from pruner_lib.inputs.models import load_model

    subject = load_model(model, device=device, dtype=getattr(torch, dtype))[0]
    vocabulary = vocabulary_size(subject)
    ids = torch.randint(vocabulary, (windows, window), generator=torch.Generator().manual_seed(0))
    place = subject.get_input_embeddings().weight.device
    batch = automatic_batch(window, vocabulary, place.type)
    calls = {
        "bare": lambda: _bare(subject, ids, batch),
        "perplexity": lambda: perplexity_result(subject, ids, batch_size=batch),
    }
    times = in_turn(calls, rounds, place)
    shares = [bare / ours for bare, ours in zip(times["bare"], times["perplexity"], strict=True)]
    low, share, high = quartiles(shares)
    tokens = windows * window
    return {
        "batch": batch,
        "bare_tokens_per_s": round(tokens / quartiles(times["bare"])[1], 1),
        "tokens_per_s": round(tokens / quartiles(times["perplexity"])[1], 1),
        "share": round(share, 3),
        "share_q1": round(low, 3),
        "share_q3": round(high, 3),
    }


def _bare(model: nn.Module, ids: Tensor, batch: int) -> None:
    """Run the forward pass over all windows, and keep nothing."""
    place = model.get_input_embeddings().weight.device
    with evaluating(model):
        for part in ids.split(batch):
            model(input_ids=part.to(place), use_cache=False)


PART = Part(
    "evaluation",
    "What does measuring perplexity cost beside the forward pass?",
    "pruner_lib.benchmark.bench_evaluation:measure",
    ("evaluation", "timing", "bench_evaluation"),
    cases,
)
