"""The README's table says what was measured and whether the goal was met, both ways."""

from __future__ import annotations

import pandas as pd
import pytest
from made_bench import made_up

from tests.benchmarks.goals import FOLDER, GOALS, goals_table


@pytest.fixture
def measured(tmp_path):
    """Write the rows of a made-up run, with what goals look at; give the root and the frames."""
    frames = made_up()
    frames["scoring"] = frames["scoring"].assign(predicted_to_peak=1.02, peak_to_weights=1.31)
    shares = {"ours": 0.21, "torch-pruning": 1.0}
    frames["discovery"]["share_of_rival"] = frames["discovery"].tool.map(shares)
    frames["latency"]["of_ideal"] = 0.9
    (tmp_path / FOLDER).mkdir(parents=True)
    write(tmp_path, frames)
    return tmp_path, frames


def write(root, frames: dict[str, pd.DataFrame]) -> None:
    for name, frame in frames.items():
        frame.assign(machine="m").to_csv(root / FOLDER / f"{name}.csv", index=False)


def cells(root) -> list[list[str]]:
    rows = goals_table(root).splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_each_goal_has_a_row_with_its_range_and_what_was_measured(measured):
    found = cells(measured[0])
    assert [row[0] for row in found] == [goal.what for goal in GOALS]
    assert found[0][1:4] == ["at most 1.35", "1.31", "yes"]
    assert found[1][1:4] == ["at most 1.35", "1.4", "no"]
    assert found[2][1:4] == ["at most 1.3", "1.1 to 1.2", "yes"]
    assert found[4][1:4] == ["0.85 to 1.15", "1.02", "yes"]
    assert found[5][1:4] == ["at most 0.333", "0.21", "yes"]
    assert found[7][1:4] == ["at least 0.95", "0.96", "yes"]


def test_a_goal_that_one_number_misses_is_not_met(measured):
    root, frames = measured
    late = frames["latency"].copy()
    late.loc[late.index[-1], "of_ideal"] = 0.1  # of decoding: no goal
    slow = frames["scoring"].copy()
    slow.loc[(slow["size"] == "7") & (slow.way == "vector"), "time_to_plain"] = 1.31
    write(root, {"latency": late, "scoring": slow})
    assert [row[3] for row in cells(root)] == ["yes", "no", "no", "yes", "yes", "yes", "yes", "yes"]


def test_without_results_nothing_is_claimed(tmp_path):
    assert goals_table(tmp_path).startswith("Not there yet")
