"""What the benchmark aims at: a range for each kind of number, and the README's table of what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pruner_lib.benchmark.bench_rows import newest_rows, usual_rows

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "results/bench"
MEMORY, TIMES, EVALUATION, IDEAL, RIVAL = 1.35, (1.3, 3.0), 0.95, 0.85, 1 / 3


@dataclass(frozen=True)
class Goal:
    """Numbers of one part of the benchmark and the range in which all of them must lie."""

    what: str
    part: str  # stem of its CSV
    numbers: Callable[[pd.DataFrame], pd.Series]
    low: float = 0.0
    high: float = float("inf")

    @property
    def range(self) -> str:
        if self.low and self.high < float("inf"):
            return f"{self.low:.3g} to {self.high:.3g}"
        return f"at least {self.low:.3g}" if self.low else f"at most {self.high:.3g}"


def _scoring(column: str, *ways: str, size: str = "7") -> Callable[[pd.DataFrame], pd.Series]:
    def numbers(frame: pd.DataFrame) -> pd.Series:
        usual = usual_rows(frame)
        return usual[(usual["size"] == size) & usual.way.isin(ways)][column]

    return numbers


def _slope(frame: pd.DataFrame) -> pd.Series:
    """Give MiB of peak for each MiB of weights, by a line through all sizes."""
    import numpy as np
    import pandas as pd

    rows = usual_rows(frame)
    rows = rows[rows.way == "all criteria"]
    return pd.Series(np.polyfit(rows.weights_mb, rows.peak_mb, 1)[:1])


GOALS = (
    Goal(
        "LLaMA-7B scored by all criteria at once: peak of resident memory / bytes of the weights",
        "scoring",
        _scoring("peak_to_weights", "all criteria"),
        high=MEMORY,
    ),
    Goal(
        "0.1 to 7 billion parameters scored by all criteria: growth of the peak / growth of the weights",
        "scoring",
        _slope,
        high=MEMORY,
    ),
    Goal(
        "LLaMA-7B scored by vector or by element1: time / plain forward + backward",
        "scoring",
        _scoring("time_to_plain", "vector", "element1"),
        high=TIMES[0],
    ),
    Goal(
        "LLaMA-7B scored by all criteria at once: time / plain forward + backward",
        "scoring",
        _scoring("time_to_plain", "all criteria"),
        high=TIMES[1],
    ),
    Goal(
        "0.1 to 7 billion parameters: predicted / measured peak of memory",
        "scoring",
        lambda frame: frame.predicted_to_peak.dropna(),
        low=0.85,
        high=1.15,
    ),
    Goal(
        "groups of LLaMA-7B found: time / that of torch-pruning",
        "discovery",
        lambda frame: frame[(frame["size"] == "7") & (frame.tool == "ours")].share_of_rival,
        high=RIVAL,
    ),
    Goal(
        "SmolLM2-135M without 20 and 50 % of its blocks, reading a prompt: speed-up / ideal",
        "latency",
        lambda frame: frame[(frame.phase == "prefill") & (frame.removed > 0)].of_ideal,
        low=IDEAL,
    ),
    Goal(
        "perplexity of SmolLM2-135M: tokens a second / those of the bare forward pass",
        "evaluation",
        lambda frame: frame.share,
        low=EVALUATION,
    ),
)


def goals_table(root: Path) -> str:
    """Write as Markdown what was aimed at and what was measured, from the CSVs of the benchmark below `root`.

    Returns: a row a goal; where a CSV is of several machines, the one measured last counts.
    """
    places = {goal.part: f"{FOLDER}/{goal.part}.csv" for goal in GOALS}
    if not all((root / place).is_file() for place in places.values()):
        return "Not there yet: `inv bench` makes it."
    frames = {part: newest_rows(root / place) for part, place in places.items()}
    lines = ["| benchmark | goal | measured | met | file |\n|---|---|---|---|---|"]
    for goal in GOALS:
        numbers = goal.numbers(frames[goal.part])
        ends = sorted({f"{numbers.min():.3g}", f"{numbers.max():.3g}"}, key=float)
        met = "yes" if numbers.between(goal.low, goal.high).all() else "no"
        file = f"[{goal.part}.csv]({places[goal.part]})"
        lines.append(f"| {goal.what} | {goal.range} | {' to '.join(ends)} | {met} | {file} |")
    return "\n".join(lines)
