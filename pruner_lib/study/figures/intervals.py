"""The first of the two figures of the study: rows of numbers with their intervals.

It stands for every comparison of a few named things: methods, choices, stages of a model, costs, pairs.
Nothing here measures or saves, and no setting of matplotlib is changed. How names look is fixed in `style`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pruner_lib.study.figures.style import (
    GREY,
    HOLLOW,
    MIN_BAND,
    MethodStyle,
    finish_axes,
    finish_axis,
    key,
    marks_frame,
    need,
    new_axes,
    styles_of,
    summary,
)

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
        frame: columns `value`, `rows`, `series`, `marker`, `each`, and those of `style.marks_frame`: `low`
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
    marks = marks_frame(frame, value, [rows, series, marker])
    marks = marks.drop_duplicates() if each else marks
    within = [column for column in dict.fromkeys((series, marker)) if column and column != rows]
    names = list(dict.fromkeys(marks[rows]))
    slots = {name: _slots(marks[marks[rows] == name], within) for name in names}
    most = max(map(len, slots.values()))
    ax = new_axes(ax, 6.4, 1.3 + len(names) * (0.2 + APART * most))
    labels, colors = styles_of(names), styles_of(marks[series or rows])
    shapes = styles_of(marks[marker]) if marker else colors
    finite = marks[["value", "low", "high"]].to_numpy().ravel()
    others = [*(reference or {}).values(), *(frame[each] if each else [])]
    limits = _limits(np.array([*finite, *others], dtype=float), scale)
    keys = [rows, *within]
    for cell, part in marks.groupby([*keys, "source"], sort=False):
        at = dict(zip([*keys, "source"], cell, strict=True))
        here = slots[at[rows]]
        slot = here.index(tuple(at[column] for column in within))
        y = names.index(at[rows]) + (slot - (len(here) - 1) / 2) / (most + 1)
        look = MethodStyle(colors[at[series or rows]].color, shapes[at[marker or series or rows]].marker, "")
        if at["source"] == "paper":
            ring = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.2, "zorder": 4}
            ax.plot(part.value, [y] * len(part), look.marker, color=look.color, **ring)
            continue
        if each:
            own = frame[(frame[keys] == pd.Series(at)[keys]).all(axis=1)][each]
            ax.plot(own, [y] * len(own), "|", color=look.color, alpha=0.5, markersize=12, zorder=1)
        _draw(ax, y, part, look, scale == "log", limits)
    for number in (reference or {}).values():
        ax.axvline(number, color=GREY, linestyle="--", linewidth=1, zorder=0)
    ax.set_xlim(limits)
    ax.set_yticks(range(len(names)), [labels[name].label for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    finish_axis(ax, "x", label, scale)
    named = _handles(marks, colors if series else {}, shapes if marker else {}, reference or {})
    return finish_axes(ax, title, named if legend else [])


def _slots(marks: pd.DataFrame, columns: list[str]) -> list[tuple]:
    """List the heights that a row has, one for each combination of series and marker that is there."""
    return list(dict.fromkeys(marks[columns].itertuples(index=False, name=None))) or [()]


def _limits(numbers: np.ndarray, scale: str) -> tuple[float, float]:
    """Give the ends of an axis that holds all finite numbers, and on a log axis the positive ones."""
    numbers = numbers[np.isfinite(numbers) & ((numbers > 0) | (scale != "log"))]
    if not len(numbers):
        return (0.5, 2.0) if scale == "log" else (0.0, 1.0)
    ends = np.log([numbers.min(), numbers.max()]) if scale == "log" else [numbers.min(), numbers.max()]
    margin = 0.06 * (ends[1] - ends[0]) or 0.1 * abs(ends[1]) or 0.1
    low, high = ends[0] - margin, ends[1] + margin
    return (float(np.exp(low)), float(np.exp(high))) if scale == "log" else (float(low), float(high))


def _draw(ax: Axes, y: float, part: pd.DataFrame, look: MethodStyle, log: bool, limits) -> None:
    """Draw our number at a height: its mark and its interval, cut off where the axis ends."""
    if len(part) >= MIN_BAND:
        ax.plot(part.value, [y] * len(part), "|", color=look.color, alpha=0.5, markersize=9)
        spans = [summary(part, log)]
    else:
        spans = list(part[["value", "low", "high"]].itertuples(index=False, name=None))
    for middle, low, high in spans:
        ax.plot(
            middle, y, look.marker, color=look.color, markersize=10 if look.marker == "*" else 7, zorder=3
        )
        if np.isnan(low) or np.isnan(high):
            continue
        shown = np.clip([low, high], *limits)
        ax.plot(shown, [y, y], color=look.color, linewidth=1.5, solid_capstyle="butt", zorder=2)
        for end, cut, arrow in zip((low, high), shown, "<>", strict=True):
            ax.plot(cut, y, "|" if end == cut else arrow, color=look.color, markersize=6, clip_on=False)


def _handles(marks: pd.DataFrame, colors: dict, shapes: dict, reference: Mapping[str, float]) -> list[Artist]:
    """List what the legend explains: colours, markers where there are several, the paper's marks."""
    handles: list[Artist] = []
    if colors:
        plain = bool(shapes) and shapes is not colors  # the shape says something else
        handles += [key(MethodStyle(s.color, "" if plain else s.marker, s.label)) for s in colors.values()]
    if len(shapes) > 1 and shapes is not colors:
        handles += [key(MethodStyle(GREY, style.marker, style.label)) for style in shapes.values()]
    if (marks.source == "paper").any():
        handles.append(key(HOLLOW, hollow=True))
    handles += [Line2D([], [], color=GREY, linestyle="--", label=name) for name in reference]
    return handles
