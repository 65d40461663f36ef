"""Named settings for a whole study: `tiny`, `quick`, `full`, `paper`; the values lie in `profiles.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from pruner_lib.experiment import Calibration, Evaluation, Experiment, Recovery, build

PROFILES_FILE = Path(__file__).with_name("profiles.yaml")
_PARTS = {
    "calibration": Calibration,
    "recovery": Recovery,
    "evaluation": Evaluation,
    "long_evaluation": Evaluation,
}


@dataclass(frozen=True)
class Profile:
    """The settings that every notebook starts from.

    Args:    model: what is pruned.
             ratio: share of groups removed where pruning applies.    ratios: the sweep of Figure 4.
             protect_first, protect_last: decoder layers left whole.
             draws: how many calibration draws, wherever methods are compared.
             evaluation: with the paper's windows.    long_evaluation: perplexity in long windows.
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
    recovery: Recovery
    evaluation: Evaluation
    long_evaluation: Evaluation
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


def profile_names() -> list[str]:
    """List the profiles there are."""
    return sorted(_read(PROFILES_FILE))


def load_profile(name: str) -> Profile:
    """Load the profile `name`.

    Raises:  ValueError: there is no such profile (the message lists them), or a value is not allowed.
    """
    known = _read(PROFILES_FILE)
    if name not in known:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(sorted(known))}")
    return _profile(name, known[name])


def _profile(name: str, values: dict[str, Any]) -> Profile:
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
        return build(Profile, {"name": name} | values | parts)
    except ValueError as error:
        raise ValueError(f"profile {name!r}: {error}") from error


@cache
def _read(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))
