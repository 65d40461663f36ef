"""Profiles: the settings of a whole study, from which every notebook makes its experiments.

The profiles `tiny`, `quick`, `decide` and `paper` are in `profiles.yaml`. `$PRUNER_LIB_PROFILES` names a YAML
file of custom profiles, which changes built-in profiles or adds new ones; `Profile` explains each setting.

    paper:                        # the built-in profile with these changes
      short_recovery: {epochs: 1}
    mine:                         # a new profile, with its results in results/mine/
      like: quick
      model: /models/my-llama
"""

import os
import re
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, Strict

from pruner_lib.method.checks import require
from pruner_lib.method.names import CRITERIA
from pruner_lib.recovery.settings import RecoverySettings
from pruner_lib.study.settings import (
    Calibration,
    Count,
    Evaluation,
    Experiment,
    Length,
    Name,
    Names,
    Number,
    Rate,
    Recovery,
    Share,
    Steps,
    different,
    from_plain,
    settings,
    some,
)

PROFILES_FILE = Path(__file__).with_name("profiles.yaml")
VARIABLE = "PRUNER_LIB_PROFILES"
Counts = Annotated[tuple[Count, ...], Strict(False), AfterValidator(some)]
Method = Literal[(*CRITERIA, "channel")]
Methods = Annotated[tuple[Method, ...], Strict(False), AfterValidator(different)]
Draws = dict[Method, Count]
Shares = Annotated[tuple[Share, ...], Strict(False), AfterValidator(some)]


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # the C loader is seven times faster
    """A YAML loader that refuses duplicate keys and reads 1e-3 as a number, unlike YAML 1.1."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises: ConstructorError: a key is listed twice."""
        keys = [str(key.value) for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            message = f"{', '.join(twice)} is listed twice"
            raise yaml.constructor.ConstructorError(problem=message, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


@settings
class CalibrationStudy:
    """The calibration settings that notebook 02 varies, one at a time."""

    # the values tried; each list contains the value of the profile's own calibration
    samples: Counts
    lengths: Annotated[tuple[Length, ...], Strict(False), AfterValidator(some)]
    corpora: Annotated[Names, AfterValidator(some)]
    reference_samples: Count  # of the large calibration that the others are compared with
    windows: Count  # of the evaluation, which is short because only differences matter here
    probes: Count  # number of groups whose true loss change is measured ...
    probe_samples: Count  # ... on this many samples


@settings
class Sweep:
    """What notebooks 06 to 08 vary: ratio, layer and granularity; all draws are of the calibration."""

    shares: Shares  # of all parameters removed when granularities are compared: a small share, then half
    layer_ratio: Share  # of the groups removed when a single layer is pruned
    layer_draws: Count  # when a single layer is pruned
    draws: Count | None = None  # in the sweep by parameters; None: the profile's number
    group_draws: Count = 1  # in the sweep by groups
    answer_draws: Count = 1  # for the answers, local against global ranking and narrow against few layers
    scope_draws: Count | None = None  # for their perplexity; None: as in the sweep
    answering: Methods = ()  # methods whose model with half removed also answers the questions
    recovered: Draws = field(default_factory=dict)  # methods recovered with half removed -> number of draws
    models: Names = ()  # swept in addition to the profile's model
    half_protected: Annotated[tuple[Number, ...], Strict(False), Field(max_length=2)] = ()
    # first and last layers not pruned when half is removed (the paper: 3 and 1); empty: as in the profile
    native_model: str = ""  # a model of about half the size, never pruned (the paper's Table 9); empty: none


@settings
class MethodStudy:
    """What notebooks 03 to 05 compare; all models lose the same share of their parameters."""

    share: Share  # of all parameters removed
    methods: Methods = ("random", "l2", "vector", "element1", "element2", "mixed", "channel")  # as in Table 1
    recovered: Draws = field(default_factory=lambda: dict.fromkeys(("l2", "channel", "element1"), 1))
    # methods that are also recovered (`short_recovery`) -> number of draws
    limit: Count | None = None  # questions per task; None: all
    whole_questions: Count | None = None  # for the dense model beside published numbers; None: limit
    answer_draws: Count = 1  # number of draws whose models answer the questions
    alone_draws: Count | None = None  # the same for matrices ranked alone (notebook 04); None: answer_draws
    rule_draws: Count | None = None  # the same for the aggregations (notebook 05); None: answer_draws
    random_draws: Count | None = None  # draws of the random criterion (notebook 03); None: as for the others
    recovered_answers: Draws = field(default_factory=dict)  # recovered method -> draws that answer; default 1
    models: Names = ()  # further models, ...
    shares: Annotated[tuple[Share, ...], Strict(False)] = ()  # ... the share removed from each ...
    tables: Names = ()  # ... and the paper's table for each
    beside: Methods = ()  # methods compared on them by perplexity only; empty: all, as on the first model
    beside_draws: Count = 3  # draws of these

    def __post_init__(self) -> None:
        if not len(self.models) == len(self.shares) == len(self.tables):
            sizes = f"{len(self.models)}, {len(self.shares)} and {len(self.tables)}"
            raise ValueError(f"models, shares and tables hold {sizes} values; give as many of each")


@settings
class RecoveryStudy:
    """What notebook 09 varies in the recovery."""

    keep_at: Steps  # steps of the profile's recovery after which the model is measured
    answer_at: Steps  # the ones among them after which it also answers the questions
    samples: Counts  # numbers of instructions tried, each instruction seen once
    draws: Count  # of the instructions
    module_samples: Count  # instructions in the runs that train only parts of the model
    few: Count  # instructions of the run that over-fits; it takes as many steps as that with most `samples`
    watch: Steps  # steps of these two runs after which they are measured
    held_out: Count  # instructions that no run sees
    # of all runs except the profile's own recovery
    batch_size: Count
    micro_batch_size: Count
    learning_rate: Rate
    warmup_steps: Number = 0
    fit_draws: Count = 1  # of the run that over-fits, in addition to `draws`
    run_draws: Count = 1  # of the instructions in the profile's own recovery

    def __post_init__(self) -> None:
        RecoverySettings(batch_size=self.batch_size, micro_batch_size=self.micro_batch_size)
        if not {*self.answer_at} <= {*self.keep_at}:
            raise ValueError(f"answer_at is {self.answer_at}; give only steps of keep_at, {self.keep_at}")


@settings
class After:
    """What notebook 13 compares: closed-form repair, more samples and LoRA, on the same samples."""

    samples: Counts  # of the calibration, from few to many
    corpus: Name = "c4"
    length: Length = 128  # tokens per sample
    shares: Shares = (0.2,)  # of all parameters removed
    draws: Count = 1


@settings
class Profile:
    """The settings that every notebook starts from."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
    model: Name  # what is pruned
    ratio: Share  # of the groups removed, in the layers that are pruned
    ratios: Shares  # the sweep of Figure 4
    protect_first: Number  # first decoder layers that are not pruned
    protect_last: Number
    draws: Count  # of the calibration, when methods are compared
    calibration: Calibration
    calibration_study: CalibrationStudy  # notebook 02
    recovery: Recovery
    recovery_study: RecoveryStudy  # notebook 09
    evaluation: Evaluation  # with the paper's windows
    method_study: MethodStudy  # notebooks 03 to 05
    short_evaluation: Evaluation  # for sweeps over many models
    short_recovery: Recovery  # when many models are recovered
    sweep: Sweep  # notebooks 06 to 08
    after: After  # notebook 13
    other_models: Names = ()  # the models of the paper's further tables
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # of the weights
    checkpoint_above: Count = 8192  # calibration tokens above which activations are recomputed to save memory
    first_draw: Number = 0  # the lowest seed of a draw
    prompts: Count = 5  # number of prompts that are continued ...
    new_tokens: Count = 64  # ... by this many tokens each

    def experiment(self, *, recovered: bool = False, **changes: Any) -> Experiment:
        """Make an experiment from this profile's settings and some changes.

        Args:    recovered: add the profile's recovery after pruning.    changes: fields of `Experiment`.
        Raises:  ValueError: a field is unknown or its value is not allowed.
        """
        shared = ("model", "ratio", "protect_first", "protect_last", "calibration", "evaluation")
        values = {name: getattr(self, name) for name in shared}
        return Experiment(**values | {"recovery": self.recovery if recovered else None} | changes)

    def dense(self, **changes: Any) -> Experiment:
        """Make the experiment that measures the dense model."""
        return self.experiment(**changes).dense

    def draw_numbers(self, draws: int | None = None, start: int = 0) -> range:
        """Return the random seeds of this profile's draws (of samples, random scores or instructions).

        Args:    draws: how many; None or 0: the profile's number.    start: how many to skip first.
        """
        first = self.first_draw + start
        return range(first, first + (draws or self.draws))

    def calibrations(self, draws: int | None = None, start: int = 0) -> list[Calibration]:
        """Make one calibration per draw; see `draw_numbers`."""
        return [replace(self.calibration, seed=number) for number in self.draw_numbers(draws, start)]

    @property
    def short_answers(self) -> Evaluation:
        """The evaluation for comparing the answers of many models: fewer questions, no texts."""
        return replace(self.evaluation, texts=(), limit=self.method_study.limit)


def profile_names() -> list[str]:
    """List the names of all profiles."""
    return sorted({**_read(PROFILES_FILE), **_read(os.environ.get(VARIABLE))})


def load_profile(name: str) -> Profile:
    """Load the profile `name`.

    Raises:  ValueError: there is no such profile (the message lists them), or a value is not allowed.
    """
    require(str, profile=name)
    built_in, custom = _read(PROFILES_FILE), _read(os.environ.get(VARIABLE))
    if name not in built_in and name not in custom:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(profile_names())}; see {VARIABLE}")
    changes = custom.get(name, {})
    if not isinstance(changes, Mapping):
        raise ValueError(f"profile {name!r} of {VARIABLE} is {changes!r}, but should hold settings")
    base = changes.get("like", name)
    if "like" in changes and base not in list(built_in):
        raise ValueError(f"profile {name!r} is like {base!r}; name a built-in one: {', '.join(built_in)}")
    values = dict(built_in.get(base, {}))
    for key, value in changes.items():
        part = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)  # as `evaluation`
        values[key] = values[key] | value if part else value
    values.pop("like", None)
    if values.setdefault("name", name) != name:
        raise ValueError(f"profile {name!r} sets its name to {values['name']!r}; leave `name` out")
    return from_plain(Profile, values, f"profile {name!r}" + " without `like`" * (base not in built_in))


def _read(path: Path | str | None) -> Mapping[str, Any]:
    if not path:  # no custom profiles
        return {}
    try:
        profiles = yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the profiles {str(path)!r} can't be read: {reason}; see {VARIABLE}") from error
    if not isinstance(profiles, Mapping):
        raise ValueError(f"{path} should hold names of profiles, each with its settings; see {VARIABLE}")
    return {str(name): profile for name, profile in profiles.items()}
