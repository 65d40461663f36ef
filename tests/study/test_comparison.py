"""Paired differences are known better than the numbers that they are made of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from notebook_functions import functions_of

from pruner_lib.study import compare
from pruner_lib.study.records import MEAN, Metric, MetricName, Record
from pruner_lib.study.settings import Experiment

beside_published = functions_of("03_compare_methods").beside_published
NLL = np.random.default_rng(0).normal(3.4, 0.6, size=64)
WIKI = MetricName("perplexity", "wiki", 128)
BOOLQ, PIQA, ARC_EASY, ARC_CHALLENGE = (
    MetricName("accuracy", task) for task in ("boolq", "piqa", "arc_easy", "arc_challenge")
)


def record(metrics, ratio=0.0):
    return Record(Experiment("tiny", "element1" if ratio else "none", ratio=ratio), {}, metrics)


def perplexity(nll):
    value = math.exp(nll.mean())
    error = value * nll.std(ddof=1) / math.sqrt(len(nll))
    return Metric(value, error, len(nll), {"window": 128}, tuple(nll))


def accuracy(answers):
    share = float(np.mean(answers))
    error = math.sqrt(share * (1 - share) / (len(answers) - 1))
    return Metric(share, error, len(answers), {"limit": len(answers)}, tuple(answers))


def test_same_shift_in_every_window_is_known_exactly_and_a_random_one_is_not():
    dense = record({WIKI: perplexity(NLL)})
    pruned = record({WIKI: perplexity(NLL + math.log(2))}, 0.25)
    shifted = compare.ratio([pruned], [dense], WIKI)
    assert (shifted.low, shifted.mean, shifted.high) == pytest.approx((2, 2, 2))
    values = [compare.interval([one], WIKI).mean for one in (dense, pruned)]
    assert values[1] == pytest.approx(2 * values[0])
    noise = np.random.default_rng(1).normal(0, 0.3, size=64)
    noisy = compare.ratio([record({WIKI: perplexity(NLL + noise)}, 0.25)], [dense], WIKI)
    width = math.log(noisy.high / noisy.low) / (2 * 1.96)
    assert noisy.low < 1 < noisy.high and width == pytest.approx(0.3 / 8, rel=0.4)


def test_mean_of_the_tasks_counts_each_task_alike():
    before = record({BOOLQ: accuracy([1, 1, 0, 0]), PIQA: accuracy([1] * 8)})
    after = record({BOOLQ: accuracy([1, 0, 0, 0]), PIQA: accuracy([1] * 8)}, 0.25)
    boolq, piqa, mean = (compare.difference([after], [before], one) for one in (BOOLQ, PIQA, MEAN))
    assert boolq.mean == -0.25 and mean.mean == -0.125 and mean.n == 12
    assert boolq.low < mean.low < -0.125 < mean.high
    assert piqa.mean == 0 and -piqa.low == piqa.high == pytest.approx(1.96**2 / (8 + 1.96**2), rel=1e-4)
    found = [compare.interval([one], MEAN) for one in (before, after)]
    assert [one.mean for one in found] == [0.75, 0.625] and [one.n for one in found] == [12, 12]


def test_published_numbers_agree_within_two_standard_errors_and_no_further():
    known = [("SmolLM2 card", "SmolLM2-135M-Instruct")]  # arc 37.3 %, hellaswag 40.9 %, piqa 66.3 %
    half = accuracy([1, 0] * 8)
    ours = [record({ARC_EASY: half, ARC_CHALLENGE: half, PIQA: accuracy([1] + [0] * 15)})]
    frame = beside_published(ours, known).set_index("dataset")
    assert list(frame.index) == ["arc", "piqa"] and frame.agrees.tolist() == [True, False]
    assert frame.stderr["arc"] == pytest.approx(half.stderr / math.sqrt(2)) and frame.n["arc"] == 32
    assert frame.difference["piqa"] == pytest.approx(1 / 16 - 0.663)
    assert beside_published([record({WIKI: perplexity(NLL)})], known).empty


def test_what_can_not_be_compared_is_refused():
    dense = record({WIKI: perplexity(NLL)})
    other = replace(perplexity(NLL), protocol={"window": 64})
    with pytest.raises(ValueError, match="window is 128 in record .* but 64"):
        compare.ratio([record({WIKI: other}, 0.25)], [dense], WIKI)
