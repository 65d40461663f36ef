"""The figures of the study: one function each, from a tidy frame onto axes.

Nothing here measures, saves or changes matplotlib's settings. How methods look is fixed in `marks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.figures.marks import (
    DATASETS,
    DIRECT_LABELS,
    GREY,
    MIN_BAND,
    STAGES,
    STYLE,
    MethodStyle,
    label_lines,
    need,
    new_axes,
    perplexity_axis,
    points,
    spread,
    style_of,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "STAGES",
    "STYLE",
    "new_axes",
    "plot_before_after",
    "plot_calibration",
    "plot_methods",
    "plot_overlap",
    "plot_recovery",
    "plot_stages",
    "spread",
    "style_of",
]


def plot_overlap(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how much the choices of each two methods agree, as a square of numbers.

    Args:    frame: columns `method_a`, `method_b`, `overlap` (in [-1, 1]); a row for every ordered pair, or
             for one order.
    """
    need(frame, "method_a", "method_b", "overlap")
    methods = list(dict.fromkeys([*frame.method_a, *frame.method_b]))
    table = np.full((len(methods), len(methods)), np.nan)
    for a, b, value in zip(frame.method_a, frame.method_b, frame.overlap, strict=True):
        row, column = methods.index(a), methods.index(b)
        table[row, column] = value
        if np.isnan(table[column, row]):
            table[column, row] = value
    size = 1.6 + 0.62 * len(methods)
    ax = new_axes(ax, size + 1.2, size)
    low = min(0.0, float(np.nanmin(table)))
    image = ax.imshow(table, cmap="cividis", vmin=low, vmax=1)
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            color = "black" if value > low + 0.55 * (1 - low) else "white"
            shown = f"{round(value, 2) + 0:.2f}"  # no -0.00
            ax.text(column, row, shown, ha="center", va="center", color=color, fontsize=9)
    labels = [STYLE[name].label if name in STYLE else name for name in methods]
    ax.set_xticks(range(len(methods)), labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(methods)), labels)
    ax.figure.colorbar(image, ax=ax, label="agreement (1: the same)", shrink=0.85)
    return ax


def plot_methods(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the perplexity of each method, ours filled and the paper's hollow, with the dense model as a line.

    Args:    frame: columns `method`, `value` (perplexity) and, if known, `stderr`, `source` ("ours" or
             "paper"); several rows of one method and source are repeats (seeds).
    """
    need(frame, "method", "value")
    methods = [name for name in dict.fromkeys(frame.method) if name != "dense"]
    ax = new_axes(ax, 1.6 + 0.75 * max(4, len(methods)))
    sources = frame["source"] if "source" in frame else ["ours"] * len(frame)
    paired = len(set(sources)) > 1
    for (method, source), part in frame.assign(source=sources).groupby(["method", "source"], sort=False):
        style, hollow = style_of(method), source == "paper"
        if method == "dense":
            ax.axhline(part.value.mean(), color=GREY, linestyle=":" if hollow else "--", zorder=0)
            label = f"dense, {source}" if paired else "dense"
            ax.annotate(
                label,
                (1, part.value.mean()),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=GREY,
                fontsize=9,
            )
            continue
        middle = methods.index(method) + (0.14 if hollow else -0.14) * paired
        points(ax, middle, part, style.color, style.marker, hollow)
    ax.set_xticks(range(len(methods)), [style_of(name).label for name in methods])
    ax.set_xlim(-0.6, len(methods) - 0.4)
    ax.set_xlabel("how groups are chosen" + ("   (filled: ours, hollow: paper)" if paired else ""))
    return perplexity_axis(ax)


def plot_calibration(frame: pd.DataFrame, *, x: str = "samples", ax: Axes | None = None) -> Axes:
    """Draw what the calibration does to the pruned model: the mean and the spread over draws, or every draw.

    Args:    frame: columns `x`, `value` (perplexity), and optionally `method` and `seed`; a row is a draw.
             x: "samples", "length" (numbers: a line) or "corpus" (names: a column each).
    """
    need(frame, x, "value")
    ax = new_axes(ax)
    named = any(isinstance(value, str) for value in frame[x])
    places = (
        {name: i for i, name in enumerate(dict.fromkeys(frame[x]))} if named else {n: n for n in frame[x]}
    )
    groups = list(frame.groupby("method", sort=False)) if "method" in frame else [("element1", frame)]
    ends = []
    for number, (method, part) in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * 0.12 if named else 0
        style = style_of(method)
        draws = {place: rows for place, rows in part.groupby(x, sort=not named)}
        at = np.array([places[name] + shift for name in draws], dtype=float)
        middle, low, high = np.array([spread(rows.value) for rows in draws.values()]).T
        many = min(map(len, draws.values())) >= MIN_BAND
        if named:
            for place, rows in zip(at, draws.values(), strict=True):
                points(ax, place, rows, style.color, style.marker, False)
        else:
            ax.plot(at, middle, color=style.color, marker=style.marker if many else "", linewidth=1.6)
            if many:
                ax.fill_between(at, low, high, color=style.color, alpha=0.2, linewidth=0)
            else:
                ax.plot(part[x], part.value, style.marker, color=style.color, linestyle="")
        ends.append((at[-1], middle[-1], style))
    label_lines(ax, ends, direct=not named and 1 < len(groups) <= DIRECT_LABELS, legend=len(groups) > 1)
    names = {
        "samples": "calibration samples",
        "length": "tokens a calibration sample",
        "corpus": "calibration text",
    }
    ax.set_xlabel(names.get(x, x))
    if named:
        ax.set_xticks(range(len(places)), list(places))
        ax.set_xlim(-0.6, len(places) - 0.4)
    else:
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(places), [f"{place:g}" for place in sorted(places)])
        ax.minorticks_off()
    return perplexity_axis(ax)


def plot_stages(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw perplexity as the model is pruned and recovered: a bar a stage, a group of bars a text.

    Args:    frame: columns `stage` ("dense", "pruned", "recovered"), `dataset`, `value`, and optionally
             `stderr`.
    """
    need(frame, "stage", "dataset", "value")
    datasets = list(dict.fromkeys(frame.dataset))
    stages = [name for name in STAGES if name in set(frame.stage)]
    ax = new_axes(ax, max(4.2, 1.4 + 0.8 * len(stages) * len(datasets)), 3.8)
    width = 0.8 / len(stages)
    for number, stage in enumerate(stages):
        part = frame[frame.stage == stage].set_index("dataset").reindex(datasets)
        at = np.arange(len(datasets)) + (number - (len(stages) - 1) / 2) * width
        label, color = STAGES[stage]
        errors = part.stderr if "stderr" in part else None
        bars = ax.bar(at, part.value, width * 0.92, color=color, label=label, yerr=errors, capsize=3)
        ax.bar_label(bars, [f"{value:.1f}" for value in part.value], padding=3, fontsize=9)
    ax.set_xticks(range(len(datasets)), datasets)
    ax.set_xlabel("text")
    ax.legend(frameon=False, ncols=len(stages), loc="lower center", bbox_to_anchor=(0.5, 1))
    ax = perplexity_axis(ax)
    low, high = frame.value.min(), frame.value.max()
    ax.set_ylim(max(1, low / 2), high * (high / max(1, low / 2)) ** 0.12)
    return ax


def plot_before_after(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw one measure of the whole, the pruned and the recovered model: ours filled, the paper's hollow.

    Args:    frame: columns `stage` ("dense", "pruned", "recovered"), `source` ("ours" or "paper"), `model`
             (the name of the line), `value` (perplexities, or shares in [0, 1] where the column `metric` says
             "accuracy") and, if known, `stderr`: one standard error is drawn to either side.
    """
    need(frame, "stage", "source", "model", "value")
    ax = new_axes(ax, 5.2)
    accuracies = "metric" in frame and set(frame.metric) == {"accuracy"}
    scale = 100 if accuracies else 1
    stages, ends = [name for name in STAGES if name in set(frame.stage)], []
    for (source, model), part in frame.groupby(["source", "model"], sort=False):
        part = part.set_index("stage").reindex(stages).dropna(subset="value")
        at, values = [stages.index(name) for name in part.index], part.value * scale
        errors = part.stderr * scale if "stderr" in part else [np.nan] * len(part)
        hollow = {"markerfacecolor": "white"} if source == "paper" else {}
        ax.plot(at, values, color=GREY, linewidth=1, linestyle=":" if hollow else "-")
        for x, stage, value, error in zip(at, part.index, values, errors, strict=True):
            ax.errorbar(x, value, error, fmt="o", color=STAGES[stage][1], markersize=8, capsize=3, **hollow)
        ends.append((at[-1], values.iloc[-1], MethodStyle(GREY, "o", model)))
    ax.set_xticks(range(len(stages)), [STAGES[name][0] for name in stages])
    ax.set_xlim(-0.3, len(stages) - 0.7)
    key = "   (filled: ours, hollow: paper)" if "paper" in set(frame.source) else ""
    ax.set_xlabel("the model on its way" + key)
    label_lines(ax, ends, direct=len(ends) <= DIRECT_LABELS, legend=False)
    if not accuracies:
        return perplexity_axis(ax)
    ax.set_ylabel("mean accuracy, % (higher is better)")
    ax.grid(axis="y", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_recovery(
    frame: pd.DataFrame, *, dense: dict[str, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw perplexity over the steps of the recovery (the paper's Figure 5).

    Args:    frame: columns `step`, `dataset`, `value`.    dense: text -> perplexity of the dense model, a
             dashed line.
    """
    need(frame, "step", "dataset", "value")
    ax = new_axes(ax)
    ends = []
    for number, (dataset, part) in enumerate(frame.sort_values("step").groupby("dataset", sort=False)):
        color = DATASETS[number % len(DATASETS)]
        ax.plot(part.step, part.value, marker="o", color=color, linewidth=1.6)
        ends.append((part.step.iloc[-1], part.value.iloc[-1], MethodStyle(color, "o", dataset)))
        if dense and dataset in dense:
            ax.axhline(dense[dataset], color=color, linestyle="--", linewidth=1, zorder=0)
            ax.annotate(
                f"{dataset}, dense",
                (0, dense[dataset]),
                xycoords=("axes fraction", "data"),
                xytext=(4, 3),
                textcoords="offset points",
                color=color,
                fontsize=9,
            )
    label_lines(ax, ends, direct=len(ends) <= DIRECT_LABELS, legend=True)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("steps of recovery")
    return perplexity_axis(ax)
