"""All claims in one figure: where each holds, our number with its interval, and the paper's."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pruner_lib.study.claims import CANT_TELL, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED
from pruner_lib.study.figures.drawing import finish_axes, new_axes
from pruner_lib.study.figures.style import GREY

ANSWERS = {  # verdict -> (colour, mark)
    REPRODUCED: ("#009E73", "o"),
    NOT_REPRODUCED: ("#D55E00", "X"),
    CANT_TELL: (GREY, "s"),
    NOT_MEASURED: ("#999999", ""),
}
PAPER = {"color": "black", "marker": "D", "markerfacecolor": "none", "linestyle": ""}
TRUE_HERE = "#D9F0E6"
LOG_FROM = 5  # rows whose numbers span a larger factor are drawn on a logarithmic scale
ROW = 0.95  # inches of a row: two lines of a sentence, the bar, a line of numbers
BAR, NUMBERS = 0.54, 0.8  # heights within a row, from its top


def plot_verdicts(frame: pd.DataFrame, *, title: str = "") -> Axes:
    """Draw every claim: its sentence, the range where it holds, our number with its interval, the paper's.

    Narrow and long, so that it can be read on a phone. Each row has its own scale.

    Args:    frame: columns `sentence`, `ours`, `low`, `high`, `paper` (NaN: none), `holds_from`, `holds_to`,
             `verdict`; a row a claim.
    """
    ax = new_axes(None, 6.4, 1.1 + ROW * len(frame))
    for y, row in enumerate(frame.itertuples()):
        _verdict_row(ax, y, row)
    ax.set(xlim=(0, 1), ylim=(len(frame), 0), xticks=[], yticks=[])
    ax.set_xlabel("each row has its own scale; shaded: where the claim holds, its edge labelled")
    ax.spines[:].set_visible(False)
    there = {name: look for name, look in ANSWERS.items() if look[1] and name in set(frame.verdict)}
    keys = [
        Line2D([], [], color=c, marker=m, linewidth=2.4, label=f"ours: {n}") for n, (c, m) in there.items()
    ]
    return finish_axes(ax, title, [*keys, Line2D([], [], label="paper", **PAPER)])


def _verdict_row(ax: Axes, y: int, row: Any) -> None:
    color, marker = ANSWERS[row.verdict]
    place = _scale([row.ours, row.low, row.high, row.paper, row.holds_from, row.holds_to])
    middle, top, bottom = y + BAR, y + BAR - 0.16, y + BAR + 0.16
    sentence = "\n".join(textwrap.wrap(row.sentence, 78))
    ax.text(0, top - 0.03, sentence, ha="left", va="bottom", fontsize=9.5, linespacing=1.1)
    edges = [row.holds_from, row.holds_to]
    ax.fill_between([*map(place, edges)], top, bottom, color=TRUE_HERE, linewidth=0, zorder=0)
    for edge in filter(np.isfinite, edges):
        ax.plot([place(edge)] * 2, [top, bottom], color=GREY, linewidth=0.8, zorder=1)
        where = {"xytext": (2, -1), "textcoords": "offset points", "va": "top"}
        ax.annotate(f"{edge:g}", (place(edge), top), fontsize=8, color=GREY, **where)
    ours, paper = row.verdict.partition(" at ")[0], "paper: none printed"
    if np.isfinite(row.paper):
        paper = f"paper: {_number(row.paper)}"
        ax.plot(place(row.paper), middle, markersize=7, zorder=3, **PAPER)
    if np.isfinite(row.ours):
        ours += f": {_number(row.ours)}  [{_number(row.low)}, {_number(row.high)}]"
        ax.plot([place(row.low), place(row.high)], [middle] * 2, color=color, linewidth=2.4, zorder=2)
        ax.plot(place(row.ours), middle, marker, color=color, markersize=8, zorder=4)
    ax.text(0, y + NUMBERS, ours, va="center", fontsize=9, color=color)
    ax.text(1, y + NUMBERS, paper, ha="right", va="center", fontsize=9)


def _scale(numbers: list[float]) -> Callable[[float], float]:
    """Give the function that places the numbers of a row between 0 and 1; the infinite lie at the ends."""
    known = np.array(numbers)[np.isfinite(numbers)]
    form = np.log if known.min() > 0 and known.max() / known.min() > LOG_FROM else np.asarray
    low, high = form(known.min()), form(known.max())
    margin = 0.25 * (high - low) or 0.1 * abs(high) or 1.0
    span = high - low + 2 * margin
    return lambda x: float(x > 0) if np.isinf(x) else float(np.clip((form(x) - low + margin) / span, 0, 1))


def _number(value: float) -> str:
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 0
    return f"{value:,.{digits}f}".replace("inf", "∞").replace("-∞", "−∞")
