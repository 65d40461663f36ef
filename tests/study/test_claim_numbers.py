"""Numbers of claims come out as they were put into the records, with intervals that hold them."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from made_records import RECOVERY, dense, draws, record

from pruner_lib.study.claims import CLAIMS, Evidence, number_of

CLAIM = {claim.id: claim for claim in CLAIMS}


def ours(claim, *records, **settings):
    return number_of(CLAIM[claim], Evidence(tuple(records), "m", **settings))


def test_share_kept_takes_element2_where_it_was_recovered_and_else_element1():
    first = draws(accuracy=0.60, recovery=RECOVERY)
    second = draws(accuracy=0.65, criterion="element2", recovery=RECOVERY)
    kept, note, keys = ours("keeps accuracy", dense(accuracy=0.7), *first, *second)
    assert kept.mean == pytest.approx(_mean(second) / _mean([dense(accuracy=0.7)])) and kept.draws == 3
    assert "element2, 20.0% cut; 120 questions, 3 draws" in note and {one.key for one in second} < set(keys)
    assert ours("keeps accuracy", dense(accuracy=0.7), *first)[0].mean < kept.mean
    with pytest.raises(LookupError, match="recovered model"):
        ours("keeps accuracy", dense(), *draws())


def _mean(records):
    return sum(sum(one.accuracy.values()) for one in records) / sum(len(one.accuracy) for one in records)


def test_ratio_of_perplexities_is_found_for_a_collapse():
    found, _, _ = ours("dependency", *draws(3.0), *draws(9.0, dependency=False))
    assert found.low < math.exp(6) < found.high
    with pytest.raises(LookupError, match="dependency False"):
        ours("dependency", *draws())


def test_sum_is_compared_with_the_best_of_all_others():
    records = [*draws(3.0), *draws(3.2, aggregation="max"), *draws(3.1, aggregation="prod")]
    with pytest.raises(LookupError, match="aggregation last"):
        ours("sum generates", *records)
    found, note, _ = ours("sum generates", *records, *draws(2.9, aggregation="last"))
    assert "best other: last" in note and found.low < math.exp(0.1) < found.high
    worse, note, _ = ours("sum generates", *records, *draws(3.5, aggregation="last"))
    assert "best other: prod" in note and worse.high < 1
    answers = [
        *draws(accuracy=0.5),
        *(r for a in ("max", "prod", "last") for r in draws(accuracy=0.7, aggregation=a)),
    ]
    assert ours("sum classifies", *answers)[0].high < 0


def layer(number, nll, draw=0):
    plan = {"kept": {f"layers.{n}.mlp": [2 if n == number else 4, 4] for n in range(8)}}
    return record(nll, draw=draw, protect_first=number, protect_last=7 - number, sparsity=0.03, plan=plan)


def test_outer_layers_are_those_that_the_paper_protects():
    loss = {0: 3.4, 1: 3.2, 2: 3.0, 3: 3.0, 4: 3.0, 5: 3.0, 6: 3.0, 7: 3.3}
    records = [layer(number, nll, draw) for number, nll in loss.items() for draw in (0, 1)]
    found, note, keys = ours("outer layers", *records, protected=(2, 1))
    assert found.low < math.exp(0.3) < found.high and "3 outer and 5 inner layers of 8" in note
    assert len(keys) == 16 and found.draws == 2
    assert ours("outer layers", *records, protected=(0, 0))[0].mean > found.mean
    flat = [layer(number, 3.0) for number in loss]
    assert ours("outer layers", *flat, protected=(2, 1))[0].low < 1.01
    with pytest.raises(LookupError, match="2 outer and 0 inner layers of 8"):
        ours("outer layers", *records[:4], protected=(2, 1))
    with pytest.raises(LookupError, match="single layer"):
        ours("outer layers", record(sparsity=0.1))


def test_share_recovered_is_read_along_one_course():
    course = replace(RECOVERY, steps=70, keep_at=(10, 20, 40))
    losses = {10: 3.3, 20: 3.2, 40: 3.0, None: 3.05}
    records = [
        record(nll, draw=draw, recovery=replace(course, at=at))
        for at, nll in losses.items()
        for draw in range(3)
    ]
    start = draws(3.5)
    found, note, _ = ours("few steps", *records, *start)
    assert note.startswith("step 20 of 70, the best is step 40") and found.low < 0.6 < found.high
    early = [record(3.05, draw=d, recovery=replace(course, at=20)) for d in range(3)]
    fast = [one for one in records if one.experiment.recovery.at != 20] + early
    assert ours("few steps", *fast, *start)[0].low > 0.75
    with pytest.raises(LookupError, match="on its way"):
        ours("few steps", *draws(recovery=RECOVERY), *start)
    others = [record(3.0, draw=7, recovery=replace(course, at=at)) for at in (10, 20, 40, None)]
    assert ours("few steps", *records, *others, *start)[0] == found  # a draw that was not measured before
    lone = [record(3.05, draw=8, recovery=replace(course, at=None)), record(3.5, draw=8)]
    assert ours("few steps", *records, *lone, *start)[0] == found  # a draw without steps on its way
    with pytest.raises(LookupError, match="on its way"):
        ours("few steps", *others, *start)
    with pytest.raises(LookupError, match="pruned model"):
        ours("few steps", *records)


def test_counts_are_compared_in_units_of_the_last_printed_digit(tmp_path):
    table = pd.DataFrame(
        {
            "metric": ["parameters", "macs", "latency"],
            "ours": [5.422977, 339.604, 9.0],
            "paper": [5.42, 339.60, 58.55],
        }
    )
    with pytest.raises(LookupError, match="no table 10_table3.csv"):
        ours("counts", tables=tmp_path)
    table.to_csv(tmp_path / "10_table3.csv", index=False)
    found, note, _ = ours("counts", tables=tmp_path)
    assert found.high == pytest.approx(0.4) and "2 counts" in note
    table.assign(ours=[5.47, 339.6, 9.0]).to_csv(tmp_path / "10_table3.csv", index=False)
    assert ours("counts", tables=tmp_path)[0].low > 0.5
