"""The second of the two figures of the study: numbers over numbers, as curves with bands or as single marks.

It stands for sweeps over share, layer, samples and steps, and for estimates beside the truth. Nothing here
measures or saves, and no setting of matplotlib is changed. How names look is fixed in `style`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pruner_lib.study.figures.drawing import (
    DIRECT_LABELS,
    MIN_BAND,
    finish_axes,
    finish_axis,
    label_lines,
    legend_keys,
    marks_frame,
    need,
    new_axes,
    paper_marks,
    reference_lines,
    styled,
    summary,
)
from pruner_lib.study.figures.style import GREY, styles_of

START = "dense"  # the series that begins all others
FEW = 12  # up to so many places each have a mark, and on a log axis a tick


def plot_curves(
    frame: pd.DataFrame,
    value: str = "value",
    *,
    x: str,
    xlabel: str,
    label: str,
    series: str | None = None,
    line: str | None = None,
    marker: str | None = None,
    joined: bool = True,
    reference: Mapping[str, float] | None = None,
    diagonal: str = "",
    seconds: str | None = None,
    xscale: str = "linear",
    scale: str = "linear",
    legend: bool = True,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a curve for each series, ours with filled marks and a band, the paper's values hollow.

    Several rows of one place are draws: from three on their mean and one standard deviation are drawn, else
    each by itself around the mean. Where `x` holds names, and where `joined` is False, marks have error bars.
    Up to four curves are named at their right ends, more in a legend. The series "dense" begins all others.

    >>> plot_curves(steps, "times", x="step", xlabel="steps of recovery", series="dataset", seconds="seconds",
    ...             label="perplexity / perplexity before recovery", scale="log")

    Args:
        frame: columns `value`, `x`, `series`, `line`, `marker`, `seconds`, and those of `marks_frame`:
            `low` and `high`, or `stderr`; `paper`, or `source`.
        x: column of numbers or of names.    xlabel, label: what the axes show, with its unit.
        series, line, marker: columns that choose the colour, the line style and the marker.
        joined: False: marks alone, as for estimates beside the truth.
        reference: name -> number, a dashed line; one named as a series has its colour: its dense model.
        diagonal: name of the line on which both numbers are equal; "": none.
        seconds: column of seconds, in proportion to `x`: a second axis above.
        xscale, scale: "linear", "log" or "percent" (of shares).
        legend: False: another panel explains the curves.
    Raises:  ValueError: the frame can't be drawn (the message says what it lacks).
    """
    need(frame, seconds)
    columns = [name for name in dict.fromkeys((series, line, marker)) if name]
    marks, ax = marks_frame(frame, value, [x, *columns]), new_axes(ax)
    named = not pd.api.types.is_numeric_dtype(marks[x])
    places = list(dict.fromkeys(marks[x])) if named else sorted(set(marks[x]))
    marks["place"] = marks[x].map(places.index) if named else marks[x].astype(float)
    marks = styled(_begun(marks, series, line) if joined else marks, series, line, marker)
    lines = joined and not named
    ends = _draw_marks(ax, marks.groupby([*columns, "source"], sort=False), lines, scale == "log")
    finish_axis(ax, "x", xlabel, xscale)
    finish_axis(ax, "y", label, scale)
    _name_places(ax, marks, places, named, xscale)
    direct = legend and 1 < len(ends) <= DIRECT_LABELS and not marker
    handles = legend_keys(
        marks, marker, curves=not direct and (lines or marks.label.nunique() > 1), lines=lines
    )
    handles += reference_lines(ax.axhline, reference, styles_of(marks[series]) if series else {})
    handles += _diagonal(ax, marks, diagonal, xscale) if diagonal else []
    if seconds:
        _seconds_axis(ax, frame, x, seconds, places)
    ax = finish_axes(ax, title, handles if legend else [], inside=bool(ax.child_axes))
    if direct:
        label_lines(ax, ends)
    return ax


def _begun(marks: pd.DataFrame, series: str | None, line: str | None) -> pd.DataFrame:
    """Put the marks of the series `START` at the beginning of every other one that has the same line."""
    if not series or not (first := marks[series] == START).any() or first.all():
        return marks
    others = marks[~first & (marks.source != "paper")][[series, *([line] if line else [])]].drop_duplicates()
    start = marks[first].drop(columns=series)
    start = start.merge(others, on=line) if line else start.merge(others, how="cross")
    return pd.concat([start, marks[~first]], ignore_index=True)


def _draw_marks(ax: Axes, parts: Iterable[tuple], lines: bool, log: bool) -> list[tuple]:
    """Draw each part of the marks as the paper's, as a curve or as single marks; return the curves' ends."""
    ends = []
    for _, part in parts:
        if part.source.iloc[0] == "paper":
            paper_marks(ax, part["place"], part.value, part, line=":" if lines else "")
        elif lines:
            ends.append(_curve(ax, part, log))
        else:
            at, middle, low, high = _points(part, log).T
            errors, look = np.nan_to_num([middle - low, high - middle]).clip(0), part.iloc[0]
            ax.errorbar(at, middle, errors, fmt=look.symbol, color=look.color, capsize=3)
    return ends


def _points(part: pd.DataFrame, log: bool) -> np.ndarray:
    """Give place, middle, low and high `(places, 4)` of a curve, in the order of the places."""
    points = np.array([(at, *summary(rows, log)) for at, rows in part.groupby("place")], dtype=float)
    known = points[:, 1:][np.isfinite(points[:, 1:])]
    if len(known):  # an open end: as far as the numbers go
        points[:, 1:] = np.clip(points[:, 1:], known.min(), known.max())
    return points


def _curve(ax: Axes, part: pd.DataFrame, log: bool) -> tuple[float, float, str, str]:
    """Draw a curve with its band, and its draws where they are too few for one; return its end and name."""
    at, middle, low, high = _points(part, log).T
    look = part.iloc[0]
    marked = {"marker": look.symbol, "markersize": 5} if len(at) <= FEW or (at % 1 == 0).all() else {}
    ax.plot(at, middle, look.dash, color=look.color, linewidth=1.6, **marked)
    if np.isfinite([low, high]).any():
        ax.fill_between(at, low, high, color=look.color, alpha=0.15, linewidth=0)
    few = part.groupby("place").filter(lambda rows: 1 < len(rows) < MIN_BAND)
    ax.plot(few["place"], few.value, "_", color=look.color, alpha=0.6, markersize=9)
    return at[-1], middle[-1], look.label, look.color


def _name_places(ax: Axes, marks: pd.DataFrame, places: list, named: bool, xscale: str) -> None:
    """Give the horizontal axis a tick for each name, for few places of a log axis, or for whole numbers."""
    if named:
        ax.set_xticks(range(len(places)), [str(place) for place in places])
        ax.set_xlim(-0.6, len(places) - 0.4)
    elif xscale == "log" and len(places) <= FEW:
        ax.set_xticks(places, [f"{place:,g}" for place in places])
    elif xscale == "linear" and (marks["place"] % 1 == 0).all():
        ax.xaxis.get_major_locator().set_params(integer=True)


def _diagonal(ax: Axes, marks: pd.DataFrame, name: str, xscale: str) -> list[Line2D]:
    """Draw the line on which both numbers are equal, as far as there are marks; return it for the legend."""
    both = marks[(marks["place"] > 0) & (marks.value > 0)] if xscale == "log" else marks
    ends = [max(both["place"].min(), both.value.min()), min(both["place"].max(), both.value.max())]
    return ax.plot(ends, ends, "--", color=GREY, linewidth=1, zorder=0, label=name)


def _seconds_axis(ax: Axes, frame: pd.DataFrame, x: str, seconds: str, places: list[float]) -> None:
    """Add an axis of seconds above, which grow in proportion to `x`; none where no time has passed."""
    rate = frame[seconds].sum() / frame[x].sum()
    if not rate > 0:
        return
    upper = ax.secondary_xaxis("top", functions=(lambda at: at * rate, lambda passed: passed / rate))
    upper.set_xlabel("seconds of training on this machine")
    if ax.get_xscale() == "log":
        upper.set_xticks([place * rate for place in places], [f"{place * rate:,.3g}" for place in places])
        upper.minorticks_off()
