"""Paired differences are known better than the numbers that they are made of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from notebook_functions import functions_of

from pruner_lib.study.records import Metric, MetricName, Record, records_frame
from pruner_lib.study.settings import Experiment

OF_00 = functions_of("00_quickstart")
changes, beside_published, with_mean_accuracy = (
    getattr(OF_00, name) for name in ("changes", "beside_published", "with_mean_accuracy")
)
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
    shifted = changes(dense, record({WIKI: perplexity(NLL + math.log(2))}, 0.25)).loc[0]
    assert (shifted.low, shifted.change, shifted.high) == pytest.approx((2, 2, 2))
    assert shifted.after == pytest.approx(2 * shifted.before) and shifted.dataset == "wiki"
    noise = np.random.default_rng(1).normal(0, 0.3, size=64)
    noisy = changes(dense, record({WIKI: perplexity(NLL + noise)}, 0.25)).loc[0]
    width = math.log(noisy.high / noisy.low) / (2 * 1.96)
    assert noisy.low < 1 < noisy.high and width == pytest.approx(0.3 / 8, rel=0.4)


def test_mean_of_the_tasks_counts_each_task_alike():
    before = record({BOOLQ: accuracy([1, 1, 0, 0]), PIQA: accuracy([1] * 8)})
    after = record({BOOLQ: accuracy([1, 0, 0, 0]), PIQA: accuracy([1] * 8)}, 0.25)
    frame = changes(before, after).set_index("dataset")
    assert frame.change["boolq"] == -0.25 and frame.change["mean"] == -0.125 and frame.n["mean"] == 12
    assert frame.low["boolq"] < frame.low["mean"] < -0.125 < frame.high["mean"]
    assert frame.low["piqa"] == frame.high["piqa"] == 0
    mean = with_mean_accuracy(records_frame([before, after])).query("dataset == 'mean'")
    assert mean.value.tolist() == [0.75, 0.625] and mean.n.tolist() == [12, 12]
    assert mean.stderr.iloc[0] == pytest.approx(math.sqrt(0.25 / 3) / 2)
    text = records_frame([record({WIKI: perplexity(NLL)})])
    assert with_mean_accuracy(text) is text


def test_published_numbers_agree_within_two_standard_errors_and_no_further():
    known = [("SmolLM2 card", "SmolLM2-135M-Instruct")]  # arc 37.3 %, hellaswag 40.9 %, piqa 66.3 %
    half = accuracy([1, 0] * 8)
    ours = record({ARC_EASY: half, ARC_CHALLENGE: half, PIQA: accuracy([1] + [0] * 15)})
    frame = beside_published(ours, known).set_index("dataset")
    assert list(frame.index) == ["arc", "piqa"] and frame.agrees.tolist() == [True, False]
    assert frame.stderr["arc"] == pytest.approx(half.stderr / math.sqrt(2)) and frame.n["arc"] == 32
    assert frame.difference["piqa"] == pytest.approx(1 / 16 - 0.663)
    assert beside_published(record({WIKI: perplexity(NLL)}), known).empty


def test_what_can_not_be_compared_is_refused():
    dense = record({WIKI: perplexity(NLL)})
    other = replace(perplexity(NLL), protocol={"window": 64})
    with pytest.raises(ValueError, match="window is 128 in record .* but 64"):
        changes(dense, record({WIKI: other}, 0.25))
