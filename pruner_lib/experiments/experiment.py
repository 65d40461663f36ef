"""One experiment of the study as plain data: what is pruned, how, and what is measured afterwards.

An experiment does nothing. Its `key`, a hash of its settings, names its record; `study.run` carries it out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pruner_lib.method import criteria

FORMAT = (
    1  # raised when a record of the same settings would hold other numbers; old records are then made anew
)
CRITERIA = criteria.CRITERIA
DATA_FREE = ("none", *criteria.DATA_FREE)  # look at no calibration samples
AGGREGATIONS = ("sum", "mean", "prod", "max", "last")
ORDERS = ("channel", "group")
ORDERED = ("prod", "max")  # aggregations for which the order matters
SCOPES = ("local", "global", "joint")
GRANULARITIES = ("block", "channel", "layer")
TARGETS = ("groups", "parameters")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _want_int(owner: str, name: str, value: Any, least: int, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not _is_int(value) or value < least:
        wanted = f"an integer of at least {least}" + (" or None" if optional else "")
        raise ValueError(f"{owner}: {name} is {value!r}, but must be {wanted}")


def _want_bool(owner: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: {name} is {value!r}, but must be True or False")


def _want_one_of(owner: str, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {name} is {value!r}, but must be one of {', '.join(allowed)}")


def _want_name(owner: str, name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{owner}: {name} is {value!r}, but must be a name such as 'wiki' or 'smollm2-135m'")


def _names(owner: str, name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
        raise ValueError(f"{owner}: {name} is {value!r}, but must be a list of names")
    if len(set(value)) < len(value):
        raise ValueError(f"{owner}: {name} names something twice: {value!r}")
    return tuple(value)


def _number(owner: str, name: str, value: Any, wanted: str, least: float, below: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < below:
        raise ValueError(f"{owner}: {name} is {value!r}, but must be {wanted}")
    return float(value)


@dataclass(frozen=True)
class Calibration:
    """What importance is estimated on. `seed` None: the first documents long enough; else a random draw."""

    corpus: str = "bookcorpus"
    samples: int = 10
    length: int = 64  # tokens a sample
    seed: int | None = None
    bos: bool = False  # begin each sample with the beginning-of-sequence token, if the tokenizer has one

    def __post_init__(self) -> None:
        _want_name("Calibration", "corpus", self.corpus)
        _want_int("Calibration", "samples", self.samples, 1)
        _want_int("Calibration", "length", self.length, 2)
        _want_int("Calibration", "seed", self.seed, 0, optional=True)
        _want_bool("Calibration", "bos", self.bos)


@dataclass(frozen=True)
class Recovery:
    """The LoRA fine-tuning after pruning (paper 3.3, App. B.2). `steps` None: as many as `epochs` need."""

    corpus: str = "instructlab"
    samples: int | None = None  # None: all
    steps: int | None = None
    epochs: int = 2
    batch_size: int = 64  # sequences an update
    micro_batch_size: int = 4  # sequences in memory at once
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    target_modules: str | tuple[str, ...] = "all-linear"
    cutoff: int = 256  # tokens a sequence
    evaluate_at: tuple[int, ...] = ()  # steps after which perplexity is measured
    keep_at: tuple[int, ...] = ()  # steps whose adapters are kept
    at: int | None = None  # the model after this step is meant, one of `keep_at`; None: after the last
    seed: int = 0

    def __post_init__(self) -> None:
        _want_name("Recovery", "corpus", self.corpus)
        for name in ("samples", "steps"):
            _want_int("Recovery", name, getattr(self, name), 1, optional=True)
        for name in ("epochs", "batch_size", "micro_batch_size", "rank", "alpha", "cutoff"):
            _want_int("Recovery", name, getattr(self, name), 1)
        for name in ("warmup_steps", "seed"):
            _want_int("Recovery", name, getattr(self, name), 0)
        rate = _number(
            "Recovery", "learning_rate", self.learning_rate, "a number above 0 and below 1", 1e-12, 1
        )
        dropout = _number("Recovery", "dropout", self.dropout, "a share in [0, 1)", 0, 1)
        for name in ("evaluate_at", "keep_at"):
            for step in getattr(self, name):
                _want_int("Recovery", name, step, 0)
            _set(self, **{name: tuple(sorted(getattr(self, name)))})
        if self.at is not None and self.at not in self.keep_at:
            raise ValueError(f"Recovery: at is {self.at!r}, but must be one of keep_at, {self.keep_at}")
        _set(self, learning_rate=rate, dropout=dropout)
        if not isinstance(self.target_modules, str):
            _set(self, target_modules=_names("Recovery", "target_modules", self.target_modules))


@dataclass(frozen=True)
class Evaluation:
    """What is measured: perplexity on `texts` (in `windows` of `length` tokens) and accuracy on `tasks`."""

    texts: tuple[str, ...] = ("wiki",)
    windows: int | None = 128  # None: the whole text
    length: int = 128  # tokens a window
    tasks: tuple[str, ...] = ()
    limit: int | None = None  # questions a task; None: all
    bos: bool = False  # put one such token before each text, as the paper's code does

    def __post_init__(self) -> None:
        _set(
            self,
            texts=_names("Evaluation", "texts", self.texts),
            tasks=_names("Evaluation", "tasks", self.tasks),
        )
        _want_int("Evaluation", "windows", self.windows, 1, optional=True)
        _want_int("Evaluation", "length", self.length, 2)
        _want_int("Evaluation", "limit", self.limit, 1, optional=True)
        _want_bool("Evaluation", "bos", self.bos)


@dataclass(frozen=True)
class Experiment:
    """One model, pruned in one way, recovered or not, and measured. A `ratio` of 0 is the dense model.

    Args:    criterion, aggregation, scope, granularity, target: words of the glossary (README).
             ratio: share of the groups (or, with target "parameters", of all parameters) removed, in [0, 1).
             order: what the aggregation reduces first (importance.aggregate).
             dependency: False ranks each weight matrix alone (the paper's Table 6).
             protect_first, protect_last: decoder layers left whole at either end.
             recovery: None measures the pruned model as it is.    seed: of the random criterion.
             int8: measure it with its linear layers in 8 bits (the paper's Table 13).
    Raises:  ValueError: a setting is outside what is allowed; the message names it.
    """

    model: str
    criterion: str = "element1"
    aggregation: str = "sum"
    order: str = "channel"
    scope: str = "local"
    granularity: str = "block"
    ratio: float = 0.25
    target: str = "groups"
    dependency: bool = True
    protect_first: int = 0
    protect_last: int = 0
    calibration: Calibration = field(default_factory=Calibration)
    recovery: Recovery | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: int = 0
    int8: bool = False

    def __post_init__(self) -> None:
        _want_name("Experiment", "model", self.model)
        _set(self, ratio=_number("Experiment", "ratio", self.ratio, "a share in [0, 1)", 0, 1))
        _want_one_of(
            "Experiment", "criterion", self.criterion, CRITERIA if self.ratio else ("none", *CRITERIA)
        )
        _want_one_of("Experiment", "aggregation", self.aggregation, AGGREGATIONS)
        _want_one_of("Experiment", "order", self.order, ORDERS)
        _want_one_of("Experiment", "scope", self.scope, SCOPES)
        _want_one_of("Experiment", "granularity", self.granularity, GRANULARITIES)
        _want_one_of("Experiment", "target", self.target, TARGETS)
        for name in ("protect_first", "protect_last", "seed"):
            _want_int("Experiment", name, getattr(self, name), 0)
        for name in ("dependency", "int8"):
            _want_bool("Experiment", name, getattr(self, name))

    @property
    def dense(self) -> Experiment:
        """The experiment that measures the same model whole, in the same way."""
        return replace(self, ratio=0.0, recovery=None).canonical()

    @property
    def pruned(self) -> Experiment:
        """The same experiment without recovery."""
        return replace(self, recovery=None)

    @property
    def method(self) -> str:
        """The row of the paper's tables that this is: "dense", "channel" or the criterion."""
        return "dense" if self.ratio == 0 else "channel" if self.granularity == "channel" else self.criterion

    @property
    def stage(self) -> str:
        """Where on its way the model is: "dense", "pruned" or "recovered"."""
        return "recovered" if self.recovery else "dense" if self.ratio == 0 else "pruned"

    @property
    def key(self) -> str:
        """Twelve hex digits of a hash of the settings that matter; the record's file name."""
        return settings_key(self.canonical().settings())

    def canonical(self) -> Experiment:
        """Set what has no influence to its default: experiments with the same outcome get the same key."""
        if self.ratio == 0:
            kept = {name: getattr(self, name) for name in ("recovery", "evaluation", "int8")}
            return Experiment(self.model, "none", ratio=0, **kept)
        calibration = Calibration() if self.criterion in DATA_FREE else self.calibration
        order = self.order if self.aggregation in ORDERED else "channel"
        seed = self.seed if self.criterion == "random" else 0
        return replace(self, calibration=calibration, order=order, seed=seed)

    def settings(self) -> dict[str, Any]:
        """The settings as nested plain data, for JSON."""
        return asdict(self)


def experiment_from(settings: dict[str, Any]) -> Experiment:
    """Rebuild an experiment from its plain settings (the inverse of `settings()`).

    Raises:  ValueError: a setting is unknown or not allowed.
    """
    parts = {"calibration": Calibration, "recovery": Recovery, "evaluation": Evaluation}
    values = dict(settings)
    for name, kind in parts.items():
        if isinstance(values.get(name), dict):
            values[name] = build(kind, values[name])
    return build(Experiment, values)


def build(kind: type, values: dict[str, Any]) -> Any:
    """Make a frozen record of `kind` from plain values.

    Raises:  ValueError: a name is no setting of `kind` (the message lists those there are), or a value is
             not allowed.
    """
    known = [item.name for item in fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{kind.__name__} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )


def settings_key(settings: Any) -> str:
    """Twelve hex digits that name these settings: the hash of their JSON with sorted keys."""
    text = json.dumps([FORMAT, settings], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _set(frozen: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(frozen, name, value)
