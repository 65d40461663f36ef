"""Carry experiments out: each once, in an order that loads and calibrates little, resuming after a kill.

`run` gives the record of one experiment, `run_all` those of many; a record on disk is not measured again.
Every number carries the protocol that makes it comparable.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pruner_lib.data.windows import corpus_hash
from pruner_lib.evaluation import meters
from pruner_lib.evaluation.int8 import is_quantised
from pruner_lib.evaluation.perplexity import perplexity_result
from pruner_lib.evaluation.zero_shot import zero_shot
from pruner_lib.files import only_one, read_json, write_json, write_text
from pruner_lib.method.importance import aggregate
from pruner_lib.study import stages
from pruner_lib.study.records import Metric, Record, metric_from, read_record, record_path, write_record
from pruner_lib.study.results import git_revision, now, results_dir, versions
from pruner_lib.study.settings import (
    DATA_FREE,
    Calibration,
    Evaluation,
    Experiment,
    Profile,
    Recovery,
    load_profile,
    profile_names,
    settings_key,
)
from pruner_lib.study.stages import Bench, Subject, begins_with_bos, evaluation_ids, make_subject, model_hash

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


def evaluate(asked: Experiment, subject: Subject, bench: Bench) -> dict[str, Metric]:
    """Measure a model on every text and task of an experiment, but not what was measured before a kill.

    Returns: "perplexity/wiki@128", "accuracy/boolq" -> Metric.
    """
    wanted, path = asked.evaluation, partial_path(asked, bench)
    saved = read_json(path) if path.is_file() else {}
    steps = {f"perplexity/{text}@{wanted.length}": (perplexity_metric, text) for text in wanted.texts}
    steps |= {f"accuracy/{task}": (_accuracy, task) for task in wanted.tasks}
    for name, (measure, dataset) in steps.items():
        if name not in saved:
            start = time.perf_counter()
            metric = asdict(measure(dataset, wanted, subject))
            saved[name] = {"metric": metric, "seconds": time.perf_counter() - start}
            write_json(path, saved)
    bench.seconds["evaluate"] = sum(saved[name]["seconds"] for name in steps)
    return {name: metric_from(saved[name]["metric"]) for name in steps}


def partial_path(asked: Experiment, bench: Bench) -> Path:
    """Tell where the metrics of an unfinished experiment lie."""
    return bench.cache(f"partial-{settings_key([asked.key, model_hash(asked.model)])}.json")


def perplexity_metric(text: str, asked: Evaluation, subject: Subject) -> Metric:
    """Measure the perplexity on one text of an evaluation."""
    ids = evaluation_ids(asked, text, subject.tokenizer)  # (windows, length)
    found = perplexity_result(subject.model, ids)
    protocol = {
        "metric": "perplexity",
        "corpus_hash": corpus_hash(ids),
        "window": asked.length,
        "stride": asked.length,
        "bos": "text" if begins_with_bos(asked, subject.tokenizer) else "none",
        "tokenizer_hash": tokenizer_hash(subject.tokenizer),
        "dtype": _dtype(subject.model),
    }
    return Metric(
        found.value, found.stderr, len(ids), protocol, tuple(round(float(nll), 6) for nll in found.nll)
    )


def _accuracy(task: str, asked: Evaluation, subject: Subject) -> Metric:
    with contextlib.redirect_stderr(io.StringIO()):  # lm-eval draws bars that can't be turned off
        # the first questions, as in the committed records
        score = zero_shot(subject.model, subject.tokenizer, (task,), asked.limit, seed=None)[task]
    protocol = score.protocol | {"dtype": _dtype(subject.model)}
    return Metric(score.value, score.stderr, score.n, protocol, tuple(score.correct))


def tokenizer_hash(tokenizer: Any) -> str:
    """Name a tokenizer by a hash of its vocabulary; two with the same ids for all tokens have the same."""
    text = repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _dtype(model: Any) -> str:
    name = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"int8 linear, else {name}" if is_quantised(model) else name


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
        partial_path(record.experiment, bench).unlink(missing_ok=True)
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
    meters.reset_peak()
    subject = make_subject(asked, bench, criteria)
    metrics = evaluate(asked, subject, bench)
    stages.forget_large()
    return Record(
        asked,
        _summary(subject),
        metrics,
        subject.history,
        {name: round(s, 3) for name, s in bench.seconds.items()},
        meters.peak_mb(),
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
