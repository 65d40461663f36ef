"""The second of the two figures of the study: numbers over numbers, as curves with bands or as single marks.

It stands for sweeps over share, layer, samples and steps, and for estimates beside the truth. Nothing here
measures or saves, and no setting of matplotlib is changed. How names look is fixed in `style`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pruner_lib.study.figures.style import (
    DIRECT_LABELS,
    GREY,
    HOLLOW,
    MIN_BAND,
    MethodStyle,
    finish_axes,
    finish_axis,
    key,
    label_lines,
    marks_frame,
    need,
    new_axes,
    styles_of,
    summary,
)

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
        frame: columns `value`, `x`, `series`, `line`, `marker`, `seconds`, and those of `style.marks_frame`:
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
    marks = marks_frame(frame, value, [x, series, line, marker])
    ax = new_axes(ax)
    named = not pd.api.types.is_numeric_dtype(marks[x])
    places = list(dict.fromkeys(marks[x])) if named else sorted(set(marks[x]))
    marks["place"] = marks[x].map(places.index) if named else marks[x].astype(float)
    marks = _begun(marks, series, line) if joined else marks
    looks = {name: styles_of(marks[name]) if name else {} for name in (series, line, marker)}
    keys = [name for name in dict.fromkeys((series, line, marker)) if name]
    ends = []
    for cell, part in marks.groupby([*keys, "source"], sort=False):
        look = _look(dict(zip(keys, cell[:-1], strict=True)), series, line, marker, looks)
        if cell[-1] == "paper":
            ring = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.2, "linewidth": 0.8}
            between = ":" if joined and not named else ""
            ax.plot(
                part["place"], part.value, look.marker, linestyle=between, color=look.color, **ring, zorder=4
            )
            continue
        points = _points(part, scale == "log")
        if joined and not named:
            _curve(ax, part, points, look)
            ends.append((*points[-1, :2], look.label, look.color))
        else:
            errors = np.nan_to_num([points[:, 1] - points[:, 2], points[:, 3] - points[:, 1]]).clip(0)
            ax.errorbar(points[:, 0], points[:, 1], errors, fmt=look.marker, color=look.color, capsize=3)
    _frame_axes(ax, marks, places if named else [], xscale, reference or {}, looks[series], diagonal)
    finish_axis(ax, "x", xlabel, xscale)
    finish_axis(ax, "y", label, scale)
    if xscale == "log" and len(places) <= FEW and not named:
        ax.set_xticks(places, [f"{place:,g}" for place in places])
    direct = legend and 1 < len(ends) <= DIRECT_LABELS and not marker
    if seconds:
        _seconds_axis(ax, frame, x, seconds, places)
    handles = _handles(marks, looks, (series, line, marker), reference or {}, direct, joined and not named)
    handles += [Line2D([], [], color=GREY, linestyle="--", label=diagonal)] if diagonal else []
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


def _look(at: dict, series: str | None, line: str | None, marker: str | None, looks: dict) -> MethodStyle:
    """Put the look of a curve together from the styles of its series, line and marker."""
    own = looks[series][at[series]] if series else MethodStyle("#0072B2", "o", "")
    dash = looks[line][at[line]] if line else MethodStyle("", "", "")
    names = dict.fromkeys(filter(None, (own.label, dash.label)))
    shape = looks[marker][at[marker]].marker if marker else own.marker
    return MethodStyle(own.color, shape, ", ".join(names), dash.line)


def _points(part: pd.DataFrame, log: bool) -> np.ndarray:
    """Give place, middle, low and high `(places, 4)` of a curve, in the order of the places."""
    points = np.array([(at, *summary(rows, log)) for at, rows in part.groupby("place")], dtype=float)
    known = points[:, 1:][np.isfinite(points[:, 1:])]
    if len(known):  # an open end: as far as the numbers go
        points[:, 1:] = np.clip(points[:, 1:], known.min(), known.max())
    return points


def _curve(ax: Axes, part: pd.DataFrame, points: np.ndarray, look: MethodStyle) -> None:
    """Draw a curve with its band, and its draws where they are too few for one."""
    at, middle, low, high = points.T
    marked = {"marker": look.marker, "markersize": 5} if len(at) <= FEW or (at % 1 == 0).all() else {}
    ax.plot(at, middle, look.line, color=look.color, linewidth=1.6, **marked)
    if np.isfinite([low, high]).any():
        ax.fill_between(at, low, high, color=look.color, alpha=0.15, linewidth=0)
    few = part.groupby("place").filter(lambda rows: 1 < len(rows) < MIN_BAND)
    ax.plot(few["place"], few.value, "_", color=look.color, alpha=0.6, markersize=9)


def _frame_axes(ax, marks, names, xscale, reference, colors, diagonal) -> None:
    """Draw the reference lines and the diagonal, and give the horizontal axis its ticks."""
    for name, number in reference.items():
        color = colors[name].color if name in colors else GREY
        ax.axhline(number, color=color, linestyle="--", linewidth=1, zorder=0)
    if diagonal:
        both = marks[(marks["place"] > 0) & (marks.value > 0)] if xscale == "log" else marks
        ends = [max(both["place"].min(), both.value.min()), min(both["place"].max(), both.value.max())]
        ax.plot(ends, ends, "--", color=GREY, linewidth=1, zorder=0)
    if names:
        ax.set_xticks(range(len(names)), [str(name) for name in names])
        ax.set_xlim(-0.6, len(names) - 0.4)
    elif xscale == "linear" and (marks["place"] % 1 == 0).all():
        ax.xaxis.get_major_locator().set_params(integer=True)


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


def _handles(marks, looks, columns, reference, direct: bool, lines: bool) -> list[Artist]:
    """List what the legend explains: curves without a name at their end, markers, the paper, references."""
    series, line, marker = columns
    handles: list[Artist] = []
    ours = marks[marks.source != "paper"]
    curves = [name for name in dict.fromkeys((series, line)) if name]
    if curves and not direct:
        for cell in ours[curves].drop_duplicates().itertuples(index=False):
            look = _look(dict(zip(curves, cell, strict=True)), series, line, None, looks)
            shape = "" if marker else look.marker
            if look.label and (len(ours[curves].drop_duplicates()) > 1 or lines):
                handles.append(
                    key(MethodStyle(look.color, shape, look.label), line=look.line if lines else "")
                )
    if marker:
        handles += [key(MethodStyle(GREY, style.marker, style.label)) for style in looks[marker].values()]
    if (marks.source == "paper").any():
        handles.append(key(HOLLOW, hollow=True))
    for name in reference:
        style = looks[series].get(name, MethodStyle(GREY, "", name))
        label = f"{style.label}, dense model" if style.color != GREY else name
        handles.append(Line2D([], [], color=style.color, linestyle="--", label=label))
    return handles
