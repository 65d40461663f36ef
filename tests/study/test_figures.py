"""Figures draw the numbers of their frame, the paper's hollow, and all that is written can be read."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from legible import assert_legible
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from pruner_lib.study.figures import plot_curves, plot_heatmap, plot_intervals
from pruner_lib.study.figures.drawing import (
    GREY,
    METHODS,
    STYLE,
    finish_axis,
    styles_of,
    summary,
)
from pruner_lib.study.settings import CRITERIA

NAN, INF = float("nan"), float("inf")
# What a colour becomes without cones for long and for medium waves (Machado et al. 2009, severity 1).
BLINDNESS = {
    "none": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
KEPT = pd.DataFrame(
    [
        ("random", "pruned", 5.6, 4.0, 7.9, 2.2),
        ("l2", "pruned", 19.0, 15.0, 26.0, 46.1),
        ("l2", "recovered", 6.0, 5.0, 7.0, NAN),
        ("element1", "pruned", 2.2, 2.0, 2.5, 1.5),
        ("element1", "recovered", 1.8, 1.7, 1.9, 1.4),
    ],
    columns=["name", "stage", "ours", "low", "high", "paper"],
)
DRAWS = pd.DataFrame(
    [
        {"method": method, "value": value * draw, "stderr": 1.0}
        for method, value in {"l2": 500.0, "element1": 70.0}.items()
        for draw in (0.9, 1.0, 1.1)
    ]
)
COSTS = pd.DataFrame(
    [
        {
            "name": model,
            "cost": cost,
            "ours": ours,
            "low": ours - 0.01,
            "high": ours + 0.01,
            "paper": ours + 0.02,
        }
        for model in ("block", "channel")
        for cost, ours in (("parameters", 0.8), ("macs", 0.79), ("latency", 0.86))
    ]
)
STEPS = pd.DataFrame(
    [
        {
            "step": s,
            "dataset": text,
            "times": v + up,
            "paper": p,
            "low": v - 0.1,
            "high": v + 0.2,
        }
        for text, up in (("wiki", 0.0), ("c4", 0.07))
        for s, v, p in ((0, 1.0, 1.0), (2, 0.92, 0.96), (5, 0.84, 0.93), (20, 0.78, NAN))
    ]
)
SWEEP = pd.DataFrame(
    [
        {"share": share, "method": method, "dataset": text, "value": value * factor * draw}
        for method, values in {"element1": (40.0, 400.0), "l2": (90.0, 9000.0)}.items()
        for share, value in zip((0.2, 0.5), values, strict=True)
        for text, factor in (("wiki", 1.0), ("c4", 1.3))
        for draw in (0.95, 1.0, 1.05)
    ]
    + [
        {"share": 0.0, "method": "dense", "dataset": text, "value": v}
        for text, v in (("wiki", 30), ("c4", 41))
    ]
)
MANY = pd.concat([SWEEP, SWEEP[SWEEP.method == "l2"].assign(method="global", value=lambda f: f.value * 1.5)])
TAYLOR = pd.DataFrame(
    [
        {"size": 10.0**-k, "method": method, "kind": kind, "estimate": 3 * 10.0**-k}
        for method in ("vector", "element1")
        for kind in ("mlp", "attention")
        for k in range(4)
    ]
)
CORPORA = pd.DataFrame([{"corpus": c, "value": 40.0 + s} for c in ("bookcorpus", "wiki") for s in range(3)])
OVERLAP = pd.DataFrame(
    {"method_a": ["l1", "l2", "l2"], "method_b": ["l1", "l1", "l2"], "overlap": [1.0, 0.25, 1.0]}
)
PPL = {"label": "perplexity / dense perplexity", "scale": "log"}


def kept(frame, ax=None, **options):
    look = PPL | {"marker": "stage", "reference": {"dense model": 1}, "title": "smollm2-135m, wiki"}
    return plot_intervals(frame, ax=ax, **look | options)


def draws(frame, ax=None):
    return plot_intervals(frame, "value", rows="method", ax=ax, **PPL)


def costs(frame, ax=None):
    return plot_intervals(frame, series="cost", label="share of the dense model's", scale="percent", ax=ax)


def steps(frame, ax=None, **options):
    look = PPL | {"x": "step", "xlabel": "steps of recovery", "series": "dataset"}
    return plot_curves(frame, "times", ax=ax, **look | options)


def sweep(frame, ax=None, **options):
    look = PPL | {"x": "share", "xlabel": "share removed", "xscale": "percent"}
    return plot_curves(frame, series="method", line="dataset", title="a sweep", ax=ax, **look | options)


def taylor(frame, ax=None):
    look = {"xlabel": "true change (nats per token)", "label": "estimate (nats per token)"}
    look |= {"diagonal": "equal", "joined": False, "xscale": "log", "scale": "log"}
    return plot_curves(frame, "estimate", x="size", series="method", marker="kind", ax=ax, **look)


def corpora(frame, ax=None):
    return plot_curves(frame, x="corpus", xlabel="calibration text", ax=ax, **PPL)


def overlap(frame, ax=None):
    return plot_heatmap(frame, label="agreement (1: the same)", title="groups", ax=ax)


FIGURES = {
    "kept": (kept, KEPT),
    "draws": (draws, DRAWS),
    "costs": (costs, COSTS),
    "steps": (steps, STEPS),
    "sweep": (sweep, SWEEP),
    "many curves": (sweep, MANY),
    "taylor": (taylor, TAYLOR),
    "corpora": (corpora, CORPORA),
    "overlap": (overlap, OVERLAP),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_can_be_read_is_drawn_where_it_shall_be_and_changes_nothing_else(name):
    plot, frame = FIGURES[name]
    before, copy = dict(mpl.rcParams), frame.copy()
    own, given = plot(frame), plt.subplots(layout="constrained")[1]
    assert plot(frame, ax=given) is given and own is not given
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(frame, copy)
    assert own.get_xlabel() or name == "overlap"
    assert_legible(own.figure)


def spread(values, log=True):
    """Middle, low and high of draws whose own intervals reach one to either side."""
    numbers = np.array(values)
    return summary(pd.DataFrame({"value": numbers, "low": numbers - 1, "high": numbers + 1}), log)


def marks(ax, color, *, hollow):
    """Places of the marks of a colour, whatever their shape, without dashes, caps and arrows."""
    lines = [line for line in ax.lines if line.get_marker() not in ("None", "", "|", "_", "<", ">")]
    lines = [line for line in lines if line.get_color() == color]
    lines = [line for line in lines if (line.get_markerfacecolor() == "none") == hollow]
    return [(x, y) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def test_ours_is_filled_and_the_papers_hollow_at_the_same_height():
    ax = kept(KEPT)
    for name in ("random", "l2", "element1"):
        own, color = KEPT[KEPT.name == name], STYLE[name].color
        assert [x for x, _ in marks(ax, color, hollow=False)] == own.ours.tolist()
        assert [x for x, _ in marks(ax, color, hollow=True)] == own.paper.dropna().tolist()
    both = [dict(marks(ax, STYLE["element1"].color, hollow=hollow)) for hollow in (False, True)]
    assert sorted(both[0].values()) == sorted(both[1].values())
    assert not any(line.get_markerfacecolor() == "none" for line in kept(KEPT.assign(paper=NAN)).lines)


def test_legend_names_stages_the_paper_and_the_reference_once():
    assert legend(kept(KEPT)) == ["pruned", "recovered", "hollow: the paper", "dense model"]
    one = KEPT[KEPT.stage == "pruned"].assign(paper=NAN)
    assert legend(kept(one)) == ["dense model"]
    assert legend(costs(COSTS)) == ["parameters", "multiply-accumulates", "latency", "hollow: the paper"]


def test_rows_from_the_source_paper_are_hollow_as_well():
    rows = pd.DataFrame({"name": ["pruned"] * 2, "ours": [137.0, 19.1], "source": ["ours", "paper"]})
    ax = plot_intervals(rows, **PPL)
    color = STYLE["pruned"].color
    assert marks(ax, color, hollow=False)[0][0] == 137 and marks(ax, color, hollow=True)[0][0] == 19.1


def bars(ax):
    return [
        list(line.get_xdata())
        for line in ax.lines
        if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
    ]


def test_interval_reaches_from_low_to_high_and_an_open_end_to_the_end_of_the_axis():
    assert bars(kept(KEPT))[0] == [4.0, 7.9]
    ax = kept(KEPT.assign(low=[0.0, 15.0, 5.0, 2.0, 1.7], high=[INF, 26.0, 7.0, 2.5, 1.9]))
    assert bars(ax)[0] == pytest.approx(ax.get_xlim())
    assert bars(ax)[1:] == bars(kept(KEPT))[1:]


def test_three_draws_become_a_mean_with_its_spread_and_two_stay_points():
    ax = draws(DRAWS)
    middle, low, high = spread([450, 500, 550])
    assert marks(ax, STYLE["l2"].color, hollow=False)[0][0] == pytest.approx(middle)
    assert bars(ax)[0] == pytest.approx([low, high])
    two = draws(DRAWS.groupby("method").head(2))
    assert [x for x, _ in marks(two, STYLE["l2"].color, hollow=False)] == [450, 500]
    assert bars(two)[0] == [449, 451]  # one standard error to either side


def test_the_papers_mark_is_seen_around_ours_at_the_same_place():
    ax = kept(KEPT.assign(paper=KEPT.ours))
    sizes = {}
    for line in ax.lines:
        if line.get_marker() in ("o", "*"):
            hollow = line.get_markerfacecolor() == "none"
            sizes.setdefault(line.get_marker(), {})[hollow] = line.get_markersize()
    assert set(sizes) == {"o", "*"}
    assert all(size[True] > 1.2 * size[False] for size in sizes.values()), sizes


def test_a_difference_is_labelled_by_the_labels_of_its_two_names():
    rows = pd.DataFrame({"pair": ["element1 − l2", "prod, by group − other"], "ours": [0.1, 0.2]})
    ax = plot_intervals(rows, rows="pair", label="difference (nats per token)")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["element¹ − L2", "prod, by group − other"]


def test_every_single_measurement_is_a_dash_behind_the_mean():
    rows = pd.DataFrame(
        {"name": "dense", "mean": 0.2, "low": 0.1, "high": 0.3, "value": [0.0, 0.2, 0.2, 0.4]}
    )
    ax = plot_intervals(rows, "mean", each="value", label="share of tokens", scale="percent")
    dashes = [line for line in ax.lines if line.get_marker() == "|" and len(line.get_xdata()) == 4]
    assert [list(line.get_xdata()) for line in dashes] == [[0.0, 0.2, 0.2, 0.4]]
    assert len(marks(ax, GREY, hollow=False)) == 1


def test_shares_are_written_as_percent_and_other_numbers_are_not():
    for ax, percent in ((costs(COSTS), True), (draws(DRAWS), False)):
        ax.figure.canvas.draw()
        assert all(text.get_text().endswith(" %") == percent for text in ax.get_xticklabels())


def test_percents_have_no_more_digits_than_their_ticks_need():
    for ends, wanted in (((0.78, 0.89), "80 %"), ((0.0, 0.4), "20 %"), ((0.01, 0.02), "1.4 %")):
        _, ax = plt.subplots()
        ax.set_xlim(*ends)
        finish_axis(ax, "x", "share", "percent")
        ax.figure.canvas.draw()
        assert wanted in [text.get_text() for text in ax.get_xticklabels()]


def curve(ax, color, style="-"):
    lines = [line for line in ax.lines if line.get_color() == color and line.get_linestyle() == style]
    return next(
        (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in lines if len(line.get_xdata()) > 1
    )


def test_every_curve_goes_through_the_means_of_its_draws():
    ax, mean = sweep(SWEEP), np.exp(np.log([0.95, 1.0, 1.05]).mean())
    at, values = curve(ax, STYLE["l2"].color)
    assert at == [0.2, 0.5] and values == pytest.approx([90 * mean, 9000 * mean])
    assert curve(ax, STYLE["l2"].color, "--")[1] == pytest.approx([1.3 * 90 * mean, 1.3 * 9000 * mean])
    heights = [len(one.get_paths()[0].vertices) for one in ax.collections if one.get_paths()]
    assert sum(height > 4 for height in heights) == 4, "four bands"


def test_legend_explains_colours_and_dashes_once_and_only_where_it_is_wanted():
    assert legend(sweep(SWEEP)) == ["element¹", "L2", "dense model", "wiki", "c4"]
    wiki = SWEEP[(SWEEP.dataset == "wiki") & (SWEEP.method != "dense")]
    assert legend(sweep(wiki)) == ["element¹", "L2"], "one text needs no name"
    assert legend(sweep(SWEEP, legend=False)) == []


def test_band_reaches_from_low_to_high_and_the_papers_points_are_hollow():
    ax = steps(STEPS)
    wiki = STEPS[STEPS.dataset == "wiki"]
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(wiki.low.min()) and heights.max() == pytest.approx(wiki.high.max())
    hollow = marks(ax, STYLE["wiki"].color, hollow=True)
    assert [y for _, y in hollow] == wiki.paper.dropna().tolist()
    assert curve(ax, STYLE["wiki"].color)[1] == wiki.times.tolist()


def test_reference_named_as_a_series_has_its_colour():
    ax = steps(STEPS, reference={"wiki": 0.5, "before recovery": 1})
    level = {line.get_ydata()[0]: line.get_color() for line in ax.lines if line.get_linestyle() == "--"}
    assert level == {0.5: STYLE["wiki"].color, 1: GREY}
    assert legend(ax)[-2:] == ["wiki, dense model", "before recovery"]


def test_two_references_are_drawn_apart():
    """Guessing and the dense model in one panel: two grey lines that look alike say nothing."""
    ax = steps(STEPS, reference={"dense model": 1, "guessing": 0.5})
    lines = {line.get_label(): line.get_linestyle() for line in ax.lines}
    assert (lines["dense model"], lines["guessing"]) == ("--", ":")


@pytest.mark.parametrize("legend", [True, False])
def test_a_long_title_stays_in_the_figure(legend):
    title = "smollm2-135m-mha, 20% removed: bits per byte of the right answer, mean of the seven"
    ax = steps(STEPS, title=title, legend=legend)
    ax.figure.canvas.draw()
    (drawn,) = (text for text in ax.findobj(Text) if text.get_text().replace("\n", " ") == title)
    assert drawn.get_window_extent().x1 <= ax.figure.bbox.x1


def test_single_marks_have_the_shape_of_their_kind_and_join_no_line():
    ax = taylor(TAYLOR)
    shapes = {line.get_marker() for line in ax.lines if line.get_color() == STYLE["vector"].color}
    assert shapes >= {STYLE["mlp"].marker, STYLE["attention"].marker}
    assert not [line for line in ax.lines if line.get_linestyle() == "-"]
    level = next(line for line in ax.lines if line.get_linestyle() == "--")
    assert level.get_xy1()[0] == level.get_xy1()[1] and level.get_xy2()[0] == level.get_xy2()[1]
    assert legend(ax) == ["vector", "element¹", "Type A, MLP", "Type B, attention", "equal"]


def test_names_stand_side_by_side_with_error_bars():
    ax = corpora(CORPORA)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["bookcorpus", "wiki"]
    (line,) = [one.lines[0] for one in ax.containers]
    assert line.get_ydata() == pytest.approx([spread([40, 41, 42])[0]] * 2) and line.get_linestyle() == "None"


@pytest.mark.parametrize("joined", [True, False])
def test_open_ends_of_curves_and_bars_reach_as_far_as_the_numbers_go(joined):
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "value": [1.0, 2.0, 4.0]})
    closed = frame.assign(low=[0.5, 1.5, 3.5], high=[1.5, 2.5, 4.5])
    opened = closed.assign(low=[0.5, -np.inf, 3.5], high=[1.5, np.inf, 4.5])
    for one in (closed, opened):
        ax = plot_curves(one, "value", x="x", xlabel="x", label="value", joined=joined)
        ax.figure.canvas.draw()
        low, high = ax.get_ylim()
        assert -1 < low <= 0.5 and 4.5 <= high < 6


def test_heat_map_is_symmetric_and_prints_its_numbers():
    ax = overlap(OVERLAP)
    table = ax.images[0].get_array()
    assert table[0, 1] == table[1, 0] == 0.25 and table[0, 0] == 1
    assert [text.get_text() for text in ax.texts].count("0.25") == 2
    assert len(ax.figure.axes) == 2
    assert len(plot_heatmap(OVERLAP).figure.axes) == 1


def test_spread_is_that_of_the_logarithm_where_numbers_are_factors():
    assert np.allclose(spread([10.0, 100.0, 1000.0]), [100, 10, 1000])
    assert np.allclose(spread([1.0, 2.0, 3.0], log=False), [2, 1, 3])
    assert np.allclose(spread([1.0, 3.0], log=False), [2, NAN, NAN], equal_nan=True)
    assert spread([7.0]) == (7.0, 6.0, 8.0)  # one number with the interval that it came with


@pytest.mark.parametrize(
    ("high", "wanted"),
    [(60, ["10", "20", "50"]), (3e7, [f"$\\mathdefault{{10^{{{n}}}}}$" for n in range(1, 8)])],
)
def test_ticks_of_a_long_axis_are_powers_of_ten(high, wanted):
    figure, ax = plt.subplots()
    ax.plot([0, 1], [8, high])
    finish_axis(ax, "y", "perplexity", "log")
    figure.canvas.draw()
    low, top = ax.get_ylim()
    assert [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= top] == wanted


def test_every_method_has_a_look_of_its_own_and_a_new_name_gets_a_free_colour():
    assert set(METHODS) == {"dense", "channel", *CRITERIA}
    pruned = [style for name, style in METHODS.items() if name != "dense"]
    for field in ("color", "marker", "label"):
        assert len({getattr(style, field) for style in pruned}) == len(pruned)
    looks = styles_of(["wiki", "my text", "c4", "my other text"])
    assert looks["wiki"] is STYLE["wiki"] and list(looks) == ["wiki", "my text", "c4", "my other text"]
    assert len({style.color for style in looks.values()}) == 4 and looks["my text"].label == "my text"


def lab(color, matrix):
    """CIE L*a*b* of a colour as someone with `matrix` sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(np.array(to_xyz) @ seen / [0.9505, 1.0, 1.089], 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_differ_for_all_readers(kind):
    seen = {name: lab(style.color, BLINDNESS[kind]) for name, style in METHODS.items()}
    distance = {
        pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)
    }
    assert min(distance.values()) > 10, min(distance, key=distance.get)
    red, green = lab("#ff0000", BLINDNESS["deutan"]), lab("#97a800", BLINDNESS["deutan"])
    assert (
        np.linalg.norm(red - green) < 10
    )  # the measure does find a pair that a colour-blind reader confuses
