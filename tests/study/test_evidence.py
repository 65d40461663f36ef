"""Records of the same way of pruning are held together, and two ways are compared on what both measured."""

from __future__ import annotations

import math

import pytest
from made_records import RECOVERY, dense, draws, record, short

from pruner_lib.study.compare import (
    difference,
    groups_of,
    interval,
    metric_names,
    paired_draws,
    ratio,
    values_of,
)

WIKI = "perplexity/wiki@128"


def test_draws_of_one_way_are_one_group_and_other_settings_another():
    records = [*draws(), *draws(recovery=RECOVERY), *draws(criterion="random"), dense(), draws()[0]]
    groups = groups_of(records)
    assert sorted(len(group) for group in groups) == [1, 3, 3, 3]
    assert len(groups_of(draws() + draws(ratio=0.5) + draws(evaluation=short(limit=50)))) == 3
    assert [one.experiment.calibration.seed for one in groups_of(reversed(draws()))[0]] == [0, 1, 2]


def test_ratio_of_perplexities_finds_the_true_one_and_pairing_makes_it_sharp():
    found = ratio(tuple(draws(3.0)), tuple(draws(2.7)), WIKI)
    assert found.low < math.exp(0.3) < found.high and found.high / found.low < 1.2
    alone = interval(tuple(draws(3.0)), WIKI)
    assert alone.high / alone.low > 1.2 and alone.draws == 3
    swapped = ratio(tuple(draws(2.7)), tuple(draws(3.0)), WIKI)
    assert swapped.mean == pytest.approx(1 / found.mean)


def test_share_of_the_dense_accuracy_is_that_of_the_means_over_tasks():
    group, whole = tuple(draws(accuracy=0.5)), (dense(accuracy=0.8),)
    found = ratio(group, whole, "accuracy/mean")
    kept, there = group[0].accuracy.values(), whole[0].accuracy.values()
    assert found.mean == pytest.approx(sum(kept) / sum(there))
    assert found.high < 1 and found.draws == 3 and found.n == 120
    lost = difference(group, whole, "accuracy/mean")
    assert lost.mean == pytest.approx((sum(kept) - sum(there)) / 2) and lost.sign == -1


def test_draws_are_paired_by_their_seeds_or_else_by_their_order():
    one, other = tuple(draws(n=3)), tuple(draws(2.0, n=4)[1:])
    pair = paired_draws(one, other)
    assert [[r.experiment.calibration.seed for r in group] for group in pair] == [[1, 2], [1, 2]]
    random = tuple(draws(criterion="random", n=2))
    assert [len(group) for group in paired_draws(one, random)] == [2, 2]
    l2 = (record(criterion="l2"),)
    assert [len(group) for group in paired_draws(one, l2)] == [3, 1]
    first = (record(),)  # the first documents: a draw, which no other draw stands for
    assert [len(group) for group in paired_draws(one, first)] == [1, 1]


def test_what_was_measured_otherwise_is_refused():
    with pytest.raises(ValueError, match="corpus_hash"):
        ratio((record(),), (record(evaluation=short(windows=32)),), WIKI)
    with pytest.raises(ValueError, match="limit"):
        difference((record(),), (record(evaluation=short(limit=30)),), "accuracy/piqa")
    with pytest.raises(ValueError, match="holds no values of perplexity/c4@128"):
        values_of([record()], "perplexity/c4@128")
    with pytest.raises(ValueError, match="no task in common"):
        interval((record(evaluation=short(tasks=())),), "accuracy/mean")


def test_metrics_are_listed_where_all_records_hold_them():
    some, all_of_it = record(evaluation=short(tasks=("piqa",))), record()
    assert metric_names([all_of_it], "accuracy") == ["accuracy/piqa", "accuracy/boolq"]
    assert metric_names([all_of_it, some], "accuracy") == ["accuracy/piqa"]
    assert metric_names([], "accuracy") == []
