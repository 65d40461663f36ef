"""The figures of the estimation: is Taylor true, how do scores lie over the layers, do calibrations agree.

As in `plotting`: one function each, from a tidy frame onto axes; nothing is measured, saved or set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.figures.marks import DATASETS, GREY, MIN_BAND, need, new_axes, style_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["plot_agreement", "plot_fading", "plot_layers", "plot_taylor"]


def plot_fading(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the loss as weights are faded out, and the straight lines that the first-order term predicts.

    Args:    frame: columns `share` (0: whole, 1: pruned), `change` (nats a token), `what` (a line each) and
             `kind` ("true" or "first order").
    """
    need(frame, "share", "change", "what", "kind")
    ax = new_axes(ax, 6.4, 3.8)
    for color, (what, part) in zip(DATASETS, frame.groupby("what", sort=False), strict=False):
        for kind, line in part.groupby("kind", sort=False):
            look = {"linestyle": "-"} if kind == "true" else {"linestyle": ":", "alpha": 0.9}
            ax.plot(line.share, line.change, color=color, label=f"{what}, {kind}", **look)
            ax.plot(
                line.share.iloc[-1:],
                line.change.iloc[-1:],
                "o",
                color=color,
                fillstyle="full" if kind == "true" else "none",
            )
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_xlabel("share of the weights taken away (1: pruned)")
    ax.set_ylabel("change of the loss (nats a token)")
    ax.legend(frameon=False, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_taylor(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw an estimate of the loss change against the true one, a mark a group, with the line of equality.

    Args:    frame: columns `change` (nats a token, either sign), `method`, `estimate` (at least 0), and
             optionally `part`: what the estimate looks at, hollow marks; empty: the whole group.
    """
    need(frame, "change", "method", "estimate")
    ax = new_axes(ax, 5.2, 4.4)
    parts = frame["part"] if "part" in frame else [""] * len(frame)
    for (method, what), part in frame.assign(part=parts).groupby(["method", "part"], sort=False):
        style = style_of(method)
        look = {"color": style.color, "marker": style.marker, "linestyle": "", "markersize": 5, "alpha": 0.75}
        look |= {"markerfacecolor": "none"} if what else {}
        ax.plot(
            part.change.abs(), part.estimate, label=f"{style.label}, {what}" if what else style.label, **look
        )
    true = frame.change.abs()
    ends = [true[true > 0].min(), true.max()]
    ax.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", zorder=0, label="equal")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("true |change of the loss| (nats a token)")
    ax.set_ylabel("estimate (nats a token)")
    ax.legend(frameon=False, fontsize=9)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_layers(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the mean score of a group over the layers, each criterion relative to its own mean.

    Args:    frame: columns `layer`, `method`, `value` (above 0).
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    need(frame, "layer", "method", "value")
    ax = new_axes(ax, 6.4, 3.8)
    for method, part in frame.sort_values("layer", kind="stable").groupby("method", sort=False):
        style = style_of(method)
        ax.plot(
            part.layer,
            part.value / part.value.mean(),
            color=style.color,
            marker=style.marker,
            markersize=4,
            label=style.label,
        )
    ax.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("decoder layer")
    ax.set_ylabel("mean score of a group\n(1: mean of all layers)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, fontsize=9, ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_agreement(
    frame: pd.DataFrame, *, x: str = "samples", chance: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how far pruned sets agree with that of a large calibration: mean and spread over draws.

    Args:    frame: columns `x` and `overlap` (in [0, 1]); a row is a draw.    x: numbers or names.
             chance: the overlap of two random choices, a dashed line.
    """
    need(frame, x, "overlap")
    ax = new_axes(ax, 4.2, 3.6)
    named = any(isinstance(value, str) for value in frame[x])
    draws = [(place, rows.overlap) for place, rows in frame.groupby(x, sort=not named)]
    at = np.arange(len(draws)) if named else np.array([place for place, _ in draws], dtype=float)
    middle = np.array([values.mean() for _, values in draws])
    width = np.array([values.std(ddof=1) if len(values) >= MIN_BAND else 0.0 for _, values in draws])
    color = style_of("element1").color
    for place, (_, values) in zip(at, draws, strict=True):
        ax.plot([place] * len(values), values, "_", color=color, alpha=0.6, markersize=9)
    if named:
        ax.errorbar(at, middle, yerr=width, color=color, marker="o", linestyle="", capsize=3)
    else:
        ax.plot(at, middle, color=color, marker="o", linewidth=1.6)
        ax.fill_between(at, middle - width, middle + width, color=color, alpha=0.2, linewidth=0)
        ax.set_xscale("log", base=2)
        ax.minorticks_off()
    ax.set_xticks(at, [f"{place}" for place, _ in draws])
    if named:
        ax.set_xlim(-0.6, len(draws) - 0.4)
    if chance is not None:
        ax.axhline(chance, color=GREY, linestyle="--", linewidth=1, zorder=0)
        look = {"color": GREY, "fontsize": 9, "ha": "right", "va": "bottom"}
        where = {"xycoords": ("axes fraction", "data"), "xytext": (-4, 3), "textcoords": "offset points"}
        ax.annotate("by chance", (1, chance), **where, **look)
    names = {
        "samples": "calibration samples",
        "length": "tokens a calibration sample",
        "corpus": "calibration text",
    }
    ax.set_xlabel(names.get(x, x))
    ax.set_ylabel("overlap of the pruned sets\n(Jaccard, 1: the same)")
    ax.set_ylim(0, 1.02)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
