"""How marks, axes, names and legends are drawn, the same in all figures; how names look is fixed in `style`.

Filled marks are ours; a hollow mark is the paper's and nothing else. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pruner_lib.study.figures.style import GREY, HOLLOW, PLAIN, MethodStyle, styles_of

MIN_BAND = 3  # from this many draws on their mean and spread are drawn, below it the draws themselves
DIRECT_LABELS = 4  # up to this many lines are named at their ends; more have a legend


def new_axes(ax: Axes | None = None, width: float = 6.4, height: float = 4.0) -> Axes:
    """Give `ax`, or the axes of a new figure of `width` by `height` inches whose labels do not overlap."""
    if ax is not None:
        return ax
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def need(frame: pd.DataFrame, *columns: str | None) -> None:
    """Refuse a frame that can't be drawn.

    Raises:  ValueError: it has no rows, or a column is missing (the message names both sides).
    """
    if missing := [name for name in columns if name and name not in frame]:
        raise ValueError(
            f"the frame lacks {', '.join(missing)}; it has the columns {', '.join(map(str, frame))}"
        )
    if frame.empty:
        raise ValueError("the frame has no rows: nothing was measured; run the experiments first")


def marks_frame(frame: pd.DataFrame, value: str, columns: Sequence[str | None]) -> pd.DataFrame:
    """List every mark of a figure, ours and the paper's, with the interval around it.

    Args:    frame: columns `value` and `columns` (None is left out) and, if known, `low` and `high` (ends of
             the interval), or `stderr` (one to either side); `paper` (the paper's value beside ours), or
             `source` ("paper": the row is the paper's).
    Returns: `columns`, `value`, `low`, `high` (NaN: none), `source` ("ours" or "paper"), and no row without
        a value.
    Raises:  ValueError: the frame can't be drawn or mixes metrics, or `low` and `high` are of another column.
    """
    need(frame, value, *columns)
    kinds = set(frame.metric.str.partition("/")[0]) if "metric" in frame and "metric" not in columns else ()
    if len(kinds) > 1:
        raise ValueError(f"the frame mixes {', '.join(sorted(kinds))}: keep one of them, or name metric")
    kept = frame[list(dict.fromkeys(name for name in columns if name))].copy()
    kept["source"] = frame["source"].fillna("ours") if "source" in frame else "ours"
    kept["value"] = frame[value].astype(float)
    around = frame["stderr"].astype(float) if "stderr" in frame else np.nan
    kept["low"] = frame["low"].astype(float) if "low" in frame else kept.value - around
    kept["high"] = frame["high"].astype(float) if "high" in frame else kept.value + around
    known = kept[["value", "low", "high"]].notna().all(axis=1)
    if known.any() and not kept[known].value.between(kept[known].low, kept[known].high).any():
        raise ValueError(
            f"no interval from low to high holds its {value}: they are of another column; name that one, or "
            "drop low and high from the frame"
        )
    if "paper" in frame:
        published = kept.assign(source="paper", value=frame.paper.astype(float), low=np.nan, high=np.nan)
        kept = pd.concat([kept, published.drop_duplicates()], ignore_index=True)
    return kept[kept.value.notna()]


def styled(
    marks: pd.DataFrame, series: str | None, line: str | None = None, marker: str | None = None
) -> pd.DataFrame:
    """Add how each mark looks, by its cells in these columns (None: all alike).

    Returns: the frame with the columns `color`, `dash` (of its line), `symbol`, and `label` (of its curve).
    """
    looks = []
    for column in (series, line, marker):
        styles = styles_of(marks[column]) if column else {}
        looks.append([styles.get(name, PLAIN) for name in (marks[column] if column else marks.index)])
    labels = [
        ", ".join(dict.fromkeys(filter(None, (a.label, b.label)))) for a, b, _ in zip(*looks, strict=True)
    ]
    return marks.assign(
        color=[look.color for look in looks[0]],
        dash=[look.line for look in looks[1]],
        symbol=[look.marker for look in looks[2 if marker else 0]],
        label=labels,
    )


def paper_marks(ax: Axes, x: Iterable[float], y: Iterable[float], part: pd.DataFrame, line: str = "") -> None:
    """Draw the paper's values as hollow marks, in the look of a part of a frame of `styled`."""
    look = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.2, "linewidth": 0.8, "zorder": 4}
    ax.plot(x, y, part.symbol.iloc[0], color=part.color.iloc[0], linestyle=line, **look)


def reference_lines(
    draw: Callable[..., object],
    reference: Mapping[str, float] | None,
    styles: Mapping[object, MethodStyle] | None = None,
) -> list[Line2D]:
    """Draw a dashed line at each number of `reference`, and make their entries of the legend.

    Args:    draw: `ax.axhline` or `ax.axvline`.
             styles: of the series; a line that is named as one of them is its dense model, in its colour.
    """
    handles = []
    for name, number in (reference or {}).items():
        own = (styles or {}).get(name)
        own = own if own and own.color != GREY else None
        look = {"color": own.color if own else GREY, "linestyle": "--"}
        draw(number, linewidth=1, zorder=0, **look)
        handles.append(Line2D([], [], label=f"{own.label}, dense model" if own else name, **look))
    return handles


def legend_keys(
    marks: pd.DataFrame, marker: str | None, *, curves: bool, lines: bool = False
) -> list[Artist]:
    """List what a legend explains: colours, shapes where there are several, and the paper's marks.

    Args:    marks: of `styled`.    marker: the column that chose the shapes.
             curves: the colours are explained too, if they have a name; as `lines` or as marks.
    """
    handles: list[Artist] = []
    for look in marks.drop_duplicates(["color", "dash", "label"]).itertuples() if curves else ():
        if look.label and (look.source != "paper" or not lines):
            style = MethodStyle(look.color, "" if marker else look.symbol, look.label)
            handles.append(key(style, line=look.dash if lines else ""))
    shapes = styles_of(marks[marker]).values() if marker else ()
    handles += [key(MethodStyle(GREY, style.marker, style.label)) for style in shapes if len(shapes) > 1]
    return handles + [key(HOLLOW, hollow=True)] * bool((marks.source == "paper").any())


def spread(values: Sequence[float], log: bool = True) -> tuple[float, float, float]:
    """Give the mean of some draws and the ends of a band of one standard deviation.

    Args:    log: of the logarithms, as for perplexities: a geometric mean and a factor to either side.
    """
    numbers = np.log(values) if log else np.asarray(values, dtype=float)
    width = numbers.std(ddof=1) if len(numbers) > 1 else 0.0
    ends = [numbers.mean() + shift for shift in (0, -width, width)]
    return tuple(float(end) for end in (np.exp(ends) if log else ends))


def summary(part: pd.DataFrame, log: bool) -> tuple[float, float, float]:
    """Give middle, low and high of the marks at one place: of the draws from `MIN_BAND` on, else as given."""
    if len(part) >= MIN_BAND:
        return spread(part.value, log)
    if len(part) > 1:
        return (spread(part.value, log)[0], np.nan, np.nan)
    return tuple(part[["value", "low", "high"]].iloc[0])


def finish_axis(ax: Axes, name: str, label: str, scale: str) -> None:
    """Scale and label the "x" or "y" axis of `ax`, and give it plain ticks and a light grid.

    Args:    scale: "linear", "log", or "percent" (of numbers that are shares, 1: 100 %).
    Raises:  ValueError: another scale.
    """
    if scale not in ("linear", "log", "percent"):
        raise ValueError(f"no axis has the scale {scale!r}; there are linear, log and percent")
    axis = getattr(ax, f"{name}axis")
    if scale == "log":
        getattr(ax, f"set_{name}scale")("log")
        _log_ticks(axis)
    if scale == "percent":
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
    axis.set_label_text(label)
    axis.grid(alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _log_ticks(axis: Axis) -> None:
    """Give a logarithmic axis plain numbers at 1, 2, 5 times powers of ten; a short one even steps."""
    low, high = axis.get_view_interval()
    ticks = LogLocator(subs=(1, 2, 5) if high / low < 2e4 else (1,), numticks=30)
    axis.set_major_locator(ticks if high / low > 6 else MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain_number))


def _plain_number(value: float, _: int) -> str:
    if value >= 1e6 and np.isclose(np.log10(value) % 1, 0):
        return f"$10^{{{round(np.log10(value))}}}$"
    return f"{value:,.6g}"


def label_lines(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name lines at their right ends, moved apart where names would overlap.

    Args:    ends: of each line x, y, label and colour.
    """
    ends = sorted(ends, key=lambda end: end[1])
    ax.autoscale_view()
    to_fraction = ax.transData + ax.transAxes.inverted()
    heights = np.array([to_fraction.transform((x, y))[1] for x, y, *_ in ends])
    gap = 0.17 / (ax.get_position().height * ax.figure.get_size_inches()[1])  # inches of a line of text
    placed = np.clip(heights, 0.03, 0.96)  # between the axis and the title
    for i in reversed(range(len(placed) - 1)):
        placed[i] = min(placed[i], placed[i + 1] - gap)
    placed[0] = max(placed[0], 0.03)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    look = {"textcoords": "offset points", "va": "center", "fontsize": 9, "annotation_clip": False}
    for (x, _, label, color), height in zip(ends, placed, strict=True):
        at = {"xycoords": ("data", "axes fraction"), "xytext": (8, 0)}
        ax.annotate(label, (x, height), color=color, **at, **look)


def key(style: MethodStyle, *, line: str = "", hollow: bool = False) -> Line2D:
    """Make the entry of a legend; a style without a marker and a line is a patch of its colour."""
    look = {"color": style.color, "marker": style.marker, "linestyle": line, "label": style.label}
    if not style.marker and not line:
        look |= {"linestyle": "-", "linewidth": 6, "solid_capstyle": "butt"}
    return Line2D([], [], markersize=6, **look, **({"markerfacecolor": "none"} if hollow else {}))


def finish_axes(ax: Axes, title: str, handles: Sequence[Artist], *, inside: bool = False) -> Axes:
    """Write the title, and below it the legend in as many columns as there is room for.

    Args:    inside: the legend stands inside the axes, since a second axis is above them.
    """
    rows = 0
    if handles and inside:
        ax.legend(handles=handles, frameon=False, fontsize=9)
    elif handles:
        width = ax.get_position().width * ax.figure.get_size_inches()[0]
        column = 0.5 + 0.075 * max(len(handle.get_label()) for handle in handles)  # inches
        columns = min(len(handles), max(1, int(width / column)))
        rows = -(-len(handles) // columns)
        where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        ax.legend(handles=handles, ncols=columns, frameon=False, fontsize=9, columnspacing=1.2, **where)
    if title:
        ax.set_title(title, loc="left", fontsize=11, pad=8 + 15 * rows if rows else None)
    return ax
