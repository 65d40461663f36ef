"""The settings of one experiment, as frozen, checked data: what is pruned, how, and what is measured.

`Study.run` runs an experiment. Its `key`, a hash of its settings, is the name of its record. The settings of
whole studies, from which notebooks make their experiments, are in `profiles`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, field, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from pruner_lib.files import text_hash
from pruner_lib.method import names
from pruner_lib.method.names import AGGREGATIONS, CRITERIA, GRANULARITIES, ORDERS, SCOPES, TARGETS
from pruner_lib.recovery.settings import RecoverySettings

FORMAT = 1  # increased when the same settings would give other numbers; old records are then measured again
LAYER_CRITERIA = ("influence", "alternate")  # block influence, every second layer; see `method.depth`
OWN_PASS = ("obs", *LAYER_CRITERIA)  # need a calibration pass of their own; "obs": see `method.repair`
DATA_FREE = ("none", "alternate", *names.DATA_FREE)  # criteria that use no calibration samples
ORDERED = ("prod", "max")  # aggregations for which the order matters
ADDED = {  # settings of later versions -> their default, which is left out so that older keys stay valid
    "": {"repaired": False},  # of the experiment itself
    "recovery": {"gradient_checkpointing": False},
    "evaluation": {"seed": None, "right_answers_only": False},
}

Kind = TypeVar("Kind")
_adapter = cache(TypeAdapter)


def different(names: tuple) -> tuple:
    """Refuse a list that contains a name twice."""
    if len(set(names)) < len(names):
        raise ValueError("names something twice")
    return names


def some(values: tuple) -> tuple:
    """Refuse an empty list, and one that contains a value twice."""
    if not values:
        raise ValueError("should have at least 1 item")
    return different(values)


def _a_bos(value: bool | str) -> bool | str:
    if not isinstance(value, bool) and value != "window":
        raise ValueError("should be True, False or 'window'")
    return value


Count = Annotated[int, Field(ge=1, lt=2**63)]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Length = Annotated[int, Field(ge=2)]  # tokens; the first one is never predicted
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1, pattern="^[^<>]*$")]  # shown in tables that escape nothing
Bos = Annotated[Any, AfterValidator(_a_bos)]  # True, False or "window", see `data.windows`
Names = Annotated[tuple[Name, ...], Strict(False), AfterValidator(different)]  # lists are accepted too
Steps = Annotated[tuple[Number, ...], Strict(False), AfterValidator(lambda steps: tuple(sorted(steps)))]


def settings(kind: type[Kind]) -> type[Kind]:
    """Make a class a frozen dataclass that refuses invalid values with a ValueError of one sentence."""
    checked = checked_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))(kind)
    check: Callable[..., None] = checked.__init__

    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except ValidationError as error:
            raise ValueError(_sentence(kind, error, kind.__name__)) from None

    checked.__init__ = __init__
    return checked


def from_plain(kind: type[Kind], values: Mapping[str, Any], owner: str = "") -> Kind:
    """Make a dataclass, and the dataclasses in it, from plain data as read from JSON or YAML.

    Raises:  ValueError: a field is unknown, missing or invalid; the message names it and its owner.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ValueError(_sentence(kind, error, owner or kind.__name__)) from None
    except (ValueError, RecursionError) as error:  # from json
        raise ValueError(f"{owner or kind.__name__} can't be written as JSON: {error}; correct it") from error


def _sentence(kind: type, error: ValidationError, owner: str) -> str:
    """Describe the last error: the setting, its value, and which values are allowed."""
    last = error.errors()[-1]
    first, *rest = last["loc"] or ("",)
    first = fields(kind)[first].name if isinstance(first, int) else first  # a positional argument
    names = [first, *(str(part) for part in rest if str(part).isalnum() or str(part).isidentifier())]
    place = ".".join(names)
    message = str(last["ctx"]["error"]) if last["type"] == "value_error" else last["msg"]
    if last["type"] == "unexpected_keyword_argument":
        return f"{owner} has no setting {place}; it has {', '.join(_siblings(kind, names))}"
    if last["type"] == "missing":
        return f"{owner} has no value for {place}; add it"
    if not place or isinstance(last["input"], Mapping):  # each value is valid, but not their combination
        return f"{owner}: {place + ': ' if place else ''}{message}"
    expected = message[message.find("should") :] if "should" in message else message
    expected = expected.replace("valid array", "list").replace("an object", "a mapping")
    return f"{owner}: {place} is {last['input']!r}, but {expected}"


def _siblings(kind: type, names: list[str]) -> list[str]:
    """List the settings of the dataclass that the path `names` leads to, without its last name."""
    for name in names[:-1]:
        hint = get_type_hints(kind)[name]
        kind = next(part for part in (*get_args(hint), hint) if is_dataclass(part))
    return [setting.name for setting in fields(kind)]


@settings
class Calibration:
    """The samples on which importance is estimated."""

    corpus: Name = "bookcorpus"
    samples: Count = 10
    length: Length = 64  # tokens per sample
    seed: Number | None = None  # of a random draw; None: the first documents that are long enough
    bos: Bos = False  # True: put the beginning-of-sequence token before each document; "window": each sample


@settings
class Recovery(RecoverySettings):
    """The LoRA fine-tuning after pruning: the library's settings, the data, and when to evaluate."""

    epochs: Count = 2
    learning_rate: Rate = 1e-4
    target_modules: Name | Names = "all-linear"
    corpus: Name = "instructlab"
    samples: Count | None = None  # None: all
    evaluate_at: Steps = ()  # steps after which perplexity is measured
    keep_at: Steps = ()  # steps after which the adapters are saved
    at: Number | None = None  # use the model after this step, one of `keep_at`; None: after the last step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at is not None and self.at not in self.keep_at:
            raise ValueError(f"at is {self.at}, but should be one of keep_at, {self.keep_at}")

    def training(self) -> dict[str, Any]:
        """Return the settings that `recover` takes, by name."""
        return {setting.name: getattr(self, setting.name) for setting in fields(RecoverySettings)}


@settings
class Evaluation:
    """What is measured: perplexity on `texts` (in `windows` of `length` tokens), and answers to `tasks`."""

    texts: Names = ("wiki",)
    windows: Count | None = 128  # None: the whole text
    length: Length = 128  # tokens per window
    tasks: Names = ()
    limit: Count | None = None  # questions per task; None: all
    bos: Bos = False  # True: put a BOS token before each text, like the paper's code; "window": each window
    seed: Number | None = None  # draws articles (one window each) and questions; None: the first ones
    right_answers_only: bool = False  # bits per byte of the right answers but no accuracy: three times faster


@settings
class Experiment:
    """One model, pruned in one way, perhaps recovered, and measured; with a `ratio` of 0, the dense model.

    The README's glossary explains the terms.

    Raises:  ValueError: a setting is not allowed; the message names it.
    """

    model: Name
    criterion: Literal[("none", *CRITERIA, *OWN_PASS)] = "element1"
    aggregation: Literal[AGGREGATIONS] = "sum"
    order: Literal[ORDERS] = "channel"  # what the aggregation reduces first, see `importance.aggregate`
    scope: Literal[SCOPES] = "local"
    granularity: Literal[tuple(GRANULARITIES)] = "block"
    ratio: Share = 0.25  # of the groups (with target "parameters": of all parameters) removed, in [0, 1)
    target: Literal[TARGETS] = "groups"
    dependency: bool = True  # False ranks each weight matrix alone (the paper's Table 6)
    protect_first: Number = 0  # decoder layers at either end that are not pruned
    protect_last: Number = 0
    calibration: Calibration = field(default_factory=Calibration)
    recovery: Recovery | None = None  # None: the pruned model is measured as it is
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: Number = 0  # of the random criterion
    int8: bool = False  # quantize the linear layers to 8 bits before measuring (the paper's Table 13)
    repaired: bool = False  # correct the kept weights in closed form on the samples; see `method.repair`

    def __post_init__(self) -> None:
        if self.ratio and self.criterion == "none":
            raise ValueError(f"criterion is 'none', but should be one of {', '.join(CRITERIA)}")
        if self.criterion in LAYER_CRITERIA and self.granularity != "layer":
            raise ValueError(f"criterion {self.criterion!r} ranks layers: granularity should be 'layer'")
        if self.criterion == "obs" and self.aggregation != "sum":
            raise ValueError("criterion 'obs' scores groups as a whole: aggregation should be 'sum'")
        blocks = self.granularity == "block" and self.dependency
        if self.repaired and (self.criterion in DATA_FREE or not blocks):
            needs = f"granularity 'block', dependency True and a criterion other than {', '.join(DATA_FREE)}"
            raise ValueError(f"repaired needs {needs}")

    @property
    def dense(self) -> "Experiment":
        """The experiment that measures the same model dense, in the same way."""
        return replace(self, ratio=0.0, recovery=None).canonical()

    @property
    def method(self) -> str:
        """The row of the paper's tables that this is: "dense", "channel" or the criterion."""
        return "dense" if self.ratio == 0 else "channel" if self.granularity == "channel" else self.criterion

    @property
    def stage(self) -> str:
        """The stage that the measured model has reached: "dense", "pruned" or "recovered"."""
        return "recovered" if self.recovery else "dense" if self.ratio == 0 else "pruned"

    @property
    def key(self) -> str:
        """Twelve hex digits of a hash of the settings that matter; the record's file name."""
        return settings_key(self.canonical().settings())

    def canonical(self) -> "Experiment":
        """Set settings without effect to their defaults, so that equal experiments have the same key."""
        if self.ratio == 0:
            kept = {name: getattr(self, name) for name in ("recovery", "evaluation", "int8")}
            return Experiment(self.model, "none", ratio=0, **kept)
        calibration = Calibration() if self.criterion in DATA_FREE else self.calibration
        order = self.order if self.aggregation in ORDERED else "channel"
        seed = self.seed if self.criterion == "random" else 0
        return replace(self, calibration=calibration, order=order, seed=seed)

    def settings(self) -> dict[str, Any]:
        """Return the settings as nested plain data for JSON, without those in `ADDED` at their default."""
        values = asdict(self)
        for part, added in ADDED.items():
            owner = (values[part] if part else values) or {}
            for name in [name for name, default in added.items() if owner.get(name) == default]:
                owner.pop(name, None)
        return values

    def model_settings(self) -> dict[str, Any]:
        """Return the settings that determine the model: all but the evaluation."""
        return {name: value for name, value in self.canonical().settings().items() if name != "evaluation"}


def settings_key(settings: Any) -> str:
    """Return twelve hex digits that identify these settings: the hash of their JSON with sorted keys."""
    return text_hash(json.dumps([FORMAT, settings], sort_keys=True, separators=(",", ":"), allow_nan=False))
