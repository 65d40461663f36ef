"""The look of all figures: one table of styles, and the drawing of marks, axes and legends.

A name has the same colour, marker and label in all notebooks. Filled marks are our numbers, hollow marks the
paper's. Nothing is measured here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

GREY = "#757575"
TITLE_WIDTH = 60  # characters per line of a title, at the usual width of 6.4 inches
MIN_BAND = 3  # the number of draws from which on their spread is drawn
Column = str | None  # the name of a column of a frame


@dataclass(frozen=True)
class MethodStyle:
    """The look of a method or any other name: colour, marker, label, line style."""

    color: str
    marker: str
    label: str
    line: str = "-"


# The colours of Okabe and Ito, and wine, indigo and teal of Tol, which colour-blind readers can distinguish.
METHODS = {  # criteria, and the kinds of pruning that are compared with them
    "dense": MethodStyle(GREY, "o", "dense model", "--"),
    "random": MethodStyle("#E69F00", "X", "random"),
    "l1": MethodStyle("#56B4E9", "v", "L1"),
    "l2": MethodStyle("#0072B2", "^", "L2"),
    "vector": MethodStyle("#CC79A7", "s", "vector"),
    "element1": MethodStyle("#D55E00", "o", "element¹"),
    "element2": MethodStyle("#009E73", "D", "element²"),
    "mixed": MethodStyle("#000000", "P", "mixed"),
    "channel": MethodStyle("#882255", "p", "channel", ":"),
}
STYLE = {
    **METHODS,
    # stages of a model
    "pruned": MethodStyle("#D55E00", "o", "pruned"),
    "recovered": MethodStyle("#009E73", "*", "recovered"),
    # kinds of groups, as Figure 2 of the paper names them
    "mlp": MethodStyle("#D55E00", "o", "Type A, MLP"),
    "attention": MethodStyle("#0072B2", "s", "Type B, attention"),
    "hidden": MethodStyle("#009E73", "D", "Type C, hidden channel"),
    # granularities and scopes; "block" looks like its criterion, element1
    "block": MethodStyle("#D55E00", "o", "block"),
    "global": MethodStyle("#332288", "d", "global", "--"),
    "layer": MethodStyle("#44AA99", "*", "layer", "-."),
    # how structures are ranked, and how their scores are aggregated
    "groups": MethodStyle("#D55E00", "o", "groups"),
    "matrices alone": MethodStyle("#0072B2", "X", "matrices alone"),
    "alone, at zero": MethodStyle("#56B4E9", "v", "alone, at zero"),
    "sum": MethodStyle("#D55E00", "o", "sum"),
    "prod": MethodStyle("#0072B2", "^", "prod"),
    "max": MethodStyle("#009E73", "D", "max"),
    "last": MethodStyle("#CC79A7", "s", "last"),
    "prod, by group": MethodStyle("#56B4E9", "^", "prod, by group"),
    "max, by group": MethodStyle("#000000", "D", "max, by group"),
    "last matrix alone": MethodStyle("#0072B2", "s", "last matrix alone"),
    # costs
    "parameters": MethodStyle("#000000", "o", "parameters"),
    "macs": MethodStyle("#0072B2", "s", "multiply-accumulates"),
    "memory": MethodStyle("#009E73", "D", "memory"),
    "latency": MethodStyle("#D55E00", "^", "latency"),
    # texts
    "wiki": MethodStyle("#0072B2", "o", "wiki"),
    "wikitext2": MethodStyle("#0072B2", "o", "wikitext2"),
    "c4": MethodStyle("#E69F00", "s", "c4", "--"),
    "ptb": MethodStyle("#009E73", "D", "ptb", ":"),
    # the `better` one of a pair, a straight line, training data, the storage of weights
    "": MethodStyle(GREY, "o", "undecided"),
    "a": MethodStyle("#0072B2", "o", "first is better"),
    "b": MethodStyle("#E69F00", "o", "second is better"),
    "true": MethodStyle("#0072B2", "o", "true"),
    "first order": MethodStyle("#E69F00", "", "first order", ":"),
    "few": MethodStyle("#CC79A7", "s", "few samples"),
    "many": MethodStyle("#0072B2", "o", "many samples"),
    "seen": MethodStyle("#0072B2", "o", "trained on"),
    "held out": MethodStyle("#0072B2", "s", "held out", "--"),
    "floating point": MethodStyle("#0072B2", "o", "floating point"),
    "8 bits": MethodStyle("#E69F00", "s", "8 bits"),
}
PLAIN = MethodStyle("#0072B2", "o", "")  # without a name
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#882255", "#000000")
MARKERS, LINES = "osD^vPX", ("-", "--", ":", "-.")
MINUS = " − "  # between two names whose difference is drawn


def styles_of(names: Iterable[object]) -> dict[object, MethodStyle]:
    """Look up the style of each name in `STYLE`; names without one get the unused colours in turn.

    A difference, "element1 − l2", has the labels of its two names.
    """
    names = list(dict.fromkeys(names))
    new = [name for name in names if name not in STYLE]
    used = {STYLE[name].color for name in names if name in STYLE}
    unused = [color for color in COLORS if color not in used] or COLORS
    styles = map(MethodStyle, cycle(unused), cycle(MARKERS), map(_label, new), cycle(LINES))
    return {name: STYLE.get(name) or next(styles) for name in names}


def _label(name: object) -> str:
    parts = str(name).split(MINUS)
    return MINUS.join(STYLE[part].label if part in STYLE else part for part in parts)


def new_axes(ax: Axes | None = None, width: float = 6.4, height: float = 4.0) -> Axes:
    """Return `ax`, or the axes of a new figure of `width` by `height` inches whose labels do not overlap."""
    return ax or plt.subplots(figsize=(width, height), layout="constrained")[1]


def marks_frame(
    frame: pd.DataFrame, value: str, columns: Sequence[str], series: Column, line: Column, marker: Column
) -> pd.DataFrame:
    """List every mark of a figure, ours and the paper's, with its interval and its look.

    Args:    frame: columns `value` and `columns` and, if known, `low` and `high` (ends of the interval) or
             `stderr` (drawn on both sides); `paper` (the paper's value) or `source` ("paper": the row is the
             paper's).
             series, line, marker: the columns that determine colour, dash and symbol; None: all the same.
    Returns: `columns`, `value`, `low`, `high` (NaN: none), `source` ("ours" or "paper"), `color`, `dash`,
             `symbol`; rows without a value are dropped.
    """
    marks = frame[[*dict.fromkeys(columns)]].assign(value=frame[value].astype(float), source="ours")
    stderr = frame.get("stderr", np.nan)
    marks["low"] = frame.get("low", marks.value - stderr).astype(float)
    marks["high"] = frame.get("high", marks.value + stderr).astype(float)
    if "source" in frame:
        marks["source"] = frame.source.fillna("ours")
    if "paper" in frame:
        published = marks.assign(source="paper", value=frame.paper.astype(float), low=np.nan, high=np.nan)
        marks = pd.concat([marks, published.drop_duplicates()], ignore_index=True)
    marks = marks[marks.value.notna()]
    sources = {"color": ("color", series), "dash": ("line", line), "symbol": ("marker", marker or series)}
    for target, (part, column) in sources.items():
        styles = styles_of(marks[column]) if column else {}
        marks[target] = [getattr(styles.get(name, PLAIN), part) for name in marks[column or "value"]]
    return marks


def draw_paper(ax: Axes, x: Sequence[float], y: Sequence[float], part: pd.DataFrame, line: str = "") -> None:
    """Draw the paper's values as hollow marks, with the look of some rows of `marks_frame`.

    They are larger than our filled marks, which would hide them at the same place otherwise.
    """
    symbol = part.symbol.iloc[0]
    hollow = {"markersize": 13 if symbol == "*" else 9, "markerfacecolor": "none", "markeredgewidth": 1.2}
    ax.plot(x, y, symbol, color=part.color.iloc[0], linestyle=line, linewidth=0.8, zorder=4, **hollow)


def legend_keys(
    marks: pd.DataFrame, series: Column, line: Column, marker: Column, joined: bool
) -> list[Artist]:
    """List the entries of a legend: the meaning of colours, dashes and symbols, and of hollow marks.

    Args:    series, line, marker: as in `marks_frame`; dashes and symbols are explained only if they differ.
             joined: the marks are joined by lines.
    """
    keys, ours = [], marks[marks.source != "paper"]
    for column in filter(None, dict.fromkeys((series, line, marker))):
        styles = styles_of(ours[column]).values()
        for style in styles if len(styles) > 1 or column == series else ():
            symbol = style.marker if column == (marker or series) else ""
            dash = style.line if column == line else "-" if joined or not symbol else ""
            color = style.color if column == series else GREY
            keys.append(Line2D([], [], color=color, marker=symbol, linestyle=dash, label=style.label))
    hollow = {"color": GREY, "marker": "o", "markerfacecolor": "none", "label": "hollow: the paper"}
    return keys + [Line2D([], [], linestyle="", **hollow)] * (len(ours) < len(marks))


def reference_lines(
    ax: Axes, axis: str, reference: Mapping[str, float] | None, styles: Mapping[object, MethodStyle]
) -> list[Artist]:
    """Draw a line at each number of `reference` on the "x" or "y" axis, alternately dashed and dotted.

    Args:    styles: of the series; a line with the name of a series is its dense model and has its colour.
    Returns: the entries of the legend.
    """
    lines, dashes = [], cycle(("--", ":"))
    for name, number in (reference or {}).items():
        if name in styles:
            style = {"color": styles[name].color, "label": f"{name}, dense model", "linestyle": "--"}
        else:
            style = {"color": GREY, "label": name, "linestyle": next(dashes)}
        draw = ax.axvline if axis == "x" else ax.axhline
        lines.append(draw(number, linewidth=1, zorder=0, **style))
    return lines


def summary(part: pd.DataFrame, log: bool) -> tuple[float, float, float]:
    """Summarize the marks at one place by middle, low and high: a single mark's own, or the draws' spread.

    Args:    log: use logarithms, as for perplexities: the geometric mean, and a factor above and below.
    Returns: the mean of the draws and, for `MIN_BAND` or more, one standard deviation below and above it.
    """
    if len(part) == 1:
        return tuple(part[["value", "low", "high"]].iloc[0])
    numbers = np.log(part.value) if log else part.value
    width = numbers.std() if len(part) >= MIN_BAND else np.nan
    ends = numbers.mean() + np.array([0, -width, width])
    return tuple(np.exp(ends) if log else ends)


def finish_axis(ax: Axes, name: str, label: str, scale: str) -> None:
    """Label the "x" or "y" axis of `ax`, and draw plain ticks and a light grid.

    Args:    scale: "linear", "log", or "percent" (for shares: 1 is 100 %).
    """
    axis = getattr(ax, f"{name}axis")
    if scale == "log":
        getattr(ax, f"set_{name}scale")("log")
        low, high = axis.get_view_interval()
        powers = ticker.LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,), numticks=30)
        axis.set_major_locator(powers if high / low > 6 else ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(ticker.NullLocator())
        plain = low >= 1e-4 and high < 1e6  # else powers of ten
        form = ticker.StrMethodFormatter("{x:,.6g}") if plain else ticker.LogFormatterMathtext()
        axis.set_major_formatter(form)
    if scale == "percent":
        axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axis.set_label_text(label)
    axis.grid(alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def finish_axes(ax: Axes, title: str, keys: Sequence[Artist]) -> Axes:
    """Write the wrapped title and, between it and the axes, the legend."""
    title = fill(title, TITLE_WIDTH)
    if not keys:
        ax.set_title(title, loc="left", fontsize=11)
        return ax
    columns = max(1, 60 // (5 + max(len(key.get_label()) for key in keys)))
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "alignment": "left", "borderaxespad": 0.2}
    ax.legend(handles=keys, title=title, title_fontsize=11, ncols=columns, frameon=False, fontsize=9, **place)
    return ax
