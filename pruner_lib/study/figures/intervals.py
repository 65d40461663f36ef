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
    finish_axes,
    finish_axis,
    legend_keys,
    marks_frame,
    need,
    new_axes,
    paper_marks,
    reference_lines,
    styled,
    summary,
)
from pruner_lib.study.figures.style import styles_of

APART = 0.2  # inches between marks of one row


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
    legend: bool = True,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a row for each name: our numbers with their intervals, the paper's hollow at the same height.

    Several rows of one name, series and marker are draws: from three on their mean and one standard deviation
    are drawn over short dashes, else each by itself. An end beyond the axis, or infinite, is an arrow.

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
        legend: False: another panel explains the marks.
    Raises:  ValueError: the frame can't be drawn (the message says what it lacks).
    """
    need(frame, each)
    within = [column for column in dict.fromkeys((series, marker)) if column and column != rows]
    marks = styled(marks_frame(frame, value, [rows, *within]), series or rows, marker=marker)
    marks = marks.drop_duplicates() if each else marks
    heights, most = _heights(marks, rows, within)
    ax = new_axes(ax, 6.4, 1.3 + marks[rows].nunique() * (0.2 + APART * most))
    others = [*(reference or {}).values(), *(frame[each] if each else [])]
    finite = marks[["value", "low", "high"]].to_numpy().ravel()
    limits = _limits(np.array([*finite, *others], dtype=float), scale)
    for cell, part in marks.groupby([rows, *within, "source"], sort=False):
        y = heights[cell[:-1]]
        if cell[-1] == "paper":
            paper_marks(ax, part.value, [y] * len(part), part)
            continue
        if each:
            own = frame[(frame[[rows, *within]] == list(cell[:-1])).all(axis=1)][each]
            ax.plot(own, [y] * len(own), "|", color=part.color.iloc[0], alpha=0.5, markersize=12, zorder=1)
        _draw(ax, y, part, scale == "log", limits)
    handles = legend_keys(marks, marker, curves=bool(series))
    handles += reference_lines(ax.axvline, reference)
    names = styles_of(marks[rows])
    ax.set_yticks(range(len(names)), [style.label for style in names.values()])
    ax.set(xlim=limits, ylim=(len(names) - 0.5, -0.5))
    finish_axis(ax, "x", label, scale)
    return finish_axes(ax, title, handles if legend else [])


def _heights(marks: pd.DataFrame, rows: str, within: list[str]) -> tuple[dict[tuple, float], int]:
    """Give each combination of row, series and marker its height, and the most that one row has."""
    cells = marks[[rows, *within]].drop_duplicates()
    slots = cells.groupby(rows, sort=False).cumcount()
    number, sizes = cells.groupby(rows, sort=False).ngroup(), cells.groupby(rows)[rows].transform("size")
    most = int(sizes.max())
    heights = number + (slots - (sizes - 1) / 2) / (most + 1)
    return dict(zip(cells.itertuples(index=False, name=None), heights, strict=True)), most


def _limits(numbers: np.ndarray, scale: str) -> tuple[float, float]:
    """Give the ends of an axis that holds all finite numbers, and on a log axis the positive ones."""
    numbers = numbers[np.isfinite(numbers) & ((numbers > 0) | (scale != "log"))]
    if not len(numbers):
        return (0.5, 2.0) if scale == "log" else (0.0, 1.0)
    ends = np.log([numbers.min(), numbers.max()]) if scale == "log" else [numbers.min(), numbers.max()]
    margin = 0.06 * (ends[1] - ends[0]) or 0.1 * abs(ends[1]) or 0.1
    low, high = ends[0] - margin, ends[1] + margin
    return (float(np.exp(low)), float(np.exp(high))) if scale == "log" else (float(low), float(high))


def _draw(ax: Axes, y: float, part: pd.DataFrame, log: bool, limits: tuple[float, float]) -> None:
    """Draw our number at a height: its mark and its interval, cut off where the axis ends."""
    color, symbol = part.color.iloc[0], part.symbol.iloc[0]
    spans = list(part[["value", "low", "high"]].itertuples(index=False, name=None))
    if len(part) >= MIN_BAND:
        ax.plot(part.value, [y] * len(part), "|", color=color, alpha=0.5, markersize=9)
        spans = [summary(part, log)]
    for middle, low, high in spans:
        ax.plot(middle, y, symbol, color=color, markersize=10 if symbol == "*" else 7, zorder=3)
        if np.isnan(low) or np.isnan(high):
            continue
        shown = np.clip([low, high], *limits)
        ax.plot(shown, [y, y], color=color, linewidth=1.5, solid_capstyle="butt", zorder=2)
        for end, cut, arrow in zip((low, high), shown, "<>", strict=True):
            ax.plot(cut, y, "|" if end == cut else arrow, color=color, markersize=6, clip_on=False)
