"""The first of the two figures of the study: rows of numbers with their intervals.

It stands for every comparison of a few named things: methods, choices, stages of a model, costs, pairs.
Nothing here measures or saves, and no setting of matplotlib is changed. How names look is fixed in `style`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pruner_lib.study.figures.drawing import (
    MIN_BAND,
    draw_paper,
    finish_axes,
    finish_axis,
    legend_keys,
    marks_frame,
    new_axes,
    reference_lines,
    styled,
    summary,
)
from pruner_lib.study.figures.style import styles_of


def plot_intervals(
    frame: pd.DataFrame,
    value: str = "ours",
    *,
    label: str,
    rows: str = "name",
    series: str | None = None,
    marker: str | None = None,
    each: str | None = None,
    reference: Mapping[str, float] | None = None,
    scale: str = "linear",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a row for each name: our numbers with their intervals, the paper's hollow at the same height.

    Several rows of one name, series and marker are draws: from three on their mean and one standard deviation
    are drawn over short dashes, else each by itself. An end that is infinite runs to the edge, without a cap.

    >>> plot_intervals(kept, label="perplexity / dense perplexity", scale="log", marker="stage",
    ...                reference={"dense model": 1}, title="smollm2-135m, wiki, 20 % removed")

    Args:
        frame: columns `value`, `rows`, `series`, `marker`, `each`, and those of `drawing.marks_frame`: `low`
            and `high`, or `stderr`; `paper`, or `source`.
        label: what is measured, with its unit.    rows: column of the names.
        series: column that chooses the colour; without it the row's name does.
        marker: column that chooses the marker, such as a stage.
        each: column of single measurements, dashes behind the interval of their mean.
        reference: name -> number, a dashed line.    scale: "linear", "log" or "percent" (of shares).
    """
    within = [column for column in dict.fromkeys((series, marker)) if column and column != rows]
    marks = styled(marks_frame(frame, value, [rows, *within]), series or rows, marker=marker)
    marks = marks.drop_duplicates() if each else marks
    slots = marks.drop_duplicates([rows, *within]).groupby(rows, sort=False)
    names, most = styles_of(marks[rows]), slots.size().max()
    ax = new_axes(ax, 6.4, 1.3 + len(names) * (0.2 + 0.2 * most))
    ax.set_xscale("log" if scale == "log" else "linear")
    spans = []  # height, low, high, colour
    for row, (_, slot) in enumerate(slots):
        for place, cell in enumerate(slot[[rows, *within]].itertuples(index=False)):
            y = row + (place - (len(slot) - 1) / 2) / (most + 1)
            here = marks[(marks[[rows, *within]] == list(cell)).all(axis=1)]
            spans += _draw(ax, y, here, scale == "log")
            if each:
                own = frame[(frame[[rows, *within]] == list(cell)).all(axis=1)][each]
                ax.plot(own, [y] * len(own), "|", color=here.color.iloc[0], alpha=0.5, markersize=12)
    keys = legend_keys(marks, series, None, marker, joined=False)
    keys += reference_lines(ax, "x", reference, {})
    limits = ax.get_xlim()
    for y, low, high, color in spans:
        ax.plot(np.clip([low, high], *limits), [y, y], color=color, linewidth=1.5, zorder=2)
    ax.set_yticks(range(len(names)), [style.label for style in names.values()])
    ax.set(xlim=limits, ylim=(len(names) - 0.5, -0.5))
    finish_axis(ax, "x", label, scale)
    return finish_axes(ax, title, keys)


def _draw(ax: Axes, y: float, marks: pd.DataFrame, log: bool) -> list[tuple[float, float, float, str]]:
    """Draw the marks at one height, and the caps of their intervals; return these: y, low, high, colour."""
    paper, ours = marks[marks.source == "paper"], marks[marks.source != "paper"]
    if len(paper):
        draw_paper(ax, paper.value, [y] * len(paper), paper)
    numbers = [summary(ours.iloc[[i]], log) for i in range(len(ours))]
    color, symbol = marks.color.iloc[0], marks.symbol.iloc[0]
    if len(ours) >= MIN_BAND:
        ax.plot(ours.value, [y] * len(ours), "|", color=color, alpha=0.5, markersize=9)
        numbers = [summary(ours, log)]
    for middle, low, high in numbers:
        ax.plot(middle, y, symbol, color=color, markersize=10 if symbol == "*" else 7, zorder=3)
        ax.plot([low, high], [y, y], "|", color=color, markersize=6)
    return [(y, low, high, color) for _, low, high in numbers if low < high]
