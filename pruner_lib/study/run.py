"""A study: a profile and its results folder, in which every experiment runs once and every number is kept.

    study = Study("quick")
    record = study.run(study.profile.experiment(criterion="l2"))

A record on disk is not measured again. Every number is stored with the protocol that it was measured by.
"""

import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pruner_lib.evaluation import meters
from pruner_lib.method.checks import require
from pruner_lib.study import cluster
from pruner_lib.study.cache import check_inputs, inputs_hash, recovery_key
from pruner_lib.study.claims import Numbers, Verdict, answer_path, write_answer
from pruner_lib.study.compare import Pair, describe, each_task_left_out, named_parts
from pruner_lib.study.records import Record, read_kept, read_record, record_path, write_kept, write_record
from pruner_lib.study.results import git_revision, model_revision, now, results_root, versions
from pruner_lib.study.settings import DATA_FREE, OWN_PASS, Experiment, settings_key
from pruner_lib.study.stages import Stages

one_at_a_time = threading.RLock()  # all threads share torch's random state and the peak-memory counter
Jobs = list[tuple[Experiment, tuple[str, ...]]]  # experiments, each with further criteria for its pass


class Study(Stages):
    """A profile and its results folder: experiments run once, and everything measured is kept.

    Args:    profile: the name of a profile.    results: the folder of all results; None: `results_root()`.
    Raises:  ValueError: there is no such profile.
    """

    def run(self, experiment: Experiment, *, criteria: Sequence[str] = (), wait: bool = True) -> Record:
        """Return the record of an experiment, measured only if there is none.

        Args:    criteria: others to estimate in the same calibration pass, for experiments that follow.
                 wait: wait if another process runs this experiment.
        Returns: the record; it is `reused` if it was read from disk.
        Raises:  ValueError: an unknown model, or an error of a stage. Nothing half-written is left.
                 TimeoutError: another process runs the experiment, and `wait` is False.
        """
        require(Experiment, experiment=experiment)
        check_inputs(experiment)
        if (record := self._existing(experiment)) is None:
            with self._locked(experiment, wait=wait):  # another process may have measured it meanwhile
                record = self._existing(experiment) or self._measure(experiment.canonical(), criteria)
        self.measured_by.add(record.git_revision)
        return record

    def run_all(self, experiments: Sequence[Experiment]) -> list[Record]:
        """Return the records of many experiments, measure missing ones, and print how many were reused.

        Returns: the records, in the order of the experiments.
        Raises:  what `run` raises. Records made before the failure are kept.
        """
        require([Experiment, ...], experiments=experiments)
        unique = {experiment.key: experiment for experiment in experiments}
        records = {key: record for key, job in unique.items() if (record := self._existing(job))}
        jobs = _in_order([experiment for key, experiment in unique.items() if key not in records])
        for experiment, _ in jobs:
            check_inputs(experiment)
        if jobs:
            run = self._run_here if self.client is None else self._run_on_cluster
            records |= {record.key: record for record in run(jobs)}
        self.measured_by |= {record.git_revision for record in records.values()}
        reused, plural = sum(record.reused for record in records.values()), "s" * (len(unique) > 1)
        print(f"{len(unique)} experiment{plural}: {reused} reused, {len(unique) - reused} run now")
        return [records[experiment.key] for experiment in experiments]

    @cached_property
    def client(self) -> Any:
        """The Dask client that `$PRUNER_LIB_SCHEDULER` names; None: experiments run here, one by one.

        Any executor with `submit` may replace it; machines need not share the results folder.
        """
        address = os.environ.get(cluster.SCHEDULER)
        return cluster.connect(address) if address else None

    def _run_here(self, jobs: Jobs) -> list[Record]:
        """Run experiments one after the other, and last those that another process runs now."""
        done, bar = {}, tqdm(jobs, desc="experiments", unit="run")
        for job, criteria in bar:
            bar.set_postfix_str(f"{job.method} {job.stage} {job.ratio:.0%}")
            with suppress(TimeoutError):
                done[job] = self.run(job, criteria=criteria, wait=False)
        if len(done) < len(jobs):
            print(f"waiting for another process, which runs {len(jobs) - len(done)} of these experiments")
        return [done.get(job) or self.run(job, criteria=criteria) for job, criteria in jobs]

    def _run_on_cluster(self, jobs: Jobs) -> Iterator[Record]:
        self.folder.mkdir(parents=True, exist_ok=True)  # tells workers on the same disk to use it
        calls = [(job, self.profile.name, self.folder.parent, criteria) for job, criteria in jobs]
        results = cluster.results_of(self.client, run_experiment, calls)
        for (job, _), record in zip(jobs, results, strict=True):
            if record.machine["inputs_hash"] != inputs_hash(job):
                advice = "give all machines the same models and data (PRUNER_LIB_DATA), then run again"
                raise ValueError(f"a worker's local files differ from those here for {record}; {advice}")
            if self._existing(job) is None:  # the worker does not share our disk
                write_record(record, self.folder)
            yield record

    def records(self, named: Mapping[Any, Sequence[Experiment]]) -> dict[Any, list[Record]]:
        """Run named lists of experiments together, and return name -> its records."""
        records = iter(self.run_all([experiment for group in named.values() for experiment in group]))
        return {name: [next(records) for _ in experiments] for name, experiments in named.items()}

    def model(self, experiment: Experiment) -> tuple[Any, Any]:
        """Make the model that an experiment measures: `(model, tokenizer)`, which the caller may change.

        Scores and trained adapters come from the cache; missing ones are computed, even a whole training.
        """
        with self._locked(experiment):
            subject = self.subject(experiment.canonical())
        return subject.model, subject.tokenizer

    def cached(self, key: list, make: Callable[[], Any], folder: str = "measured") -> Any:
        """Return the result kept under a key, or make it now and keep it as JSON; see `read_kept`.

        Args:    key: plain data that determines the result.    folder: in the profile's results.
             make: returns plain data; infinities are read back as text.
        """
        name = settings_key(key if self.profile.dtype == "float32" else [self.profile.dtype, key])
        path = self.folder / folder / f"{name}.json"
        if (kept := read_kept(path)) is None:
            with self.lock(f"{folder}-{name}"):
                if (kept := read_kept(path)) is None:
                    kept = read_kept(write_kept(path, make()))
        return kept

    def answer(self, claim: str, numbers: Numbers, **options: Any) -> Verdict:
        """Write the numbers by which a claim of the paper is judged; see `claims.write_answer`."""
        verdict = write_answer(self.place, claim, numbers, **options)
        self.outputs.append(answer_path(self.place, claim))
        return verdict

    def settle(
        self, claim: str, pairs: Pair | Mapping[str, Pair], kind: str = "perplexity", **options: Any
    ) -> Verdict | str:
        """Compare pruning methods in pairs, and write the numbers as the answer to a claim.

        Args:    pairs: one, or several by name.    kind, options: see `compare.parts`.
        Returns: the verdict, or a sentence if no metric was measured on both sides.
        """
        named = pairs if isinstance(pairs, Mapping) else {"": pairs}
        numbers = named_parts(named, kind, **options)
        if not numbers:
            return f"{claim}: not measured in this profile"
        groups = [group for pair in named.values() for group in pair]
        records, without = sum(map(list, groups), []), each_task_left_out(named, kind, **options)
        return self.answer(claim, numbers, note=describe(numbers, *groups), records=records, without=without)

    def _existing(self, experiment: Experiment) -> Record | None:
        path = record_path(self.folder, experiment.key)
        record = read_record(path) if path.is_file() else None
        if record is None or record.machine.get("inputs_hash") != inputs_hash(experiment):
            return None
        dtype = self.profile.dtype  # may have changed since the record was made
        types = {metric.protocol.get("dtype", dtype).split()[-1] for metric in record.metrics.values()}
        return record if types <= {dtype} else None

    @contextmanager
    def _locked(self, experiment: Experiment, *, wait: bool = True) -> Iterator[None]:
        """Let one thread and one process at a time make the model of an experiment; see `only_one`."""
        trained = experiment.recovery is not None
        name = f"recovery-{recovery_key(experiment)}" if trained else f"record-{experiment.key}"
        with one_at_a_time, self.lock(name, wait=wait):
            yield

    def _measure(self, experiment: Experiment, criteria: Sequence[str]) -> Record:
        meters.reset_peak()
        self.seconds.clear()
        inputs = inputs_hash(experiment)  # before the files are read, so that a later change is noticed
        revision = model_revision(experiment.model)
        subject = self.subject(experiment, criteria)
        metrics = self.evaluate(experiment, subject)
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        device_name = torch.cuda.get_device_name() if self.device == "cuda" else platform.machine()
        machine = {"device": self.device, "device_name": device_name, "threads": torch.get_num_threads()}
        machine |= {"cpus": os.cpu_count(), "system": platform.system()}
        machine |= {"inputs_hash": inputs, "model_revision": revision}
        measured = subject.cut, metrics, subject.history, seconds, meters.peak_mb(), machine
        record = Record(experiment, *measured, versions(), git_revision(), now())
        write_record(record, self.folder)
        self.unfinished(experiment).unlink(missing_ok=True)
        return record


def _in_order(experiments: list[Experiment]) -> Jobs:
    """Sort experiments by model; for each model those without recovery come first, then by calibration.

    Returns: the experiments, each with all criteria that are needed from its calibration pass.
    """
    models = [experiment.model for experiment in experiments]
    calibrated = [job for job in experiments if job.ratio and job.criterion not in {*DATA_FREE, *OWN_PASS}]
    passes: dict[tuple, set[str]] = {}  # (model, calibration) -> criteria
    for job in calibrated:
        passes.setdefault((job.model, job.calibration), set()).add(job.criterion)

    def order(job: Experiment) -> tuple:
        return models.index(job.model), job.recovery is not None, job.ratio > 0, repr(job.calibration)

    criteria = {job: tuple(sorted(passes[job.model, job.calibration])) for job in calibrated}
    return [(job, criteria.get(job, ())) for job in sorted(experiments, key=order)]


_worker_study = lru_cache(maxsize=1)(Study)  # keeps a worker's dense model for the experiments that follow


def run_experiment(experiment: Experiment, profile: str, results: Path, criteria: Sequence[str]) -> Record:
    """Run one experiment in a worker process: `Study.run`, as a function that an executor can send.

    Args:    results: the folder of all results; a worker that does not see it uses its own `results_root()`.
    """
    root = results if (results / profile).is_dir() else results_root()
    return _worker_study(profile, root).run(experiment, criteria=criteria)
