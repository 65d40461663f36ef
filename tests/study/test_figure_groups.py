"""Figure 2 shows the frame that it is given, to scale, and nothing in it overlaps."""

from __future__ import annotations

from functools import cache

import matplotlib as mpl
import pandas as pd
import pytest
from families import build
from legible import assert_legible
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from pruner_lib import discover
from pruner_lib.study.figures import plot_groups, slices_frame
from pruner_lib.study.figures.drawing import STYLE


@cache
def drawn(family, **options):
    model = build(family)
    return slices_frame(model, discover(model), layer=1, groups=options)


def strips(ax, kind):
    """The rectangles in the colour of a kind."""
    return [
        p
        for p in ax.patches
        if p.get_alpha() == 0.9 and to_hex(p.get_facecolor()).upper() == STYLE[kind].color
    ]


def arrows(ax, color):
    found = [t for t in ax.texts if getattr(t, "arrow_patch", None) is not None]
    return [t for t in found if to_hex(t.arrow_patch.get_edgecolor()).upper() == color]


@pytest.mark.parametrize("family", ["llama-tied", "phi3", "gpt_neox", "gemma2", "gpt2"])
def test_every_strip_is_drawn_and_nothing_written_overlaps_or_leaves_the_figure(family):
    frame = drawn(family)
    ax = plot_groups(frame)
    for kind in ("mlp", "attention", "hidden"):
        assert len(strips(ax, kind)) == (frame.chosen & (frame.kind == kind)).sum() > 0
    assert_legible(ax.figure)


def test_strips_are_to_scale():
    ax = plot_groups(drawn("llama-gqa", attention=0))
    q, k, v, o = strips(ax, "attention")  # rows 0..23 of 48, 0..7 of 16 twice, columns 0..23 of 48
    assert q.get_height() == pytest.approx(3 * k.get_height()) and v.get_height() == k.get_height()
    assert q.get_width() == pytest.approx(q.get_height()) and o.get_width() == pytest.approx(q.get_height())
    assert k.get_x() == pytest.approx(q.get_x()) and k.get_y() < q.get_y()
    assert o.get_x() > q.get_x() + q.get_width()


@pytest.mark.parametrize(("family", "readers"), [("llama-gqa", 3), ("olmo2", 5), ("gpt_neox", 3)])
def test_stream_has_an_arrow_for_each_column_that_reads_or_writes_it(family, readers):
    """Writers: embed, o, down; readers: q k v (olmo2: q, k and v apart), gate up, head; norms are neither."""
    ax = plot_groups(drawn(family))
    ends = [(t.xy[1], t.xyann[1]) for t in arrows(ax, STYLE["hidden"].color)]
    assert sum(tip < tail for tip, tail in ends) == 3 and sum(tip > tail for tip, tail in ends) == readers


def test_heads_are_parted_by_lines_also_within_a_group():
    frame = drawn("llama-gqa", attention=0)  # 2 groups of 3 query heads of 8 rows
    ax = plot_groups(frame)
    q, *_ = strips(ax, "attention")
    lines = [line for line in ax.lines if line.get_linewidth() == 0.5 and line.get_xdata()[0] == q.get_x()]
    inside = [
        y for y in {line.get_ydata()[0] for line in lines} if q.get_y() < y < q.get_y() + q.get_height()
    ]
    assert len({round(y, 6) for y in inside if abs(y - q.get_y()) > 1e-6}) >= 2


def test_figure_is_drawn_where_it_is_told_and_changes_nothing():
    frame = drawn("llama-gqa")
    before, copy = dict(mpl.rcParams), frame.copy()
    given = plt.subplots()[1]
    assert plot_groups(frame, ax=given) is given and plot_groups(frame) is not given
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(frame, copy)
