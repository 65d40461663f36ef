"""Named settings for a whole study: `tiny`, `quick`, `full`, `paper`; the values lie in `profiles.yaml`.

Profiles of your own: `own_profiles`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from pruner_lib.experiments.experiment import Calibration, Evaluation, Experiment, Recovery, build
from pruner_lib.experiments.own_profiles import with_own


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


PROFILES_FILE = Path(__file__).parents[1] / "profiles.yaml"
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
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))
