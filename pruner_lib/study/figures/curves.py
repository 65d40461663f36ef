"""The second of the two figures of the study: numbers over numbers, as curves with bands or as single marks.

It stands for sweeps over share, layer, samples and steps, and for estimates beside the truth. Nothing here
measures or saves, and no setting of matplotlib is changed. How names look is fixed in `style`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pruner_lib.study.figures.drawing import (
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
from pruner_lib.study.figures.style import GREY, styles_of


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
    xscale: str = "linear",
    scale: str = "linear",
    legend: bool = True,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a curve for each series, ours with filled marks and a band, the paper's values hollow.

    Several rows of one place are draws: their mean is drawn, and from three on one standard deviation around
    it. Where `x` holds names, and where `joined` is False, marks have error bars.

    >>> plot_curves(steps, "times", x="step", xlabel="steps of recovery", series="dataset",
    ...             label="perplexity / perplexity before recovery", scale="log")

    Args:
        frame: columns `value`, `x`, `series`, `line`, `marker`, and those of `drawing.marks_frame`: `low` and
            `high`, or `stderr`; `paper`, or `source`.
        x: column of numbers or of names.    xlabel, label: what the axes show, with its unit.
        series, line, marker: columns that choose the colour, the line style and the marker.
        joined: False: marks alone, as for estimates beside the truth.
        reference: name -> number, a dashed line; one named as a series has its colour: its dense model.
        diagonal: name of the line on which both numbers are equal; "": none.
        xscale, scale: "linear", "log" or "percent" (of shares).
        legend: False: another panel explains the curves.
    """
    columns = [name for name in dict.fromkeys((series, line, marker)) if name]
    marks, ax = styled(marks_frame(frame, value, [x, *columns]), series, line, marker), new_axes(ax)
    named = not pd.api.types.is_numeric_dtype(marks[x])
    places = list(dict.fromkeys(marks[x])) if named else sorted(set(marks[x]))
    marks["place"] = marks[x].map(places.index) if named else marks[x].astype(float)
    joined = joined and not named
    for _, part in marks.groupby([*columns, "source"], sort=False):
        if part.source.iloc[0] == "paper":
            draw_paper(ax, part["place"], part.value, part, line=":" if joined else "")
        else:
            _draw(ax, part, joined, scale == "log")
    keys = legend_keys(marks, series, line, marker, joined)
    keys += reference_lines(ax, "y", reference, styles_of(marks[series]) if series else {})
    if diagonal:
        at = marks["place"].median()  # a place inside the axes
        keys.append(ax.axline((at, at), (2 * at, 2 * at), color=GREY, ls="--", lw=1, label=diagonal))
    finish_axis(ax, "x", xlabel, xscale)
    finish_axis(ax, "y", label, scale)
    if named:
        ax.set_xticks(range(len(places)), places)
        ax.set_xlim(-0.6, len(places) - 0.4)
    elif xscale == "log" and len(places) <= 12:  # few enough for a tick each
        ax.set_xticks(places, [f"{place:,g}" for place in places])
    elif xscale == "linear" and (marks["place"] % 1 == 0).all():
        ax.xaxis.get_major_locator().set_params(integer=True)
    return finish_axes(ax, title, keys if legend else [])


def _draw(ax: Axes, part: pd.DataFrame, joined: bool, log: bool) -> None:
    """Draw a part of the marks: a curve with its band and each of its draws, or single marks."""
    points = np.array([(at, *summary(rows, log)) for at, rows in part.groupby("place")], dtype=float)
    known = points[:, 1:][np.isfinite(points[:, 1:])]
    at, middle, low, high = points[:, 0], *points[:, 1:].clip(known.min(), known.max()).T  # no open ends
    look = part.iloc[0]
    if not joined:
        errors = np.nan_to_num([middle - low, high - middle])
        ax.errorbar(at, middle, errors, fmt=look.symbol, color=look.color, capsize=3)
        return
    ax.plot(at, middle, look.dash, color=look.color, linewidth=1.6, marker=look.symbol, markersize=4)
    ax.fill_between(at, low, high, color=look.color, alpha=0.15, linewidth=0)
    drawn = part[part.duplicated("place", keep=False)]
    ax.plot(drawn["place"], drawn.value, "_", color=look.color, alpha=0.6, markersize=7)
