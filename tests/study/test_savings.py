"""Counts without weights are the published ones, and number formats can be compared on the same questions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from made_records import TASKS, dense, record, short

from pruner_lib.study import questions
from pruner_lib.study.questions import (
    BASE,
    CUTS,
    beside_table_3,
    count_cuts,
    int8_frame,
    quality,
    without_weights,
)
from pruner_lib.study.statistics import Interval

ONE = Interval(1.0, 1.0, 1.0, 1)


def in_8_bits(one):
    metrics = {
        name: replace(metric, protocol=metric.protocol | {"dtype": "int8"})
        for name, metric in one.metrics.items()
    }
    return replace(one, metrics=metrics, experiment=replace(one.experiment, int8=True))


@pytest.fixture
def cheap(tmp_path, monkeypatch):
    """Four layers in place of 32."""
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    cuts = {BASE: {}, "Block 20%": {"ratio": 0.25, "protect_first": 1}}
    return lambda: count_cuts(cuts, layers=4, profile="tiny").set_index("row")


def test_a_cut_without_weights_is_counted_like_the_shapes_that_are_left(cheap):
    found = cheap()
    whole = without_weights(4)
    assert found.parameters[BASE] * 1e9 == sum(p.numel() for p in whole.parameters())
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    gone = 3 * (4 * 4096 * 8 * 128 + 3 * 4096 * 2752)
    assert (found.parameters[BASE] - found.parameters["Block 20%"]) * 1e9 == pytest.approx(gone)
    linear = 4 * layer / 2**20  # MiB in 8 bits
    assert found.memory[BASE] - found.memory_int8[BASE] == pytest.approx(linear + 32, rel=0.02)


def test_counts_are_made_once(cheap, monkeypatch):
    first = cheap()
    monkeypatch.setattr(questions, "_count", lambda *_: pytest.fail("counted again"))
    assert cheap().equals(first)
    with pytest.raises(pytest.fail.Exception, match="counted again"):
        count_cuts(CUTS, layers=3, profile="tiny")


def test_block_row_of_table_3_agrees_in_every_printed_digit(tmp_path):
    rows = {name: CUTS[name] for name in (BASE, "Block 20%")}
    counted = count_cuts(rows, profile="tiny", results_dir=tmp_path)
    table = beside_table_3(counted)
    known = table[table.row.isin(rows) & (table.metric != "latency")].set_index(["row", "metric"])
    assert len(known) == 6 and (known.difference.abs() <= 0.1).all()
    assert (known.difference.abs().drop(index="memory", level="metric") <= 0.005).all()
    assert table[table.metric == "latency"].ours.isna().all() and len(table) == 20
    int8 = counted.set_index("row").memory_int8
    assert int8[BASE] == pytest.approx(6777.7, abs=0.05)  # Table 13
    assert int8["Block 20%"] == pytest.approx(5444.37, abs=0.05)


def test_quality_is_relative_to_the_whole_model_whatever_the_format():
    whole, small = dense(2.8, 0.7), in_8_bits(dense(2.81, 0.65))
    found = quality([small], [whole], "perplexity")
    assert found.mean == pytest.approx(small.perplexity["wiki"] / whole.perplexity["wiki"])
    assert found.low < found.mean < found.high
    kept = quality([small], [whole], "accuracy")
    assert kept.mean == pytest.approx(sum(small.accuracy.values()) / sum(whole.accuracy.values()))
    assert quality([dense(evaluation=short(tasks=()))], [whole], "accuracy") is None
    with pytest.raises(ValueError, match="corpus_hash"):
        quality([dense(evaluation=short(windows=32))], [whole], "perplexity")


def test_frame_puts_every_number_beside_the_papers():
    keys = [("dense", False), ("dense", True), ("recovered", False), ("recovered", True)]
    plain = {"dense": dense(2.8, 0.7), "recovered": record(3.0, 0.6)}
    measured = {(m, small): [in_8_bits(plain[m]) if small else plain[m]] for m, small in keys}
    size = dict(zip(keys, (100.0, 40.0, 80.0, 34.0), strict=True))
    frame = int8_frame(measured, size, dict.fromkeys(keys, ONE))
    table = frame.set_index(["model", "int8", "number"])
    assert len(frame) == 16 and table.ours["recovered", True, "bytes"] == 0.34
    assert table.ours["dense", True, "accuracy"] == 1.0 and table.ours["recovered", False, "accuracy"] < 1
    assert table.paper["dense", True, "bytes"] == pytest.approx(6777.7 / 12884.5)
    assert table.paper["dense", True, "seconds"] == pytest.approx(76.20 / 69.32)
    assert table.paper["recovered", True, "accuracy"] == pytest.approx(62.30 / 63.25)
    assert math.isnan(table.paper["dense", True, "perplexity"])  # Table 13 has none
    few = int8_frame({key: [dense(evaluation=short(tasks=()))] for key in keys[:1]}, size, {keys[0]: ONE})
    assert set(few.number) == {"bytes", "seconds", "perplexity"} and TASKS
