"""Benchmark: tokens per second of the perplexity evaluation, compared with a bare forward pass.

    python -m tests.benchmarks.evaluation [--set model=smollm2-135m window=128,1024] [--again]

Both process the same batches alternately in one process; the share is the median over rounds.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from pruner_lib.evaluation.meters import in_turn, quartiles
from pruner_lib.evaluation.perplexity import automatic_batch, perplexity_result
from pruner_lib.method.offload import evaluating
from pruner_lib.models.load import load_model
from tests.benchmarks.rows import DEVICE, Cases, run

LENGTHS = {128: 32, 1024: 4}  # tokens per window, the paper's and a long one -> number of windows


def cases() -> Cases:
    """List the settings: one case for each window length and weight type."""
    shared = {"model": "smollm2-135m", "device": DEVICE, "rounds": 7}
    kinds = [(window, dtype) for dtype in ("float32", "bfloat16") for window in LENGTHS]
    return [{"window": w, "windows": LENGTHS[w], "dtype": dtype, **shared} for w, dtype in kinds]


def measure(model: str, *, window: int, windows: int, dtype: str, device: str, rounds: int) -> dict[str, Any]:
    """Time both on random tokens.

    Args:    window: tokens per window.    windows: their number.
    Returns: one row: the median tokens per second of each, and the share with its quartiles.
    """
    subject = load_model(model, device=device, dtype=getattr(torch, dtype))[0]
    vocabulary = subject.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (windows, window), generator=torch.Generator().manual_seed(0))
    batch = automatic_batch(window, vocabulary, torch.device(device).type)

    def bare() -> None:
        with evaluating(subject):
            for part in ids.split(batch):
                subject(input_ids=part.to(device), use_cache=False)

    calls = {"bare": bare, "ours": lambda: perplexity_result(subject, ids, batch_size=batch)}
    times = in_turn(calls, rounds, device)
    low, share, high = quartiles([a / b for a, b in zip(times["bare"], times["ours"], strict=True)])
    tokens = windows * window
    return {
        "batch": batch,
        "bare_tokens_per_s": round(tokens / quartiles(times["bare"])[1], 1),
        "tokens_per_s": round(tokens / quartiles(times["ours"])[1], 1),
        "share": round(share, 3),
        "share_q1": round(low, 3),
        "share_q3": round(high, 3),
    }


if __name__ == "__main__":
    sys.exit(run("evaluation", cases()))
