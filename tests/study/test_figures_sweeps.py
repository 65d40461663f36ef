"""The figures of the sweeps show the numbers of their frame, name every line, and mark what is protected."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from pruner_lib.study.figures import curves
from pruner_lib.study.figures.curves import look_of, plot_layer_damage, plot_sweep, plot_widths
from pruner_lib.study.figures.style import DESIGNS, STYLE

CURVES = {"element1": (40.0, 70.0, 400.0), "l2": (90.0, 900.0, 9000.0)}
SWEEP = pd.DataFrame(
    [
        {"share": share, "method": method, "dataset": text, "value": value * factor * draw}
        for method, values in CURVES.items()
        for share, value in zip((0.1, 0.2, 0.5), values, strict=True)
        for text, factor in (("wiki", 1.0), ("c4", 1.3))
        for draw in (0.95, 1.0, 1.05)
    ]
    + [
        {"share": 0.0, "method": "dense", "dataset": text, "value": v}
        for text, v in (("wiki", 30), ("c4", 41))
    ]
)
SHAPES = SWEEP.assign(method=SWEEP.method.replace({"element1": "block", "l2": "layer"}))
SHAPES = pd.concat(
    [SHAPES, SHAPES[SHAPES.method == "block"].assign(method="global", value=lambda f: f.value * 1.1)]
)
LAYERS = pd.DataFrame(
    [
        {
            "layer": n,
            "dataset": text,
            "times": t,
            "low": t * 0.97,
            "high": t * 1.03,
            "protected": n < 4 or n > 27,
        }
        for text, factor in (("wiki", 1.0), ("c4", 1.1))
        for n in range(30)
        for t in [1.02 + factor * (2.5 * np.exp(-n) + 0.4 * np.exp(n - 29))]
    ]
)
WIDTHS = pd.DataFrame(
    [
        {"design": design, "draw": draw, "layer": layer, "kind": kind, "kept": min(1.0, kept + 0.02 * draw)}
        for design, kept in {"block": 0.5, "global": 0.33, "channel": 0.5}.items()
        for draw in range(3)
        for layer in range(30)
        for kind in ("attention", "mlp")
    ]
)
FIGURES = {
    "sweep": (plot_sweep, SWEEP),
    "shapes": (plot_sweep, SHAPES),
    "layers": (plot_layer_damage, LAYERS),
    "widths": (lambda frame, ax=None: plot_widths(frame, kind="mlp", ax=ax), WIDTHS),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_figure_draws_where_it_is_told_labels_its_axes_and_changes_nothing(name):
    plot, frame = FIGURES[name]
    before, copy = dict(mpl.rcParams), frame.copy()
    own, given = plot(frame), plt.subplots(layout="constrained")[1]
    assert plot(frame, ax=given) is given and own is not given
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(frame, copy)
    assert own.get_xlabel() and own.get_ylabel()
    assert own.get_yscale() == ("linear" if name == "widths" else "log")


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_written_in_a_figure_overlaps_or_leaves_it(name):
    plot, frame = FIGURES[name]
    figure = plot(frame).figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_visible() and text.get_text().strip()]
    boxes = [
        (text.get_text(), text.get_window_extent(renderer).padded(-1))
        for text in texts
        if drawn(text, figure)
    ]
    assert len(boxes) > 6
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f"{one!r} overlaps {other!r}"
    for words, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, f"{words!r} leaves the figure"


def drawn(text, figure):
    """Tick labels outside the limits of their axis exist, but are not drawn."""
    ticks = [
        (tick, axis)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    ]
    for tick, axis in ticks:
        if text in (tick.label1, tick.label2):
            low, high = sorted(axis.get_view_interval())
            return low <= tick.get_loc() <= high and text is tick.label1
    return True


@pytest.mark.parametrize("name", FIGURES)
def test_frame_that_can_not_be_drawn_is_refused(name):
    plot, frame = FIGURES[name]
    with pytest.raises(ValueError, match="no rows"):
        plot(frame[:0])
    with pytest.raises(ValueError, match="lacks .*it has the columns other"):
        plot(pd.DataFrame({"other": [1]}))


def test_every_line_starts_at_the_dense_model_and_goes_through_the_means_of_its_draws():
    ax = plot_sweep(SWEEP)
    lines = {(line.get_color(), line.get_linestyle()): line for line in ax.lines}
    wiki = lines[STYLE["l2"].color, "-"]
    assert wiki.get_xdata().tolist() == [0.0, 10.0, 20.0, 50.0]
    mean = np.exp(np.log([0.95, 1.0, 1.05]).mean())
    assert wiki.get_ydata().tolist() == pytest.approx([30.0, 90 * mean, 900 * mean, 9000 * mean])
    assert lines[STYLE["l2"].color, "--"].get_ydata()[0] == pytest.approx(41)
    assert len(ax.collections) == 4  # a band a line
    assert not plot_sweep(SWEEP.drop_duplicates(["share", "method", "dataset"])).collections


def test_lines_are_named_at_their_ends_up_to_four_then_in_a_legend_and_never_when_told_not_to():
    assert {text.get_text() for text in plot_sweep(SWEEP).texts} >= {"element¹, wiki", "L2, c4"}
    many = plot_sweep(SHAPES)
    assert not many.texts and len(many.get_legend().get_texts()) == 6
    silent = plot_sweep(SHAPES, names=False)
    assert not silent.texts and silent.get_legend() is None


def test_the_papers_points_are_hollow_and_join_no_line():
    point = {"share": 0.2, "method": "l2", "dataset": "wikitext2", "value": 582.41, "source": "paper"}
    ax = plot_sweep(pd.concat([SWEEP, pd.DataFrame([point])]))
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert [line.get_ydata()[0] for line in hollow] == [582.41] and hollow[0].get_linestyle() == "None"
    assert len(ax.lines) == 1 + len(plot_sweep(SWEEP).lines)


def test_protected_layers_are_shaded_as_wide_as_they_are_and_others_are_not():
    ax = plot_layer_damage(LAYERS)
    shaded = [patch.get_path().get_extents(patch.get_patch_transform()) for patch in ax.patches]
    assert [(box.x0, box.x1) for box in shaded] == [(-0.5, 3.5), (27.5, 29.5)]
    assert not plot_layer_damage(LAYERS.assign(protected=False)).patches


def test_damage_is_drawn_with_its_interval():
    ax = plot_layer_damage(LAYERS[LAYERS.dataset == "wiki"])
    segments = ax.collections[0].get_segments()
    first = LAYERS.iloc[0]
    assert segments[0][:, 1].tolist() == pytest.approx([first.low, first.high])


def test_widths_are_those_of_their_kind_in_percent():
    frame = WIDTHS.assign(kept=WIDTHS.kept.where(WIDTHS.kind == "mlp", 1.0))
    tall = plot_widths(frame, kind="attention").lines[0].get_ydata()
    low = plot_widths(frame, kind="mlp").lines[0].get_ydata()
    assert np.allclose(tall, 100, atol=1) and np.allclose(low, 52, atol=1)
    with pytest.raises(ValueError, match="no rows"):
        plot_widths(WIDTHS[WIDTHS.kind == "mlp"], kind="attention")


def test_designs_and_methods_have_one_look_everywhere():
    assert look_of("block").color == look_of("element1").color and look_of("channel") is STYLE["channel"]
    assert len({style.color for style in DESIGNS.values()}) == len({s.marker for s in DESIGNS.values()}) == 4
    with pytest.raises(ValueError, match="no style for method 'depth'"):
        look_of("depth")


def test_neighbouring_layers_are_shaded_as_one():
    assert curves._runs([2, 0, 1, 9]) == [(0, 2), (9, 9)] and curves._runs([]) == []
