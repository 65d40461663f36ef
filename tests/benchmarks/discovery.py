"""Benchmark: discovery time over layers and width, compared with torch-pruning on the same model.

    python -m tests.benchmarks.discovery [--set size=7,70] [--again]

Both list all sets of slices that must be removed together. Ours runs on the meta device; torch-pruning (the
extra `bench`) traces a model with random bfloat16 weights. Building the model is not timed.
"""

from __future__ import annotations

import statistics
import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pandas as pd
import torch

import pruner_lib
from pruner_lib.evaluation.meters import meter, timed
from pruner_lib.method.discover import discover
from tests.benchmarks.rows import Cases, run
from tests.benchmarks.shapes import meta_model, random_model, weights_mb

DEPTHS = ("4x1024", "8x1024", "16x1024", "32x1024", "64x1024")
WIDTHS = ("8x512", "8x2048", "8x4096", "8x8192")
OURS, RIVAL = "ours", "torch-pruning"
TRACED_TOKENS = 3  # length of the prompt for torch-pruning; ours uses the same number


def cases() -> Cases:
    """List the settings of all cases; torch-pruning would need the weights of 70 billion parameters."""
    tools = (OURS, RIVAL) if find_spec("torch_pruning") else (OURS,)
    sizes = [(size, tool) for size in (*DEPTHS, *WIDTHS, "7") for tool in tools] + [("70", OURS)]
    return [{"size": size, "tool": tool, "repeats": 3} for size, tool in sizes]


def measure(size: str, tool: str, repeats: int) -> dict[str, Any]:
    """Measure one tool on one size.

    Returns: one row; `first_s` is the first time in a fresh process, `seconds` the median over all repeats,
             `n_groups` the number of listed items: single groups (ours) or coupled layers (torch-pruning).
    """
    model = meta_model(size) if tool == OURS else random_model(size)
    count = _count_ours if tool == OURS else _count_rival
    before, peak = meter("cpu")
    counts: list[int] = []
    seconds = [timed(lambda: counts.append(count(model)), "cpu") for _ in range(repeats)]
    return {
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_mb": 0.0 if tool == OURS else round(weights_mb(model), 1),
        "tool_version": pruner_lib.__version__ if tool == OURS else version(tool),
        "n_groups": counts[-1],
        "n_times": len(seconds),
        "first_s": round(seconds[0], 4),
        "seconds": round(statistics.median(seconds), 4),
        "peak_mb": peak(),
        "added_mb": round(peak() - before, 1),
    }


def _count_ours(model) -> int:
    return sum(axis.n_groups for axis in discover(model).values())


def _count_rival(model) -> int:
    """Build torch-pruning's dependency graph, and count its groups with all linear layers as roots."""
    import torch_pruning  # optional: the extra `bench`

    ids = torch.zeros(1, TRACED_TOKENS, dtype=torch.int64)
    inputs = {"input_ids": ids, "use_cache": False}
    graph = torch_pruning.DependencyGraph().build_dependency(model, inputs, verbose=False)
    groups = graph.get_all_groups(ignored_layers=[model.lm_head], root_module_types=[torch.nn.Linear])
    return sum(1 for _ in groups)


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Add each row's time relative to torch-pruning's at the same size."""
    same = ["machine", "size", "repeats"]
    rival = frame[frame.tool == RIVAL].drop_duplicates(same, keep="last").set_index(same).seconds
    base = [rival.get(tuple(row), float("nan")) for row in frame[same].itertuples(index=False)]
    return frame.assign(share_of_rival=(frame.seconds / base).round(3))


if __name__ == "__main__":
    if not find_spec("torch_pruning"):
        print("torch-pruning is not installed and is left out; `pip install -e .[bench]` installs it")
    sys.exit(run("discovery", cases(), derive=derive))
