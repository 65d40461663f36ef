"""Agreement is 1 with oneself, -1 with one's opposite, and chance is what random choices give."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_records import dense, draws, record, short

from pruner_lib.method.groups import Plan
from pruner_lib.study.compare import kept_frame
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.questions import (
    agreement_table,
    chance_jaccard,
    clearest_difference,
    jaccard,
    layers_of,
    rank_correlation,
    relative_table,
    removed,
)
from pruner_lib.study.records import MetricName
from pruner_lib.study.run import Study

TEXT = short(tasks=())


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


def test_layers_are_counted_from_a_plan():
    assert layers_of(record(plan={"kept": {"layers.0.attention": [1, 2], "layers.11.mlp": [4, 9]}})) == 12


def test_dropped_layers_are_named_in_the_record(tmp_path):
    tiny = load_profile("tiny")
    usual = tiny.experiment(evaluation=tiny.short_evaluation)
    found = Study("tiny", tmp_path).run(replace(usual, granularity="layer", ratio=0.5))
    assert len(found.plan["layers_kept"]) == 1 and found.plan["kept"]["layers"] == [1, 2]
    assert "layers_kept" not in Study("tiny", tmp_path).run(usual).plan
    assert np.isfinite(list(found.perplexity.values())).all()


def test_table_for_reading_has_texts_and_the_mean_of_the_tasks():
    kept = kept_frame({"dense": [dense(2.8)], "a": draws(3.0)})
    table = relative_table(kept, "metric", "dataset", "name")
    assert [row[:2] for row in table.index] == [("perplexity", "wiki"), ("accuracy", "mean")]
    assert table.relative.tolist() == kept[kept.dataset.isin(["wiki", "mean"])].ours.tolist()
    assert "paper" not in table and "value" in table  # nothing was published beside these


def test_clearest_difference_is_the_surest_and_none_is_claimed_inside_the_noise():
    wiki = MetricName("perplexity", "wiki", 128)
    groups = {"a": draws(3.0, evaluation=TEXT), "b": draws(3.5, evaluation=TEXT)}
    said = clearest_difference(groups | {"c": draws(3.02, evaluation=TEXT)}, wiki)
    assert said.startswith("**On wiki, b has 1.6") and said.endswith("times the perplexity of a.**")
    far = clearest_difference(groups | {"b": draws(9.0, evaluation=TEXT)}, wiki)
    numbers = re.findall(r"[\d,]*\d", far.partition("has")[2].partition(" times")[0])
    digits = [number.replace(",", "").rstrip("0") for number in numbers]
    assert len(digits) == 3 and max(map(len, digits)) <= 2, f"more digits than are known: {far}"
    near = {name: draws(nll, evaluation=TEXT) for name, nll in {"a": 3.0, "c": 3.02}.items()}
    assert clearest_difference(near, wiki) == "On wiki, no two of the 2 differ clearly."
    assert clearest_difference({"a": groups["a"]}, wiki) == "On wiki, no two of the 1 differ clearly."
