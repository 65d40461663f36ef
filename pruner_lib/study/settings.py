"""The settings of the study: one experiment as plain data, and profiles, the settings of all notebooks.

An experiment says what is pruned, how, and what is measured afterwards; it does nothing. Its `key`, a hash of
its settings, names its record; `run` carries it out. The profiles `tiny`, `quick`, `full` and `paper` lie in
`profiles.yaml`. Profiles of your own: a YAML file, named by `$PRUNER_LIB_PROFILES`, that changes profiles or
adds some; what each name means: `Profile`.

    paper:                        # the built-in profile, but for what stands here
      short_recovery: {epochs: 1}
    mine:                         # a new one, results in results/mine/
      like: quick
      model: /models/my-llama
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pruner_lib.method import groups

FORMAT = (
    1  # raised when a record of the same settings would hold other numbers; old records are then made anew
)
CRITERIA = groups.CRITERIA
DATA_FREE = ("none", *groups.DATA_FREE)  # look at no calibration samples
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


VARIABLE = "PRUNER_LIB_PROFILES"
Values = Mapping[str, Any]


def with_own(known: Mapping[str, Values]) -> dict[str, Values]:
    """Add the user's profiles to the built-in ones, and the user's changes.

    Raises:  ValueError: the file is not there or not of that form, or `like` names no built-in profile.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        return dict(known)
    found = dict(known)
    for name, values in _read_own(Path(place).expanduser()).items():
        base = values.get("like", name)
        if "like" in values and base not in known:
            raise ValueError(
                f"{VARIABLE}: profile {name!r} is like {base!r}, but there are {', '.join(sorted(known))}"
            )
        changes = {key: value for key, value in values.items() if key != "like"}
        found[name] = _merged(known.get(base, {}), changes)
    return found


def _merged(values: Values, changes: Values) -> dict[str, Any]:
    """Change values, and within a part (as `evaluation`) only what is named."""
    both = dict(values)
    for name, value in changes.items():
        part = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = both[name] | value if part else value
    return both


def _read_own(path: Path) -> Mapping[str, Values]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{VARIABLE} is {str(path)!r}, which can't be read: {error}") from error
    if not isinstance(found, Mapping) or not all(isinstance(values, Mapping) for values in found.values()):
        raise ValueError(f"{VARIABLE}: {path} must hold names of profiles, each with its settings")
    for name in found:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{VARIABLE}: {name!r} is no name of a profile; use letters, digits and _")
    return found


@dataclass(frozen=True)
class CalibrationStudy:
    """How far notebook 02 turns the calibration, one setting at a time.

    Args:    samples, lengths, corpora: the values tried; those of the profile's calibration among them.
             reference_samples: of the large calibration that the others are compared with.
             windows: of the evaluation, which is short because only differences matter here.
             probes: groups whose true loss change is measured, on `probe_samples` samples.
    """

    samples: tuple[int, ...]
    lengths: tuple[int, ...]
    corpora: tuple[str, ...]
    reference_samples: int
    windows: int
    probes: int
    probe_samples: int


@dataclass(frozen=True)
class Sweep:
    """How far notebooks 06 to 08 turn ratio, layer and granularity; each model is measured on few windows.

    Args:    shares: of all parameters removed, where granularities are compared: a small one, then half.
             layer_ratio: share of the groups of the one pruned layer.    layer_draws: of its calibration.
             group_draws: of the sweep by groups.
             answering: methods whose halved model answers the questions too.
             recovered: methods whose halved model is recovered (`short_recovery`, from the first draw).
             models: swept besides the profile's own.
             native_model: of about half the size and never pruned (the paper's Table 9); empty: none.
    """

    shares: tuple[float, ...]
    layer_ratio: float
    layer_draws: int
    group_draws: int = 1
    answering: tuple[str, ...] = ()
    recovered: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    native_model: str = ""


@dataclass(frozen=True)
class MethodStudy:
    """What notebooks 03 to 05 compare; all models lose the same share of their parameters.

    Args:    share: of all parameters removed.    methods: rows of the paper's Table 1.
             recovered: those of them that are recovered too (with `short_recovery`, from the first draw).
             limit: questions a task, None: all.    answer_draws: draws whose models answer them.
             models, shares, tables: further models, the share that each loses, and the paper's table of each.
    """

    share: float
    methods: tuple[str, ...] = ("random", "l2", "vector", "element1", "element2", "mixed", "channel")
    recovered: tuple[str, ...] = ("l2", "channel", "element1")
    limit: int | None = None
    answer_draws: int = 1
    models: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecoveryStudy:
    """How far notebook 09 turns the recovery.

    Args:    keep_at: steps of the profile's recovery after which the model is measured on the way.
             answer_at: those of them after which it answers the questions too.
             samples: numbers of instructions tried, each seen once.    draws: of the instructions.
             module_samples: the number with which parts of the model are trained.
             few: instructions of the run that over-fits; it makes as many steps as the largest of `samples`.
             watch: steps of that run and of the largest after which they are measured.
             held_out: instructions that no run sees.
             batch_size, micro_batch_size, learning_rate, warmup_steps: of all but the profile's own recovery.
    """

    keep_at: tuple[int, ...]
    answer_at: tuple[int, ...]
    samples: tuple[int, ...]
    draws: int
    module_samples: int
    few: int
    watch: tuple[int, ...]
    held_out: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    warmup_steps: int = 0

    def recovery(self, base: Recovery, samples: int, *, draw: int = 0, **changes: Any) -> Recovery:
        """Make the recovery that sees `samples` instructions once, from a random draw of them."""
        values = {
            "samples": samples,
            "seed": draw,
            "steps": -(-samples // self.batch_size),
            "evaluate_at": (),
        }
        values |= {name: getattr(self, name) for name in ("batch_size", "micro_batch_size", "learning_rate")}
        return replace(base, **values | {"keep_at": (), "warmup_steps": self.warmup_steps} | changes)


PROFILES_FILE = Path(__file__).with_name("profiles.yaml")
_PARTS = {
    "calibration": Calibration,
    "calibration_study": CalibrationStudy,
    "recovery": Recovery,
    "recovery_study": RecoveryStudy,
    "evaluation": Evaluation,
    "long_evaluation": Evaluation,
    "method_study": MethodStudy,
    "short_evaluation": Evaluation,
    "short_recovery": Recovery,
    "sweep": Sweep,
}


@dataclass(frozen=True)
class Profile:
    """The settings that every notebook starts from.

    Args:    model: what is pruned.
             ratio: share of groups removed where pruning applies.    ratios: the sweep of Figure 4.
             protect_first, protect_last: decoder layers left whole.
             draws: how many calibration draws, wherever methods are compared.
             calibration_study: what notebook 02 varies.
             recovery_study: what notebook 09 varies.
             evaluation: with the paper's windows.    long_evaluation: perplexity in long windows.
             method_study: what notebooks 03 to 05 compare.    short_recovery: where many are recovered.
             short_evaluation: of the many models of a sweep.    sweep: what notebooks 06 to 08 vary.
             other_models: those of the paper's further tables.    dtype: of the weights.
             prompts: how many are continued, by `new_tokens` tokens each.
    """

    name: str
    model: str
    ratio: float
    ratios: tuple[float, ...]
    protect_first: int
    protect_last: int
    draws: int
    calibration: Calibration
    calibration_study: CalibrationStudy
    recovery: Recovery
    recovery_study: RecoveryStudy
    evaluation: Evaluation
    long_evaluation: Evaluation
    method_study: MethodStudy
    short_evaluation: Evaluation
    short_recovery: Recovery
    sweep: Sweep
    other_models: tuple[str, ...] = ()
    dtype: str = "float32"
    prompts: int = 5
    new_tokens: int = 64

    def experiment(self, *, recovered: bool = False, **changes: Any) -> Experiment:
        """Make an experiment with this profile's settings, changed as asked.

        Args:    recovered: with the profile's recovery after pruning.    changes: fields of `Experiment`.
        Raises:  ValueError: no such field, or a value that is not allowed.
        """
        values: dict[str, Any] = {
            "model": self.model,
            "ratio": self.ratio,
            "protect_first": self.protect_first,
            "protect_last": self.protect_last,
            "calibration": self.calibration,
            "evaluation": self.evaluation,
            "recovery": self.recovery if recovered else None,
        }
        return build(Experiment, values | changes)

    def dense(self, **changes: Any) -> Experiment:
        """Make the experiment that measures the whole model."""
        return self.experiment(**changes).dense

    def calibrations(self, draws: int | None = None) -> list[Calibration]:
        """Make the calibration draws of this profile: random draws with the seeds 0, 1, 2, ..."""
        return [replace(self.calibration, seed=seed) for seed in range(draws or self.draws)]

    def calibration_grid(self) -> list[tuple[str, Any, Calibration]]:
        """Vary samples, length and corpus of the calibration one at a time: (what varies, value, a draw)."""
        values = {
            "samples": self.calibration_study.samples,
            "length": self.calibration_study.lengths,
            "corpus": self.calibration_study.corpora,
        }
        return [
            (name, value, replace(draw, **{name: value}))
            for name, tried in values.items()
            for value in tried
            for draw in self.calibrations()
        ]

    @property
    def short_answers(self) -> Evaluation:
        """The tasks where many models are compared: fewer questions, no texts."""
        return replace(self.evaluation, texts=(), limit=self.method_study.limit)

    @property
    def reference_calibration(self) -> Calibration:
        """The large calibration; its seed is none of the draws'."""
        return replace(self.calibration, samples=self.calibration_study.reference_samples, seed=1000)


def profile_names() -> list[str]:
    """List the profiles there are."""
    return sorted(_known())


def load_profile(name: str) -> Profile:
    """Load the profile `name`.

    Raises:  ValueError: there is no such profile (the message lists them), or a value is not allowed.
    """
    known = _known()
    if name not in known:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(sorted(known))}")
    return _profile(name, known[name])


def _profile(name: str, values: Mapping[str, Any]) -> Profile:
    missing = {item.name for item in fields(Profile) if item.default is item.default_factory} - {
        "name",
        *values,
    }
    if missing:
        raise ValueError(
            f"profile {name!r} lacks {', '.join(sorted(missing))}; add it to {PROFILES_FILE.name}"
        )
    parts = {part: build(kind, values[part]) for part, kind in _PARTS.items()}
    try:
        return build(Profile, {"name": name, **values, **parts})
    except ValueError as error:
        raise ValueError(f"profile {name!r}: {error}") from error


def _known() -> dict[str, Mapping[str, Any]]:
    return with_own(_read(PROFILES_FILE))


@cache
def _read(path: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
