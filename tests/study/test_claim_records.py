"""Only models that differ in what a claim names, and in nothing else, are set against each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_records import RECOVERY, dense, draws, record, short

from pruner_lib.study.claims import (
    HALF,
    Evidence,
    Which,
    alike,
    candidates,
    metric_of,
    n_items,
    pairs,
    single,
    words,
)
from pruner_lib.study.settings import Calibration

VECTOR = Which(settings=(("criterion", "vector"),))
L2 = Which(settings=(("criterion", "l2"),))
DENSE = Which("dense", (0, 0))


def evidence(*records, **settings):
    return Evidence(tuple(records), "m", **settings)


def test_usual_settings_are_meant_where_nothing_else_is_said():
    found = evidence(*draws(), *draws(aggregation="max"), *draws(scope="global"), *draws(dependency=False))
    assert [one.key for one in candidates(Which(), "perplexity", found)[0]] == [one.key for one in draws()]
    assert len(candidates(Which(settings=(("aggregation", ("max", "sum")),)), "perplexity", found)) == 2


def test_size_stage_model_and_metric_decide_who_may_speak():
    found = evidence(*draws(sparsity=0.3), *draws(recovery=RECOVERY), *draws(evaluation=short(tasks=())))
    assert len(candidates(Which(), "perplexity", found)) == 1
    with pytest.raises(LookupError, match=r"no pruned model \(15% to 25% cut\) with accuracies"):
        candidates(Which(), "accuracy/mean", found)
    with pytest.raises(LookupError, match=r"no pruned model \(45% to 55% cut\) with perplexity"):
        candidates(Which("pruned", HALF), "perplexity", found)
    with pytest.raises(LookupError):
        candidates(Which(), "perplexity", replace(found, model="another"))


def test_dense_model_is_meant_as_it_is():
    found = evidence(dense(), dense(int8=True), *draws(), *draws(int8=True))
    assert [[one.key for one in group] for group in candidates(DENSE, "perplexity", found)] == [[dense().key]]
    assert len(candidates(Which(), "perplexity", found)) == 1
    with pytest.raises(LookupError, match="no dense model"):
        candidates(DENSE, "perplexity", evidence(dense(int8=True), *draws()))


def test_draws_of_another_calibration_do_not_count_where_one_is_given():
    longer = [record(calibration=Calibration(samples=30, seed=seed), ratio=0.2) for seed in range(5)]
    found = evidence(*draws(), *longer, calibration=Calibration())
    assert [len(group) for group in candidates(Which(), "perplexity", found)] == [3]
    assert len(candidates(Which(), "perplexity", replace(found, calibration=None))) == 2
    assert candidates(L2, "perplexity", replace(found, records=(record(criterion="l2"),)))


def test_models_amid_their_recovery_do_not_speak_for_the_recovered_one():
    course = replace(RECOVERY, keep_at=(5, 20), at=5)
    found = evidence(*draws(recovery=course), *draws(recovery=replace(course, at=None)))
    wanted = Which("recovered")
    assert [g[0].experiment.recovery.at for g in candidates(wanted, "perplexity", found)] == [None]
    assert len(candidates(wanted, "perplexity", found, on_the_way=True)) == 2


def test_pair_differs_in_what_is_named_and_in_nothing_else():
    usual, vector = tuple(draws()), tuple(draws(criterion="vector"))
    assert alike(usual, vector, {"criterion"})
    assert not alike(usual, vector, {"scope"})
    assert not alike(usual, tuple(draws(criterion="vector", protect_first=2)), {"criterion"})
    assert not alike(usual, tuple(draws(criterion="vector", evaluation=short(windows=32))), {"criterion"})
    assert not alike(usual, tuple(draws(criterion="vector", sparsity=0.24)), {"criterion"})
    assert alike(usual, (dense(),), set())
    channel = tuple(draws(granularity="channel", ratio=0.2, protect_first=0))
    assert alike(tuple(draws(protect_first=4)), channel, {"granularity"})
    other = tuple(draws(calibration=Calibration("c4"), n=1))
    assert not alike(usual, other, {"criterion"})
    assert alike(other, (record(criterion="l2"),), {"criterion"})  # which looks at no samples


def test_most_draws_speak_then_most_items():
    few = short(windows=16)
    found = evidence(
        *draws(n=1),
        *draws(criterion="vector", n=1),
        *draws(evaluation=few),
        *draws(criterion="vector", evaluation=few),
    )
    a, b = pairs(Which(), VECTOR, "perplexity", found)[0]
    assert len(a) == len(b) == 3 and n_items(a, "perplexity") == 16
    more = replace(found, records=(*found.records, *draws(), *draws(criterion="vector")))
    assert n_items(pairs(Which(), VECTOR, "perplexity", more)[0][0], "perplexity") == 64
    with pytest.raises(LookupError, match=r"criterion l2.*perplexity"):
        pairs(Which(), L2, "perplexity", found)
    apart = evidence(*draws(), *draws(criterion="vector", evaluation=few))
    with pytest.raises(LookupError, match="not measured alike"):
        pairs(Which(), VECTOR, "perplexity", apart)


def test_values_of_a_setting_are_taken_one_by_one_and_told_in_words():
    several = Which(settings=(("aggregation", ("prod", "max")), ("scope", "local")))
    assert [dict(one.settings)["aggregation"] for one in single(several)] == ["prod", "max"]
    assert (
        words(VECTOR) == "pruned model (criterion vector, 15% to 25% cut)" and words(DENSE) == "dense model"
    )


def test_shortest_windows_and_all_tasks_are_the_metrics_of_a_claim():
    one = record()
    assert metric_of(one, "perplexity") == "perplexity/wiki@128"
    assert metric_of(one, "accuracy/mean") == "accuracy/mean"
    assert n_items((one,), "accuracy/mean") == 120
    assert metric_of(record(evaluation=short(tasks=())), "accuracy/mean") is None
