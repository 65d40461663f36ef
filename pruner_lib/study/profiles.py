"""Profiles: the settings of a whole study, from which every notebook makes its experiments.

The profiles `tiny`, `quick`, `decide` and `paper` lie in `profiles.yaml`. Profiles of your own: a YAML file,
named by `$PRUNER_LIB_PROFILES`, that changes profiles or adds some; what each name means: `Profile`.

    paper:                        # the built-in profile, but for what stands here
      short_recovery: {epochs: 1}
    mine:                         # a new one, results in results/mine/
      like: quick
      model: /models/my-llama
"""

import os
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


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # the one in C is seven times as fast
    """YAML in which no mapping names a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises: ConstructorError: a key stands there twice, of which YAML itself would take the last."""
        keys = [str(key.value) for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            said = f"{', '.join(twice)} stands there twice"
            raise yaml.constructor.ConstructorError(problem=said, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


@settings
class CalibrationStudy:
    """How far notebook 02 turns the calibration, one setting at a time."""

    samples: Counts  # the values tried; that of the profile's calibration is among them
    lengths: Annotated[tuple[Length, ...], Strict(False), AfterValidator(some)]  # likewise
    corpora: Annotated[Names, AfterValidator(some)]  # likewise
    reference_samples: Count  # of the large calibration that the others are compared with
    windows: Count  # of the evaluation, which is short because only differences matter here
    probes: Count  # groups whose true loss change is measured, ...
    probe_samples: Count  # ... on so many samples


@settings
class Sweep:
    """How far notebooks 06 to 08 turn ratio, layer and granularity; each model is measured on few windows."""

    shares: Shares  # of all parameters removed, where granularities are compared: a small one, then half
    layer_ratio: Share  # of the groups of the one pruned layer
    layer_draws: Count  # of its calibration
    draws: Count | None = None  # of the sweep by parameters; None: as many as in the profile
    group_draws: Count = 1  # of the sweep by groups
    answer_draws: Count = 1  # of the answers of local and global ranking, and of narrow and few layers
    scope_draws: Count | None = None  # of the perplexity of local and global ranking; None: as of the sweep
    answering: Methods = ()  # methods whose halved model answers the questions too
    recovered: Draws = field(default_factory=dict)  # whose halved model is recovered -> of how many draws
    models: Names = ()  # swept besides the profile's own
    half_protected: Annotated[tuple[Number, ...], Strict(False), Field(max_length=2)] = ()
    # first and last layers left whole where half is cut (the paper: 3 and 1); empty: the profile's own
    native_model: str = ""  # of about half the size and never pruned (the paper's Table 9); empty: none


@settings
class MethodStudy:
    """What notebooks 03 to 05 compare; all models lose the same share of their parameters."""

    share: Share  # of all parameters removed
    methods: Methods = ("random", "l2", "vector", "element1", "element2", "mixed", "channel")  # as in Table 1
    recovered: Draws = field(default_factory=lambda: dict.fromkeys(("l2", "channel", "element1"), 1))
    # methods recovered too (`short_recovery`) -> of how many draws
    limit: Count | None = None  # questions per task; None: all
    whole_questions: Count | None = None  # of the whole model beside what others published; None: limit
    answer_draws: Count = 1  # draws whose models answer them
    alone_draws: Count | None = None  # the same of matrices ranked alone (notebook 04); None: answer_draws
    rule_draws: Count | None = None  # the same of the ways to aggregate (notebook 05); None: answer_draws
    random_draws: Count | None = None  # of the random choice (notebook 03); None: as many as of the others
    recovered_answers: Draws = field(default_factory=dict)  # how many of these answer too; not named: 1
    models: Names = ()  # further models, ...
    shares: Annotated[tuple[Share, ...], Strict(False)] = ()  # ... the share that each loses, ...
    tables: Names = ()  # ... and the paper's table of each
    beside: Methods = ()  # methods compared on them, by texts alone; none: all as on the first model
    beside_draws: Count = 3  # draws of these

    def __post_init__(self) -> None:
        if not len(self.models) == len(self.shares) == len(self.tables):
            sizes = f"{len(self.models)}, {len(self.shares)} and {len(self.tables)}"
            raise ValueError(f"models, shares and tables hold {sizes} values, but should be equally long")


@settings
class RecoveryStudy:
    """How far notebook 09 turns the recovery; `batch_size` to `warmup_steps` of all but the profile's own."""

    keep_at: Steps  # steps of the profile's recovery after which the model is measured on the way
    answer_at: Steps  # those of them after which it answers the questions too
    samples: Counts  # numbers of instructions tried, each seen once
    draws: Count  # of the instructions
    module_samples: Count  # the number with which parts of the model are trained
    few: Count  # instructions of the run that over-fits, as long as that with the most `samples`
    watch: Steps  # steps of these two runs after which they are measured
    held_out: Count  # instructions that no run sees
    batch_size: Count
    micro_batch_size: Count
    learning_rate: Rate
    warmup_steps: Number = 0
    fit_draws: Count = 1  # of the run that over-fits, beyond those of the ladder
    run_draws: Count = 1  # of the instructions of the profile's own recovery

    def __post_init__(self) -> None:
        RecoverySettings(batch_size=self.batch_size, micro_batch_size=self.micro_batch_size)
        if not {*self.answer_at} <= {*self.keep_at}:
            raise ValueError(f"answer_at is {self.answer_at}, but should be some of keep_at, {self.keep_at}")


@settings
class After:
    """What notebook 13 compares: repair in closed form, more samples and LoRA, on the same samples."""

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
    ratio: Share  # of the groups removed, where pruning applies
    ratios: Shares  # the sweep of Figure 4
    protect_first: Number  # decoder layers left whole
    protect_last: Number
    draws: Count  # of the calibration, wherever methods are compared
    calibration: Calibration
    calibration_study: CalibrationStudy  # notebook 02
    recovery: Recovery
    recovery_study: RecoveryStudy  # notebook 09
    evaluation: Evaluation  # with the paper's windows
    method_study: MethodStudy  # notebooks 03 to 05
    short_evaluation: Evaluation  # of the many models of a sweep
    short_recovery: Recovery  # where many are recovered
    sweep: Sweep  # notebooks 06 to 08
    after: After  # notebook 13
    other_models: Names = ()  # those of the paper's further tables
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # of the weights
    checkpoint_above: Count = 8192  # tokens; to score more, activations are computed twice, to save memory
    first_draw: Number = 0  # the lowest number of a draw
    prompts: Count = 5  # how many are continued, ...
    new_tokens: Count = 64  # ... by so many tokens each

    def experiment(self, *, recovered: bool = False, **changes: Any) -> Experiment:
        """Make an experiment with this profile's settings, and some changes.

        Args:    recovered: with the profile's recovery after pruning.    changes: fields of `Experiment`.
        Raises:  ValueError: no such field, or a value that is not allowed.
        """
        shared = ("model", "ratio", "protect_first", "protect_last", "calibration", "evaluation")
        values = {name: getattr(self, name) for name in shared}
        return Experiment(**values | {"recovery": self.recovery if recovered else None} | changes)

    def dense(self, **changes: Any) -> Experiment:
        """Make the experiment that measures the whole model."""
        return self.experiment(**changes).dense

    def draw_numbers(self, draws: int | None = None, start: int = 0) -> range:
        """Number the draws (of samples, random scores or instructions) of this profile: their seeds.

        Args:    draws: how many; None or 0: as many as in the profile.    start: how many are left out.
        """
        first = self.first_draw + start
        return range(first, first + (draws or self.draws))

    def calibrations(self, draws: int | None = None, start: int = 0) -> list[Calibration]:
        """Make the calibration draws of this profile; see `draw_numbers`."""
        return [replace(self.calibration, seed=number) for number in self.draw_numbers(draws, start)]

    @property
    def short_answers(self) -> Evaluation:
        """The tasks where many models are compared: fewer questions, no texts."""
        return replace(self.evaluation, texts=(), limit=self.method_study.limit)


def profile_names() -> list[str]:
    """List the profiles there are."""
    return sorted({**_read(PROFILES_FILE), **_read(os.environ.get(VARIABLE))})


def load_profile(name: str) -> Profile:
    """Load the profile `name`.

    Raises:  ValueError: there is no such profile (the message lists them), or a value is not allowed.
    """
    require(str, profile=name)
    built_in, own = _read(PROFILES_FILE), _read(os.environ.get(VARIABLE))
    if name not in built_in and name not in own:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(profile_names())}")
    changes = own.get(name, {})
    if not isinstance(changes, Mapping):
        raise ValueError(f"profile {name!r} of {VARIABLE} is {changes!r}, but should hold settings")
    base = changes.get("like", name)
    if "like" in changes and base not in list(built_in):
        raise ValueError(f"profile {name!r} is like {base!r}, but there are {', '.join(sorted(built_in))}")
    values = dict(built_in.get(base, {}))
    for key, value in changes.items():
        part = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)  # as `evaluation`
        values[key] = values[key] | value if part else value
    values.pop("like", None)
    if values.setdefault("name", name) != name:
        raise ValueError(f"profile {name!r} gives itself another name, {values['name']!r}; leave it out")
    return from_plain(Profile, values, f"profile {name!r}" + " without `like`" * (base not in built_in))


def _read(path: Path | str | None) -> Mapping[str, Any]:
    if not path:  # no file of the user's own
        return {}
    try:
        profiles = yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the profiles {str(path)!r} can't be read: {reason}; see {VARIABLE}") from error
    if not isinstance(profiles, Mapping):
        raise ValueError(f"{path} should hold names of profiles, each with its settings; see {VARIABLE}")
    return {str(name): one for name, one in profiles.items()}
