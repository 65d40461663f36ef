"""The figures of recovery show the numbers of their frame, the paper's hollow, and can be read."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from legible import assert_legible
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection

from pruner_lib.study.figures import intervals
from pruner_lib.study.figures.intervals import (
    plot_costs,
    plot_fit,
    plot_int8,
    plot_modules,
    plot_repetition,
    plot_samples,
    plot_steps,
)

NAN = float("nan")
TEXTS = (("wiki", 0.0), ("c4", 0.07))


def spans(value, width):
    return {"low": value - width, "high": value + width}


STEPS = pd.DataFrame(
    [
        {"step": s, "seconds": 6.0 * s, "dataset": text, "times": v + up, "paper": p, **spans(v + up, 0.02)}
        for text, up in TEXTS
        for s, v, p in ((0, 1 - up, 1.0), (2, 0.92, 0.96), (5, 0.84, 0.93), (20, 0.78, 0.94))
    ]
)
SAMPLES = pd.DataFrame(
    [
        {"samples": n, "seconds": 0.75 * n, "dataset": text, "times": v + up, **spans(v + up, 0.04)}
        for text, up in TEXTS
        for n, v in ((4, 0.98), (12, 0.92), (36, 0.86))
    ]
)
MODULES = pd.DataFrame(
    [
        {"modules": word, "dataset": text, "times": v, "paper": p, **spans(v, 0.012)}
        for word, v, p in (("without-mlp", 1.03, 1.016), ("without-attention", 1.005, 1.015))
        for text, _ in TEXTS
    ]
)
FIT = pd.DataFrame(
    [
        {"step": step, "run": run, "what": what, "value": value, **spans(value, 0.1)}
        for run, what, values in (
            ("few", "seen", (3.1, 2.6, 0.9)),
            ("few", "held out", (3.1, 2.9, 3.2)),
            ("many", "seen", (3.0, 2.9, 2.7)),
            ("many", "held out", (3.1, 2.95, 2.8)),
        )
        for step, value in zip((0, 2, 9), values, strict=True)
    ]
)
COSTS = pd.DataFrame(
    [
        {
            "model": model,
            "cost": cost,
            "ours": ours + shift,
            "low": low,
            "high": high,
            "paper": ours + shift / 2,
        }
        for model, ours in (("block, 20 %", 0.8), ("block, 50 %", 0.5))
        for cost, shift, low, high in (
            ("parameters", 0.0, NAN, NAN),
            ("macs", -0.02, NAN, NAN),
            ("memory", 0.01, NAN, NAN),
            ("latency", 0.1, ours + 0.05, ours + 0.15),
        )
    ]
)
INT8 = pd.DataFrame(
    [
        ("dense", False, 1.0, 1.0, 1.0, 1.0),
        ("dense", True, 0.41, 0.98, 0.526, 0.997),
        ("recovered", False, 0.8, 0.9, 0.81, 0.986),
        ("recovered", True, 0.35, 0.89, 0.42, 0.985),
    ],
    columns=["model", "int8", "bytes", "value", "paper_bytes", "paper_value"],
).assign(metric="accuracy", low=lambda f: f.value - 0.03, high=lambda f: f.value + 0.03)
REPEATS = pd.DataFrame(
    [
        {
            "model": model,
            "measure": "repetition_rate",
            "value": middle + off,
            "mean": middle,
            **spans(middle, 0.04),
        }
        for model, middle in (("dense", 0.1), ("pruned", 0.3), ("recovered", 0.15))
        for off in np.linspace(-0.09, 0.09, 7)
    ]
)
FIGURES = {
    "steps": (plot_steps, STEPS),
    "samples": (plot_samples, SAMPLES),
    "modules": (plot_modules, MODULES),
    "fit": (plot_fit, FIT),
    "costs": (plot_costs, COSTS),
    "int8": (plot_int8, INT8),
    "int8, perplexity": (plot_int8, INT8.assign(metric="perplexity", paper_value=NAN, paper_bytes=NAN)),
    "repetition": (plot_repetition, REPEATS),
}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_legible_and_changes_no_settings(name):
    plot, frame = FIGURES[name]
    before, kept = dict(mpl.rcParams), frame.copy()
    ax = plot(frame)
    assert dict(mpl.rcParams) == before and frame.equals(kept)
    assert ax.get_xlabel() and (ax.get_ylabel() or name in ("modules", "costs"))
    assert_legible(ax.figure)
    other = plt.figure().add_subplot()
    assert plot(frame, ax=other) is other


@pytest.mark.parametrize("name", FIGURES)
def test_frame_without_a_column_or_rows_is_refused(name):
    plot, frame = FIGURES[name]
    with pytest.raises(ValueError, match=f"lacks {frame.columns[0]}"):
        plot(frame.drop(columns=frame.columns[0]))
    with pytest.raises(ValueError, match="no rows"):
        plot(frame[:0])


def drawn(ax, *, hollow):
    """All points of marks without (or with) a face."""
    empty = ("white", "none")
    lines = [
        line
        for line in ax.lines
        if line.get_marker() in ("o", "s", "D", "^")
        and (line.get_markerfacecolor() in empty or line.get_fillstyle() == "none") is hollow
    ]
    points = [np.column_stack([line.get_xdata(), line.get_ydata()]) for line in lines]
    return np.concatenate(points) if points else np.zeros((0, 2))


def holds(points, x, y):
    return bool(np.isclose(points, [x, y]).all(axis=1).any())


def test_steps_show_ours_filled_and_the_papers_hollow():
    ax = plot_steps(STEPS)
    for row in STEPS.itertuples():
        assert holds(drawn(ax, hollow=False), row.step, row.times)
        assert holds(drawn(ax, hollow=True), row.step, row.paper)
    assert sum(isinstance(one, PolyCollection) for one in ax.collections) == 2
    alone = plot_steps(STEPS.drop(columns="paper"))
    assert not len(drawn(alone, hollow=True)) and "hollow" not in alone.get_ylabel()


def test_upper_axis_tells_the_seconds():
    for plot, frame, x in ((plot_steps, STEPS, "step"), (plot_samples, SAMPLES, "samples")):
        ax = plot(frame)
        ax.figure.canvas.draw()
        (upper,) = ax.child_axes
        rate = frame.seconds.max() / frame[x].max()
        assert upper.get_xlim() == pytest.approx(np.array(ax.get_xlim()) * rate)
    assert not plot_steps(STEPS.assign(seconds=0.0)).child_axes  # a clock that stood still


def test_modules_stand_beside_the_paper():
    ax = plot_modules(MODULES)
    assert sorted(drawn(ax, hollow=True)[:, 0]) == pytest.approx(sorted(MODULES.paper))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["without mlp", "without attention"]
    assert not len(drawn(plot_modules(MODULES.assign(paper=NAN)), hollow=True))


def test_responses_seen_are_solid_and_held_out_dashed():
    ax = plot_fit(FIT)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["few samples, seen"].get_linestyle() == "-"
    assert lines["few samples, held out"].get_linestyle() == "--"
    assert lines["few samples, seen"].get_ydata().tolist() == [3.1, 2.6, 0.9]
    assert lines["few samples, seen"].get_color() != lines["many samples, seen"].get_color()


def test_costs_are_percentages_of_the_dense_model():
    ax = plot_costs(COSTS)
    assert sorted(drawn(ax, hollow=False)[:, 0]) == pytest.approx(sorted(100 * COSTS.ours))
    assert sorted(drawn(ax, hollow=True)[:, 0]) == pytest.approx(sorted(100 * COSTS.paper))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "parameters",
        "multiplications",
        "memory",
        "latency",
    ]


def test_eight_bits_move_a_model_to_the_left():
    ax = plot_int8(INT8)
    for row in INT8.itertuples():
        assert holds(drawn(ax, hollow=False), 100 * row.bytes, 100 * row.value)
        assert holds(drawn(ax, hollow=True), 100 * row.paper_bytes, 100 * row.paper_value)
    assert "accuracy" in ax.get_ylabel() and ax.get_yscale() == "linear"
    other = plot_int8(FIGURES["int8, perplexity"][1])
    assert "perplexity" in other.get_ylabel() and other.get_yscale() == "log"
    assert "hollow" not in other.get_xlabel()


def test_every_text_is_a_dash_beside_the_mean():
    ax = plot_repetition(REPEATS)
    dashes = [line for line in ax.lines if line.get_marker() == "_" and len(line.get_xdata()) == 7]
    assert sorted(np.concatenate([line.get_ydata() for line in dashes])) == pytest.approx(
        sorted(100 * REPEATS.value)
    )
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["dense", "pruned", "recovered"]
    with pytest.raises(KeyError):
        plot_repetition(REPEATS.assign(measure="wit"))


def test_every_figure_has_a_test():
    elsewhere = {"plot_contrasts", "plot_following", "plot_kept"}  # test_figures_methods
    elsewhere |= {"plot_beside_paper", "plot_verdicts"}  # test_figures_summary
    plots = {name for name in vars(intervals) if name.startswith("plot_")}
    assert plots - elsewhere == {plot.__name__ for plot, _ in FIGURES.values()}
