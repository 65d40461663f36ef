"""Intervals hold the true value as often as they say, and nothing is called better inside the noise."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from pruner_lib.study import statistics
from pruner_lib.study.statistics import (
    corrected,
    mean_interval,
    paired_difference,
    paired_ratio,
    paired_statistic,
)

STUDIES = 300
NEAR_95 = (0.915, 0.985)  # 300 studies: 0.95 +- 2.8 standard errors


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)


def covered(make, truth, estimate=mean_interval):
    """Count how often the interval holds the truth, over many studies; `make(generator)` gives one's data."""
    found = [estimate(*make(np.random.default_rng(seed))) for seed in range(STUDIES)]
    return np.mean([one.low <= truth <= one.high for one in found])


def crossed(generator, draws=3, items=40, between=1.0):
    """Make values of the same items in every draw: easy and hard items, good and bad draws, noise."""
    return (
        between * generator.normal(size=(draws, 1))
        + generator.normal(size=(1, items))
        + 0.5 * generator.normal(size=(draws, items))
    )


@pytest.mark.parametrize("items", [5, 100])
def test_interval_of_a_mean_holds_the_truth_95_times_in_a_hundred(items):
    low, high = NEAR_95
    assert low <= covered(lambda g: (g.normal(3, 2, items),), 3) <= high
    if items >= 30:
        assert low <= covered(lambda g: (g.random(items) < 0.6,), 0.6) <= high


@pytest.mark.parametrize("between", [0.0, 1.0])
def test_draws_are_part_of_the_uncertainty(between):
    low, high = NEAR_95
    assert low <= covered(lambda g: (crossed(g, between=between),), 0) <= high + 0.015  # a little too wide


def test_draws_taken_for_questions_would_promise_too_much():
    pooled = covered(lambda g: (crossed(g).ravel(),), 0)
    first = covered(lambda g: (crossed(g)[0],), 0)
    assert pooled < 0.5 and first < 0.6
    assert mean_interval(crossed(np.random.default_rng(0))[0]).draws == 1


def test_paired_difference_holds_the_truth_and_is_sharper_than_an_unpaired_one():
    def pair(generator):
        hard = generator.normal(0, 3, 60)
        return hard + generator.normal(0.5, 1, 60), hard + generator.normal(0, 1, 60)

    low, high = NEAR_95
    assert low <= covered(pair, 0.5, paired_difference) <= high
    a, b = pair(np.random.default_rng(0))
    paired, shuffled = paired_difference(a, b), paired_difference(a, np.random.default_rng(1).permutation(b))
    assert paired.high - paired.low < 0.6 * (shuffled.high - shuffled.low)
    assert paired.mean == pytest.approx(shuffled.mean) == pytest.approx((a - b).mean())


def test_nothing_is_called_better_inside_the_noise_and_something_outside_it():
    generator = np.random.default_rng(0)
    a = generator.normal(size=100)
    same = paired_difference(a + generator.normal(0, 0.5, 100), a)
    higher = paired_difference(a + generator.normal(0.5, 0.5, 100), a)
    assert (same.sign, higher.sign, paired_difference(a, a + 1).sign) == (0, 1, -1)
    wrong = [paired_difference(*np.random.default_rng(seed).normal(size=(2, 50))).sign for seed in range(300)]
    assert 0.01 <= np.mean(np.abs(wrong)) <= 0.09  # two equal methods differ in one study of twenty


def test_share_kept_holds_the_truth_over_tasks_of_different_sizes():
    def answers(generator):
        sizes = {"boolq": 30, "piqa": 60, "obqa": 30}
        dense = {name: generator.random(n) < 0.7 for name, n in sizes.items()}
        kept = {name: found & (generator.random(len(found)) < 0.9) for name, found in dense.items()}
        return kept, dense

    low, high = NEAR_95
    assert low <= covered(answers, 0.9, paired_ratio) <= high
    kept, dense = answers(np.random.default_rng(0))
    means = [np.mean([side[name].mean() for name in side]) for side in (kept, dense)]
    assert paired_ratio(kept, dense).mean == pytest.approx(means[0] / means[1])
    assert paired_ratio(kept, dense).n == 120 and paired_ratio(dense, dense).mean == 1


@pytest.mark.parametrize("n", [2, 12, 500])
@pytest.mark.parametrize("shift", [0, 0.25, 0.2503])
@pytest.mark.parametrize("draws", [1, 3])
def test_outcomes_that_are_all_alike_have_the_interval_that_n_of_them_allow(n, shift, draws):
    wilson = stats.norm.ppf(0.975) ** 2 / (n + stats.norm.ppf(0.975) ** 2)
    right, mixed = np.ones((draws, n)) - shift, np.resize([1.0, 0.0], (draws, n)) - shift
    top, bottom = mean_interval(right), mean_interval(right - 1)
    assert (top.low, top.high) == pytest.approx((1 - shift - wilson, 1 - shift))
    assert (bottom.low, bottom.high) == pytest.approx((-shift, wilson - shift))
    for same in (right, right - 1, mixed):
        gap = paired_difference(same, same)
        assert (gap.low, gap.mean, gap.high) == pytest.approx((-wilson, 0, wilson)) and gap.sign == 0
    half = wilson / math.sqrt(2)
    both = mean_interval({"easy": right, "hard": right - 1})
    assert (both.low, both.high) == pytest.approx((0.5 - shift - half, 0.5 - shift + half))
    share = paired_ratio(np.ones(n), np.ones(n))
    assert (share.low, share.high) == pytest.approx((1 - wilson, 1 + wilson))


def test_outcomes_all_alike_hold_the_truth_and_other_numbers_need_no_such_margin():
    assert covered(lambda g: (g.random(12) < 0.97,), 0.97) >= 0.95
    nll = np.random.default_rng(0).normal(3, 1, 20)
    assert paired_difference(nll, nll).high == 0, "the same model on the same windows"
    assert mean_interval([3.5] * 5).high == 3.5
    some = (np.arange(20) < 7).astype(float)
    spread = stats.t.ppf(0.975, 19) * some.std(ddof=1) / math.sqrt(20)
    assert mean_interval(some).high == pytest.approx(some.mean() + spread), "any spread is the sample's own"


@pytest.mark.parametrize("between", [0.02, 0.2])
def test_share_kept_holds_the_truth_over_draws(between):
    def losses(generator):
        dense = 3 + generator.normal(size=40)
        noise = between * generator.normal(size=(3, 1)) + 0.1 * generator.normal(size=(3, 40))
        return 0.8 * dense + noise, dense

    low, high = NEAR_95
    assert (
        low <= covered(losses, 0.8, paired_ratio) <= high + 0.015
    )  # a little too wide, as with every few draws


def test_interval_of_a_share_is_the_one_computed_by_hand():
    # a = (1, 3), b = (4, 8): A = 2, B = 6; the means' variances are 1 and 4, their covariance is 2
    # at level 0.5, t = 1, so that (2 - 6 r)^2 = 1 - 4 r + 4 r^2 or 32 r^2 - 20 r + 3 = 0: r = 1/4 and 3/8
    found = paired_ratio([1, 3], [4, 8], level=0.5)
    assert (found.low, found.mean, found.high) == pytest.approx((1 / 4, 1 / 3, 3 / 8))
    assert paired_ratio([1, 3], [4, 8]).low == -math.inf  # 36 <= 12.7^2 * 4
    # draws of a: (1, 3) and (3, 5), so A = 3 with items (2, 4): the draws' means 2 and 4 add 1 to V_aa alone
    # (3 - 6 r)^2 = (1 + 1) - 4 r + 4 r^2 or 32 r^2 - 32 r + 7 = 0
    drawn = paired_ratio([[1, 3], [3, 5]], [4, 8], level=0.5)
    assert (drawn.low, drawn.high) == pytest.approx((0.5 - math.sqrt(1 / 32), 0.5 + math.sqrt(1 / 32)))


@pytest.mark.parametrize("right", [0, 1, 2])
def test_share_of_next_to_nothing_is_undetermined_and_never_a_huge_number(right):
    dense = np.arange(20) < right  # 0 to 2 of 20 questions: the interval of their mean holds 0
    kept = np.arange(20) % 2
    found = paired_ratio(kept, dense)
    assert (found.low, found.high) == (-math.inf, math.inf) and "[undetermined]" in str(found)
    assert math.isnan(found.mean) == (right == 0)
    sure = paired_ratio(kept, np.arange(20) < 12)
    assert 0 < sure.low < sure.high < 5 and "undetermined" not in str(sure)


def test_share_of_an_unsure_number_holds_the_truth():
    def pair(generator):
        b = generator.normal(0.5, 1, 30)
        return 2 * b + generator.normal(0, 0.5, 30), b

    low, high = NEAR_95
    assert low <= covered(pair, 2.0, paired_ratio) <= high


def test_any_function_of_means_has_an_interval_that_holds_the_truth():
    def losses(generator):
        hard = generator.normal(0, 1, 60)
        return [hard + level + generator.normal(0, 0.1, 60) for level in (3.0, 2.2, 2.0)]

    def won_back(means):
        return (means[0] - means[1]) / (means[0] - means[2])

    low, high = NEAR_95
    assert low <= covered(losses, 0.8, partial(paired_statistic, won_back)) <= high
    a, b, _ = losses(np.random.default_rng(0))
    linear, exact = paired_statistic(lambda means: means[0] - means[1], a, b), paired_difference(a, b)
    assert [linear.low, linear.mean, linear.high] == pytest.approx(
        [exact.low, exact.mean, exact.high], abs=0.2 * (exact.high - exact.low)
    )


def test_tasks_count_alike_whatever_their_number_of_questions():
    assert mean_interval({"many": np.ones(90), "few": np.zeros(10)}).mean == 0.5
    assert mean_interval(np.r_[np.ones(90), np.zeros(10)]).mean == 0.9


def test_dense_model_without_draws_is_compared_with_every_draw():
    values = crossed(np.random.default_rng(0))
    dense = values.mean(axis=0)
    found = paired_difference(values, dense)
    assert found.draws == 3 and found.mean == pytest.approx(0, abs=1e-12)
    assert found == paired_difference(values, np.tile(dense, (3, 1)))


def test_level_of_each_comparison_rises_with_their_number():
    assert corrected(0.95, 5) == pytest.approx(0.99) and corrected(0.95, 0) == 0.95


def test_interval_of_a_mean_is_the_one_computed_by_hand():
    # at level 0.5, t = 1 with one degree of freedom: items (2, 4) give (4 - 2)^2 / 2 / 2 = 1, and so do draws
    found = mean_interval([[1, 3], [3, 5]], level=0.5)
    assert (found.mean, found.high) == pytest.approx((3, 3 + math.sqrt(2)))
    assert found.from_draws == pytest.approx(0.5) and mean_interval([1, 3]).from_draws == 0
    # tasks count alike: (0.5^2) of each one's error
    tasks = mean_interval({"a": [1, 3], "b": [2, 6]}, level=0.5)
    assert (tasks.mean, tasks.high) == pytest.approx((3, 3 + math.sqrt((1 + 4) / 4)))
    shifted = paired_difference([[1, 3], [3, 5]], [1, 3], level=0.5)  # items are all alike, draws are not
    assert shifted.from_draws == pytest.approx(1) and shifted.high == pytest.approx(1 + 1)
    share = paired_ratio([[1, 3], [3, 5]], [4, 8], level=0.5)  # r = 1/2: items 1 - 4 r + 4 r^2 = 0, draws 1
    assert share.from_draws == pytest.approx(1)
    bootstrap = paired_statistic(lambda means: means[0], [[1, 3], [3, 5]])
    assert 0 < bootstrap.from_draws < 1 and paired_statistic(lambda means: means[0], [1, 3]).from_draws == 0


def test_same_seed_gives_the_same_interval_and_a_higher_level_a_wider_one():
    values = np.random.default_rng(0).normal(size=50)
    seeded = [paired_statistic(lambda means: means[0] ** 2, values, seed=seed) for seed in (0, 0, 1)]
    assert seeded[0] == seeded[1] != seeded[2]
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < values.mean() < narrow.high < wide.high


def test_interval_is_carried_through_an_increasing_function():
    found = mean_interval(np.random.default_rng(0).normal(3, 1, 50))
    perplexity = found.map(math.exp)
    assert perplexity.low == math.exp(found.low) and perplexity.high == math.exp(found.high)
    assert found.exp() == perplexity and (found.exp().map(math.log)).mean == pytest.approx(found.mean)
    assert paired_difference([1000.0, 900.0], [1.0, 2.0]).exp().mean == math.inf
    assert str(perplexity).count("[") == 1 and perplexity.n == 50


def test_one_question_says_nothing_about_its_spread():
    alone = mean_interval([0.5])
    assert (alone.low, alone.high) == (-math.inf, math.inf) and str(alone) == "0.50 [undetermined]"
    assert paired_ratio([1.0], [2.0]).high == math.inf and paired_ratio([1.0], [2.0]).mean == 0.5
    assert paired_difference([1.0], [0.0]).sign == 0
    assert paired_difference([1.0, 1.0], [0.0, 0.1]).sign == 1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2], [1, 2, 3], r"\(1, 2\), \(1, 3\)"),
        (np.ones((3, 4)), np.ones((2, 4)), "can't be paired"),
        ({"piqa": [1, 0]}, {"boolq": [1, 0]}, "piqa and boolq"),
        ([1, math.nan], [1, 2], "1 of 2 values are not finite"),
        ([], [], "not empty"),
        ({}, {}, "nothing was measured"),
    ],
)
def test_what_does_not_belong_together_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b)


def test_level_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="level is 95"):
        mean_interval([1, 2, 3], level=95)
    with pytest.raises(ValueError, match="level is 0"):
        paired_ratio([1, 2, 3], [1, 2, 3], level=0)
