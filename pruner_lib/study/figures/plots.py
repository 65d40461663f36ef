"""The plots of numbers: rows with intervals, curves with bands, heat maps of agreement, and all claims.

Nothing here measures or saves, or changes settings of matplotlib. `drawing` defines the look of names.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pruner_lib.study.claims import CANT_TELL, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED
from pruner_lib.study.figures import drawing
from pruner_lib.study.figures.drawing import GREY, styles_of

ANSWERS = {  # verdict -> (colour, mark)
    REPRODUCED: ("#009E73", "o"),
    NOT_REPRODUCED: ("#D55E00", "X"),
    CANT_TELL: (GREY, "s"),
    NOT_MEASURED: ("#999999", ""),
}
PAPER = {"color": "black", "marker": "D", "markerfacecolor": "none", "linestyle": ""}
TRUE_HERE = "#D9F0E6"  # colour of the range in which a claim holds
LOG_FROM = 5  # rows whose numbers span a larger factor have a logarithmic scale
ROW = 0.95  # inches per row: two lines of a sentence, the bar, a line of numbers
BAR, NUMBERS = 0.54, 0.8  # heights within a row, from its top


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
    """Draw a row for each name: our numbers with their intervals, the paper's as hollow marks.

    Several rows of the same name, series and marker are draws: three or more are drawn as short dashes with
    their mean and one standard deviation, fewer one by one. Infinite ends run to the edge, without a cap.

    >>> plot_intervals(kept, label="perplexity / dense perplexity", scale="log", marker="stage",
    ...                reference={"dense model": 1}, title="smollm2-135m, wiki, 20 % removed")

    Args:
        frame: columns `value`, `rows`, `series`, `marker`, `each`, and those of `drawing.marks_frame`.
        label: what is measured, with its unit.    rows: column of the names.
        series, marker: columns that determine the colour (None: the row's name) and the marker.
        each: column of single measurements, drawn as dashes behind the interval of their mean.
        reference: name -> number, drawn as a line.    scale: "linear", "log" or "percent" (for shares).
    """
    columns = [column for column in dict.fromkeys((rows, series, marker)) if column]
    marks = drawing.marks_frame(frame, value, columns, series or rows, None, marker)
    marks = marks.drop_duplicates() if each else marks
    lines = [[*row.groupby(columns, sort=False)] for _, row in marks.groupby(rows, sort=False)]
    names, most = styles_of(marks[rows]), max(map(len, lines))
    ax = drawing.new_axes(ax, 6.4, 1.3 + len(names) * (0.2 + 0.2 * most))
    ax.set_xscale("log" if scale == "log" else "linear")
    spans = []  # height, low, high, colour
    for row, parts in enumerate(lines):  # the lines within each row, one per series and marker
        for index, (cell, part) in enumerate(parts):
            y = row + (index - (len(parts) - 1) / 2) / (most + 1)
            spans += _draw_row(ax, y, part, scale == "log")
            if each:
                single = frame[(frame[columns] == list(cell)).all(axis=1)][each]
                ax.plot(single, [y] * len(single), "|", color=part.color.iloc[0], alpha=0.5, markersize=12)
    keys = drawing.legend_keys(marks, series, None, marker, joined=False)
    keys += drawing.reference_lines(ax, "x", reference, {})
    limits = ax.get_xlim()
    for y, low, high, color in spans:
        ax.plot(np.clip([low, high], *limits), [y, y], color=color, linewidth=1.5, zorder=2)
    ax.set_yticks(range(len(names)), [style.label for style in names.values()])
    ax.set(xlim=limits, ylim=(len(names) - 0.5, -0.5))
    drawing.finish_axis(ax, "x", label, scale)
    return drawing.finish_axes(ax, title, keys)


def _draw_row(ax: Axes, y: float, marks: pd.DataFrame, log: bool) -> list[tuple[float, float, float, str]]:
    """Draw the marks at one height, and return their intervals: y, low, high and colour of each."""
    paper, ours = marks[marks.source == "paper"], marks[marks.source != "paper"]
    if len(paper):
        drawing.draw_paper(ax, paper.value, [y] * len(paper), paper)
    numbers = [drawing.summary(ours.iloc[[i]], log) for i in range(len(ours))]
    color, symbol = marks.color.iloc[0], marks.symbol.iloc[0]
    if len(ours) >= drawing.MIN_BAND:
        ax.plot(ours.value, [y] * len(ours), "|", color=color, alpha=0.5, markersize=9)
        numbers = [drawing.summary(ours, log)]
    for middle, low, high in numbers:
        ax.plot(middle, y, symbol, color=color, markersize=10 if symbol == "*" else 7, zorder=3)
        ax.plot([low, high], [y, y], "|", color=color, markersize=6)
    return [(y, low, high, color) for _, low, high in numbers if low < high]


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
    """Draw a curve for each series, ours with filled marks and a band, the paper's with hollow marks.

    Several rows at the same place are draws: their mean is drawn and, for three or more, one standard
    deviation around it. If `x` holds names or `joined` is False, marks have error bars.

    >>> plot_curves(steps, "times", x="step", xlabel="steps of recovery", series="dataset",
    ...             label="perplexity / perplexity before recovery", scale="log")

    Args:
        frame: columns `value`, `x`, `series`, `line`, `marker`, and those of `drawing.marks_frame`.
        x: column of numbers or names.    xlabel, label: what the axes show, with its unit.
        series, line, marker: columns that determine the colour, the line style and the marker.
        joined: False: marks without lines, for example for estimates against the truth.
        reference: name -> number, drawn as a line; with the name of a series, it is that series' dense model.
        diagonal: name of the line on which both numbers are equal; "": none.
        xscale, scale: "linear", "log" or "percent" (for shares).
        legend: False: no legend, because another panel has it.
    """
    columns = [name for name in dict.fromkeys((series, line, marker)) if name]
    marks = drawing.marks_frame(frame, value, [x, *columns], series, line, marker)
    ax = drawing.new_axes(ax)
    named = not pd.api.types.is_numeric_dtype(marks[x])
    places = list(dict.fromkeys(marks[x])) if named else sorted(set(marks[x]))
    marks["place"] = marks[x].map(places.index) if named else marks[x].astype(float)
    joined = joined and not named
    for _, part in marks.groupby([*columns, "source"], sort=False):
        if part.source.iloc[0] == "paper":
            drawing.draw_paper(ax, part["place"], part.value, part, line=":" if joined else "")
        else:
            _draw_curve(ax, part, joined, scale == "log")
    keys = drawing.legend_keys(marks, series, line, marker, joined)
    keys += drawing.reference_lines(ax, "y", reference, styles_of(marks[series]) if series else {})
    if diagonal:
        at = marks["place"].median()  # a place inside the axes
        keys.append(ax.axline((at, at), (2 * at, 2 * at), color=GREY, ls="--", lw=1, label=diagonal))
    drawing.finish_axis(ax, "x", xlabel, xscale)
    drawing.finish_axis(ax, "y", label, scale)
    if named:
        ax.set_xticks(range(len(places)), places)
        ax.set_xlim(-0.6, len(places) - 0.4)
    elif xscale == "log" and all(b > 1.3 * a for a, b in pairwise(places)):  # room for a tick each
        ax.set_xticks(places, [f"{place:,g}" for place in places])
    elif xscale == "linear" and (marks["place"] % 1 == 0).all():
        ax.xaxis.get_major_locator().set_params(integer=True)
    return drawing.finish_axes(ax, title, keys if legend else [])


def _draw_curve(ax: Axes, part: pd.DataFrame, joined: bool, log: bool) -> None:
    """Draw the marks of one series: a curve with its band and each of its draws, or single marks."""
    points = np.array([(at, *drawing.summary(rows, log)) for at, rows in part.groupby("place")], dtype=float)
    known = points[:, 1:][np.isfinite(points[:, 1:])]
    at, middle, low, high = points[:, 0], *points[:, 1:].clip(known.min(), known.max()).T  # no open ends
    style = part.iloc[0]
    if not joined:
        errors = np.nan_to_num([middle - low, high - middle])
        size = 10 if style.symbol == "*" else 6
        ax.errorbar(at, middle, errors, fmt=style.symbol, markersize=size, color=style.color, capsize=3)
        return
    ax.plot(at, middle, style.dash, color=style.color, linewidth=1.6, marker=style.symbol, markersize=4)
    ax.fill_between(at, low, high, color=style.color, alpha=0.15, linewidth=0)
    draws = part[part.duplicated("place", keep=False)]
    ax.plot(draws["place"], draws.value, "_", color=style.color, alpha=0.6, markersize=7)


def plot_heatmap(frame: pd.DataFrame, *, label: str = "", title: str = "", ax: Axes | None = None) -> Axes:
    """Draw the agreement of each pair of names, from 0 to 1, as a coloured cell with its number.

    Args:
        frame: of `questions.agreement_table`: columns `method_a`, `method_b`, `overlap`, each pair once.
        label: of the colour bar; "": no colour bar, because another panel has it.
    """
    names = list(dict.fromkeys([*frame.method_a, *frame.method_b]))
    table = frame.pivot(index="method_a", columns="method_b", values="overlap")
    table = table.combine_first(table.T).loc[names, names].to_numpy()
    size = 1.6 + 0.62 * len(names)
    ax = drawing.new_axes(ax, size + 1.2 * bool(label), size)
    image = ax.imshow(table, cmap="cividis", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(table):
        shown, color = f"{round(number, 2) + 0:.2f}", "black" if number > 0.55 else "white"  # + 0: no -0.00
        ax.text(column, row, shown, ha="center", va="center", color=color, fontsize=9)
    labels = [style.label for style in styles_of(names).values()]
    ax.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), labels)
    ax.set_title(title, loc="left", fontsize=11)
    if label:
        ax.figure.colorbar(image, ax=ax, label=label, shrink=0.85)
    return ax


def plot_verdicts(frame: pd.DataFrame, *, title: str = "") -> Axes:
    """Draw every claim: its sentence, the range in which it holds, our number with its interval, the paper's.

    The figure is narrow and long, so that it can be read on a phone. Each row has its own scale.

    Args:    frame: columns `sentence`, `ours`, `low`, `high`, `paper` (NaN: none), `holds_from`, `holds_to`,
             `verdict`; one row per claim.
    """
    ax = drawing.new_axes(None, 6.4, 1.1 + ROW * len(frame))
    for y, row in enumerate(frame.itertuples()):
        _verdict_row(ax, y, row)
    ax.set(xlim=(0, 1), ylim=(len(frame), 0), xticks=[], yticks=[])
    ax.set_xlabel("each row has its own scale; shaded: the range in which the claim holds")
    ax.spines[:].set_visible(False)
    shown = {name: style for name, style in ANSWERS.items() if style[1] and name in set(frame.verdict)}
    key = partial(Line2D, [], [])
    keys = [key(color=c, marker=m, linewidth=2.4, label=f"ours: {n}") for n, (c, m) in shown.items()]
    return drawing.finish_axes(ax, title, [*keys, key(label="paper", **PAPER)])


def _verdict_row(ax: Axes, y: int, row: Any) -> None:
    color, marker = ANSWERS[row.verdict]
    place = _scale([row.ours, row.low, row.high, row.paper, row.holds_from, row.holds_to])
    middle, top, bottom = y + BAR, y + BAR - 0.16, y + BAR + 0.16
    ax.text(0, top - 0.03, fill(row.sentence, 78), va="bottom", fontsize=9.5, linespacing=1.1)
    edges = [row.holds_from, row.holds_to]
    ax.fill_between([*map(place, edges)], top, bottom, color=TRUE_HERE, linewidth=0, zorder=0)
    for edge in filter(np.isfinite, edges):
        ax.plot([place(edge)] * 2, [top, bottom], color=GREY, linewidth=0.8, zorder=1)
        offset = {"xytext": (2, -1), "textcoords": "offset points", "va": "top"}
        ax.annotate(f"{edge:g}", (place(edge), top), fontsize=8, color=GREY, **offset)
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
    """Return the function that maps the numbers of a row to 0..1, and infinities to the ends."""
    known = np.array(numbers)[np.isfinite(numbers)]
    form = np.log if known.min() > 0 and known.max() / known.min() > LOG_FROM else np.asarray
    low, high = form(known.min()), form(known.max())
    margin = 0.25 * (high - low) or 0.1 * abs(high) or 1.0
    span = high - low + 2 * margin
    return lambda x: float(x > 0) if np.isinf(x) else float(np.clip((form(x) - low + margin) / span, 0, 1))


def _number(value: float) -> str:
    if 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 0
    return f"{value:,.{digits}f}".replace("inf", "∞").replace("-∞", "−∞")
