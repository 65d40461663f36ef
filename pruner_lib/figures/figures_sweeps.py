"""The figures of the sweeps: perplexity over the share removed, the damage of a layer, the widths left.

As in `plotting`: one function each, from a tidy frame onto axes; nothing is measured, saved or set.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.figures.marks import (
    DATASETS,
    DESIGNS,
    DIRECT_LABELS,
    GREY,
    MIN_BAND,
    STYLE,
    MethodStyle,
    label_lines,
    need,
    new_axes,
    perplexity_axis,
    spread,
    style_of,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["plot_layer_damage", "plot_sweep", "plot_widths"]
LIFT = 0.8  # percentage points between lines of one height
LINES = ("-", "--", ":", "-.")  # texts
SHARES = {
    "ratio": "share of the groups removed in the pruned layers, %",
    "share": "share of all parameters removed, %",
}


def plot_sweep(frame: pd.DataFrame, *, x: str = "share", names: bool = True, ax: Axes | None = None) -> Axes:
    """Draw perplexity over the share that is removed (the paper's Figure 4): a line a method and text.

    Args:    frame: columns `x` (a share in [0, 1]), `method` (of `STYLE` or `DESIGNS`, or "dense" at 0, from
             which every line starts), `dataset`, `value`, and optionally `source` ("ours", or "paper": hollow
             marks without a line). Several rows of one method, text and share are draws.
             x: "ratio" (of groups) or "share" (of parameters).    names: write the names of the lines.
    """
    need(frame, x, "method", "dataset", "value")
    ax = new_axes(ax, 6.4, 4.2)
    ours = frame[frame.source != "paper"] if "source" in frame else frame
    dense, texts = ours[ours.method == "dense"], list(dict.fromkeys(ours.dataset))
    ends = []
    for (method, text), part in ours[ours.method != "dense"].groupby(["method", "dataset"], sort=False):
        style, line = look_of(method), LINES[texts.index(text) % len(LINES)]
        start = [(0.0, rows.value) for _, rows in dense[dense.dataset == text].groupby("dataset")]
        draws = start + [(float(share), rows.value) for share, rows in part.groupby(x)]
        at = 100 * np.array([share for share, _ in draws])
        middle, low, high = np.array([spread(values) for _, values in draws]).T
        ax.plot(at, middle, line, color=style.color, marker=style.marker, markersize=5, linewidth=1.6)
        if max(len(values) for _, values in draws) >= MIN_BAND:
            ax.fill_between(at, low, high, color=style.color, alpha=0.2, linewidth=0)
        label = style.label if len(texts) == 1 else f"{style.label}, {text}"
        ends.append((at[-1], middle[-1], MethodStyle(style.color, style.marker, label, line)))
    published = frame[frame.source == "paper"] if "source" in frame else frame[:0]
    for method, part in published.groupby("method"):
        style = look_of(method)
        ax.plot(
            100 * part[x], part.value, style.marker, color=style.color, markerfacecolor="none", markersize=8
        )
    perplexity_axis(ax)
    ax.set_xlabel(SHARES.get(x, x) + ("\n(hollow marks: the paper's models)" if len(published) else ""))
    _name_lines(ax, ends, names)
    return ax


def plot_layer_damage(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what pruning one layer alone does to perplexity (the paper's Figure 3): a line a text.

    Args:    frame: columns `layer`, `dataset`, `times` (perplexity over that of the dense model), `low`,
             `high` (ends of its interval) and `protected` (the paper would leave this layer whole: shaded).
    """
    need(frame, "layer", "dataset", "times", "low", "high", "protected")
    ax = new_axes(ax, 8.0, 4.0)
    for first, last in _runs(frame[frame.protected].layer):
        ax.axvspan(
            first - 0.5, last + 0.5, color=GREY, alpha=0.18, linewidth=0, label="left whole by the paper"
        )
    for number, (text, part) in enumerate(frame.sort_values("layer").groupby("dataset", sort=False)):
        color, shift = DATASETS[number % len(DATASETS)], 0.12 * number
        errors = [part.times - part.low, part.high - part.times]
        marks = {
            "color": color,
            "marker": "os^D"[number % 4],
            "markersize": 4,
            "linewidth": 1.2,
            "elinewidth": 1,
        }
        ax.errorbar(part.layer + shift, part.times, yerr=errors, capsize=2, label=text, **marks)
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1, zorder=0)
    perplexity_axis(ax)
    ax.set_ylabel("perplexity\n(1: that of the dense model)")
    ax.set_xlabel("the one decoder layer that is pruned")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlim(frame.layer.min() - 0.7, frame.layer.max() + 0.7)
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    ax.legend(once.values(), once.keys(), frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax


def plot_widths(frame: pd.DataFrame, *, kind: str, names: bool = True, ax: Axes | None = None) -> Axes:
    """Draw what is left of the layers: a line a design, a band from its least to its greatest draw.

    Args:    frame: columns `design` (of `DESIGNS`), `layer`, `kind`, `kept` (a share in [0, 1]); one row a
             draw.    kind: "attention" or "mlp".    names: write the names of the designs.
    """
    need(frame, "design", "layer", "kind", "kept")
    part = frame[frame.kind == kind]
    need(part, "kept")
    ax = new_axes(ax, 6.4, 3.6)
    designs = list(dict.fromkeys(part.design))
    for number, (design, rows) in enumerate(part.groupby("design", sort=False)):
        style, draws = look_of(design), rows.groupby("layer").kept
        shift = LIFT * (number - (len(designs) - 1) / 2)  # lines of one height lie beside each other
        middle, least, most = (100 * values + shift for values in (draws.mean(), draws.min(), draws.max()))
        look = {"color": style.color, "linewidth": 1.4, "label": style.label}
        ax.plot(
            middle.index, middle, style.marker, drawstyle="steps-mid", linestyle="-", markersize=4, **look
        )
        ax.fill_between(middle.index, least, most, step="mid", color=style.color, alpha=0.2, linewidth=0)
    ax.set_ylim(-4, 105)
    ax.set_xlabel("decoder layer")
    ax.set_ylabel(f"{'heads' if kind == 'attention' else 'MLP channels'} left, %")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="y", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if names:
        ax.legend(frameon=False, fontsize=9, ncols=len(designs), loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax


def look_of(method: str) -> MethodStyle:
    """Look a method or a design up in the one table of styles.

    Raises:  ValueError: it has none.
    """
    return DESIGNS[method] if method in DESIGNS and method not in STYLE else style_of(method)


def _name_lines(ax: Axes, ends: list[tuple[float, float, MethodStyle]], names: bool) -> None:
    """Name up to four lines at their ends, more in a legend that shows their line styles too."""
    if not names:
        return
    if len(ends) <= DIRECT_LABELS:
        label_lines(ax, ends, direct=True, legend=False)
        return
    from matplotlib.lines import Line2D

    look = [{"color": s.color, "marker": s.marker, "linestyle": s.line, "label": s.label} for _, _, s in ends]
    handles = [Line2D([], [], markersize=5, **one) for one in look]
    ax.legend(handles=handles, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))


def _runs(layers: Iterable[int]) -> list[tuple[int, int]]:
    """Put neighbouring numbers together: 0, 1, 2, 9 -> (0, 2), (9, 9)."""
    runs: list[tuple[int, int]] = []
    for layer in sorted(set(layers)):
        runs = (
            [*runs[:-1], (runs[-1][0], layer)]
            if runs and layer == runs[-1][1] + 1
            else [*runs, (layer, layer)]
        )
    return runs
