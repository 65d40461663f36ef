"""The figure of the benchmark: one function a panel, from the rows of a part onto axes.

Filled marks with lines are measured, grey lines are what was aimed at. Nothing is measured or saved here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.benchmark import goals
from pruner_lib.benchmark.bench_rows import usual_rows
from pruner_lib.figures.marks import GREY, STYLE, MethodStyle, log_ticks, need, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WAYS = {
    "plain": MethodStyle(GREY, "X", "plain forward + backward", "--"),
    "vector": STYLE["vector"],
    "element1": STYLE["element1"],
    "all criteria": MethodStyle("#000000", "P", "all criteria at once"),
}
TOOLS = {
    "ours": MethodStyle("#D55E00", "o", "ours, no weights"),
    "torch-pruning": MethodStyle("#0072B2", "s", "torch-pruning, with weights"),
}
MULTIPLES = ("#56B4E9", "#0072B2", "#009E73", "#E69F00")  # widths of the MLPs, in steps of 1, 8, 64, ...


def plot_bench(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw a panel for each part that was measured, scoring and latency with two.

    Args:    frames: part -> its rows, of one machine.
    """
    from matplotlib import pyplot as plt

    panels = {
        "scoring": (plot_memory, plot_time),
        "discovery": (plot_discovery,),
        "latency": (
            lambda f, ax: plot_latency(f, "prefill", ax=ax),
            lambda f, ax: plot_latency(f, "decoding", ax=ax),
        ),
        "evaluation": (plot_evaluation,),
    }
    drawn = [(frames[part], draw) for part, draws in panels.items() if part in frames for draw in draws]
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(5.2 * columns, 4.2 * rows), layout="constrained", squeeze=False
    )
    for ax, (frame, draw) in zip(grid.flat, drawn, strict=False):
        draw(frame, ax=ax)
    for ax in grid.flat[len(drawn) :]:
        ax.set_visible(False)
    return figure


def plot_memory(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the peak of resident memory against the weights, each way a line.

    Args:    frame: columns `way`, `checkpointing`, `weights_mb`, `peak_mb`.
    """
    need(frame, "way", "checkpointing", "weights_mb", "peak_mb")
    ax = new_axes(ax)
    again = frame[(frame.checkpointing == "yes") & (frame.way == "all criteria")].sort_values("weights_mb")
    frame = usual_rows(frame)
    span = np.array([frame.weights_mb.min(), frame.weights_mb.max()]) / 1024
    ax.plot(span, span, color=GREY, linewidth=1, label="the weights")
    ax.plot(span, goals.MEMORY * span, color=GREY, linewidth=1, linestyle=":")
    for way, part in _by(frame, "way", WAYS):
        part, style = part.sort_values("weights_mb"), WAYS[way]
        ax.plot(part.weights_mb / 1024, part.peak_mb / 1024, style.line, **_look(style))
    if len(again):
        style = MethodStyle("#000000", "o", "all, activations computed again", ":")
        ax.plot(again.weights_mb / 1024, again.peak_mb / 1024, ":", markerfacecolor="none", **_look(style))
    ax.set(xscale="log", yscale="log", title="scoring: memory")
    ax.set_xlabel("weights, GiB")
    ax.set_ylabel(f"peak resident memory, GiB (dotted: {goals.MEMORY:g} x weights)")
    ax.legend(frameon=False, fontsize=8)
    return _finish(ax)


def plot_time(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the time of scoring as a multiple of that of a plain pass, each way a line.

    Args:    frame: columns `way`, `checkpointing`, `parameters`, `time_to_plain`.
    """
    need(frame, "way", "checkpointing", "parameters", "time_to_plain")
    ax, frame = new_axes(ax), usual_rows(frame)
    for goal in goals.TIMES:
        ax.axhline(goal, color=GREY, linewidth=1, linestyle=":")
    for way, part in _by(frame, "way", WAYS):
        part, style = part.sort_values("parameters"), WAYS[way]
        ax.plot(part.parameters / 1e9, part.time_to_plain, style.line, **_look(style))
    ax.set(xscale="log", title="scoring: time", ylim=(0, None))
    ax.set_xlabel("parameters, billions")
    ax.set_ylabel("time / plain forward + backward (dotted: goals)")
    ax.legend(frameon=False, fontsize=8)
    return _finish(ax)


def plot_discovery(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the time of discovery against the size: lines of equal width, lines of equal depth, single shapes.

    Args:    frame: columns `tool`, `size`, `layers`, `width`, `parameters`, `seconds`.
    """
    need(frame, "tool", "size", "layers", "width", "parameters", "seconds")
    ax = new_axes(ax)
    for tool, part in _by(frame, "tool", TOOLS):
        style, grid = TOOLS[tool], part["size"].str.contains("x")
        for column, line in (("width", "-"), ("layers", ":")):
            for _, same in part[grid].groupby(column):
                if len(same) > 1:
                    same = same.sort_values("parameters")
                    ax.plot(same.parameters / 1e9, same.seconds, line, color=style.color)
        ax.plot(part.parameters / 1e9, part.seconds, style.marker, color=style.color, label=style.label)
    ax.set(xscale="log", yscale="log", title="discovery (solid: deeper, dotted: wider)")
    for row in frame[~frame["size"].str.contains("x")].drop_duplicates("size").itertuples():
        name = f"{row.size}B" if row.size[0].isdigit() else row.size
        at = (row.parameters / 1e9, 0.02)  # beside the other axis's ticks it could meet their labels
        ax.annotate(name, at, xycoords=("data", "axes fraction"), ha="center", fontsize=8)
    ax.set_xlabel("parameters, billions")
    ax.set_ylabel("time, s")
    ax.legend(frameon=False, fontsize=8)
    return _finish(ax)


def plot_latency(frame: pd.DataFrame, phase: str, *, ax: Axes | None = None) -> Axes:
    """Draw the speed-up of pruned models with its quartiles, beside what the remaining blocks would give.

    Args:    frame: columns `phase`, `removed`, `multiple_of`, `speedup`, `speedup_q1`, `speedup_q3`, `ideal`.
             phase: "prefill" or "decoding".
    """
    need(frame, "phase", "removed", "multiple_of", "speedup", "speedup_q1", "speedup_q3", "ideal")
    ax = new_axes(ax)
    part = frame[(frame.phase == phase) & (frame.removed > 0)]
    shares, multiples = sorted(set(part.removed)), sorted(set(part.multiple_of))
    for number, multiple in enumerate(multiples):
        rows = (
            part[part.multiple_of == multiple].drop_duplicates("removed", keep="last").sort_values("removed")
        )
        at = [shares.index(share) + (number - (len(multiples) - 1) / 2) * 0.18 for share in rows.removed]
        ends = [rows.speedup - rows.speedup_q1, rows.speedup_q3 - rows.speedup]
        color = MULTIPLES[number % len(MULTIPLES)]
        ax.errorbar(
            at, rows.speedup, ends, fmt="o", capsize=3, color=color, label=f"widths in steps of {multiple}"
        )
        for x, row in zip(at, rows.itertuples(), strict=True):
            ax.plot([x - 0.08, x + 0.08], [row.ideal] * 2, color=GREY)
            ax.plot([x - 0.08, x + 0.08], [goals.IDEAL * row.ideal] * 2, ":", color=GREY)
    ax.axhline(1, color=GREY, linewidth=1, linestyle="--")
    ax.set_xticks(range(len(shares)), [f"{100 * share:g} %" for share in shares])
    ax.set_xlim(-0.5, len(shares) - 0.5)
    ax.set_title(f"{phase} (grey: ideal, dotted: {goals.IDEAL:g} of it)")
    ax.set_xlabel("parameters removed from the blocks")
    ax.set_ylabel("speed-up over the dense model")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return _finish(ax)


def plot_evaluation(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the speed of the perplexity evaluation as a share of the bare forward pass, with quartiles.

    Args:    frame: columns `window`, `dtype`, `share`, `share_q1`, `share_q3`.
    """
    need(frame, "window", "dtype", "share", "share_q1", "share_q3")
    ax = new_axes(ax)
    names = [f"{row.window:g} tokens\n{row.dtype}" for row in frame.itertuples()]
    ends = [frame.share - frame.share_q1, frame.share_q3 - frame.share]
    ax.axhline(1, color=GREY, linewidth=1, linestyle="--")
    ax.axhline(goals.EVALUATION, color=GREY, linewidth=1, linestyle=":")
    ax.errorbar(range(len(frame)), frame.share, ends, fmt="o", capsize=3, color="#0072B2")
    ax.set_xticks(range(len(frame)), names)
    ax.set_xlim(-0.5, len(frame) - 0.5)
    ax.set_title("perplexity evaluation")
    ax.set_xlabel("window and type of the weights")
    ax.set_ylabel(f"tokens/s, share of the bare forward (dotted: {goals.EVALUATION:g})")
    return _finish(ax)


def _by(frame: pd.DataFrame, column: str, styles: Mapping[str, MethodStyle]):
    """Rows of each kind that has a style, in the order of the styles."""
    return [(name, frame[frame[column] == name]) for name in styles if (frame[column] == name).any()]


def _look(style: MethodStyle) -> dict[str, object]:
    return {"color": style.color, "marker": style.marker, "label": style.label, "linewidth": 1.6}


def _finish(ax: Axes) -> Axes:
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            log_ticks(axis, room=200, linear=4)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
