"""The figure of the verdicts shows what its frame says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from legible import assert_legible
from matplotlib.colors import to_hex

from pruner_lib.study.claims import CANT_TELL, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED
from pruner_lib.study.figures.plots import ANSWERS, plot_verdicts

INF, NAN = np.inf, np.nan


@pytest.fixture
def verdicts():
    rows = [
        ("It keeps most of it.", 0.95, 0.92, 0.98, 0.90, 0.9, INF, REPRODUCED),
        ("It is better.", 1.2, 1.1, 1.3, 0.8, -INF, 1, NOT_REPRODUCED),
        ("They are alike.", 1.0, 0.7, 1.4, NAN, 0.8, 1.25, CANT_TELL),
        ("It collapses.", NAN, NAN, NAN, 3582.0, 10, INF, NOT_MEASURED),
        ("One answer only.", 0.5, -INF, INF, 0.5, 0, 1, CANT_TELL),
    ]
    columns = ["sentence", "ours", "low", "high", "paper", "holds_from", "holds_to", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def spots(ax, marker):
    return {int(line.get_ydata()[0]): line for line in ax.lines if line.get_marker() == marker}


def test_every_claim_has_a_row_with_its_verdict_in_its_colour(verdicts):
    ax = plot_verdicts(verdicts)
    assert [text.get_text() for text in ax.texts if text.get_text() in set(verdicts.sentence)] == list(
        verdicts.sentence
    )
    for y, verdict in enumerate(verdicts.verdict):
        color, marker = ANSWERS[verdict]
        assert (y in spots(ax, marker)) == (verdict != NOT_MEASURED)
        if marker:
            assert to_hex(spots(ax, marker)[y].get_color()) == color.lower()
    assert set(spots(ax, "D")) == {0, 1, 3, 4}  # the paper printed no number of the third
    assert len({color for color, _ in ANSWERS.values()}) == len(ANSWERS)


def test_mark_lies_in_the_shaded_range_exactly_where_the_claim_holds(verdicts):
    ax = plot_verdicts(verdicts)
    shaded = {}
    for patch in ax.collections:
        corners = patch.get_paths()[0].vertices
        shaded[int(corners[:, 1].mean())] = corners[:, 0].min(), corners[:, 0].max()
    inside = {y: shaded[y][0] <= line.get_xdata()[0] <= shaded[y][1] for y, line in spots(ax, "o").items()}
    inside |= {y: shaded[y][0] <= line.get_xdata()[0] <= shaded[y][1] for y, line in spots(ax, "X").items()}
    assert inside == {0: True, 1: False}
    assert shaded[2][0] > 0 and shaded[2][1] < 1 and shaded[0][1] == 1 and shaded[1][0] == 0


def test_numbers_are_written_and_nothing_is_cut_off(verdicts):
    ax = plot_verdicts(verdicts)
    written = " ".join(text.get_text() for text in ax.texts)
    assert "0.950  [0.920, 0.980]" in written and "3,582" in written and "[−∞, ∞]" in written
    assert_legible(ax.figure)
