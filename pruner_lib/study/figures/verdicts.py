"""All claims in one figure: where each holds, our number with its interval, and the paper's."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pruner_lib.study.claims import CANT_TELL, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED
from pruner_lib.study.figures.drawing import finish_axes, need, new_axes
from pruner_lib.study.figures.style import GREY

ANSWERS = {  # verdict -> (colour, mark)
    REPRODUCED: ("#009E73", "o"),
    NOT_REPRODUCED: ("#D55E00", "X"),
    CANT_TELL: (GREY, "s"),
    NOT_MEASURED: ("#999999", ""),
}
TRUE_HERE = "#D9F0E6"
LOG_FROM = 5  # rows whose numbers span a larger factor are drawn on a logarithmic scale
WRAP = 78  # characters a line of a sentence
ROW = 0.95  # inches of a row: two lines of a sentence, the bar, a line of numbers
BAR, NUMBERS = 0.54, 0.8  # heights within a row, from its top


def plot_verdicts(frame: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw every claim: its sentence, the range where it holds, our number with its interval, the paper's.

    Narrow and long, so that it can be read on a phone. Each row has its own scale.

    Args:    frame: columns `sentence`, `ours`, `low`, `high`, `paper` (NaN: none), `holds_from`, `holds_to`,
             `verdict`; a row a claim.
    """
    need(frame, "sentence", "ours", "low", "high", "paper", "holds_from", "holds_to", "verdict")
    ax = new_axes(ax, 6.4, 1.1 + ROW * len(frame))
    for y, row in enumerate(frame.itertuples()):
        _verdict_row(ax, y, row)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(frame), 0)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("each row has its own scale; shaded: where the claim holds, its edge labelled")
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return finish_axes(ax, title, _verdict_marks(frame))


def _verdict_row(ax: Axes, y: int, row) -> None:
    color, marker = ANSWERS[row.verdict]
    place = _scale([row.ours, row.low, row.high, row.paper], [row.holds_from, row.holds_to])
    start, end = place(row.holds_from), place(row.holds_to)
    middle, top, bottom = y + BAR, y + BAR - 0.16, y + BAR + 0.16
    sentence = "\n".join(textwrap.wrap(row.sentence, WRAP))
    ax.text(0, top - 0.03, sentence, ha="left", va="bottom", fontsize=9.5, linespacing=1.1)
    ax.fill_between([start, end], top, bottom, color=TRUE_HERE, linewidth=0, zorder=0)
    for edge in (row.holds_from, row.holds_to):
        if np.isfinite(edge):
            ax.plot([place(edge)] * 2, [top, bottom], color=GREY, linewidth=0.8, zorder=1)
            where = {"xytext": (2, -1), "textcoords": "offset points", "va": "top"}
            ax.annotate(f"{edge:g}", (place(edge), top), fontsize=8, color=GREY, **where)
    if np.isfinite(row.paper):
        ax.plot(place(row.paper), middle, "D", color="black", markerfacecolor="none", markersize=7, zorder=3)
    if np.isfinite(row.ours):
        ax.plot([place(row.low), place(row.high)], [middle] * 2, color=color, linewidth=2.4, zorder=2)
        ax.plot(place(row.ours), middle, marker, color=color, markersize=8, zorder=4)
    ours = row.verdict.partition(" at ")[0]
    if np.isfinite(row.ours):
        ours += f": {_number(row.ours)}  [{_number(row.low)}, {_number(row.high)}]"
    paper = f"paper: {_number(row.paper)}" if np.isfinite(row.paper) else "paper: none printed"
    ax.text(0, y + NUMBERS, ours, va="center", fontsize=9, color=color)
    ax.text(1, y + NUMBERS, paper, ha="right", va="center", fontsize=9)


def _scale(numbers, edges):
    """Give the function that places the numbers of a row between 0 and 1; the infinite lie at the ends."""
    known = np.array([value for value in (*numbers, *edges) if np.isfinite(value)])
    positive = bool(len(known)) and known.min() > 0 and known.max() / known.min() > LOG_FROM
    form = np.log if positive else np.asarray
    low, high = (float(form(value)) for value in (known.min(), known.max())) if len(known) else (0.0, 1.0)
    margin = 0.25 * (high - low) or 0.1 * abs(high) or 1.0
    return lambda value: _between(value, form, low - margin, high + margin)


def _between(value: float, form, low: float, high: float) -> float:
    if np.isinf(value):
        return 0.0 if value < 0 else 1.0
    return float(np.clip((form(value) - low) / (high - low), 0, 1))


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "∞" if value > 0 else "−∞"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 0
    return f"{value:,.{digits}f}"


def _verdict_marks(frame: pd.DataFrame) -> list:
    there = [name for name in ANSWERS if name in set(frame.verdict) and ANSWERS[name][1]]
    marks = [
        Line2D([], [], color=ANSWERS[n][0], marker=ANSWERS[n][1], linewidth=2.4, label=f"ours: {n}")
        for n in there
    ]
    look = {"color": "black", "marker": "D", "markerfacecolor": "none", "linestyle": "", "label": "paper"}
    return [*marks, Line2D([], [], **look)]
