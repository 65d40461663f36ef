"""The figures of notebooks 03 to 05 show the numbers of their frames, and nothing in them overlaps."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from legible import assert_legible
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from pruner_lib.study.figures.intervals import CHOICES, plot_contrasts, plot_following, plot_kept
from pruner_lib.study.figures.style import GREY, STYLE

NAN = float("nan")
KEPT = pd.DataFrame(
    [
        ("random", "pruned", 5.6, 4.0, 7.9, 2.2),
        ("l2", "pruned", 19.0, 15.0, 26.0, 46.1),
        ("l2", "recovered", 6.0, 5.0, 7.0, NAN),
        ("vector", "pruned", 2.4, 2.1, 2.9, 1.8),
        ("element1", "pruned", 2.2, 2.0, 2.5, 1.5),
        ("element1", "recovered", 1.8, 1.7, 1.9, 1.4),
        ("channel", "pruned", 8.0, 7.0, 9.0, 5.9),
    ],
    columns=["name", "stage", "ours", "low", "high", "paper"],
).assign(metric="perplexity", dataset="wiki")
CONTRASTS = pd.DataFrame(
    [
        ("element1", "vector", -0.02, -0.1, 0.06, ""),
        ("element1", "l2", -2.0, -2.2, -1.8, "a"),
        ("l2", "matrices alone", 0.5, 0.1, 0.9, "b"),
    ],
    columns=["a", "b", "difference", "low", "high", "better"],
).assign(metric="perplexity", dataset="wiki")
FOLLOWING = pd.DataFrame(
    {"layer": [0, 1, 2] * 2, "name": ["groups"] * 3 + ["matrices alone"] * 3,
     "correlation": [0.95, 0.9, 0.93, 0.1, -0.2, 0.3]}
)  # fmt: skip
CHOSEN = KEPT.assign(name=list(CHOICES)[2:9], paper=NAN, stage="pruned")
FIGURES = {
    "kept": (plot_kept, KEPT),
    "kept, ours alone": (plot_kept, CHOSEN),
    "contrasts": (plot_contrasts, CONTRASTS),
    "following": (plot_following, FOLLOWING),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_figure_draws_where_it_is_told_and_changes_nothing(name):
    plot, frame = FIGURES[name]
    before, copy = dict(mpl.rcParams), frame.copy()
    own, given = plot(frame), plt.subplots(layout="constrained")[1]
    assert plot(frame, ax=given) is given and own is not given
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(frame, copy)
    assert own.get_xlabel() or own.get_ylabel()


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_written_overlaps_or_leaves_the_figure(name):
    plot, frame = FIGURES[name]
    assert_legible(plot(frame).figure)


@pytest.mark.parametrize("name", FIGURES)
def test_frame_that_can_not_be_drawn_is_refused(name):
    plot, frame = FIGURES[name]
    with pytest.raises(ValueError, match="no rows"):
        plot(frame[:0])
    with pytest.raises(ValueError, match="lacks"):
        plot(frame.drop(columns=frame.columns[0]))


def marks_of(ax, name):
    look = STYLE.get(name) or CHOICES[name]
    return [
        line
        for line in ax.lines
        if line.get_color() == look.color and line.get_marker() in (look.marker, "*")
    ]


def test_ours_is_filled_the_paper_hollow_and_recovered_a_star():
    marks = marks_of(plot_kept(KEPT), "element1")
    assert [mark.get_marker() for mark in marks] == ["o", "o", "*", "*"]
    assert [mark.get_markerfacecolor() == "none" for mark in marks] == [False, True, False, True]
    assert [float(mark.get_ydata()[0]) for mark in marks] == [2.2, 1.5, 1.8, 1.4]
    assert len(marks_of(plot_kept(KEPT), "random")) == 2 and len(marks_of(plot_kept(CHOSEN), "prod")) == 1


def test_perplexity_is_a_multiple_on_a_log_axis_and_accuracy_a_percentage():
    assert plot_kept(KEPT).get_yscale() == "log"
    ax = plot_kept(KEPT.assign(metric="accuracy", dataset="mean", ours=0.9, low=0.8, high=0.95, paper=0.85))
    assert ax.get_yscale() == "linear" and "%" in ax.get_ylabel()
    assert float(marks_of(ax, "random")[0].get_ydata()[0]) == 90
    with pytest.raises(ValueError, match="take one of each"):
        plot_kept(pd.concat([KEPT, KEPT.assign(dataset="c4")]))


def test_what_can_not_be_told_apart_is_grey_and_the_better_one_gives_its_colour():
    ax = plot_contrasts(CONTRASTS)
    marks = [line for line in ax.lines if line.get_marker() == "o"]
    colors = [to_rgb(mark.get_color()) for mark in marks]
    assert colors == [to_rgb(GREY), to_rgb(STYLE["element1"].color), to_rgb(CHOICES["matrices alone"].color)]
    assert [float(mark.get_xdata()[0]) for mark in marks] == [-0.02, -2.0, 0.5]
    assert [text.get_text() for text in ax.get_yticklabels()][0] == "element¹ \N{MINUS SIGN} vector"


def test_every_layer_has_its_mark_and_negative_correlations_are_seen():
    ax = plot_following(FOLLOWING)
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert drawn["groups"] == [0.95, 0.9, 0.93] and drawn["matrices alone"] == [0.1, -0.2, 0.3]
    assert ax.get_ylim()[0] < -0.2


def test_choices_have_looks_of_their_own():
    looks = [(look.color, look.marker) for look in CHOICES.values()]
    aggregations = [name for name in CHOICES if name not in ("groups", "matrices alone", "alone, at zero")]
    assert len({CHOICES[name].color for name in aggregations}) == len(aggregations)
    assert all(np.isfinite(to_rgb(color)).all() for color, _ in looks)
