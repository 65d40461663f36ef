"""A study: a profile and its folder of results, in which every experiment runs once and everything is kept.

    study = Study("quick")
    record = study.run(study.profile.experiment(criterion="l2"))

A record on disk is not measured again. Every number carries the protocol that makes it comparable.
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

one_at_a_time = threading.RLock()  # torch's random state and the peak-memory counter are the process's
Jobs = list[tuple[Experiment, tuple[str, ...]]]  # experiments, each with the criteria to score beside its own


class Study(Stages):
    """A profile and its results folder: experiments run once, everything measured is kept.

    Args:    profile: its name.    results: the folder of all results; None: `results_root()`.
    Raises:  ValueError: there is no such profile.
    """

    def run(self, experiment: Experiment, *, criteria: Sequence[str] = (), wait: bool = True) -> Record:
        """Return the record of an experiment; measure it only if there is none.

        Args:    criteria: others that experiments to come need of the same calibration pass.
                 wait: for another process that is at this experiment.
        Returns: the record, `reused` if it was there already.
        Raises:  ValueError: unknown model, or whatever a stage refuses. Nothing half-written is left.
                 TimeoutError: another process is at it, and `wait` is False.
        """
        require(Experiment, experiment=experiment)
        check_inputs(experiment)
        if (record := self._existing(experiment)) is None:
            with self._alone(experiment, wait=wait):  # meanwhile another process may have made it
                record = self._existing(experiment) or self._measure(experiment.canonical(), criteria)
        self.measured_by.add(record.git_revision)
        return record

    def run_all(self, experiments: Sequence[Experiment]) -> list[Record]:
        """Return the records of many experiments; measure only what has none, and say how many were reused.

        Returns: the records, in the order of the experiments.
        Raises:  what `run` raises. Records made before the failure stay.
        """
        require([Experiment, ...], experiments=experiments)
        unique = {one.key: one for one in experiments}
        records = {key: record for key, one in unique.items() if (record := self._existing(one)) is not None}
        jobs = _in_order([one for key, one in unique.items() if key not in records])
        for one, _ in jobs:
            check_inputs(one)
        if jobs:
            run = self._run_here if self.client is None else self._run_on_cluster
            records |= {record.key: record for record in run(jobs)}
        self.measured_by |= {record.git_revision for record in records.values()}
        reused, plural = sum(record.reused for record in records.values()), "s" * (len(unique) > 1)
        print(f"{len(unique)} experiment{plural}: {reused} reused, {len(unique) - reused} run now")
        return [records[one.key] for one in experiments]

    @cached_property
    def client(self) -> Any:
        """The Dask client that `$PRUNER_LIB_SCHEDULER` names; None: experiments run here, one by one.

        Any executor with `submit` may be put in its place; machines need not share the results folder.
        """
        address = os.environ.get(cluster.SCHEDULER)
        return cluster.connect(address) if address else None

    def _run_here(self, jobs: Jobs) -> list[Record]:
        """Run experiments one after the other, and last those that another process is at."""
        made, bar = {}, tqdm(jobs, desc="experiments", unit="run")
        for one, criteria in bar:
            bar.set_postfix_str(f"{one.method} {one.stage} {one.ratio:.0%}")
            with suppress(TimeoutError):
                made[one] = self.run(one, criteria=criteria, wait=False)
        if len(made) < len(jobs):
            print(f"{len(jobs) - len(made)} of them are another process's: waiting")
        return [made.get(one) or self.run(one, criteria=criteria) for one, criteria in jobs]

    def _run_on_cluster(self, jobs: Jobs) -> Iterator[Record]:
        self.folder.mkdir(parents=True, exist_ok=True)  # by which workers see that they share it
        calls = [(one, self.profile.name, self.folder.parent, criteria) for one, criteria in jobs]
        made = cluster.results_of(self.client, run_experiment, calls)
        for (one, _), record in zip(jobs, made, strict=True):
            if record.machine["inputs_hash"] != inputs_hash(one):
                said = f"a worker made {record} from other files of your own than lie here"
                advice = "give all machines the same models and data (PRUNER_LIB_DATA), then run again"
                raise ValueError(f"{said}; {advice}")
            if self._existing(one) is None:  # from a worker that does not share our disk
                write_record(record, self.folder)
            yield record

    def records(self, named: Mapping[Any, Sequence[Experiment]]) -> dict[Any, list[Record]]:
        """Return the records of named lists of experiments, all run together: name -> its records."""
        records = iter(self.run_all([one for experiments in named.values() for one in experiments]))
        return {name: [next(records) for _ in experiments] for name, experiments in named.items()}

    def model(self, experiment: Experiment) -> tuple[Any, Any]:
        """Make the model that an experiment measures, from what is cached: `(model, tokenizer)`, to change.

        What is not cached is made anew; of a recovered model that is its training.
        """
        with self._alone(experiment):
            made = self.subject(experiment.canonical())
        return made.model, made.tokenizer

    def cached(self, key: list, make: Callable[[], Any], folder: str = "measured") -> Any:
        """Return what was made before with this key, else make it now and keep it as JSON; see `read_kept`.

        Args:    key: plain data that decides what is made.    folder: below the profile's results.
             make: returns plain data; infinities come back as text.
        """
        name = settings_key(key if self.profile.dtype == "float32" else [self.profile.dtype, key])
        path = self.folder / folder / f"{name}.json"
        if (kept := read_kept(path)) is None:
            with self.lock(f"{folder}-{name}"):
                if (kept := read_kept(path)) is None:
                    kept = read_kept(write_kept(path, make()))
        return kept

    def answer(self, claim: str, numbers: Numbers, **how: Any) -> Verdict:
        """Hand over the numbers by which a claim of the paper is judged; `how`: see `claims.write_answer`."""
        verdict = write_answer(self.place, claim, numbers, **how)
        self.outputs.append(answer_path(self.place, claim))
        return verdict

    def settle(
        self, claim: str, pairs: Pair | Mapping[str, Pair], kind: str = "perplexity", **how: Any
    ) -> Verdict | str:
        """Compare ways of pruning in pairs, and hand the numbers over as the answer to a claim.

        Args:    pairs: one, or several by name.    kind, how: see `compare.parts`.
        Returns: the verdict; where nothing was measured of both sides, a sentence that says so.
        """
        named = pairs if isinstance(pairs, Mapping) else {"": pairs}
        numbers = named_parts(named, kind, **how)
        if not numbers:
            return f"{claim}: not measured in this profile"
        groups = [group for pair in named.values() for group in pair]
        records, without = sum(map(list, groups), []), each_task_left_out(named, kind, **how)
        return self.answer(claim, numbers, note=describe(numbers, *groups), records=records, without=without)

    def _existing(self, experiment: Experiment) -> Record | None:
        path = record_path(self.folder, experiment.key)
        record = read_record(path) if path.is_file() else None
        if record is None or record.machine.get("inputs_hash") != inputs_hash(experiment):
            return None
        wanted = self.profile.dtype  # which may be another one by now
        types = {metric.protocol.get("dtype", wanted).split()[-1] for metric in record.metrics.values()}
        return record if types <= {wanted} else None

    @contextmanager
    def _alone(self, experiment: Experiment, *, wait: bool = True) -> Iterator[None]:
        """Let one thread and one process at a time make the model of an experiment; see `only_one`."""
        trained = experiment.recovery is not None
        name = f"recovery-{recovery_key(experiment)}" if trained else f"record-{experiment.key}"
        with one_at_a_time, self.lock(name, wait=wait):
            yield

    def _measure(self, experiment: Experiment, criteria: Sequence[str]) -> Record:
        meters.reset_peak()
        self.seconds.clear()
        inputs = inputs_hash(experiment)  # before they are read: what changes meanwhile does not fit
        revision = model_revision(experiment.model)  # on the hub
        subject = self.subject(experiment, criteria)
        metrics = self.evaluate(experiment, subject)
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        device_name = torch.cuda.get_device_name() if self.device == "cuda" else platform.machine()
        machine = {"device": self.device, "device_name": device_name, "threads": torch.get_num_threads()}
        machine |= {"cpus": os.cpu_count(), "system": platform.system()}
        machine |= {"inputs_hash": inputs, "model_revision": revision}
        made = subject.cut, metrics, subject.history, seconds, meters.peak_mb(), machine
        record = Record(experiment, *made, versions(), git_revision(), now())
        write_record(record, self.folder)
        self.unfinished(experiment).unlink(missing_ok=True)
        return record


def _in_order(experiments: list[Experiment]) -> Jobs:
    """Put experiments of one model side by side, those without recovery first, then by calibration.

    Returns: the experiments, each with all criteria that are needed of the calibration pass that it makes.
    """
    models = [one.model for one in experiments]
    looking = [one for one in experiments if one.ratio and one.criterion not in {*DATA_FREE, *OWN_PASS}]
    passes: dict[tuple, set[str]] = {}  # what is calibrated on what -> criteria
    for one in looking:
        passes.setdefault((one.model, one.calibration), set()).add(one.criterion)

    def place(one: Experiment) -> tuple:
        return models.index(one.model), one.recovery is not None, one.ratio > 0, repr(one.calibration)

    wanted = {one: tuple(sorted(passes[one.model, one.calibration])) for one in looking}
    return [(one, wanted.get(one, ())) for one in sorted(experiments, key=place)]


_worker_study = lru_cache(maxsize=1)(Study)  # a worker's dense model stays for the experiments that follow


def run_experiment(experiment: Experiment, profile: str, results: Path, criteria: Sequence[str]) -> Record:
    """Run one experiment in a worker process: `Study.run`, as a function that an executor can send.

    Args:    results: the folder of all results; where a worker does not see it, its own `results_root()`.
    """
    place = results if (results / profile).is_dir() else results_root()
    return _worker_study(profile, place).run(experiment, criteria=criteria)
