"""Figures show the numbers of their frame, in colours that all readers can tell apart."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from legible import assert_legible
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from pruner_lib.study.figures import curves
from pruner_lib.study.figures.curves import STYLE
from pruner_lib.study.figures.style import perplexity_axis
from pruner_lib.study.settings import CRITERIA

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
METHODS = pd.DataFrame(
    [
        {"method": name, "value": value * factor, "stderr": 1.0, "source": "ours"}
        for name, value in {"l2": 500.0, "element1": 70.0}.items()
        for factor in (0.9, 1.0, 1.1)
    ]
    + [{"method": "element1", "value": 19.0, "stderr": None, "source": "paper"}]
    + [{"method": "dense", "value": 30.9, "stderr": None, "source": "ours"}]
)
CURVE = pd.DataFrame(
    {"step": [0, 1, 2] * 2, "dataset": ["wiki"] * 3 + ["c4"] * 3, "value": [70, 50, 45, 80, 60, 55.0]}
)
STAGES = pd.DataFrame(
    {"stage": ["dense", "pruned", "recovered"], "dataset": "wiki", "value": [30.9, 70.0, 45.0]}
)
DRAWS = pd.DataFrame(
    [{"samples": n, "value": 60.0 + 9 / n + s, "seed": s} for n in (1, 2, 4) for s in range(3)]
)
OVERLAP = pd.DataFrame(
    {"method_a": ["l1", "l2", "l2"], "method_b": ["l1", "l1", "l2"], "overlap": [1.0, 0.25, 1.0]}
)
WAY = pd.DataFrame(
    [
        {"stage": stage, "source": source, "model": model, "value": value, "stderr": error}
        for source, model, values, error in [
            ("ours", "small model", (30.9, 90.0, 55.0), 1.5),
            ("paper", "LLaMA-7B", (12.6, 19.1, 17.6), None),
        ]
        for stage, value in zip(curves.STAGES, values, strict=True)
    ]
)
FIGURES = {
    "before_after": (curves.plot_before_after, WAY),
    "methods": (curves.plot_methods, METHODS),
    "recovery": (curves.plot_recovery, CURVE),
    "stages": (curves.plot_stages, STAGES),
    "calibration": (curves.plot_calibration, DRAWS),
    "overlap": (curves.plot_overlap, OVERLAP),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def lab(color, matrix):
    """CIE L*a*b* of a colour as someone with `matrix` sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(np.array(to_xyz) @ seen / [0.9505, 1.0, 1.089], 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_method_has_a_look_of_its_own():
    assert set(STYLE) == {"dense", "channel", *CRITERIA}
    drawn = [style for name, style in STYLE.items() if name != "dense"]
    for field in ("color", "marker", "label"):
        assert len({getattr(style, field) for style in drawn}) == len(drawn)
    with pytest.raises(ValueError, match="no style for method 'taylor'; there are dense, random"):
        curves.style_of("taylor")


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_differ_for_all_readers(kind):
    seen = {name: lab(style.color, BLINDNESS[kind]) for name, style in STYLE.items()}
    distance = {
        pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)
    }
    assert min(distance.values()) > 10, min(distance, key=distance.get)
    red, green = lab("#ff0000", BLINDNESS["deutan"]), lab("#97a800", BLINDNESS["deutan"])
    assert (
        np.linalg.norm(red - green) < 10
    )  # the measure does find a pair that a colour-blind reader confuses


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_labelled_axes_draws_where_it_is_told_and_changes_no_settings(name):
    plot, frame = FIGURES[name]
    before, copy = dict(mpl.rcParams), frame.copy()
    own = plot(frame)
    given = plt.subplots(layout="constrained")[1]
    assert plot(frame, ax=given) is given and own is not given
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(frame, copy)
    if name != "overlap":
        assert own.get_yscale() == "log" and own.get_ylabel().startswith("perplexity") and own.get_xlabel()


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_written_in_a_figure_overlaps_or_leaves_it(name):
    plot, frame = FIGURES[name]
    assert_legible(plot(frame).figure)


@pytest.mark.parametrize("name", FIGURES)
def test_frame_that_can_not_be_drawn_is_refused(name):
    plot, frame = FIGURES[name]
    with pytest.raises(ValueError, match="no rows"):
        plot(frame[:0])
    with pytest.raises(ValueError, match="lacks .*it has the columns other"):
        plot(pd.DataFrame({"other": [1]}))


def test_paper_is_hollow_and_ours_filled():
    filled = [
        line.get_markerfacecolor() for line in curves.plot_methods(METHODS).lines if line.get_marker() == "o"
    ]
    assert "none" in filled and STYLE["element1"].color in filled
    ours = METHODS[METHODS.source == "ours"]
    assert "none" not in [line.get_markerfacecolor() for line in curves.plot_methods(ours).lines]


def test_way_of_a_model_ends_at_its_name_and_accuracies_are_percent():
    ax = curves.plot_before_after(WAY)
    faces = [to_rgb(line.get_markerfacecolor()) for line in ax.lines if line.get_marker() == "o"]
    assert faces.count((1.0, 1.0, 1.0)) == 3 and to_rgb(curves.STAGES["pruned"][1]) in faces
    assert {"small model", "LLaMA-7B"} <= {text.get_text() for text in ax.texts}
    shares = WAY.assign(value=0.5, metric="accuracy")
    percent = curves.plot_before_after(shares)
    assert percent.get_yscale() == "linear" and percent.lines[0].get_ydata().tolist() == [50.0] * 3


def test_three_draws_make_a_band_and_two_stay_points():
    assert len(curves.plot_calibration(DRAWS).collections) == 1
    two = curves.plot_calibration(DRAWS[DRAWS.seed < 2])
    assert not two.collections and any(len(line.get_xdata()) == 6 for line in two.lines)


def test_bars_are_as_high_as_their_numbers_and_say_them():
    ax = curves.plot_stages(STAGES)
    assert [bar.get_height() for bar in ax.patches] == [30.9, 70.0, 45.0]
    assert {"30.9", "70.0", "45.0"} <= {text.get_text() for text in ax.texts}


def test_overlap_is_symmetric():
    table = curves.plot_overlap(OVERLAP).images[0].get_array()
    assert table[0, 1] == table[1, 0] == 0.25 and table[0, 0] == 1


def test_spread_is_that_of_the_logarithm():
    middle, low, high = curves.spread([10.0, 100.0, 1000.0])
    assert np.allclose([low, middle, high], [10, 100, 1000])
    assert curves.spread([7.0]) == (pytest.approx(7.0),) * 3


@pytest.mark.parametrize(
    ("high", "wanted"),
    [(60, ["10", "20", "50"]), (3e7, ["10", "100", "1,000", "10,000", "100,000", "$10^{6}$", "$10^{7}$"])],
)
def test_ticks_of_a_long_axis_are_powers_of_ten(high, wanted):
    figure, ax = plt.subplots()
    ax.plot([0, 1], [8, high])
    perplexity_axis(ax)
    figure.canvas.draw()
    low, top = ax.get_ylim()
    shown = [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= top]
    plt.close(figure)
    assert shown == wanted
