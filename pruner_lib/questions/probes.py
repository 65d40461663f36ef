"""Probes of the estimation: what is true of single groups, and what a pass costs; measured once, then cached.

What is cached lies where that of the stages lies, and may be deleted at any time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruner_lib.experiments import stages
from pruner_lib.experiments.experiment import Experiment, settings_key
from pruner_lib.experiments.storage import only_one, read_json, write_json
from pruner_lib.experiments.study import bench_of
from pruner_lib.measuring.memory import meter
from pruner_lib.measuring.timing import timed

if TYPE_CHECKING:
    import pandas as pd

PASSES = {  # name -> criteria of one pass; None: a plain forward and backward pass that keeps every gradient
    "plain forward + backward": None,
    "first order (element1)": ("element1",),
    "all four Taylor criteria": ("vector", "element1", "element2", "mixed"),
}


def true_changes(
    experiment: Experiment,
    groups: Sequence[tuple[str, int]],
    *,
    profile: str = "quick",
    results_dir: Path | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how the loss on the calibration batch changes when each of some groups is set to zero alone.

    Args:    experiment: gives model and calibration.    groups: (axis name, group number).
    Returns: columns `axis`, `group`, `change` (nats a token).
    """
    import pandas as pd

    from pruner_lib.questions.oracle import loss_changes

    def measure(dense: stages.Loaded, ids: Any) -> list[float]:
        return loss_changes(dense.model, dense.axes, groups, ids, progress=progress)

    found = once(["changes", [list(group) for group in groups]], experiment, measure, profile, results_dir)
    return pd.DataFrame(groups, columns=["axis", "group"]).assign(change=found)


def pass_costs(
    experiment: Experiment, *, repeats: int = 2, profile: str = "quick", results_dir: Path | str | None = None
) -> pd.DataFrame:
    """Time passes over the calibration batch and watch their memory, after a short pass that is not counted.

    Args:    experiment: gives model and calibration.    repeats: how often each of `PASSES` runs, in turns.
    Returns: a row a run; columns `passes`, `seconds`, `memory_mb` (at most during it, above what was there
             before, plus the weights), `weights_mb`. The numbers are of the machine that measured them.
    """
    import pandas as pd

    def measure(dense: stages.Loaded, ids: Any) -> list[dict[str, Any]]:
        _pass_of(dense, ids[:1, :8], PASSES["first order (element1)"])
        weights = sum(p.numel() * p.element_size() for p in dense.model.parameters()) / 2**20
        rows = []
        gc.collect()
        for _ in range(repeats):
            for name, criteria in PASSES.items():
                seconds, above = _cost(lambda criteria=criteria: _pass_of(dense, ids, criteria), dense.model)
                row = {
                    "passes": name,
                    "seconds": seconds,
                    "memory_mb": weights + above,
                    "weights_mb": weights,
                }
                rows.append(row)
        return rows

    return pd.DataFrame(once(["costs", repeats], experiment, measure, profile, results_dir))


def once(
    what: list, experiment: Experiment, measure: Callable, profile: str, results_dir: Path | str | None
) -> Any:
    """Give what was measured before with these settings, else measure it on the dense model and keep it.

    Args:    what: settings besides model and calibration.
             measure: takes the dense model, which it may let go of, and the calibration samples; what it
             gives is kept as JSON.
    """
    from dataclasses import asdict

    bench = bench_of(profile, results_dir)
    key = settings_key(
        [what, experiment.model, stages.model_hash(experiment.model), asdict(experiment.calibration)]
    )
    path = bench.cache(f"probe-{key}.json")
    with only_one(path.with_suffix(".lock")):
        if not path.is_file():
            from pruner_lib.inputs.data import calibration_ids

            tokenizer = stages.load_dense(experiment.model, bench).tokenizer
            sizes = asdict(experiment.calibration)
            ids = calibration_ids(sizes.pop("corpus"), tokenizer, **sizes)  # (samples, length)
            write_json(path, measure(stages.load_dense(experiment.model, bench), ids.to(bench.device)))
    return read_json(path)


def _pass_of(dense: stages.Loaded, ids: Any, criteria: Sequence[str] | None) -> None:
    import torch

    from pruner_lib.method.importance import estimate_members

    if criteria is not None:
        estimate_members(dense.model, dense.axes.of_kind("attention", "mlp"), ids, criteria=criteria)
        return
    with torch.enable_grad():
        logits = dense.model(input_ids=ids, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
    dense.model.zero_grad(set_to_none=True)


def _cost(action: Callable[[], None], model: Any) -> tuple[float, float]:
    """Seconds of an action, and how far memory rose above what was held before, in MiB."""
    device = next(model.parameters()).device
    before, peak = meter(device)
    seconds = timed(action, device)
    return seconds, max(0.0, peak() - before)
