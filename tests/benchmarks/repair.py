"""Benchmark: time and memory of the closed-form repair, compared with a scoring pass over the same tokens.

    python -m tests.benchmarks.repair [--set tokens=640,14336] [--again]

Both run alternately in one process, in CPU seconds; each round repairs a fresh copy of the model.
"""

from __future__ import annotations

import sys
import time
from copy import deepcopy
from typing import Any

import torch

from pruner_lib import calibration_ids, discover, estimate, load_model, repair_, select
from pruner_lib.evaluation.meters import meter, quartiles
from pruner_lib.method.groups import Axes
from tests.benchmarks.rows import Cases, run

LENGTH = 128  # tokens per sample


def cases() -> Cases:
    """List the settings: the paper's 640 tokens and more, on the model with one KV head per query head."""
    shared = {"model": "smollm2-135m-mha", "ratio": 0.2, "corpus": "c4", "rounds": 5}
    return [{"tokens": tokens, **shared} for tokens in (640, 3584, 14336)]


def measure(model: str, *, tokens: int, ratio: float, corpus: str, rounds: int) -> dict[str, Any]:
    """Score by element1, and repair the model after pruning by these scores.

    Returns: one row: the median seconds of each, their ratio with its quartiles, the highest growth of the
             process in MiB in the first round of each, and the size of a layer's largest matrix G (float64).
    """
    subject, tokenizer = load_model(model)
    axes, ids = discover(subject), calibration_ids(corpus, tokenizer, samples=tokens // LENGTH, length=LENGTH)
    seconds, added = {"scoring": [], "repair": []}, {}
    for _ in range(rounds):
        copied = deepcopy(subject)
        before, peak = meter("cpu")
        start = time.process_time()
        scores = estimate(subject, axes, ids, criterion="element1")
        seconds["scoring"].append(time.process_time() - start)
        added.setdefault("scoring_mb", round(peak() - before, 1))
        plan = select(axes, scores, ratio=ratio, target="parameters", protect_first=4, protect_last=2)
        before, peak = meter("cpu")
        start = time.process_time()
        repair_(copied, plan, ids, axes=axes)
        seconds["repair"].append(time.process_time() - start)
        added.setdefault("repair_mb", round(peak() - before, 1))
    each = [repair / scoring for repair, scoring in zip(seconds["repair"], seconds["scoring"], strict=True)]
    low, share, high = quartiles(each)
    middle = {f"{name}_s": round(quartiles(times)[1], 2) for name, times in seconds.items()}
    ratios = {"time_to_scoring": round(share, 3), "q1": round(low, 3), "q3": round(high, 3)}
    return {**middle, **ratios, **added, "gram_mb": round(_largest_gram(subject, axes), 1)}


def _largest_gram(subject: torch.nn.Module, axes: Axes) -> float:
    """Return the MiB of the largest G, which has a row for each column of an axis's last matrix."""
    columns = [
        subject.get_parameter(member.parameter).shape[1]
        for axis in axes.values()
        for member in axis.members
        if axis.layer is not None and member.structure == axis.last and member.role == "in"
    ]
    return max(columns) ** 2 * 8 / 2**20


if __name__ == "__main__":
    sys.exit(run("repair", cases()))
