"""The figures of notebooks 09 to 11: recovery over steps and samples, what pruning saves, how texts repeat.

As in `plotting`: one function each, from a tidy frame onto axes; nothing is measured, saved or set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.figures.marks import (
    DATASETS,
    DIRECT_LABELS,
    GREY,
    STAGES,
    MethodStyle,
    label_lines,
    need,
    new_axes,
    perplexity_axis,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "plot_costs",
    "plot_fit",
    "plot_int8",
    "plot_modules",
    "plot_repetition",
    "plot_samples",
    "plot_steps",
]
HOLLOW = {"markerfacecolor": "white", "linestyle": ""}
RUNS = {"few": "#CC79A7", "many": "#0072B2"}  # samples to train on
COSTS = {  # what is saved: (label, colour, marker)
    "parameters": ("parameters", "#000000", "o"),
    "macs": ("multiplications", "#0072B2", "s"),
    "memory": ("memory", "#009E73", "D"),
    "latency": ("latency", "#D55E00", "^"),
}
TEXTS = {"repetition_rate": "four tokens said before, %", "distinct": "different pairs of tokens, %"}
MODELS = {name: color for name, (_, color) in STAGES.items()}


def plot_steps(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw perplexity over the steps of recovery (the paper's Figure 5), relative to that at step 0.

    Args:    frame: columns step, seconds, dataset, times, low, high and, if known, paper (hollow marks; of a
             recovery of another length at the same share of its steps). The upper axis tells the seconds.
    """
    need(frame, "step", "seconds", "dataset", "times", "low", "high")
    ax = _over(frame, "step", new_axes(ax))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("steps of recovery")
    return ax


def plot_samples(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw perplexity after recovery on more and more samples, relative to that before it.

    Args:    frame: columns samples (above 0), seconds, dataset, times, low, high and, if known, paper. The
             upper axis tells the seconds of training.
    """
    need(frame, "samples", "seconds", "dataset", "times", "low", "high")
    ax = new_axes(ax)
    ax.set_xscale("log")
    _over(frame, "samples", ax)
    numbers = sorted(set(frame.samples))
    ax.set_xticks(numbers, [f"{number:,.0f}" for number in numbers])
    ax.minorticks_off()
    ax.set_xlabel("samples, each seen once")
    return ax


def plot_modules(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what it costs to train a part of the model only: ours filled, the paper's hollow.

    Args:    frame: columns modules, dataset, times (perplexity over that with all layers trained), low,
             high, paper.
    """
    need(frame, "modules", "dataset", "times", "low", "high", "paper")
    modules, texts = list(dict.fromkeys(frame.modules)), list(dict.fromkeys(frame.dataset))
    ax = new_axes(ax, 6.4, 1.6 + 0.45 * len(frame))
    for row in frame.itertuples():
        color = DATASETS[texts.index(row.dataset) % len(DATASETS)]
        y = modules.index(row.modules) + 0.5 * (texts.index(row.dataset) + 0.5) / len(texts) - 0.25
        ends = [[row.times - row.low], [row.high - row.times]]
        label = row.dataset if row.modules == modules[0] else None
        ax.errorbar([row.times], [y], xerr=ends, fmt="o", color=color, capsize=3, label=label)
        if np.isfinite(row.paper):
            ax.plot([row.paper], [y + 0.08], "o", color=color, **HOLLOW)
    ax.axvline(1, color=GREY, linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(range(len(modules)), [name.replace("-", " ") for name in modules])
    ax.set_ylim(len(modules) - 0.5, -0.5)
    ax.set_xlabel("perplexity / perplexity with all layers trained" + _key(frame, "\n"))
    ax.legend(frameon=False, ncols=len(texts), loc="lower center", bbox_to_anchor=(0.5, 1))
    return _plain(ax, "x")


def plot_fit(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the loss on responses that are trained on, and on others, over the steps: over-fitting.

    Args:    frame: columns step, run ("few" or "many" samples), what ("seen": solid; "held out": dashed),
             value, low, high (nats a token).
    """
    need(frame, "step", "run", "what", "value", "low", "high")
    ax = new_axes(ax)
    for (run, what), part in frame.sort_values("step").groupby(["run", "what"], sort=False):
        color, dashed = RUNS[run], what != "seen"
        line = {"color": color, "linestyle": "--" if dashed else "-", "marker": "s" if dashed else "o"}
        ax.plot(part.step, part.value, linewidth=1.6, markersize=5, label=f"{run} samples, {what}", **line)
        if dashed:
            ax.fill_between(part.step, part.low, part.high, color=color, alpha=0.12, linewidth=0)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("steps of recovery")
    ax.set_ylabel("loss on responses (nats a token, lower is better)")
    ax.legend(frameon=False, fontsize=9)
    return _plain(ax, "y")


def plot_costs(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what is left of each cost of the dense model: ours filled, the paper's hollow.

    Args:    frame: columns model, cost (of `COSTS`), ours, low, high (NaN for counts), paper: shares of the
             dense model's.
    """
    need(frame, "model", "cost", "ours", "low", "high", "paper")
    models = list(dict.fromkeys(frame.model))
    costs = [name for name in COSTS if name in set(frame.cost)]
    ax = new_axes(ax, 6.8, 1.7 + 0.62 * len(models))
    for row in frame.itertuples():
        label, color, marker = COSTS[row.cost]
        y = models.index(row.model) + 0.7 * (costs.index(row.cost) + 0.5) / len(costs) - 0.35
        ends = np.nan_to_num([[row.ours - row.low], [row.high - row.ours]]) * 100
        label = label if row.model == models[0] else None
        ax.errorbar([100 * row.ours], [y], xerr=ends, fmt=marker, color=color, capsize=3, label=label)
        if np.isfinite(row.paper):
            ax.plot(
                [100 * row.paper], [y], marker, color=color, markersize=10, fillstyle="none", linestyle=""
            )
    ax.axvline(100, color=GREY, linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(range(len(models)), models)
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("share of the dense model's, %" + _key(frame))
    ax.legend(frameon=False, ncols=len(costs), loc="lower center", bbox_to_anchor=(0.5, 1))
    return _plain(ax, "x")


def plot_int8(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw quality over bytes, before and after storing the linear layers in 8 bits.

    Args:    frame: columns model ("dense", "pruned", "recovered"), int8, bytes (share of the dense model's in
             floating point), metric ("accuracy" or "perplexity"), value, low, high (relative to it too), and
             paper_bytes, paper_value (NaN where there is none: hollow marks).
    """
    need(frame, "model", "int8", "bytes", "metric", "value", "low", "high", "paper_bytes", "paper_value")
    ax = new_axes(ax, 6.0, 4.0)
    accuracies = set(frame.metric) == {"accuracy"}
    scale = 100 if accuracies else 1
    for model, part in frame.sort_values("int8").groupby("model", sort=False):
        color = MODELS[model]
        at, value = 100 * part.bytes, scale * part.value
        ends = [scale * (part.value - part.low), scale * (part.high - part.value)]
        ax.plot(at, value, "-", color=color, linewidth=1)
        ax.errorbar(at, value, yerr=ends, fmt="none", color=color, capsize=3)
        ax.plot(at[~part.int8], value[~part.int8], "o", color=color, markersize=8, label=STAGES[model][0])
        ax.plot(at[part.int8], value[part.int8], "s", color=color, markersize=8)
        ax.plot(100 * part.paper_bytes, scale * part.paper_value, ":", color=color, linewidth=1)
        for mark, rows in (("o", part[~part.int8]), ("s", part[part.int8])):
            around = {"color": color, "markersize": 11, "fillstyle": "none", "linestyle": ""}
            ax.plot(100 * rows.paper_bytes, scale * rows.paper_value, mark, **around)
    paper = "; hollow: paper" if frame.paper_value.notna().any() else ""
    ax.set_xlabel(f"bytes, % of the dense model's\n(circle: floating point, square: 8 bits{paper})")
    ax.legend(frameon=False)
    if accuracies:
        ax.set_ylabel("mean accuracy, % of the dense model's")
        return _plain(ax, "y")
    perplexity_axis(ax).set_ylabel("perplexity / dense perplexity")
    return ax


def plot_repetition(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how much each model repeats itself: a dash a text, the mean with its interval.

    Args:    frame: columns model ("dense", "pruned", "recovered"), measure (one of `TEXTS`), value (a share
             in [0, 1]; a row a text) and mean, low, high (of the model, the same in each of its rows).
    """
    need(frame, "model", "measure", "value", "mean", "low", "high")
    models = [name for name in STAGES if name in set(frame.model)]
    ax = new_axes(ax, 4.6, 3.8)
    for x, (model, part) in ((models.index(key), (key, rows)) for key, rows in frame.groupby("model")):
        color, one = MODELS[model], 100 * part[["mean", "low", "high"]].iloc[0].clip(0, 1)
        ax.plot([x - 0.18] * len(part), 100 * part.value, "_", color=color, alpha=0.5, markersize=12)
        ends = [[one["mean"] - one.low], [one.high - one["mean"]]]
        ax.errorbar([x + 0.1], [one["mean"]], yerr=ends, fmt="o", color=color, markersize=8, capsize=4)
    ax.set_xticks(range(len(models)), [STAGES[name][0] for name in models])
    ax.set_xlim(-0.6, len(models) - 0.4)
    ax.set_xlabel("the model on its way")
    ax.set_ylabel(TEXTS[frame.measure.iloc[0]])
    return _plain(ax, "y")


def _over(frame: pd.DataFrame, x: str, ax: Axes) -> Axes:
    """Draw `times` over `x`, a line a text, with a second axis of seconds, which grow in proportion."""
    ends, texts = [], list(dict.fromkeys(frame.dataset))
    for number, text in enumerate(texts):
        part = frame[frame.dataset == text].sort_values(x)
        color = RUNS.get(text.removesuffix(" samples"), DATASETS[number % len(DATASETS)])
        ax.plot(part[x], part.times, "o-", color=color, linewidth=1.6, markersize=5)
        ax.fill_between(part[x], part.low, part.high, color=color, alpha=0.15, linewidth=0)
        if "paper" in part and part.paper.notna().any():
            ax.plot(part[x], part.paper, "o", color=color, markersize=8, **HOLLOW)
        ends.append((part[x].iloc[-1], part.times.iloc[-1], MethodStyle(color, "o", text)))
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1, zorder=0)
    perplexity_axis(ax).set_ylabel("perplexity / perplexity before recovery" + _key(frame, "\n"))
    label_lines(ax, ends, direct=1 < len(ends) <= DIRECT_LABELS, legend=len(ends) > 1)
    rate = frame.seconds.sum() / frame[x].sum()
    if rate > 0:
        upper = ax.secondary_xaxis("top", functions=(lambda at: at * rate, lambda seconds: seconds / rate))
        upper.set_xlabel("seconds of training on this machine")
        if ax.get_xscale() == "log":
            numbers = sorted(set(frame[x]))
            upper.set_xticks([number * rate for number in numbers], [f"{n * rate:,.3g}" for n in numbers])
            upper.minorticks_off()
    return ax


def _key(frame: pd.DataFrame, before: str = "   ") -> str:
    return f"{before}(filled: ours, hollow: paper)" if "paper" in frame and frame.paper.notna().any() else ""


def _plain(ax: Axes, grid: str) -> Axes:
    ax.grid(axis=grid, alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
