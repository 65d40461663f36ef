"""The figures of notebooks 03 to 05: what ways of pruning keep, differ by, and how their blocks follow.

As in `plotting`: one function each, from a tidy frame onto axes; nothing is measured, saved or set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.figures.marks import GREY, STAGES, STYLE, MethodStyle, need, new_axes, perplexity_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["CHOICES", "plot_contrasts", "plot_following", "plot_kept"]
CHOICES = {  # what is no criterion: how structures are ranked, and how their scores become one
    "groups": MethodStyle("#D55E00", "o", "groups"),
    "matrices alone": MethodStyle("#0072B2", "X", "matrices alone"),
    "alone, at zero": MethodStyle("#56B4E9", "v", "alone, at zero"),
    "sum": MethodStyle("#D55E00", "o", "sum"),
    "prod": MethodStyle("#0072B2", "^", "prod"),
    "max": MethodStyle("#009E73", "D", "max"),
    "last": MethodStyle("#CC79A7", "s", "last"),
    "prod, by group": MethodStyle("#56B4E9", "^", "prod,\nby group"),
    "max, by group": MethodStyle("#000000", "D", "max,\nby group"),
}
RECOVERED = "*"


def plot_kept(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what each way of pruning keeps of the whole model: ours filled, the paper's hollow.

    Args:    frame: rows of `contrasts.kept_frame` of one metric and one dataset: columns name, stage
             ("pruned", "recovered": a star), metric, ours, low, high, paper. Perplexities are drawn as
             multiples of the dense model's, accuracies as a share of it, %; the line is the dense model.
    Raises:  ValueError: rows of more than one metric or dataset.
    """
    need(frame, "name", "stage", "metric", "dataset", "ours", "low", "high", "paper")
    if len(frame[["metric", "dataset"]].drop_duplicates()) > 1:
        raise ValueError("rows of several metrics or datasets can't share an axis; take one of each")
    names = list(dict.fromkeys(frame.name))
    paper = frame.paper.notna().any()
    ax = new_axes(ax, 1.7 + 0.78 * max(7, len(names)), 3.9)
    scale = 100 if frame.metric.iloc[0] == "accuracy" else 1
    for row in frame.itertuples():
        look = _look(row.name)
        star = row.stage == "recovered"
        x = names.index(row.name) + (-0.16 if paper else 0) + 0.11 * star - 0.055
        mark = {
            "color": look.color,
            "marker": RECOVERED if star else look.marker,
            "markersize": 11 if star else 7,
        }
        ends = [[max(0, row.ours - row.low) * scale], [max(0, row.high - row.ours) * scale]]
        ax.errorbar([x], [row.ours * scale], yerr=ends, linestyle="", capsize=3, **mark)
        if np.isfinite(row.paper):
            ax.plot([x + 0.34], [row.paper * scale], linestyle="", markerfacecolor="none", **mark)
    ax.axhline(scale, color=GREY, linestyle="--", linewidth=1, zorder=0)
    ax.set_xticks(range(len(names)), [_look(name).label for name in names])
    ax.set_xlim(-0.6, len(names) - 0.4)
    _explain(ax, frame, paper)
    if scale == 1:
        perplexity_axis(ax).set_ylabel("perplexity / dense perplexity")
        return ax
    ax.set_ylabel("accuracy / dense accuracy, %")
    ax.grid(axis="y", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_contrasts(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the difference of each pair with its interval; grey where the two can't be told apart.

    Args:    frame: rows of `contrasts.contrasts` of one metric and one dataset: columns a, b, metric,
             dataset, difference, low, high, better. Left of zero a is lower.
    """
    need(frame, "a", "b", "metric", "dataset", "difference", "low", "high", "better")
    ax = new_axes(ax, 6.4, 1.1 + 0.42 * len(frame))
    scale = 100 if frame.metric.iloc[0] == "accuracy" else 1
    for place, row in enumerate(frame.itertuples()):
        color = GREY if not row.better else _look({"a": row.a, "b": row.b}[row.better]).color
        ends = [[(row.difference - row.low) * scale], [(row.high - row.difference) * scale]]
        fill = {} if row.better else {"markerfacecolor": "white"}
        ax.errorbar([row.difference * scale], [place], xerr=ends, fmt="o", color=color, capsize=3, **fill)
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1, zorder=0)
    label = [f"{_plain(row.a)} \N{MINUS SIGN} {_plain(row.b)}" for row in frame.itertuples()]
    ax.set_yticks(range(len(frame)), label)
    ax.set_ylim(len(frame) - 0.5, -0.5)
    perplexity = f"log-perplexity, {frame.dataset.iloc[0]} (nats a token)"
    ax.set_xlabel(
        "difference of " + (perplexity if scale == 1 else f"accuracy, {frame.dataset.iloc[0]} (points)")
    )
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_following(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how far the output of each layer's blocks follows the whole model's: a line a way of pruning.

    Args:    frame: columns layer, name, correlation (in [-1, 1]); of one kind of block.
    """
    need(frame, "layer", "name", "correlation")
    ax = new_axes(ax, 5.2, 3.6)
    for name, part in frame.sort_values("layer").groupby("name", sort=False):
        look = _look(name)
        ax.plot(
            part.layer,
            part.correlation,
            color=look.color,
            marker=look.marker,
            markersize=5,
            label=_plain(name),
        )
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_ylim(min(-0.1, ax.get_ylim()[0], frame.correlation.min() - 0.05), 1.05)
    ax.set_xlabel("decoder layer")
    ax.set_ylabel("correlation with the dense model")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return ax


def _look(name: str) -> MethodStyle:
    """Find the look of a method or choice; any other name is grey."""
    return STYLE.get(name) or CHOICES.get(name) or MethodStyle(GREY, "o", name)


def _plain(name: str) -> str:
    return _look(name).label.replace("\n", " ")


def _explain(ax: Axes, frame: pd.DataFrame, paper: bool) -> None:
    """Say above the axes what stars and hollow marks are."""
    from matplotlib.lines import Line2D

    handles = []
    stages = [name for name in STAGES if name in set(frame.stage)]
    if len(stages) > 1:
        marks = {"pruned": "o", "recovered": RECOVERED}
        handles = [
            Line2D([], [], color=GREY, marker=marks[name], linestyle="", label=name) for name in stages
        ]
    if paper:
        handles.append(Line2D([], [], color=GREY, marker="o", linestyle="", label="filled: ours"))
        hollow = {"markerfacecolor": "none", "label": "hollow: the paper"}
        handles.append(Line2D([], [], color=GREY, marker="o", linestyle="", **hollow))
    handles.append(Line2D([], [], color=GREY, linestyle="--", label="dense model"))
    ax.legend(handles=handles, frameon=False, fontsize=9, ncols=len(handles), loc="lower center",
              bbox_to_anchor=(0.5, 1), columnspacing=1.2, handletextpad=0.4)  # fmt: skip
