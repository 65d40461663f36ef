"""The figures of the estimation show the numbers of their frame, labelled and without overlaps."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from pruner_lib.study.figures import curves
from pruner_lib.study.figures.style import STYLE

FADING = pd.DataFrame(
    [
        {"share": t, "change": height * t**power, "what": what, "kind": kind}
        for what, height in {"whole": 1.0, "last": 0.5}.items()
        for kind, power in {"true": 2, "first order": 1}.items()
        for t in (0, 0.5, 1)
    ]
)
TAYLOR = pd.DataFrame(
    [
        {"change": (-1) ** k * 10.0**-k, "method": m, "estimate": 3 * 10.0**-k}
        for m in ("vector", "element1")
        for k in range(4)
    ]
)
LAYERS = pd.DataFrame(
    [{"layer": n, "method": m, "value": (n + 1) * 7.0} for m in ("l2", "element1") for n in range(5)]
)
DRAWS = pd.DataFrame(
    [{"samples": n, "overlap": 0.4 + n / 100 + s / 50} for n in (1, 10, 30) for s in range(3)]
)
NAMED = pd.DataFrame([{"corpus": name, "overlap": 0.4 + s / 50} for name in ("wiki", "c4") for s in range(3)])


def by_corpus(frame, *, ax=None):
    return curves.plot_agreement(frame, x="corpus", chance=0.14, ax=ax)


FIGURES = {
    "fading": (curves.plot_fading, FADING),
    "taylor": (curves.plot_taylor, TAYLOR),
    "layers": (curves.plot_layers, LAYERS),
    "agreement": (curves.plot_agreement, DRAWS),
    "agreement by name": (by_corpus, NAMED),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_labelled_drawn_where_told_and_changes_nothing(name):
    plot, frame = FIGURES[name]
    before, copy = dict(mpl.rcParams), frame.copy()
    own, given = plot(frame), plt.subplots(layout="constrained")[1]
    assert plot(frame, ax=given) is given and own is not given
    assert own.get_xlabel() and own.get_ylabel()
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(frame, copy)


@pytest.mark.parametrize("name", FIGURES)
def test_labels_of_the_axes_do_not_overlap_and_stay_inside(name):
    plot, frame = FIGURES[name]
    figure = plot(frame).figure
    figure.canvas.draw()
    ax, renderer = figure.axes[0], figure.canvas.get_renderer()
    labels = [ax.xaxis.label, ax.yaxis.label, *ax.texts]
    boxes = [label.get_window_extent(renderer) for label in labels if label.get_text()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= figure.bbox.x1 and b.y1 <= figure.bbox.y1 for b in boxes)


@pytest.mark.parametrize("name", FIGURES)
def test_frame_that_can_not_be_drawn_is_refused(name):
    plot, frame = FIGURES[name]
    with pytest.raises(ValueError, match="no rows"):
        plot(frame[:0])
    with pytest.raises(ValueError, match="lacks .*it has the columns other"):
        plot(pd.DataFrame({"other": [1]}))


def test_marks_of_a_criterion_are_its_estimates_over_the_size_of_the_change():
    lines = {line.get_label(): line for line in curves.plot_taylor(TAYLOR).lines}
    drawn = lines[STYLE["vector"].label]
    assert drawn.get_xdata().tolist() == pytest.approx([1, 0.1, 0.01, 0.001])
    assert drawn.get_ydata().tolist() == pytest.approx([3, 0.3, 0.03, 0.003])
    assert (lines["equal"].get_xdata() == lines["equal"].get_ydata()).all()


def test_estimate_of_a_part_is_hollow_and_named():
    part = TAYLOR[TAYLOR.method == "vector"].assign(part="down_proj alone")
    lines = {
        line.get_label(): line for line in curves.plot_taylor(pd.concat([TAYLOR.assign(part=""), part])).lines
    }
    assert lines["vector, down_proj alone"].get_markerfacecolor() == "none"
    assert lines["vector"].get_markerfacecolor() == STYLE["vector"].color


def test_layers_are_relative_to_the_mean_so_that_units_do_not_matter():
    lines = [line for line in curves.plot_layers(LAYERS).lines if len(line.get_xdata()) == 5]
    scaled = [line for line in curves.plot_layers(LAYERS.assign(value=LAYERS.value * 9)).lines]
    assert lines[0].get_ydata().mean() == pytest.approx(1)
    assert lines[0].get_ydata() == pytest.approx(scaled[0].get_ydata())


def test_three_draws_have_a_band_two_have_none_and_chance_is_a_line():
    assert curves.plot_agreement(DRAWS).collections
    two = curves.plot_agreement(DRAWS.groupby("samples").head(2)).collections[0]
    heights = two.get_paths()[0].vertices[:, 1]
    assert heights.max() - heights.min() == pytest.approx(0.29, abs=0.01)  # of the means alone: 0.42 to 0.71
    assert 0.14 in [line.get_ydata()[0] for line in by_corpus(NAMED).lines]
    assert 0.14 not in [line.get_ydata()[0] for line in curves.plot_agreement(DRAWS).lines]
