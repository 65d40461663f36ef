"""The stages of one experiment: load, score, select, prune, recover and measure. Killed stages are resumed.

The cache in `results/<profile>/cache` may be deleted at any time. `run` decides when an experiment runs and
keeps its results.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from pruner_lib.data.corpora import local_text
from pruner_lib.data.windows import calibration_ids, has_bos, instructions, text_ids
from pruner_lib.evaluation.efficiency import count_parameters, weight_bytes
from pruner_lib.evaluation.int8 import quantise_
from pruner_lib.evaluation.perplexity import perplexity
from pruner_lib.files import content_hash, only_one
from pruner_lib.method.depth import block_influence, every_second
from pruner_lib.method.discover import discover
from pruner_lib.method.groups import Plan
from pruner_lib.method.importance import aggregate, estimate_members
from pruner_lib.method.memory import trim_heap
from pruner_lib.method.offload import offloaded
from pruner_lib.method.repair import obs_scores, repair_
from pruner_lib.method.select import select
from pruner_lib.models.devices import in_place
from pruner_lib.models.load import load_model
from pruner_lib.models.prune import prune_
from pruner_lib.recovery.recover import recover
from pruner_lib.study import cache
from pruner_lib.study.measure import measure_task, measure_text
from pruner_lib.study.records import Metrics, metrics_from, read_kept, write_kept
from pruner_lib.study.results import Results, make_cache
from pruner_lib.study.settings import DATA_FREE, OWN_PASS, Calibration, Evaluation, Experiment, settings_key

KEEP_BYTES = 2 << 30  # a larger dense model is pruned in place instead of copied, and loaded again later


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer; a dense model also has its axes."""

    model: Any
    tokenizer: Any
    axes: Any = None
    cut: dict[str, Any] = field(default_factory=dict)  # see `Record.plan`
    history: tuple[dict[str, Any], ...] = ()  # of the recovery, one entry per logged step


class Stages(Results):
    """Runs the stages, one thread at a time; keeps one dense model in memory and the time of each stage."""

    def __init__(self, profile: str = "quick", results: Path | str | None = None) -> None:
        super().__init__(profile, results)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.seconds: Counter[str] = Counter()
        self._dense: dict[tuple[str, str | None], Loaded] = {}  # at most one entry
        # Tokenizing takes as long as measuring a few windows. `_` is the content hash of a local text file.
        self._text_ids = lru_cache(maxsize=8)(lambda name, _, *args, **sizes: text_ids(name, *args, **sizes))

    def cache(self, name: str) -> Path:
        """Return the path of a cache entry; each weight type other than float32 has its own folder."""
        dtype = self.profile.dtype
        return self.folder / "cache" / (dtype if dtype != "float32" else "") / name

    def lock(self, name: str, *, wait: bool = True) -> FileLock:
        """Return the lock of a cache entry; without `wait`, a lock that is held raises TimeoutError."""
        if not (self.folder / "cache" / ".gitignore").is_file():
            make_cache(self.folder)
        return only_one(self.cache(f"{name}.lock"), wait=wait)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the duration of the `with` block to `seconds[stage]`."""
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def dense(self, name: str) -> Loaded:
        """Return a dense model with its axes, loaded if it is not in memory; it must not be changed."""
        key = (name, cache.model_hash(name))
        if key not in self._dense:
            self._dense.clear()
            with self.timed("load"):
                # fill one GPU after the other; layers that fit on none stay in CPU memory
                spread = self.device == "cuda" and name != "tiny"
                placement = {"device_map": "sequential"} if spread else {"device": self.device}
                model, tokenizer = load_model(name, dtype=getattr(torch, self.profile.dtype), **placement)
            with self.timed("discover"):
                self._dense[key] = Loaded(model, tokenizer, discover(model))
        return self._dense[key]

    def own(self, name: str) -> Loaded:
        """Return a dense model to change: a copy, or the one in memory if it is too large to copy."""
        loaded = self.dense(name)
        if weight_bytes(loaded.model) > KEEP_BYTES or offloaded(loaded.model):
            self._dense.clear()
            return loaded
        with self.timed("load"):
            return Loaded(deepcopy(loaded.model), loaded.tokenizer, loaded.axes)

    def calibration_ids(self, calibration: Calibration, tokenizer: Any) -> Tensor:
        """Draw the calibration samples: `(samples, length)` int64."""
        sizes = asdict(calibration) | {"bos": has_bos(tokenizer, calibration.bos)}
        return calibration_ids(sizes.pop("corpus"), tokenizer, **sizes)

    def calibrated(self, experiment: Experiment) -> tuple[Loaded, Tensor]:
        """Return the dense model of an experiment and its calibration samples, `(samples, length)`."""
        dense = self.dense(experiment.model)
        return dense, self.calibration_ids(experiment.calibration, dense.tokenizer).to(self.device)

    def text_ids(self, evaluation: Evaluation, text: str, tokenizer: Any) -> Tensor:
        """Split a text into the windows of an evaluation: `(windows, length)` int64."""
        sizes = {name: getattr(evaluation, name) for name in ("length", "windows", "seed")}
        path, bos = local_text(text), has_bos(tokenizer, evaluation.bos)
        return self._text_ids(text, path and content_hash(path), tokenizer, bos=bos, **sizes)

    def members(self, experiment: Experiment, criteria: Sequence[str]) -> dict[str, Any]:
        """Score the members of a model; scores that are not cached are estimated in one calibration pass.

        Args:    experiment: its model, calibration and seed are used.    criteria: all that will be needed.
        Returns: criterion -> axis name -> `(n_structures, n_groups, channels)` float32.
        """
        key = partial(cache.members_key, experiment)
        paths = {name: self.cache(f"members-{key(name)}.safetensors") for name in criteria}
        with self.lock(f"members-{key('pass')}"):
            found = {name: cache.read_scores(path) for name, path in paths.items()}
            if missing := [name for name, members in found.items() if members is None]:
                dense, ids = self.dense(experiment.model), None
                with self.timed("estimate"), in_place(dense.model):
                    if set(missing) - set(DATA_FREE):
                        ids = self.calibration_ids(experiment.calibration, dense.tokenizer)
                    many = ids is not None and ids.numel() > self.profile.checkpoint_above
                    options = {"criteria": missing, "seed": experiment.seed, "checkpointing": many}
                    scores = estimate_members(dense.model, dense.axes, ids, **options)
                    trim_heap()
                for name, members in scores.items():
                    cache.write_scores(paths[name], members)
                    found[name] = members
        return found

    def scores(self, experiment: Experiment, criteria: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Score the groups of a model by several criteria; scores not cached are estimated in one pass.

        Args:    experiment: its model, calibration, aggregation, order, dependency and seed are used.
        Returns: criterion -> axis name -> `(n_groups,)` float32; without dependency, one row per matrix.
        """
        members = self.members(experiment, criteria)
        return {name: self._aggregate(experiment, scores) for name, scores in members.items()}

    def _aggregate(self, experiment: Experiment, members: dict[str, Tensor]) -> dict[str, Tensor]:
        aggregation = experiment.aggregation if experiment.dependency else "none"
        return aggregate(self.dense(experiment.model).axes, members, aggregation, order=experiment.order)

    def plan(self, experiment: Experiment, criteria: Sequence[str] = ()) -> Plan:
        """Select which groups an experiment keeps, from cached scores if there are any.

        Args:    criteria: others to estimate in the same pass, for experiments that follow.
        Raises:  ValueError: the experiment measures the dense model.
        """
        if experiment.ratio == 0:
            raise ValueError("the dense model has no plan: ratio is 0; give a ratio above 0")
        names = ("ratio", "granularity", "scope", "protect_first", "protect_last", "target", "dependency")
        experiment, criterion = experiment.canonical(), experiment.criterion
        if criterion in OWN_PASS:
            scores = self._own_pass(experiment)
        else:
            scores = self._aggregate(experiment, self.members(experiment, [criterion, *criteria])[criterion])
        axes = self.dense(experiment.model).axes
        with self.timed("select"):
            return select(axes, scores, **{name: getattr(experiment, name) for name in names})

    def _own_pass(self, experiment: Experiment) -> dict[str, Tensor]:
        """Score by a criterion that `members` can't estimate (one of `OWN_PASS`), as `select` needs it."""
        if experiment.criterion == "alternate":
            return {"layers": every_second(self.dense(experiment.model).axes.n_layers)}
        dense, ids = self.calibrated(experiment)
        with self.timed("estimate"), in_place(dense.model):
            if experiment.criterion == "obs":
                return obs_scores(dense.model, dense.axes, ids)
            return {"layers": block_influence(dense.model, ids)}

    def subject(self, experiment: Experiment, criteria: Sequence[str] = ()) -> Loaded:
        """Make the model of an experiment; the caller may change it.

        Args:    criteria: others to estimate in the same calibration pass, for experiments that follow.
        """
        plan = self.plan(experiment, criteria) if experiment.ratio else None
        loaded = self.own(experiment.model)
        model, history, n_dense = loaded.model, (), count_parameters(loaded.model)
        cut = {"parameters_dense": n_dense, "parameters": n_dense, "sparsity": 0.0}
        if plan is not None:
            if experiment.repaired:
                with self.timed("repair"), in_place(model):
                    ids = self.calibration_ids(experiment.calibration, loaded.tokenizer)
                    repair_(model, plan, ids, axes=loaded.axes)
            with self.timed("prune"), in_place(model):
                prune_(model, plan, axes=loaded.axes)
            n_left = count_parameters(model)
            cut |= {"parameters": n_left, "sparsity": 1 - n_left / n_dense}
            cut["kept"] = {name: [len(kept), plan.n_groups[name]] for name, kept in plan.keep.items()}
            if "layers" in plan.keep:
                cut["layers_kept"] = plan.keep["layers"].tolist()
        if experiment.recovery:
            model, history = self._recover(experiment, model, loaded.tokenizer)
        if experiment.int8:
            with self.timed("quantise"):
                quantise_(model)
        return Loaded(model, loaded.tokenizer, cut=cut, history=history)

    def _recover(self, experiment: Experiment, model: Any, tokenizer: Any) -> tuple[Any, tuple]:
        """Fine-tune a pruned model, from the last checkpoint if there is one; return it and its history."""
        recovery, evaluation = experiment.recovery, experiment.evaluation
        names = evaluation.texts if recovery.evaluate_at else ()
        texts = {name: self.text_ids(evaluation, name, tokenizer) for name in names}
        folder = self.cache(f"recovery-{cache.recovery_key(experiment)}")

        def evaluate(model: Any) -> dict[str, float]:
            return {text: perplexity(model, ids) for text, ids in texts.items()}

        options = {"evaluate": evaluate if texts else None, "evaluate_at": recovery.evaluate_at}
        options |= {"output_dir": folder, "keep_at": recovery.keep_at, "at": recovery.at, "merge": True}
        with self.timed("recover"), in_place(model):
            data = instructions(recovery.corpus, samples=recovery.samples, seed=recovery.seed)
            recovered = recover(model, tokenizer, data, **options, **recovery.training())
        return recovered.model.eval(), tuple(recovered.history)

    def evaluate(self, experiment: Experiment, subject: Loaded) -> Metrics:
        """Measure a model on every text and task of an experiment; reuse what an interrupted run measured."""
        evaluation, path = experiment.evaluation, self.unfinished(experiment)
        saved = read_kept(path) or {}
        measures = dict.fromkeys(evaluation.texts, self.measure_text)
        measures |= dict.fromkeys(evaluation.tasks, measure_task)
        for name, measure in measures.items():
            if name not in saved:
                start = time.perf_counter()
                metrics = measure(name, evaluation, subject.model, subject.tokenizer)
                values = {str(metric_name): asdict(metric) for metric_name, metric in metrics.items()}
                saved[name] = {"metrics": values, "seconds": time.perf_counter() - start}
                write_kept(path, saved)
        parts = [saved[name] for name in measures]
        self.seconds["evaluate"] = sum(part["seconds"] for part in parts)
        return metrics_from({name: metric for part in parts for name, metric in part["metrics"].items()})

    def unfinished(self, experiment: Experiment) -> Path:
        """Return the path of the metrics of an unfinished experiment."""
        return self.cache(f"partial-{settings_key([experiment.key, cache.inputs_hash(experiment)])}.json")

    def measure_text(self, text: str, evaluation: Evaluation, model: Any, tokenizer: Any) -> Metrics:
        """Measure the perplexity of a model on a text, see `measure.measure_text`."""
        return measure_text(text, self.text_ids(evaluation, text, tokenizer), evaluation, model, tokenizer)
