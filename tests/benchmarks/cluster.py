"""Benchmark: experiments per hour by local Dask workers, and the overhead per task.

    python -m tests.benchmarks.cluster [--set workers=1,2,4 profile=quick] [--again]

Experiments prune at random with different seeds, and are measured as the profile says; the first one of each
worker loads the model and is not counted. Workers share the cores. The scheduler runs in the main process.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from pruner_lib.evaluation.meters import meter
from pruner_lib.study import cluster
from pruner_lib.study.run import Study
from tests.benchmarks.rows import Cases, run


def cases() -> Cases:
    """List the settings: one case for each number of workers."""
    shared = {"profile": "quick", "experiments": 16, "tasks": 1000}
    return [{"workers": workers, **shared} for workers in (1, 2)]


def measure(workers: int, profile: str, experiments: int, tasks: int) -> dict[str, Any]:
    """Run experiments, then tasks that do nothing.

    Returns: one row: `an_hour`, the experiments per hour; `task_ms`, from sending a trivial task to its
             result; `added_mb`, the growth of the scheduler's and client's process over all trivial tasks.
    """
    with tempfile.TemporaryDirectory() as folder, cluster.serving(workers) as address:
        client = cluster.connect(address)
        study = Study(profile, Path(folder))
        study.client = client
        one = {"criterion": "random", "recovery": None}
        first = [study.profile.experiment(seed=1000 + seed, **one) for seed in range(workers)]
        study.run_all(first)
        start = time.perf_counter()
        rest = [study.profile.experiment(seed=seed, **one) for seed in range(experiments)]
        study.run_all(rest)
        seconds = time.perf_counter() - start
        before, peak = meter("cpu")
        start = time.perf_counter()
        calls = [(number, 1) for number in range(tasks)]
        assert list(cluster.results_of(client, pow, calls)) == list(range(tasks))
        each = (time.perf_counter() - start) / tasks
        row = {"an_hour": round(3600 * experiments / seconds, 1), "task_ms": round(1000 * each, 2)}
        row["added_mb"] = round(peak() - before, 1)
        client.close()
    return row


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Add each row's speed relative to one worker with the same settings."""
    same = ["machine", "profile", "experiments"]
    one = frame[frame.workers == 1].drop_duplicates(same, keep="last").set_index(same).an_hour
    base = [one.get(tuple(row), float("nan")) for row in frame[same].itertuples(index=False)]
    return frame.assign(times_one=(frame.an_hour / base).round(2))


if __name__ == "__main__":
    sys.exit(run("cluster", cases(), derive=derive))
