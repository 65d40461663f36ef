"""Write the goals and results of the benchmark from its CSVs: `results/bench/README.md` and one figure.

python -m tests.benchmarks.figure
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from pruner_lib.files import write_text
from pruner_lib.study.results import results_root, save_image
from tests.benchmarks.rows import read_rows

PARTS = ("scoring", "discovery", "speed", "evaluation")
ALONE = ("zero_shot", "recovery", "repair", "cluster")  # of scripts that `tasks.py bench` does not run
GOALS = pd.read_csv(Path(__file__).with_name("goals.csv"))  # all numbers of a goal should be in [low, high]
HEAD = """# Benchmark

The memory and time that the library takes, each case in a separate process, compared with torch-pruning and
the bare model. `python tasks.py bench` measures the cases that were not measured on this machine with this
code, in about 40 minutes, and writes this page; [machines.csv](machines.csv) describes the machine.

![Memory and time of scoring, time of discovery, speed of pruned models and of the evaluation](bench.svg)

| what is compared | goal | measured | met | file |
|---|---|---|---|---|
"""
NOTES = """
On small and shallow models, discovery takes about a tenth of a second with both tools, and ours is not
faster. If memory is still too short, `estimate(..., checkpointing=True)` recomputes activations instead of
storing them, and smaller micro-batches give the same scores.

The rows from zero_shot.csv on are measured by separate scripts, `python -m tests.benchmarks.NAME` with
zero_shot_speed, recovery_speed, repair or cluster, in CPU seconds except for the last. Most of the gain in
recovery comes from sorting by length.
"""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000")


def load_rows(folder: Path) -> dict[str, pd.DataFrame]:
    """Read the existing CSVs; keep only the rows of the machine that measured last."""
    paths = {part: folder / f"{part}.csv" for part in (*PARTS, *ALONE)}
    frames = {part: read_rows(path) for part, path in paths.items() if path.is_file()}
    last = {part: frame.get("machine", pd.Series(0, frame.index)) for part, frame in frames.items()}
    return {part: frame[last[part] == last[part].iloc[-1]] for part, frame in frames.items()}


def goals_page(frames: Mapping[str, pd.DataFrame]) -> str:
    """Format the goals and the measured numbers as Markdown, one row per goal."""
    lines = []
    for goal in GOALS[GOALS.script.isin(list(frames))].itertuples():
        rows = frames[goal.script].query(goal.rows)
        slope = goal.column == "slope"  # MiB of peak per MiB of weights, from a line through all sizes
        numbers = np.polyfit(rows.weights_mb, rows.peak_mb, 1)[:1] if slope else rows[goal.column]
        low, high = min(numbers), max(numbers)
        met = not (low < goal.low or high > goal.high)  # NaN: no limit
        aim = f"{goal.low:g} to {goal.high:g}"
        aim = aim.replace("nan to", "at most") if np.isnan(goal.low) else aim
        aim = f"at least {goal.low:g}" if np.isnan(goal.high) else aim
        measured = " to ".join(dict.fromkeys((f"{low:.3g}", f"{high:.3g}")))
        file = f"[{goal.script}.csv]({goal.script}.csv)"
        lines.append(f"| {goal.what} | {aim} | {measured} | {'yes' if met else 'no'} | {file} |\n")
    return HEAD + "".join(lines) + NOTES


def plot_bench(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw six panels from the rows of all four scripts."""
    figure, axes = plt.subplots(6, 1, figsize=(6.4, 24), layout="constrained")
    memory, time, discovery, reading, writing, share = axes.flat
    scoring, evaluation, size = frames["scoring"], frames["evaluation"], "billion parameters"
    scoring = scoring.assign(gib=scoring.weights_mb / 1024, peak=scoring.peak_mb / 1024)
    memory.plot(scoring.gib, scoring.gib, ":", color="grey")
    _lines(memory, scoring, "gib", "peak", "way", "-", ("weights, GiB", "peak resident memory, GiB"))
    memory.set(title="scoring: memory (dotted: the weights)", yscale="log")
    scoring = scoring.assign(billions=scoring.parameters / 1e9)
    _lines(time, scoring, "billions", "time_to_plain", "way", "-", (size, "time / plain forward + backward"))
    time.set(title="scoring: time", ylim=(0, None))
    groups = frames["discovery"].assign(billions=frames["discovery"].parameters / 1e9)
    _lines(discovery, groups, "billions", "seconds", "tool", "", (size, "time, s"))
    discovery.set(title="discovery: depths, widths, 7 and 70 billion", yscale="log")
    for ax, phase in ((reading, "prefill"), (writing, "decoding")):
        part = frames["speed"].query("phase == @phase and removed > 0")
        names = [f"{100 * row.removed:g} %\n{row.multiple_of}" for row in part.itertuples()]
        _points(ax, names, part, "speedup", "speed-up over the dense model")
        ax.plot(range(len(part)), part.ideal, "_", color="black", markersize=24)
        ax.set(title=f"{phase} (dash: ideal)", xlabel="removed from the blocks, step of the MLPs' widths")
    names = [f"{row.window} tokens\n{row.dtype}" for row in evaluation.itertuples()]
    _points(share, names, evaluation, "share", "tokens/s, share of the bare forward")
    share.set(title="perplexity evaluation", xlabel="window and type of the weights")
    return figure


def _lines(
    ax: Axes, frame: pd.DataFrame, x: str, y: str, by: str, line: str, labels: tuple[str, str]
) -> None:
    """Draw a series for each value of `by`, on a logarithmic x axis."""
    for i, (name, part) in enumerate(frame.groupby(by, sort=False)):
        part, style = part.sort_values(x), {"color": COLOURS[i], "markersize": 11 - 2 * i}  # none is hidden
        ax.plot(part[x], part[y], "Xso^"[i] + line, label=name, **style)
    ax.set(xscale="log", xlabel=labels[0], ylabel=labels[1])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(frameon=False)


def _points(ax: Axes, names: list[str], frame: pd.DataFrame, column: str, label: str) -> None:
    """Draw a point with its quartiles for each row."""
    ends = [frame[column] - frame[f"{column}_q1"], frame[f"{column}_q3"] - frame[column]]
    ax.errorbar(range(len(frame)), frame[column], ends, fmt="o", capsize=3, color=COLOURS[0])
    ax.axhline(1, color="grey", linestyle="--")
    ax.set_xticks(range(len(frame)), names, fontsize=8)
    ax.set(ylabel=label, xlim=(-0.5, len(frame) - 0.5))


if __name__ == "__main__":
    folder = results_root() / "bench"
    loaded = load_rows(folder)
    write_text(folder / "README.md", goals_page(loaded))
    if set(loaded) >= set(PARTS):
        save_image(plot_bench(loaded), "bench", folder)
    print(f"wrote {folder / 'README.md'}")
