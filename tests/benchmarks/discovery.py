"""Benchmark, part b: time of discovery against layers and width, beside torch-pruning on the same model.

Both list every set of slices that must go together. Ours runs on the meta device; torch-pruning traces a
model with its weights, random and in bfloat16. Each case has its process; building the model is not timed.

The interpreter that torch-pruning runs in: an environment of its own, made for the benchmark alone.

It lies in the cache folder and holds that one package, without its dependencies; torch and the rest are read
from where this process reads them, so that both tools meet the same model on the same libraries.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import pruner_lib
from pruner_lib.data.assets import build_folder, cache_root
from pruner_lib.evaluation.meters import meter, timed
from pruner_lib.method.discover import discover
from tests.benchmarks.rows import Part
from tests.benchmarks.shapes import meta_model, random_model, weights_mb

SIZES = (
    "4x1024", "8x1024", "16x1024", "32x1024", "64x1024", "8x512", "8x2048", "8x4096", "8x8192", "7", "70",
)  # fmt: skip
OURS, RIVAL = "ours", "torch-pruning"
TRACED_TOKENS = 3  # length of the prompt that torch-pruning is given; ours takes as many


def cases(options) -> list[dict[str, Any]]:
    """List the settings of all cases, the two tools in turn; the largest sizes are ours alone."""
    found = []
    for size in options.sizes or SIZES:
        found.append({"size": size, "tool": OURS, "repeats": options.repeats})
        if options.rival and weights_mb(meta_model(size)) <= options.rival_gib * 1024:
            found.append({"size": size, "tool": RIVAL, "repeats": options.repeats})
    return found


def measure(size: str, tool: str, *, repeats: int) -> dict[str, Any]:
    """Measure one tool on one size.

    Returns: a row; `first_s` is the first time in a fresh process, `seconds` the median over all repeats,
             `n_groups` what the tool lists: single groups (ours), or coupled layers (torch-pruning).
    """
    model = meta_model(size) if tool == OURS else random_model(size)
    row = {
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_mb": 0.0 if tool == OURS else round(weights_mb(model), 1),
    }
    once: Callable[[], int] = _ours(model) if tool == OURS else _rival(model)
    before, peak = meter("cpu")
    found: list[int] = []
    seconds = [timed(lambda: found.append(once()), "cpu") for _ in range(repeats)]
    row |= {"tool_version": _version(tool), "n_groups": found[-1], "n_times": len(seconds)}
    row |= {"first_s": round(seconds[0], 4), "seconds": round(statistics.median(seconds), 4)}
    return row | {"peak_mb": peak(), "added_mb": round(peak() - before, 1)}


def _ours(model) -> Callable[[], int]:
    return lambda: sum(axis.n_groups for axis in discover(model).values())


def _rival(model) -> Callable[[], int]:
    """Build torch-pruning's dependency graph and list its groups, its root layers all linear ones."""
    import torch_pruning

    ids = torch.zeros(1, TRACED_TOKENS, dtype=torch.int64)

    def once() -> int:
        graph = torch_pruning.DependencyGraph().build_dependency(
            model, {"input_ids": ids, "use_cache": False}, verbose=False
        )
        listed = graph.get_all_groups(ignored_layers=[model.lm_head], root_module_types=[torch.nn.Linear])
        return sum(1 for _ in listed)

    return once


def _version(tool: str) -> str:
    return pruner_lib.__version__ if tool == OURS else version(tool)


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Add our time as a share of torch-pruning's on the same size."""
    frame = frame.drop(columns="share_of_rival", errors="ignore")
    same = ["machine", "size", "repeats"]
    rival = frame[frame.tool == RIVAL].drop_duplicates(same, keep="last").set_index(same).seconds
    base = [rival.get(tuple(row), float("nan")) for row in frame[same].itertuples(index=False)]
    frame["share_of_rival"] = (frame.seconds / base).round(3)
    return frame


METHOD = ("trace", "discover", "decoder", "labels", "operators", "groups", "norms")
CODE = (
    *(f"pruner_lib.method.{name}" for name in METHOD),
    "tests.benchmarks.discovery",
    "tests.benchmarks.shapes",
)
PART = Part(
    "discovery",
    "How long does it take to find the groups, and what does torch-pruning take?",
    "tests.benchmarks.discovery:measure",
    CODE,
    cases,
    derive,
)


REQUIREMENT = "torch-pruning==1.6.1"  # the newest on PyPI when this was written
TAIL = 600  # characters of pip's messages that are shown


def rival_python(requirement: str = REQUIREMENT) -> Path:
    """Give the interpreter of the environment that holds torch-pruning, making it first where there is none.

    Raises:  ValueError: it can't be made, for example without a network.
    """
    folder = cache_root() / "bench" / "torch-pruning"
    source = f"{requirement} {sys.version} {_our_packages()}"
    return build_folder(folder, lambda partial: _make(partial, requirement), source=source) / _PYTHON


_PYTHON = Path("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _our_packages() -> Path:
    return Path(sysconfig.get_paths()["purelib"])


def _make(folder: Path, requirement: str) -> None:
    _call([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    quiet = ["--no-deps", "--quiet", "--disable-pip-version-check", "--progress-bar=off"]
    _call([sys.executable, "-m", "pip", "--python", str(folder / _PYTHON), "install", *quiet, requirement])
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(_call([str(folder / _PYTHON), "-c", ask]).strip())
    # a path file is read at the start: `addsitedir` heeds the path files of our own packages in turn
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({str(_our_packages())!r})\n")


def _call(command: list[str]) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"the environment for torch-pruning could not be made: `{' '.join(command[1:4])}` gave exit code "
            f"{done.returncode}: {(done.stderr or done.stdout)[-TAIL:].strip()}\nwith a network it is made "
            "once; --no-rival leaves torch-pruning out"
        )
    return done.stdout
