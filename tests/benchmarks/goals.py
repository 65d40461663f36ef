"""What the benchmark aims at, and what came out: a range for each kind of number, and the figure.

    python -m tests.benchmarks.goals

writes the benchmark's table in the README anew. The figure has one function a panel, from the rows of a part
onto axes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruner_lib.files import write_text
from pruner_lib.study.figures.style import GREY, STYLE, MethodStyle, log_ticks, need, new_axes
from pruner_lib.study.readme import with_tables
from pruner_lib.study.results import project_root
from tests.benchmarks.rows import newest_rows, usual_rows

FOLDER = "results/bench"
MEMORY, TIMES, EVALUATION, IDEAL, RIVAL = 1.35, (1.3, 3.0), 0.95, 0.85, 1 / 3


@dataclass(frozen=True)
class Goal:
    """Numbers of one part of the benchmark and the range in which all of them must lie."""

    what: str
    part: str  # stem of its CSV
    numbers: Callable[[pd.DataFrame], pd.Series]
    low: float = 0.0
    high: float = float("inf")

    @property
    def range(self) -> str:
        if self.low and self.high < float("inf"):
            return f"{self.low:.3g} to {self.high:.3g}"
        return f"at least {self.low:.3g}" if self.low else f"at most {self.high:.3g}"


def _scoring(column: str, *ways: str, size: str = "7") -> Callable[[pd.DataFrame], pd.Series]:
    def numbers(frame: pd.DataFrame) -> pd.Series:
        usual = usual_rows(frame)
        return usual[(usual["size"] == size) & usual.way.isin(ways)][column]

    return numbers


def _slope(frame: pd.DataFrame) -> pd.Series:
    """Give MiB of peak for each MiB of weights, by a line through all sizes."""
    rows = usual_rows(frame)
    rows = rows[rows.way == "all criteria"]
    return pd.Series(np.polyfit(rows.weights_mb, rows.peak_mb, 1)[:1])


GOALS = (
    Goal(
        "LLaMA-7B scored by all criteria at once: peak of resident memory / bytes of the weights",
        "scoring",
        _scoring("peak_to_weights", "all criteria"),
        high=MEMORY,
    ),
    Goal(
        "0.1 to 7 billion parameters scored by all criteria: growth of the peak / growth of the weights",
        "scoring",
        _slope,
        high=MEMORY,
    ),
    Goal(
        "LLaMA-7B scored by vector or by element1: time / plain forward + backward",
        "scoring",
        _scoring("time_to_plain", "vector", "element1"),
        high=TIMES[0],
    ),
    Goal(
        "LLaMA-7B scored by all criteria at once: time / plain forward + backward",
        "scoring",
        _scoring("time_to_plain", "all criteria"),
        high=TIMES[1],
    ),
    Goal(
        "0.1 to 7 billion parameters: predicted / measured peak of memory",
        "scoring",
        lambda frame: frame.predicted_to_peak.dropna(),
        low=0.85,
        high=1.15,
    ),
    Goal(
        "groups of LLaMA-7B found: time / that of torch-pruning",
        "discovery",
        lambda frame: frame[(frame["size"] == "7") & (frame.tool == "ours")].share_of_rival,
        high=RIVAL,
    ),
    Goal(
        "SmolLM2-135M without 20 and 50 % of its blocks, reading a prompt: speed-up / ideal",
        "latency",
        lambda frame: frame[(frame.phase == "prefill") & (frame.removed > 0)].of_ideal,
        low=IDEAL,
    ),
    Goal(
        "perplexity of SmolLM2-135M: tokens a second / those of the bare forward pass",
        "evaluation",
        lambda frame: frame.share,
        low=EVALUATION,
    ),
)


def goals_table(root: Path) -> str:
    """Write as Markdown what was aimed at and what was measured, from the CSVs of the benchmark below `root`.

    Returns: a row a goal; where a CSV is of several machines, the one measured last counts.
    """
    places = {goal.part: f"{FOLDER}/{goal.part}.csv" for goal in GOALS}
    if not all((root / place).is_file() for place in places.values()):
        return "Not there yet: `inv bench` makes it."
    frames = {part: newest_rows(root / place) for part, place in places.items()}
    lines = ["| benchmark | goal | measured | met | file |\n|---|---|---|---|---|"]
    for goal in GOALS:
        numbers = goal.numbers(frames[goal.part])
        ends = sorted({f"{numbers.min():.3g}", f"{numbers.max():.3g}"}, key=float)
        met = "yes" if numbers.between(goal.low, goal.high).all() else "no"
        file = f"[{goal.part}.csv]({places[goal.part]})"
        lines.append(f"| {goal.what} | {goal.range} | {' to '.join(ends)} | {met} | {file} |")
    return "\n".join(lines)


def main() -> int:
    """Rewrite the benchmark's table in the README of this project; give the exit code."""
    root = project_root() or Path.cwd()
    path = root / "README.md"
    try:
        write_text(path, with_tables(path.read_text(encoding="utf-8"), {"benchmark": goals_table(root)}))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


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
    ax.plot(span, MEMORY * span, color=GREY, linewidth=1, linestyle=":")
    for way, part in _by(frame, "way", WAYS):
        part, style = part.sort_values("weights_mb"), WAYS[way]
        ax.plot(part.weights_mb / 1024, part.peak_mb / 1024, style.line, **_look(style))
    if len(again):
        style = MethodStyle("#000000", "o", "all, activations computed again", ":")
        ax.plot(again.weights_mb / 1024, again.peak_mb / 1024, ":", markerfacecolor="none", **_look(style))
    ax.set(xscale="log", yscale="log", title="scoring: memory")
    ax.set_xlabel("weights, GiB")
    ax.set_ylabel(f"peak resident memory, GiB (dotted: {MEMORY:g} x weights)")
    ax.legend(frameon=False, fontsize=8)
    return _finish(ax)


def plot_time(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the time of scoring as a multiple of that of a plain pass, each way a line.

    Args:    frame: columns `way`, `checkpointing`, `parameters`, `time_to_plain`.
    """
    need(frame, "way", "checkpointing", "parameters", "time_to_plain")
    ax, frame = new_axes(ax), usual_rows(frame)
    for goal in TIMES:
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
            ax.plot([x - 0.08, x + 0.08], [IDEAL * row.ideal] * 2, ":", color=GREY)
    ax.axhline(1, color=GREY, linewidth=1, linestyle="--")
    ax.set_xticks(range(len(shares)), [f"{100 * share:g} %" for share in shares])
    ax.set_xlim(-0.5, len(shares) - 0.5)
    ax.set_title(f"{phase} (grey: ideal, dotted: {IDEAL:g} of it)")
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
    ax.axhline(EVALUATION, color=GREY, linewidth=1, linestyle=":")
    ax.errorbar(range(len(frame)), frame.share, ends, fmt="o", capsize=3, color="#0072B2")
    ax.set_xticks(range(len(frame)), names)
    ax.set_xlim(-0.5, len(frame) - 0.5)
    ax.set_title("perplexity evaluation")
    ax.set_xlabel("window and type of the weights")
    ax.set_ylabel(f"tokens/s, share of the bare forward (dotted: {EVALUATION:g})")
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


if __name__ == "__main__":
    sys.exit(main())
