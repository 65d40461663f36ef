"""Figures with points and intervals: methods, recovery and savings, repetition, verdicts beside the paper.

One function a figure, from a tidy frame onto axes; nothing here measures, saves or sets. How methods look is
fixed in `style`, how a verdict is reached in `claims`.
"""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pruner_lib.study.claims import CANT_TELL, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED
from pruner_lib.study.figures.style import (
    DATASETS,
    DIRECT_LABELS,
    GREY,
    STAGES,
    STYLE,
    MethodStyle,
    label_lines,
    need,
    new_axes,
    perplexity_axis,
    style_of,
)

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

    Args:    frame: rows of `compare.kept_frame` of one metric and one dataset: columns name, stage
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

    Args:    frame: rows of `compare.contrasts` of one metric and one dataset: columns a, b, metric,
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
    label = [f"{_plain_name(row.a)} \N{MINUS SIGN} {_plain_name(row.b)}" for row in frame.itertuples()]
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
            label=_plain_name(name),
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


def _plain_name(name: str) -> str:
    return _look(name).label.replace("\n", " ")


def _explain(ax: Axes, frame: pd.DataFrame, paper: bool) -> None:
    """Say above the axes what stars and hollow marks are."""
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


ANSWERS = {  # verdict -> (colour, mark)
    REPRODUCED: ("#009E73", "o"),
    NOT_REPRODUCED: ("#D55E00", "X"),
    CANT_TELL: (GREY, "s"),
    NOT_MEASURED: ("#999999", ""),
}
TRUE_HERE = "#D9F0E6"
LOG_FROM = 5  # rows whose numbers span a larger factor are drawn on a logarithmic scale
WRAP = 46  # characters a line of a sentence
OURS_AT, PAPER_AT = 10, 145  # columns of numbers: points from the right end of the axes


def plot_verdicts(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw every claim as a row: the range where it holds, our number with its interval, the paper's number.

    Args:    frame: columns `sentence`, `ours`, `low`, `high`, `paper` (NaN: none), `holds_from`, `holds_to`,
             `verdict`; a row a claim. Each row has its own scale.
    """
    need(frame, "sentence", "ours", "low", "high", "paper", "holds_from", "holds_to", "verdict")
    ax = new_axes(ax, 12, 1.1 + 0.56 * len(frame))
    rows = list(frame.itertuples())
    for y, row in enumerate(rows):
        _verdict_row(ax, y, row)
    for x, title in ((OURS_AT, "ours"), (PAPER_AT, "paper")):
        _beside(ax, x, -0.75, title, fontweight="bold")
    ax.set_yticks(
        range(len(rows)), ["\n".join(textwrap.wrap(row.sentence, WRAP)) for row in rows], fontsize=9
    )
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xticks([])
    ax.set_xlabel("each row has its own scale; shaded: where the claim holds, its edge labelled")
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.legend(
        handles=_verdict_marks(frame), frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(-0.35, 1)
    )
    return ax


def _verdict_row(ax: Axes, y: int, row) -> None:
    color, marker = ANSWERS[row.verdict]
    place = _scale([row.ours, row.low, row.high, row.paper], [row.holds_from, row.holds_to])
    start, end = place(row.holds_from), place(row.holds_to)
    ax.fill_between([start, end], y - 0.36, y + 0.36, color=TRUE_HERE, linewidth=0, zorder=0)
    for edge in (row.holds_from, row.holds_to):
        if np.isfinite(edge):
            ax.plot([place(edge)] * 2, [y - 0.36, y + 0.36], color=GREY, linewidth=0.8, zorder=1)
            ax.annotate(
                f"{edge:g}", (place(edge), y - 0.36), xytext=(2, -1), textcoords="offset points", fontsize=7,
                color=GREY, va="top",
            )  # fmt: skip
    if np.isfinite(row.paper):
        ax.plot(place(row.paper), y, "D", color="black", markerfacecolor="none", markersize=7, zorder=3)
    if np.isfinite(row.ours):
        ax.plot([place(row.low), place(row.high)], [y, y], color=color, linewidth=2.4, zorder=2)
        ax.plot(place(row.ours), y, marker, color=color, markersize=8, zorder=4)
    ours = "–"
    if np.isfinite(row.ours):
        ours = f"{_number(row.ours)}  [{_number(row.low)}, {_number(row.high)}]"
    told = f"{ours}\n{row.verdict.partition(' at ')[0]}"
    paper = _number(row.paper) if np.isfinite(row.paper) else "none printed"
    for x, text, shade in ((OURS_AT, told, color), (PAPER_AT, paper, "black")):
        _beside(ax, x, y, text, color=shade)


def _beside(ax: Axes, points: float, y: float, text: str, **look) -> None:
    at = {"xycoords": ax.get_yaxis_transform(), "xytext": (points, 0), "textcoords": "offset points"}
    ax.annotate(text, (1, y), va="center", fontsize=9, annotation_clip=False, **at, **look)


def _scale(numbers, edges):
    """Give the function that places the numbers of a row between 0 and 1; the infinite lie at the ends."""
    known = np.array([value for value in (*numbers, *edges) if np.isfinite(value)])
    positive = bool(len(known)) and known.min() > 0 and known.max() / known.min() > LOG_FROM
    form = np.log if positive else np.asarray
    low, high = (float(form(value)) for value in (known.min(), known.max())) if len(known) else (0.0, 1.0)
    margin = 0.25 * (high - low) or 0.1 * abs(high) or 1.0
    return lambda value: _between(value, form, low - margin, high + margin)


def _between(value: float, form, low: float, high: float) -> float:
    if np.isinf(value):
        return 0.0 if value < 0 else 1.0
    return float(np.clip((form(value) - low) / (high - low), 0, 1))


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "∞" if value > 0 else "−∞"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 0
    return f"{value:,.{digits}f}"


def _verdict_marks(frame: pd.DataFrame) -> list:
    there = [name for name in ANSWERS if name in set(frame.verdict) and ANSWERS[name][1]]
    marks = [
        Line2D([], [], color=ANSWERS[n][0], marker=ANSWERS[n][1], linewidth=2.4, label=f"ours: {n}")
        for n in there
    ]
    look = {"color": "black", "marker": "D", "markerfacecolor": "none", "linestyle": "", "label": "paper"}
    return [*marks, Line2D([], [], **look)]


def plot_beside_paper(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw our factors over the dense model against the paper's, every method before and after recovery.

    Args:    frame: columns `method`, `stage` ("pruned", "recovered"), `ours`, `low`, `high`, `paper`:
             perplexity over that of the dense model; a row a method and stage.
    """
    need(frame, "method", "stage", "ours", "low", "high", "paper")
    ax = new_axes(ax, 6.2, 5.2)
    for row in frame.itertuples():
        style = style_of(row.method)
        hollow = {"markerfacecolor": "white"} if row.stage == "pruned" else {}
        errors = [[max(0, row.ours - row.low)], [max(0, row.high - row.ours)]]
        ax.errorbar(
            row.paper,
            row.ours,
            yerr=errors,
            color=style.color,
            marker=style.marker,
            markersize=8,
            capsize=3,
            **hollow,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ends = [min(frame.paper.min(), frame.low.min(), 1), max(frame.paper.max(), frame.high.max())]
    ax.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, zorder=0)
    ax.annotate(
        "as in the paper", ends[1:] * 2, xytext=(-12, -4), textcoords="offset points", color=GREY, ha="right"
    )
    ax.set_xlabel("paper: perplexity, times that of the dense model")
    ax.set_ylabel("ours: perplexity, times that of the dense model")
    ax.legend(handles=_method_marks(frame), frameon=False, loc="upper left", fontsize=9)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _method_marks(frame: pd.DataFrame) -> list:
    styles = [style_of(method) for method in dict.fromkeys(frame.method)]
    marks = [Line2D([], [], color=s.color, marker=s.marker, linestyle="", label=s.label) for s in styles]
    for stage in dict.fromkeys(frame.stage):
        face = {"markerfacecolor": "white"} if stage == "pruned" else {}
        marks.append(Line2D([], [], color=GREY, marker="o", linestyle="", label=STAGES[stage][0], **face))
    return marks
