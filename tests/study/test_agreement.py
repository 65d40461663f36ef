"""Agreement is 1 with oneself, -1 with one's opposite, and chance is what random choices give."""

from __future__ import annotations

import pytest
import torch

from pruner_lib.method.groups import Plan
from pruner_lib.study.questions import agreement_table, chance_jaccard, jaccard, rank_correlation, removed


def plan(*keep, n=4, name="layers.0.mlp"):
    return Plan({name: torch.tensor(keep)}, {name: n})


def test_same_order_is_one_whatever_the_unit_and_the_opposite_is_minus_one():
    scores = {"layers.0.mlp": torch.tensor([1.0, 5.0, 3.0])}
    stretched = {"layers.0.mlp": torch.tensor([10.0, 5000.0, 40.0])}
    assert rank_correlation(scores, stretched) == pytest.approx(1)
    assert rank_correlation(scores, {"layers.0.mlp": -stretched["layers.0.mlp"]}) == pytest.approx(-1)


def test_order_counts_inside_an_axis_only_and_larger_axes_count_more():
    one = {"a": torch.tensor([1.0, 2, 3]), "b": torch.tensor([1.0, 2])}
    other = {"a": torch.tensor([101.0, 102, 103]), "b": torch.tensor([2.0, 1])}
    assert rank_correlation(one, other) == pytest.approx((3 * 1 + 2 * -1) / 5)
    assert rank_correlation(one, other, ["a"]) == pytest.approx(1)


def test_scores_without_an_order_agree_with_nothing():
    assert rank_correlation({"a": torch.ones(3)}, {"a": torch.arange(3.0)}) == 0
    with pytest.raises(ValueError, match="no axis has two groups"):
        rank_correlation({"a": torch.ones(1)}, {"a": torch.ones(1)})


def test_overlap_counts_the_groups_that_go():
    # cut {2, 3} and {1, 3}: one of three
    assert removed(plan(0, 1)) == {("layers.0.mlp", 2), ("layers.0.mlp", 3)}
    assert jaccard(plan(0, 1), plan(0, 2)) == pytest.approx(1 / 3)
    assert jaccard(plan(0, 1), plan(0, 1)) == 1 and jaccard(plan(0, 1), plan(2, 3)) == 0
    assert jaccard(plan(0, 1, 2, 3), plan(0, 1, 2, 3)) == 1  # neither cuts any


def test_chance_is_what_random_plans_share():
    generator = torch.Generator().manual_seed(0)
    plans = [plan(*torch.randperm(400, generator=generator)[:300].sort().values, n=400) for _ in range(40)]
    shared = sum(jaccard(a, b) for a, b in zip(plans[::2], plans[1::2], strict=True)) / 20
    assert chance_jaccard(plans[0]) == pytest.approx(shared, abs=0.02)
    assert chance_jaccard(plan(0, 1)) > chance_jaccard(plan(0, 1, 2))  # who cuts more meets more often


def test_table_has_each_pair_once():
    table = agreement_table({"a": 1, "b": 2, "c": 4}, lambda x, y: x / y)
    assert list(zip(table.method_a, table.method_b, strict=True)) == [
        ("a", "a"), ("a", "b"), ("a", "c"), ("b", "b"), ("b", "c"), ("c", "c")
    ]  # fmt: skip
    assert table.overlap[1] == 0.5
