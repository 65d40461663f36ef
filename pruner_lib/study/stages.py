"""The stages of one experiment, cached so that a killed run goes on: load, score, choose, cut, recover.

What is cached lies in `results/<profile>/cache` and may be deleted at any time. Which stages an experiment
needs, and what becomes of the numbers, is decided in `run`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pruner_lib.data.assets import local_path
from pruner_lib.data.windows import calibration_ids, instructions, text_ids
from pruner_lib.evaluation.efficiency import count_parameters
from pruner_lib.evaluation.int8 import quantise_
from pruner_lib.evaluation.perplexity import perplexity
from pruner_lib.files import only_one, write_atomic
from pruner_lib.method.discover import discover
from pruner_lib.method.importance import aggregate, estimate_members
from pruner_lib.method.memory import trim_heap
from pruner_lib.method.prune import prune_
from pruner_lib.method.select import select
from pruner_lib.models.load import load_model
from pruner_lib.recovery.recover import recover
from pruner_lib.study.settings import DATA_FREE, Calibration, Evaluation, Experiment, settings_key

KEEP_BYTES = (
    2 << 30
)  # a dense model up to this size is kept and copied; a larger one is cut itself and loaded again
_kept: dict[tuple, Loaded] = {}  # at most one entry


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer and, of the dense model, its axes."""

    model: Any
    tokenizer: Any
    axes: Any = None


@dataclass(frozen=True)
class Bench:
    """Where and how stages run: the profile's results, the weights' dtype, the device; seconds per stage."""

    directory: Path
    dtype: str = "float32"
    device: str = "cpu"
    seconds: dict[str, float] = field(default_factory=dict)

    def cache(self, name: str) -> Path:
        """Tell where the cache entry `name` lies."""
        return self.directory / "cache" / name

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of what follows to `seconds[stage]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def load_dense(name: str, bench: Bench) -> Loaded:
    """Load a whole model and discover its axes, or give the one in memory; the caller must not change it."""
    key = (name, bench.dtype, bench.device, model_hash(name))
    if key not in _kept:
        _kept.clear()
        _kept[key] = _load(name, bench)
    return _kept[key]


def load_own(name: str, bench: Bench) -> Loaded:
    """Give a whole model to change: a copy or, where two would not fit, the one in memory itself."""
    loaded = load_dense(name, bench)
    if _is_large(loaded):
        _kept.clear()
        return loaded
    with bench.timed("load"):
        return Loaded(deepcopy(loaded.model), loaded.tokenizer, loaded.axes)


def forget_large() -> None:
    """Let go of the model in memory if it is too large to keep beside another."""
    if any(_is_large(loaded) for loaded in _kept.values()):
        _kept.clear()


def _is_large(loaded: Loaded) -> bool:
    return sum(p.numel() * p.element_size() for p in loaded.model.parameters()) > KEEP_BYTES


def _load(name: str, bench: Bench) -> Loaded:
    with bench.timed("load"):
        model, tokenizer = load_model(name, dtype=getattr(torch, bench.dtype), device=bench.device)
    with bench.timed("discover"):
        return Loaded(model, tokenizer, discover(model))


def model_hash(name: str) -> str | None:
    """Tell the contents of a model folder apart, by a hash of both ends of each file; None if it is none."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            digest.update(f"{path.name} {size}".encode())
            for place in (0, max(0, size - (1 << 20))):
                file.seek(place)
                digest.update(file.read(1 << 20))
    return digest.hexdigest()[:12]


def member_scores(asked: Experiment, bench: Bench, criteria: Sequence[str]) -> dict[str, Any]:
    """Give member scores of one model and calibration: from the cache, what is missing in one pass.

    Args:    asked: gives model, calibration and seed.    criteria: all that will be wanted of them.
    Returns: criterion -> member scores, as `importance.estimate_members` makes them.
    """
    paths = {name: bench.cache(f"members-{_members_key(asked, name)}.safetensors") for name in criteria}
    with only_one(bench.cache(f"members-{_members_key(asked, 'pass')}.lock")):
        missing = [name for name, path in paths.items() if not path.is_file()]
        if missing:
            dense = load_dense(asked.model, bench)
            with bench.timed("estimate"):
                found = _estimate(asked, dense, missing)
            for name, members in found.items():
                _write_tensors(paths[name], members)
    return {name: _read_tensors(path) for name, path in paths.items()}


def _members_key(asked: Experiment, criterion: str) -> str:
    calibration = None if criterion in DATA_FREE else asdict(asked.calibration)
    seed = asked.seed if criterion == "random" else 0
    return settings_key([asked.model, model_hash(asked.model), criterion, calibration, seed])


def _estimate(asked: Experiment, dense: Loaded, criteria: Sequence[str]) -> dict[str, Any]:
    if set(criteria) <= set(DATA_FREE):
        ids = torch.zeros((1, 2), dtype=torch.int64)  # not looked at
    else:
        sizes = asdict(asked.calibration)
        sizes["bos"] = begins_with_bos(asked.calibration, dense.tokenizer)
        ids = calibration_ids(sizes.pop("corpus"), dense.tokenizer, **sizes)  # (samples, length)
    found = estimate_members(dense.model, dense.axes, ids, criteria=list(criteria), seed=asked.seed)
    trim_heap()
    return found


def choose(asked: Experiment, bench: Bench, criteria: Sequence[str] = ()) -> Any:
    """Make the plan of an experiment: which groups stay.

    Args:    criteria: others to estimate in the same pass, for experiments that follow.
    """
    wanted = list(dict.fromkeys([asked.criterion, *criteria]))
    members = member_scores(asked, bench, wanted)[asked.criterion]
    axes = load_dense(asked.model, bench).axes
    with bench.timed("select"):
        aggregation = asked.aggregation if asked.dependency else "none"
        scores = aggregate(axes, members, aggregation, order=asked.order)
        return select(
            axes,
            scores,
            ratio=asked.ratio,
            granularity=asked.granularity,
            scope=asked.scope,
            protect_first=asked.protect_first,
            protect_last=asked.protect_last,
            target=asked.target,
            dependency=asked.dependency,
        )


def recover_model(asked: Experiment, pruned: Loaded, bench: Bench) -> tuple[Loaded, list[dict[str, Any]]]:
    """Fine-tune a pruned model, going on from the last checkpoint if there is one.

    Returns: the recovered model and the history of its training.
    """
    settings = asdict(asked.recovery)
    corpus, samples = settings.pop("corpus"), settings.pop("samples")
    if not isinstance(settings["target_modules"], str):
        settings["target_modules"] = list(settings["target_modules"])
    examples = instructions(corpus, samples=samples, seed=settings["seed"])
    folder = bench.cache(f"recovery-{recovery_key(asked)}")
    with bench.timed("recover"):
        done = recover(
            pruned.model,
            pruned.tokenizer,
            examples,
            output_dir=folder,
            resume=True,
            merge=True,
            **settings,
            evaluate=_text_perplexities(asked.evaluation, pruned.tokenizer)
            if asked.recovery.evaluate_at
            else None,
        )
    return Loaded(done.model.eval(), pruned.tokenizer), list(done.history)


def recovery_key(asked: Experiment) -> str:
    """Name the training of an experiment; what is measured of it, and after which step, does not matter."""
    asked = asked.canonical()
    settings = asked.settings()
    evaluation = settings.pop("evaluation")
    settings["recovery"]["at"] = None
    del settings["int8"]
    watched = (
        [evaluation[name] for name in ("texts", "windows", "length", "bos")]
        if asked.recovery.evaluate_at
        else None
    )
    return settings_key([settings, watched, model_hash(asked.model)])


def begins_with_bos(asked: Calibration | Evaluation, tokenizer: Any) -> bool:
    """Tell whether texts begin with a BOS token: where that is asked for and there is one (GLM has none)."""
    return asked.bos and tokenizer.bos_token_id is not None


def evaluation_ids(asked: Evaluation, text: str, tokenizer: Any) -> Any:
    """Cut a text into the windows that an evaluation asks for: `(windows, length)` int64.

    The last ones are kept: to tokenise a whole text takes as long as to measure a model on few windows.
    """
    bos = begins_with_bos(asked, tokenizer)
    return _windows(text, asked.length, asked.windows, bos, tokenizer, local_path("."))


@lru_cache(maxsize=8)
def _windows(text: str, length: int, windows: int | None, bos: bool, tokenizer: Any, _: Path | None) -> Any:
    return text_ids(text, tokenizer, length=length, windows=windows, bos=bos)


def _text_perplexities(asked: Evaluation, tokenizer: Any) -> Callable[[Any], dict[str, float]]:
    ids = {text: evaluation_ids(asked, text, tokenizer) for text in asked.texts}
    return lambda model: {text: perplexity(model, windows) for text, windows in ids.items()}


def _write_tensors(path: Path, nested: Mapping[str, Any]) -> None:
    flat = {name: tensor.contiguous() for name, tensor in _flat(nested)}
    write_atomic(path, lambda temporary: save_file(flat, str(temporary)))


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}|")
        else:
            yield prefix + name, value


def _read_tensors(path: Path) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, tensor in load_file(str(path)).items():
        *folders, last = name.split("|")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = tensor
    return nested


@dataclass(frozen=True)
class Subject:
    """A model made by an experiment's settings, with its tokenizer and how it came about.

    Args:    plan: which groups stayed; None for the whole model.    history: of the recovery, step by step.
             n_dense, n_left: scalar parameters before and after the cut.
    """

    model: Any
    tokenizer: Any
    plan: Any
    history: tuple[dict[str, Any], ...]
    n_dense: int
    n_left: int

    @property
    def sparsity(self) -> float:
        """The share of all parameters that is gone."""
        return 1 - self.n_left / self.n_dense


def make_subject(asked: Experiment, bench: Bench, criteria: Sequence[str] = ()) -> Subject:
    """Make the model of an experiment; the dense one is that in memory, which the caller must not change.

    Args:    criteria: others to estimate in the same calibration pass, for experiments that follow.
    """
    plan = choose(asked, bench, criteria) if asked.ratio else None
    changes = plan is not None or asked.recovery or asked.int8
    load = load_own if changes else load_dense
    loaded = load(asked.model, bench)
    n_dense, history = count_parameters(loaded.model), []
    if plan is not None:
        with bench.timed("prune"):
            prune_(loaded.model, plan, axes=loaded.axes)
    n_left = count_parameters(loaded.model)
    if asked.recovery:
        loaded, history = recover_model(asked, loaded, bench)
    if asked.int8:
        with bench.timed("quantise"):
            quantise_(loaded.model)
    return Subject(loaded.model, loaded.tokenizer, plan, tuple(history), n_dense, n_left)
