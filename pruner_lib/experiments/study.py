"""Carry experiments out: each once, in an order that loads and calibrates little, resuming after a kill.

`run` gives the record of one experiment, `run_all` those of many; a record on disk is not measured again.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruner_lib.experiments import measures, stages
from pruner_lib.experiments.experiment import DATA_FREE, Calibration, Evaluation, Experiment, Recovery
from pruner_lib.experiments.profiles import Profile, load_profile, profile_names
from pruner_lib.experiments.records import Record, read_record, record_path, write_record
from pruner_lib.experiments.results import git_revision, now, results_dir, versions
from pruner_lib.experiments.storage import only_one, write_text
from pruner_lib.experiments.subjects import Subject, make_subject
from pruner_lib.measuring import memory

__all__ = [
    "Calibration",
    "Evaluation",
    "Experiment",
    "Profile",
    "Record",
    "Recovery",
    "load_profile",
    "model_of",
    "plan_of",
    "profile_names",
    "run",
    "run_all",
    "scores_of",
]
_one_at_a_time = threading.RLock()  # threads of one process share the dense model


def run(
    experiment: Experiment,
    *,
    profile: str = "quick",
    results_dir: Path | str | None = None,
    criteria: Sequence[str] = (),
) -> Record:
    """Give the record of an experiment; measure it only if there is none.

    Args:    profile: gives the folder of the record and the dtype.
             results_dir: holds the profiles' folders; None: `results.results_root()`.
             criteria: others that experiments to come want of the same calibration pass.
    Returns: the record, `reused` if it was there already.
    Raises:  ValueError: unknown profile or model, or whatever a stage refuses. Nothing half-written is left.
    """
    bench = bench_of(profile, results_dir)
    found = _existing(experiment, bench)
    if found is not None:
        return found
    _keep_out_of_git(bench.cache(".gitignore"))
    with _one_at_a_time, only_one(bench.cache(f"{_lock_name(experiment)}.lock")):
        found = _existing(experiment, bench)  # another process may have made it while we waited
        if found is not None:
            return found
        record = _measure(experiment.canonical(), bench, criteria)
        write_record(record, bench.directory)
        measures.partial_path(record.experiment, bench).unlink(missing_ok=True)
    return record


def run_all(
    experiments: Sequence[Experiment],
    *,
    profile: str = "quick",
    results_dir: Path | str | None = None,
    client: Any = None,
    progress: bool = True,
) -> list[Record]:
    """Give the records of many experiments, measuring only what has none; says how many were reused.

    Args:    client: a Dask client or another executor with `submit`: the experiments run there, on machines
             that share the results folder or not; None: here, one after the other.    progress: show a bar.
    Returns: the records, in the order of the experiments.
    Raises:  what `run` raises. Records made before the failure stay.
    """
    from tqdm.auto import tqdm

    bench = bench_of(profile, results_dir)
    unique = {experiment.key: experiment for experiment in experiments}
    records = {key: found for key, asked in unique.items() if (found := _existing(asked, bench)) is not None}
    pending = _in_order([asked for key, asked in unique.items() if key not in records])
    wanted = [(asked, _criteria_of(asked, pending)) for asked in pending]
    settings = {"profile": profile, "results_dir": bench.directory.parent}
    if client is not None:
        jobs = [client.submit(run, asked, criteria=criteria, **settings) for asked, criteria in wanted]
    bar = tqdm(wanted, desc="experiments", disable=not (progress and wanted), unit="run")
    for number, (asked, criteria) in enumerate(bar):
        bar.set_postfix_str(f"{asked.method} {asked.stage} {asked.ratio:.0%}")
        record = jobs[number].result() if client is not None else run(asked, criteria=criteria, **settings)
        if not record_path(bench.directory, record.key).is_file():  # a worker that does not share our disk
            write_record(record, bench.directory)
        records[record.key] = record
    if progress:
        reused = len(unique) - sum(not records[key].reused for key in unique)
        plural = "s" if len(unique) > 1 else ""
        print(f"{len(unique)} experiment{plural}: {reused} reused, {len(unique) - reused} run now")
    return [records[asked.key] for asked in experiments]


def model_of(
    experiment: Experiment, *, profile: str = "quick", results_dir: Path | str | None = None
) -> tuple[Any, Any]:
    """Make the model that an experiment measures, from what is cached: `(model, tokenizer)`, yours to change.

    What is not cached is made anew; of a recovered model that is its training.
    """
    bench = bench_of(profile, results_dir)
    _keep_out_of_git(bench.cache(".gitignore"))
    with _one_at_a_time, only_one(bench.cache(f"{_lock_name(experiment)}.lock")):
        asked = experiment.canonical()
        dense = asked.stage == "dense" and not asked.int8
        own = stages.load_own(asked.model, bench) if dense else make_subject(asked, bench)
    return own.model, own.tokenizer


def plan_of(experiment: Experiment, *, profile: str = "quick", results_dir: Path | str | None = None) -> Any:
    """Make the plan of an experiment (which groups stay), from cached scores where there are some."""
    if experiment.ratio == 0:
        raise ValueError("the dense model has no plan: ratio is 0, but must be above it")
    with _one_at_a_time:
        return stages.choose(experiment.canonical(), bench_of(profile, results_dir))


def scores_of(
    experiment: Experiment,
    criteria: Sequence[str],
    *,
    profile: str = "quick",
    results_dir: Path | str | None = None,
) -> dict[str, dict[str, Any]]:
    """Score the groups of an experiment's model by several criteria: from the cache, the others in one pass.

    Args:    experiment: gives model, calibration, aggregation and seed; the rest of it does not matter.
    Returns: criterion -> axis name -> `(n_groups,)` float32.
    """
    from pruner_lib.method.importance import aggregate

    bench = bench_of(profile, results_dir)
    with _one_at_a_time:
        members = stages.member_scores(experiment, bench, criteria)
        axes = stages.load_dense(experiment.model, bench).axes
    reduction = experiment.aggregation, experiment.order
    return {name: aggregate(axes, members[name], reduction[0], order=reduction[1]) for name in criteria}


def bench_of(profile: str, root: Path | str | None = None) -> stages.Bench:
    """Tell where and how the stages of a profile run: folder below `root`, dtype, this machine's device."""
    settings = load_profile(profile)
    return stages.Bench(results_dir(profile, root), settings.dtype, _device())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _existing(experiment: Experiment, bench: stages.Bench) -> Record | None:
    path = record_path(bench.directory, experiment.key)
    if not path.is_file():
        return None
    record = read_record(path)
    changed = record.machine.get("model_hash") != stages.model_hash(experiment.model)
    return None if changed else record


def _keep_out_of_git(path: Path) -> None:
    if not path.is_file():
        write_text(path, "*\n")


def _lock_name(experiment: Experiment) -> str:
    return (
        f"recovery-{stages.recovery_key(experiment)}" if experiment.recovery else f"record-{experiment.key}"
    )


def _measure(asked: Experiment, bench: stages.Bench, criteria: Sequence[str]) -> Record:
    memory.reset_peak()
    subject = make_subject(asked, bench, criteria)
    metrics = measures.evaluate(asked, subject, bench)
    stages.forget_large()
    return Record(
        asked,
        _summary(subject),
        metrics,
        subject.history,
        {name: round(s, 3) for name, s in bench.seconds.items()},
        memory.peak_mb(),
        _machine(asked, bench),
        versions(),
        git_revision(),
        now(),
    )


def _summary(subject: Subject) -> dict[str, Any]:
    found = {"parameters_dense": subject.n_dense, "parameters": subject.n_left, "sparsity": subject.sparsity}
    if subject.plan is not None:
        groups = subject.plan.n_groups
        found["kept"] = {name: [len(kept), groups[name]] for name, kept in subject.plan.keep.items()}
        if "layers" in subject.plan.keep:
            found["layers_kept"] = subject.plan.keep["layers"].tolist()
    return found


def _machine(asked: Experiment, bench: stages.Bench) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if bench.device == "cuda" else platform.machine()
    return {
        "device": bench.device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "model_hash": stages.model_hash(asked.model),
    }


def _in_order(experiments: list[Experiment]) -> list[Experiment]:
    """Put experiments of one model side by side, those without recovery first, then by calibration."""
    models = list(dict.fromkeys(asked.model for asked in experiments))
    return sorted(
        experiments,
        key=lambda asked: (
            models.index(asked.model),
            asked.recovery is not None,
            asked.ratio > 0,
            repr(asked.calibration),
        ),
    )


def _criteria_of(asked: Experiment, experiments: list[Experiment]) -> tuple[str, ...]:
    """List the criteria that experiments want of the same calibration pass as this one."""
    if asked.canonical().calibration != asked.calibration or not asked.ratio:
        return ()
    same = [
        one
        for one in experiments
        if one.ratio and (one.model, one.calibration) == (asked.model, asked.calibration)
    ]
    return tuple(sorted({one.criterion for one in same} - set(DATA_FREE)))
