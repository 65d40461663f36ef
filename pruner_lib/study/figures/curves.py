"""Figures with a curve or a heat map: scores and calibration, recovery, sweeps over share, layer and width.

One function a figure, from a tidy frame onto axes. Nothing here measures, saves or changes matplotlib's
settings. How methods look is fixed in `style`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pruner_lib.study.figures.style import (
    DATASETS,
    DESIGNS,
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

__all__ = [
    "STAGES",
    "STYLE",
    "new_axes",
    "plot_agreement",
    "plot_before_after",
    "plot_calibration",
    "plot_fading",
    "plot_layer_damage",
    "plot_layers",
    "plot_methods",
    "plot_overlap",
    "plot_recovery",
    "plot_stages",
    "plot_sweep",
    "plot_taylor",
    "plot_widths",
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
