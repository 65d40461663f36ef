"""The look of all figures: one table of styles, marks for repeats, names on lines, the perplexity axis.

`STYLE` gives every method its colour, marker and label in all notebooks. Our values are filled marks, the
paper's hollow ones. Which numbers a figure shows is decided by the function that draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

MIN_BAND = 3  # from this many repeats on the mean and a band are drawn, below it the points
DIRECT_LABELS = 4  # up to so many lines carry their labels themselves; more have a legend
GREY = "#757575"


@dataclass(frozen=True)
class MethodStyle:
    """How a method looks: colour, marker, label, line style."""

    color: str
    marker: str
    label: str
    line: str = "-"


STYLE = {  # colours of Okabe and Ito, and wine of Tol: colour-blind readers can tell them apart
    "dense": MethodStyle(GREY, "", "dense model", "--"),
    "random": MethodStyle("#E69F00", "X", "random"),
    "l1": MethodStyle("#56B4E9", "v", "L1"),
    "l2": MethodStyle("#0072B2", "^", "L2"),
    "vector": MethodStyle("#CC79A7", "s", "vector"),
    "element1": MethodStyle("#D55E00", "o", "element¹"),
    "element2": MethodStyle("#009E73", "D", "element²"),
    "mixed": MethodStyle("#000000", "P", "mixed"),
    "channel": MethodStyle("#882255", "p", "channel"),
}
DESIGNS = {  # what is cut: block and channel look like the methods whose rows they are
    "block": MethodStyle("#D55E00", "o", "block, local"),
    "global": MethodStyle("#332288", "d", "block, global"),
    "channel": STYLE["channel"],
    "layer": MethodStyle("#44AA99", "*", "whole layers"),
}
STAGES = {  # a model on its way: (label, colour)
    "dense": ("dense", GREY),
    "pruned": ("pruned", "#D55E00"),
    "recovered": ("recovered", "#009E73"),
}
KINDS = {  # of groups, as Figure 2 of the paper names them: (label, colour)
    "mlp": ("Type A, MLP", "#D55E00"),
    "attention": ("Type B, attention", "#0072B2"),
    "hidden": ("Type C, hidden channel", "#009E73"),
}
DATASETS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000")  # lines that stand for texts or tasks


def style_of(method: str) -> MethodStyle:
    """Look a method up in `STYLE`.

    Raises:  ValueError: it has no style (the message lists those that have).
    """
    if method not in STYLE:
        raise ValueError(
            f"no style for method {method!r}; there are {', '.join(STYLE)}; add it to plotting.STYLE"
        )
    return STYLE[method]


def new_axes(ax: Axes | None = None, width: float = 6.4, height: float = 4.0) -> Axes:
    """Give `ax`, or the axes of a new figure of `width` by `height` inches whose labels do not overlap."""
    if ax is not None:
        return ax
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Give the geometric mean of perplexities and the ends of a band of one (log) standard deviation."""
    logs = np.log(np.asarray(values, dtype=float))
    width = logs.std(ddof=1) if len(logs) > 1 else 0.0
    return tuple(float(np.exp(logs.mean() + shift)) for shift in (0, -width, width))


def need(frame: pd.DataFrame, *columns: str) -> None:
    """Refuse a frame that can't be drawn.

    Raises:  ValueError: it has no rows, or a column is missing (the message names both sides).
    """
    if missing := [name for name in columns if name not in frame]:
        raise ValueError(
            f"the frame lacks {', '.join(missing)}; it has the columns {', '.join(map(str, frame))}"
        )
    if frame.empty:
        raise ValueError("the frame has no rows: nothing was measured; run the experiments first")


def points(ax: Axes, x: float, part: pd.DataFrame, color: str, marker: str, hollow: bool) -> None:
    """Mark repeats at one place: their middle and spread from three on, else each with its standard error."""
    look = {"color": color, "marker": marker, "linestyle": "", "markersize": 7}
    look |= {"markerfacecolor": "none"} if hollow else {}
    if len(part) >= MIN_BAND:
        ax.plot([x] * len(part), part.value, "_", color=color, alpha=0.5, markersize=9)
        middle, low, high = spread(part.value)
        ax.errorbar([x], [middle], yerr=[[middle - low], [high - middle]], capsize=3, **look)
    elif "stderr" in part and part.stderr.notna().any():
        ax.errorbar([x] * len(part), part.value, yerr=part.stderr, capsize=3, **look)
    else:
        ax.plot([x] * len(part), part.value, **look)


def label_lines(
    ax: Axes, ends: Sequence[tuple[float, float, MethodStyle]], direct: bool, legend: bool
) -> None:
    """Name lines at their right ends, moved apart where they would overlap, or in a legend."""
    if direct:
        ordered = sorted(ends, key=lambda end: end[1])
        heights = _apart(np.log([y for _, y, _ in ordered]), ax)
        for (x, _, style), height in zip(ordered, heights, strict=True):
            ax.annotate(
                style.label,
                (x, np.exp(height)),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=style.color,
                annotation_clip=False,
            )
    elif legend:
        handles = [Line2D([], [], color=s.color, marker=s.marker, label=s.label) for _, _, s in ends]
        ax.legend(handles=handles, frameon=False)


def _apart(heights: np.ndarray, ax: Axes) -> np.ndarray:
    """Move sorted heights (log scale) apart, so that labels of one line's height fit between them."""
    lines = [line.get_ydata() for line in ax.lines]
    values = np.concatenate([np.asarray(line, dtype=float) for line in lines])
    gap = 0.06 * max(np.log(values.max() / values.min()), 0.2) * 4.0 / ax.figure.get_size_inches()[1]
    placed = heights.copy()
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    return placed - (placed - heights).mean()


def perplexity_axis(ax: Axes) -> Axes:
    """Make the vertical axis one of perplexity: logarithmic, with plain numbers, light grid."""
    ax.set_yscale("log")
    log_ticks(ax.yaxis, room=2e4)
    ax.set_ylabel("perplexity (lower is better)")
    ax.grid(axis="y", alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def log_ticks(axis: Axis, room: float, linear: int = 6) -> None:
    """Give a logarithmic axis plain numbers at 1, 2 and 5 times powers of ten.

    Args:    room: from this ratio of its ends on, powers of ten alone.
             linear: about how many ticks an axis has that is too short for these.
    """
    low, high = axis.get_view_interval()
    if high / low > 6:
        ticks = LogLocator(subs=(1, 2, 5) if high / low < room else (1,), numticks=30)
    else:
        ticks = MaxNLocator(linear, steps=[1, 2, 5, 10])
    axis.set_major_locator(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain_number))


def _plain_number(value: float, _: int) -> str:
    if value >= 1e6 and np.isclose(np.log10(value) % 1, 0):
        return f"$10^{{{round(np.log10(value))}}}$"
    return f"{value:,.6g}"
