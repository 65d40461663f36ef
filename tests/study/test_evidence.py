"""Records of the same way of pruning are held together, and two ways are compared on what both measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from made_records import RECOVERY, dense, draws, record, short

from pruner_lib.study.claims import CANT_TELL, REPRODUCED, answer_path, verdicts
from pruner_lib.study.compare import (
    describe,
    difference,
    each_task_left_out,
    interval,
    kept,
    metric_names,
    named_parts,
    paired_draws,
    parts,
    ratio,
    values_of,
    without,
)
from pruner_lib.study.records import MEAN, MetricName

WIKI, C4 = MetricName("perplexity", "wiki", 128), MetricName("perplexity", "c4", 128)
PIQA, BOOLQ = MetricName("accuracy", "piqa"), MetricName("accuracy", "boolq")


def test_ratio_of_perplexities_finds_the_true_one_and_pairing_makes_it_sharp():
    found = ratio(tuple(draws(3.0)), tuple(draws(2.7)), WIKI)
    assert found.low < math.exp(0.3) < found.high and found.high / found.low < 1.2
    alone = interval(tuple(draws(3.0)), WIKI)
    assert alone.high / alone.low > 1.2 and alone.draws == 3
    swapped = ratio(tuple(draws(2.7)), tuple(draws(3.0)), WIKI)
    assert swapped.mean == pytest.approx(1 / found.mean)


def test_share_of_the_dense_accuracy_is_that_of_the_means_over_tasks():
    group, whole = tuple(draws(accuracy=0.5)), (dense(accuracy=0.8),)
    found = ratio(group, whole, MEAN)
    kept, there = group[0].accuracy.values(), whole[0].accuracy.values()
    assert found.mean == pytest.approx(sum(kept) / sum(there))
    assert found.high < 1 and found.draws == 3 and found.n == 120
    lost = difference(group, whole, MEAN)
    assert lost.mean == pytest.approx((sum(kept) - sum(there)) / 2) and lost.sign == -1


def test_draws_are_paired_by_their_seeds_or_else_by_their_order():
    one, other = tuple(draws(n=3)), tuple(draws(2.0, n=4)[1:])
    pair = paired_draws(one, other)
    assert [[r.experiment.calibration.seed for r in group] for group in pair] == [[1, 2], [1, 2]]
    random = tuple(draws(criterion="random", n=2))
    assert [len(group) for group in paired_draws(one, random)] == [2, 2]
    l2 = (record(criterion="l2"),)
    assert [len(group) for group in paired_draws(one, l2)] == [3, 1]
    healed = (record(criterion="l2", recovery=RECOVERY),)  # one training, which no other stands for
    assert [len(group) for group in paired_draws(one, healed)] == [1, 1]
    first = (record(),)  # the first documents: a draw, which no other draw stands for
    assert [len(group) for group in paired_draws(one, first)] == [1, 1]


def test_recoveries_of_several_draws_are_compared_with_the_one_model_they_began_from():
    runs = [record(2.9, recovery=replace(RECOVERY, seed=seed)) for seed in range(3)]
    assert [len(group) for group in paired_draws(runs, [record()])] == [3, 1]
    others = [record(2.8, recovery=replace(RECOVERY, seed=seed, rank=4)) for seed in (2, 1, 5)]
    pair = paired_draws(runs, others)
    assert [[one.experiment.recovery.seed for one in group] for group in pair] == [[1, 2], [1, 2]]
    assert ratio(runs, [record()], WIKI).draws == 3


def test_samples_of_one_side_and_instructions_of_the_other_are_no_common_seeds():
    layers = {"criterion": "alternate", "granularity": "layer"}  # which need no samples
    dropped = [record(2.9, recovery=replace(RECOVERY, seed=seed), **layers) for seed in range(3)]
    narrower = draws(2.8, recovery=RECOVERY)
    assert [len(group) for group in paired_draws(narrower, dropped)] == [3, 3]
    assert ratio(narrower, dropped, WIKI).draws == 3


def test_recovered_model_is_paired_with_the_model_that_was_cut_on_the_same_samples():
    cut = draws(n=4)
    numbers = (3, 1)  # whose recoveries have instructions of their own
    healed = [replace(cut[n], experiment=replace(cut[n].experiment, recovery=replace(RECOVERY, seed=n)))
              for n in numbers]  # fmt: skip
    pair = paired_draws(healed, cut)
    assert [[one.experiment.calibration.seed for one in group] for group in pair] == [[3, 1], [3, 1]]
    again = replace(healed[0].experiment, recovery=replace(RECOVERY, seed=9))
    with pytest.raises(ValueError, match="several records have the same draw"):
        paired_draws([*healed, replace(healed[0], experiment=again)], cut)


def test_formats_are_compared_where_that_is_allowed():
    one, other = record(), record(3.1, int8=True)
    for metric in other.metrics.values():
        metric.protocol["dtype"] = "int8"
    with pytest.raises(ValueError, match="dtype is None"):
        ratio([other], [one], WIKI)
    assert ratio([other], [one], WIKI, allow=("dtype",)).mean > 1


def test_note_says_what_was_compared():
    numbers = parts(draws(), [dense()])
    assert describe(numbers, draws(), [dense()]) == "element1, 20.0% cut; wiki 64; 3 draws"
    more, less = draws(sparsity=0.21, criterion="vector")[:1], draws()[:1]
    answers = parts(more, less, "accuracy")
    assert describe(answers, more, less) == "vector and element1, 21.0% and 20.0% cut; mean 120; 1 draw"
    third = draws(criterion="l2")
    pairs = {f"element1 / {name}, wiki": numbers["wiki"] for name in ("vector", "l2")}
    said = describe(pairs, draws(), draws(criterion="vector"), third)
    assert said == "element1, vector and l2, 20.0% cut; wiki 64; 3 draws", "each text once"


def test_parts_of_a_claim_are_every_text_or_the_mean_of_the_tasks():
    both = short(texts=("wiki", "c4"))
    one, other = draws(3.4, evaluation=both), draws(3.0, evaluation=both)
    assert parts(one, other) == {text.dataset: ratio(one, other, text) for text in (WIKI, C4)}
    assert list(parts(one, draws(3.0))) == ["wiki"], "a text that one of the two lacks says nothing"
    assert parts(one, other, "accuracy") == {"mean": kept(one, other, MEAN)}
    assert parts(one, other, "accuracy", measure=difference) == {"mean": difference(one, other, MEAN)}
    assert parts(one, other, "bits_per_byte") == {} == parts([], other)
    both_ways = named_parts({"there": (one, other), "back": (other, one)})
    assert list(both_ways) == ["there, wiki", "there, c4", "back, wiki", "back, c4"]
    assert both_ways["back, c4"] == ratio(other, one, C4)
    healed = draws(3.1, recovery=RECOVERY)
    assert parts([*one, *healed], one, stages=("recovered", "pruned")) == {"wiki": ratio(healed, one, WIKI)}


def test_study_settles_a_claim_or_says_that_it_was_not_measured(study):
    one, other = draws(3.0), draws(3.4, criterion="vector")
    verdict = study.settle("element beats vector", (one, other))
    assert verdict.parts == parts(one, other) and verdict.judged() == REPRODUCED
    assert study.outputs == [answer_path(study.folder, "element beats vector")]
    said = study.settle("sum answers", {"max": (one, other), "prod": ([], other)}, "bits_per_byte")
    assert said == "sum answers: not measured in this profile"
    assert not answer_path(study.folder, "sum answers").exists()


def test_mean_is_computed_again_without_each_task():
    one, other = draws(accuracy=0.5), draws(accuracy=0.7)
    left_out = each_task_left_out({"there": (one, other)}, "accuracy")
    assert left_out == {
        "piqa": {"there, mean": kept(one, other, BOOLQ)},
        "boolq": {"there, mean": kept(one, other, PIQA)},
    }
    assert not each_task_left_out({"": (one, other)}, "perplexity")
    alone = without({"": (one, other)}, "boolq")
    assert not each_task_left_out(alone, "accuracy"), "nothing would be left"
    assert named_parts(alone) == named_parts({"": (one, other)}), "texts stay"


def test_verdict_names_the_task_that_carries_it(study):
    """One task answers clearly better; without it nothing can be told."""
    helped, usual = draws(accuracy=0.5), draws(accuracy=0.5)
    better = [helpful(one) for one in helped]
    how = {"kind": "accuracy", "measure": difference}
    verdict = study.settle("recovery raises accuracy", (better, usual), **how)
    assert verdict.judged() == REPRODUCED and verdict.leans_on() == {"piqa": CANT_TELL}
    [row] = verdicts(study.folder).query("claim == 'recovery raises accuracy'").to_dict("records")
    assert row["without"] == f"piqa: {CANT_TELL}" and row["verdict"] == REPRODUCED
    assert study.settle("recovery raises accuracy", (draws(accuracy=0.9), usual), **how).leans_on() == {}


def helpful(one):
    """Turn most wrong answers to PIQA into right ones; of BoolQ, other ones are right, as many as before."""
    piqa, boolq = one.metrics[PIQA], one.metrics[BOOLQ]
    values = [max(value, float(place % 8 > 0)) for place, value in enumerate(piqa.values)]
    changed = {PIQA: replace(piqa, values=tuple(values)), BOOLQ: replace(boolq, values=boolq.values[::-1])}
    return replace(one, metrics=one.metrics | changed)


def test_what_was_measured_otherwise_is_refused():
    with pytest.raises(ValueError, match="corpus_hash"):
        ratio((record(),), (record(evaluation=short(windows=32)),), WIKI)
    with pytest.raises(ValueError, match="limit"):
        difference((record(),), (record(evaluation=short(limit=30)),), PIQA)
    with pytest.raises(KeyError, match="c4"):
        values_of([record()], C4)
    with pytest.raises(ValueError, match="nothing was measured"):
        interval((record(evaluation=short(tasks=())),), MEAN)


def test_metrics_are_listed_where_all_records_hold_them():
    some, all_of_it = record(evaluation=short(tasks=("piqa",))), record()
    assert metric_names([all_of_it], "accuracy") == [PIQA, BOOLQ]
    assert metric_names([all_of_it, some], "accuracy") == [PIQA]
    assert metric_names([], "accuracy") == []
