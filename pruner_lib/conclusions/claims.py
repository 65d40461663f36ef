"""What a claim of the paper is: a number, where it must lie, and the rule for the verdict.

The claims themselves are listed in `paper_claims`, before anything was measured. `verdicts` measures the
number of a claim from records; with its 95 % interval:

    reproduced       the whole interval lies in the range
    not reproduced   no part of it does
    can't tell       otherwise: the sample is too small, or chance decides

The paper's own number is computed from its tables (`results/paper/`) by the same formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FIFTH = (0.15, 0.25)  # shares of all parameters that count as "20 %"
HALF = (0.45, 0.55)
SAME_SIZE = 0.02  # two models whose sparsities differ by no more are of one size
HOWS = ("ratio", "difference", "to best", "outer layers", "share recovered", "exact")
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
CANT_TELL, NOT_MEASURED = "can't tell at this sample size", "not measured"


@dataclass(frozen=True)
class Which:
    """Which records speak: their stage, their share of parameters cut, and settings other than the usual.

    Args:    stage: "dense", "pruned" or "recovered".    sparsity: lowest and highest share cut.
             settings: (field of `Experiment`, value or tuple of values) pairs.
    """

    stage: str = "pruned"
    sparsity: tuple[float, float] = FIFTH
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Printed:
    """A number of the paper, by its place: `paper.published(table)`, row and metric."""

    table: str
    row: str
    metric: str

    @property
    def value(self) -> float:
        """The number; accuracies as shares. A mean that was not printed is computed from what was."""
        from pruner_lib.questions.paper import published

        numbers = published(self.table).query("row == @self.row").set_index("metric")
        tasks = numbers.index.str.startswith("accuracy/")
        if self.metric == "accuracy/mean" and self.metric not in numbers.index:
            value = float(np.mean(numbers.value[tasks]))
        elif self.metric in numbers.index:
            value = float(numbers.value[self.metric])
        else:
            raise ValueError(f"{self.table} has no {self.metric} in its row {self.row!r}")
        return value / 100 if self.metric.startswith("accuracy/") else value


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and how it is judged.

    Args:    id: short name.    sentence: the claim in our words.    source: section and table of the paper.
             notebook: the one that measures it.    how: the formula, one of `HOWS`.
             metric: "perplexity" or "accuracy/mean".    one, other: the records that are compared.
             holds: the range of the number in which the claim is true.
             printed: the paper's numbers that the same formula takes; empty if it printed none.
             measured: the formula in words.
    """

    id: str
    sentence: str
    source: str
    notebook: str
    measured: str
    how: str
    metric: str
    one: Which
    other: Which | None
    holds: tuple[float, float]
    printed: tuple[Printed, ...] = ()

    @property
    def paper(self) -> float | None:
        """The paper's number by the claim's formula; None if it printed none."""
        return FORMULAS[self.how](*(found.value for found in self.printed)) if self.printed else None

    @property
    def rule(self) -> str:
        """The range in words."""
        low, high = self.holds
        if np.isfinite(low) and np.isfinite(high):
            return f"from {low:g} to {high:g}"
        return f"above {low:g}" if np.isfinite(low) else f"below {high:g}"


def judge(low: float, high: float, holds: tuple[float, float]) -> str:
    """Give the verdict on a number whose interval is [low, high], by the rule above.

    Raises:  ValueError: `low` is above `high`, or one of them is no number.
    """
    if not low <= high:
        raise ValueError(
            f"the interval runs from {low} to {high}; its low end must not be above its high end"
        )
    if holds[0] <= low and high <= holds[1]:
        return REPRODUCED
    return NOT_REPRODUCED if high < holds[0] or low > holds[1] else CANT_TELL


def _to_best(one: float, *others: float) -> float:
    perplexities = one >= 1  # accuracies are shares
    return one / min(others) if perplexities else one - max(others)


def _share(start: float, there: float, best: float) -> float:
    return float(np.log(start / there) / np.log(start / best))


FORMULAS = {
    "ratio": lambda one, other: one / other,
    "difference": lambda one, other: one - other,
    "to best": _to_best,
    "share recovered": _share,
}
