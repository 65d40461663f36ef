"""The figures of the summary: the verdict on every claim, and our factors beside the paper's.

One function a figure, from a tidy frame onto axes; nothing here measures or saves. How methods look is fixed
in `marks`, how a verdict is reached in `claims`.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.conclusions.claims import CANT_TELL, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED
from pruner_lib.figures.marks import GREY, STAGES, need, new_axes, style_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ANSWERS = {  # verdict -> (colour, mark)
    REPRODUCED: ("#009E73", "o"),
    NOT_REPRODUCED: ("#D55E00", "X"),
    CANT_TELL: (GREY, "s"),
    NOT_MEASURED: ("#999999", ""),
}
TRUE_HERE = "#D9F0E6"
LOG_FROM = 5  # rows whose numbers span a larger factor are drawn on a logarithmic scale
WRAP = 46  # characters a line of a sentence
OURS_AT, PAPER_AT = 10, 145  # columns of numbers: points from the right end of the axes


def plot_verdicts(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw every claim as a row: the range where it holds, our number with its interval, the paper's number.

    Args:    frame: columns `sentence`, `ours`, `low`, `high`, `paper` (NaN: none), `holds_from`, `holds_to`,
             `verdict`; a row a claim. Each row has its own scale.
    """
    need(frame, "sentence", "ours", "low", "high", "paper", "holds_from", "holds_to", "verdict")
    ax = new_axes(ax, 12, 1.1 + 0.56 * len(frame))
    rows = list(frame.itertuples())
    for y, row in enumerate(rows):
        _verdict_row(ax, y, row)
    for x, title in ((OURS_AT, "ours"), (PAPER_AT, "paper")):
        _beside(ax, x, -0.75, title, fontweight="bold")
    ax.set_yticks(
        range(len(rows)), ["\n".join(textwrap.wrap(row.sentence, WRAP)) for row in rows], fontsize=9
    )
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xticks([])
    ax.set_xlabel("each row has its own scale; shaded: where the claim holds, its edge labelled")
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.legend(
        handles=_verdict_marks(frame), frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(-0.35, 1)
    )
    return ax


def _verdict_row(ax: Axes, y: int, row) -> None:
    color, marker = ANSWERS[row.verdict]
    place = _scale([row.ours, row.low, row.high, row.paper], [row.holds_from, row.holds_to])
    start, end = place(row.holds_from), place(row.holds_to)
    ax.fill_between([start, end], y - 0.36, y + 0.36, color=TRUE_HERE, linewidth=0, zorder=0)
    for edge in (row.holds_from, row.holds_to):
        if np.isfinite(edge):
            ax.plot([place(edge)] * 2, [y - 0.36, y + 0.36], color=GREY, linewidth=0.8, zorder=1)
            ax.annotate(
                f"{edge:g}", (place(edge), y - 0.36), xytext=(2, -1), textcoords="offset points", fontsize=7,
                color=GREY, va="top",
            )  # fmt: skip
    if np.isfinite(row.paper):
        ax.plot(place(row.paper), y, "D", color="black", markerfacecolor="none", markersize=7, zorder=3)
    if np.isfinite(row.ours):
        ax.plot([place(row.low), place(row.high)], [y, y], color=color, linewidth=2.4, zorder=2)
        ax.plot(place(row.ours), y, marker, color=color, markersize=8, zorder=4)
    ours = "–"
    if np.isfinite(row.ours):
        ours = f"{_number(row.ours)}  [{_number(row.low)}, {_number(row.high)}]"
    told = f"{ours}\n{row.verdict.partition(' at ')[0]}"
    paper = _number(row.paper) if np.isfinite(row.paper) else "none printed"
    for x, text, shade in ((OURS_AT, told, color), (PAPER_AT, paper, "black")):
        _beside(ax, x, y, text, color=shade)


def _beside(ax: Axes, points: float, y: float, text: str, **look) -> None:
    at = {"xycoords": ax.get_yaxis_transform(), "xytext": (points, 0), "textcoords": "offset points"}
    ax.annotate(text, (1, y), va="center", fontsize=9, annotation_clip=False, **at, **look)


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
    from matplotlib.lines import Line2D

    there = [name for name in ANSWERS if name in set(frame.verdict) and ANSWERS[name][1]]
    marks = [
        Line2D([], [], color=ANSWERS[n][0], marker=ANSWERS[n][1], linewidth=2.4, label=f"ours: {n}")
        for n in there
    ]
    look = {"color": "black", "marker": "D", "markerfacecolor": "none", "linestyle": "", "label": "paper"}
    return [*marks, Line2D([], [], **look)]


def plot_beside_paper(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw our factors over the dense model against the paper's, every method before and after recovery.

    Args:    frame: columns `method`, `stage` ("pruned", "recovered"), `ours`, `low`, `high`, `paper`:
             perplexity over that of the dense model; a row a method and stage.
    """
    need(frame, "method", "stage", "ours", "low", "high", "paper")
    ax = new_axes(ax, 6.2, 5.2)
    for row in frame.itertuples():
        style = style_of(row.method)
        hollow = {"markerfacecolor": "white"} if row.stage == "pruned" else {}
        errors = [[max(0, row.ours - row.low)], [max(0, row.high - row.ours)]]
        ax.errorbar(
            row.paper,
            row.ours,
            yerr=errors,
            color=style.color,
            marker=style.marker,
            markersize=8,
            capsize=3,
            **hollow,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ends = [min(frame.paper.min(), frame.low.min(), 1), max(frame.paper.max(), frame.high.max())]
    ax.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, zorder=0)
    ax.annotate(
        "as in the paper", ends[1:] * 2, xytext=(-12, -4), textcoords="offset points", color=GREY, ha="right"
    )
    ax.set_xlabel("paper: perplexity, times that of the dense model")
    ax.set_ylabel("ours: perplexity, times that of the dense model")
    ax.legend(handles=_method_marks(frame), frameon=False, loc="upper left", fontsize=9)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _method_marks(frame: pd.DataFrame) -> list:
    from matplotlib.lines import Line2D

    styles = [style_of(method) for method in dict.fromkeys(frame.method)]
    marks = [Line2D([], [], color=s.color, marker=s.marker, linestyle="", label=s.label) for s in styles]
    for stage in dict.fromkeys(frame.stage):
        face = {"markerfacecolor": "white"} if stage == "pruned" else {}
        marks.append(Line2D([], [], color=GREY, marker="o", linestyle="", label=STAGES[stage][0], **face))
    return marks
