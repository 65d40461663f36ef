"""The stages of one experiment: load, score, choose, cut, recover, measure; a killed one goes on.

What is cached lies in `results/<profile>/cache` and may be deleted at any time. When an experiment runs, and
what becomes of its numbers, is decided in `run`.
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

KEEP_BYTES = 2 << 30  # a larger dense model is not copied: it is cut itself and loaded again


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer and, of the dense model, its axes."""

    model: Any
    tokenizer: Any
    axes: Any = None
    cut: dict[str, Any] = field(default_factory=dict)  # see `Record.plan`
    history: tuple[dict[str, Any], ...] = ()  # of the recovery, step by step


class Stages(Results):
    """Carries out the stages, one thread at a time: keeps one dense model, and the time of each stage."""

    def __init__(self, profile: str = "quick", results: Path | str | None = None) -> None:
        super().__init__(profile, results)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"  # where the models lie
        self.seconds: Counter[str] = Counter()
        self._dense: dict[tuple[str, str | None], Loaded] = {}  # at most one
        # to tokenise takes as long as to measure few windows; `_` is the content of a file of the user's own
        self._text_ids = lru_cache(maxsize=8)(lambda name, _, *given, **how: text_ids(name, *given, **how))

    def cache(self, name: str) -> Path:
        """Name the file of a cache entry; weights of another type than float32 have a folder of their own."""
        dtype = self.profile.dtype
        return self.folder / "cache" / (dtype if dtype != "float32" else "") / name

    def lock(self, name: str, *, wait: bool = True) -> FileLock:
        """Let one process at a time do what follows; without `wait`, TimeoutError where another does it."""
        if not (self.folder / "cache" / ".gitignore").is_file():
            make_cache(self.folder)
        return only_one(self.cache(f"{name}.lock"), wait=wait)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of what follows to `seconds[stage]`."""
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def dense(self, name: str) -> Loaded:
        """Load a whole model and discover its axes, or return the one in memory; it must not be changed."""
        key = (name, cache.model_hash(name))
        if key not in self._dense:
            self._dense.clear()
            with self.timed("load"):
                # what the first GPU does not hold goes to the next ones, the rest stays in CPU memory
                spread = self.device == "cuda" and name != "tiny"
                where = {"device_map": "sequential"} if spread else {"device": self.device}
                model, tokenizer = load_model(name, dtype=getattr(torch, self.profile.dtype), **where)
            with self.timed("discover"):
                self._dense[key] = Loaded(model, tokenizer, discover(model))
        return self._dense[key]

    def own(self, name: str) -> Loaded:
        """Return a whole model to change: a copy or, where two would not fit, the one in memory itself."""
        loaded = self.dense(name)
        if weight_bytes(loaded.model) > KEEP_BYTES or offloaded(loaded.model):
            self._dense.clear()
            return loaded
        with self.timed("load"):
            return Loaded(deepcopy(loaded.model), loaded.tokenizer, loaded.axes)

    def calibration_ids(self, how: Calibration, tokenizer: Any) -> Tensor:
        """Take the calibration samples: `(samples, length)` int64."""
        sizes = asdict(how) | {"bos": has_bos(tokenizer, how.bos)}
        return calibration_ids(sizes.pop("corpus"), tokenizer, **sizes)

    def calibrated(self, experiment: Experiment) -> tuple[Loaded, Tensor]:
        """Give the dense model of an experiment and its calibration samples, `(samples, length)`."""
        dense = self.dense(experiment.model)
        return dense, self.calibration_ids(experiment.calibration, dense.tokenizer).to(self.device)

    def text_ids(self, how: Evaluation, text: str, tokenizer: Any) -> Tensor:
        """Cut a text into the windows of an evaluation: `(windows, length)` int64."""
        sizes = {"length": how.length, "windows": how.windows, "bos": has_bos(tokenizer, how.bos)}
        path = local_text(text)
        return self._text_ids(text, path and content_hash(path), tokenizer, seed=how.seed, **sizes)

    def members(self, experiment: Experiment, criteria: Sequence[str]) -> dict[str, Any]:
        """Score the members of one model on one calibration: from the cache, what is missing in one pass.

        Args:    experiment: gives model, calibration and seed.    criteria: all that will be needed of them.
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
                    how = {"criteria": missing, "seed": experiment.seed, "checkpointing": many}
                    scores = estimate_members(dense.model, dense.axes, ids, **how)
                    trim_heap()
                for name, members in scores.items():
                    cache.write_scores(paths[name], members)
                    found[name] = members
        return found

    def scores(self, experiment: Experiment, criteria: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Score the groups of a model by several criteria: from the cache, the others in one pass.

        Args:    experiment: gives model, calibration, aggregation, order, dependency and seed.
        Returns: criterion -> axis name -> `(n_groups,)` float32; without dependency one row a matrix.
        """
        members = self.members(experiment, criteria)
        return {name: self._aggregate(experiment, scores) for name, scores in members.items()}

    def _aggregate(self, experiment: Experiment, members: dict[str, Tensor]) -> dict[str, Tensor]:
        how = experiment.aggregation if experiment.dependency else "none"
        return aggregate(self.dense(experiment.model).axes, members, how, order=experiment.order)

    def plan(self, experiment: Experiment, criteria: Sequence[str] = ()) -> Plan:
        """Choose which groups stay in an experiment, from cached scores where there are some.

        Args:    criteria: others to estimate in the same pass, for experiments that follow.
        Raises:  ValueError: the experiment is a dense model.
        """
        if experiment.ratio == 0:
            raise ValueError("the dense model has no plan: ratio is 0, but should be above it")
        names = ("ratio", "granularity", "scope", "protect_first", "protect_last", "target", "dependency")
        made, first = experiment.canonical(), experiment.criterion
        if first in OWN_PASS:
            scores = self._own_pass(made)
        else:
            scores = self._aggregate(made, self.members(made, [first, *criteria])[first])
        axes = self.dense(experiment.model).axes
        with self.timed("select"):
            return select(axes, scores, **{name: getattr(experiment, name) for name in names})

    def _own_pass(self, experiment: Experiment) -> dict[str, Tensor]:
        """Score by a criterion that looks at the model in its own way, in the form that `select` takes."""
        if experiment.criterion == "alternate":
            return {"layers": every_second(self.dense(experiment.model).axes.n_layers)}
        dense, ids = self.calibrated(experiment)
        with self.timed("estimate"), in_place(dense.model):
            if experiment.criterion == "obs":
                return obs_scores(dense.model, dense.axes, ids)
            return {"layers": block_influence(dense.model, ids)}

    def subject(self, experiment: Experiment, criteria: Sequence[str] = ()) -> Loaded:
        """Make the model of an experiment, which nobody else holds.

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
        """Fine-tune a pruned model, from the last checkpoint if there is one: the model and its history."""
        how = experiment.recovery
        on_the_way = experiment.evaluation.texts if how.evaluate_at else ()
        texts = {text: self.text_ids(experiment.evaluation, text, tokenizer) for text in on_the_way}
        folder = self.cache(f"recovery-{cache.recovery_key(experiment)}")

        def evaluate(model: Any) -> dict[str, float]:
            return {text: perplexity(model, ids) for text, ids in texts.items()}

        watch = {"evaluate": evaluate if texts else None, "evaluate_at": how.evaluate_at}
        keep = {"output_dir": folder, "keep_at": how.keep_at, "at": how.at, "merge": True}
        with self.timed("recover"), in_place(model):
            data = instructions(how.corpus, samples=how.samples, seed=how.seed)
            done = recover(model, tokenizer, data, **watch, **keep, **how.training())
        return done.model.eval(), tuple(done.history)

    def evaluate(self, experiment: Experiment, subject: Loaded) -> Metrics:
        """Measure a model on every text and task of an experiment, but what was measured before a kill."""
        how, path = experiment.evaluation, self.unfinished(experiment)
        saved = read_kept(path) or {}
        measures = dict.fromkeys(how.texts, self.measure_text) | dict.fromkeys(how.tasks, measure_task)
        for name, measure in measures.items():
            if name not in saved:
                start = time.perf_counter()
                metrics = measure(name, how, subject.model, subject.tokenizer)
                values = {str(one): asdict(metric) for one, metric in metrics.items()}
                saved[name] = {"metrics": values, "seconds": time.perf_counter() - start}
                write_kept(path, saved)
        parts = [saved[name] for name in measures]
        self.seconds["evaluate"] = sum(part["seconds"] for part in parts)
        return metrics_from({name: one for part in parts for name, one in part["metrics"].items()})

    def unfinished(self, experiment: Experiment) -> Path:
        """Name the file of the metrics of an unfinished experiment."""
        return self.cache(f"partial-{settings_key([experiment.key, cache.inputs_hash(experiment)])}.json")

    def measure_text(self, text: str, how: Evaluation, model: Any, tokenizer: Any) -> Metrics:
        """Measure the perplexity of a model on a text, see `measure.measure_text`."""
        return measure_text(text, self.text_ids(how, text, tokenizer), how, model, tokenizer)
