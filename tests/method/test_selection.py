"""Choosing is pure: scores in, plan out."""

from __future__ import annotations

import math

import pytest
import torch
from families import build, discovered, random_scores
from transformers import BertConfig, BertLMHeadModel

from pruner_lib import discover, prune_, select
from pruner_lib.method.groups import Plan
from pruner_lib.method.select import n_removed


@pytest.fixture(scope="module")
def axes():
    return discovered("llama-mha")[1]


@pytest.fixture(scope="module")
def scores(axes):
    return random_scores(axes)


def test_lowest_scores_go_and_numbers_are_sorted(axes, scores):
    plan = select(axes, scores, ratio=0.25)
    kept = plan.keep["layers.1.mlp"]
    gone = sorted(set(range(40)) - set(kept.tolist()))
    assert kept.dtype == torch.int64 and kept.tolist() == sorted(kept.tolist()) and len(kept) == 30
    assert scores["layers.1.mlp"][gone].max() <= scores["layers.1.mlp"][kept].min()


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.25, 1 / 3, 0.5, 0.6])
def test_rounding_is_that_of_the_reference_code(axes, ratio):
    heads = axes["layers.0.attention"]
    channels = 6 * 8
    assert n_removed(heads, ratio) == (channels - int(channels * (1 - ratio))) // 8
    assert n_removed(axes["layers.0.mlp"], ratio) == 40 - int(40 * (1 - ratio))


def test_protected_layers_are_listed_whole(axes, scores):
    plan = select(axes, scores, ratio=0.5, protect_first=1, protect_last=1)
    assert [len(plan.keep[f"layers.{i}.attention"]) for i in range(3)] == [6, 3, 6]
    assert set(plan.cut) == {"layers.1.attention", "layers.1.mlp"}


def test_global_scope_ranks_all_layers_of_a_kind_together(axes):
    scores = {
        name: torch.full((a.n_groups,), float(a.layer or 0)) + torch.rand(a.n_groups) / 2
        for name, a in axes.items()
    }
    plan = select(axes, scores, ratio=1 / 3, scope="global")
    assert [len(plan.keep[f"layers.{i}.mlp"]) for i in range(3)] == [1, 39, 40]  # at least one group stays
    local = select(axes, scores, ratio=1 / 3)
    assert [len(local.keep[f"layers.{i}.mlp"]) for i in range(3)] == [26, 26, 26]


def test_ratio_that_rounds_to_no_head_warns_and_removes_none(axes, scores):
    with pytest.warns(UserWarning, match="rounds to none for attention"):
        plan = select(axes, scores, ratio=0.1)
    assert len(plan.keep["layers.0.attention"]) == 6 and len(plan.keep["layers.0.mlp"]) == 36


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_parameter_target_is_met(axes, scores, ratio, scope):
    plan = select(axes, scores, ratio=ratio, target="parameters", scope=scope)
    gone = sum((axes[n].n_groups - len(k)) * axes[n].group_parameters for n, k in plan.keep.items())
    assert abs(gone / axes.n_parameters - ratio) <= 0.005


def test_multiple_of_rounds_mlp_widths_only(axes, scores):
    plan = select(axes, scores, ratio=0.3, multiple_of=8)
    assert len(plan.keep["layers.0.mlp"]) % 8 == 0 and len(plan.keep["layers.0.attention"]) == 5


def test_independent_ranking_has_a_key_for_each_structure(axes):
    plan = select(axes, random_scores(axes, dependency=False), ratio=0.5, dependency=False)
    keys = [k for k in plan.keep if k.startswith("layers.0.mlp/")]
    assert [k.rsplit(".", 1)[-1] for k in keys] == ["gate_proj", "up_proj", "down_proj"]
    assert len({tuple(plan.keep[k].tolist()) for k in keys}) == 3
    assert {len(plan.keep[k]) for k in keys} == {20}


def test_layers_with_the_lowest_sums_go(axes):
    scores = {n: torch.ones(a.n_groups) * (0.0 if a.layer == 1 else 1.0) for n, a in axes.items()}
    assert select(axes, scores, ratio=1 / 3, granularity="layer").keep["layers"].tolist() == [0, 2]
    kept = select(axes, scores, ratio=0.6, granularity="layer", protect_first=1).keep["layers"].tolist()
    assert kept == [0]


@pytest.mark.slow
def test_a_model_that_is_uneven_already_is_said_to_be_so():
    model = build("llama-gqa")
    axes = discover(model)
    prune_(model, select(axes, random_scores(axes), ratio={"layers.1.mlp": 0.5}))
    axes = discover(model)
    with pytest.raises(ValueError, match="and an even model; here layers would keep 14 or 28 groups of mlp"):
        select(axes, random_scores(axes), ratio=0.3, uniform=True)
    wider = {f"layers.{i}.mlp": 0.5 for i in (0, 2)}
    assert select(axes, random_scores(axes), ratio=wider, uniform=True).settings["uniform"]


def test_bad_scores_are_named(axes, scores):
    with pytest.raises(ValueError, match="no scores for axis layers.0.mlp"):
        select(axes, {k: v for k, v in scores.items() if k != "layers.0.mlp"}, ratio=0.2)
    with pytest.raises(ValueError, match="not all finite"):
        select(axes, scores | {"layers.0.mlp": torch.full((40,), math.nan)}, ratio=0.2)


def test_plan_survives_json(axes, scores, tmp_path):
    plan = select(axes, scores, ratio=0.25, protect_first=1)
    plan.to_json(tmp_path / "plan.json")
    for again in (Plan.from_json(plan.to_json()), Plan.from_json(tmp_path / "plan.json")):
        assert again.to_dict() == plan.to_dict()
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json('{"widths": 3}')


def test_a_plan_of_groups_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.5"):
        Plan({"hidden": torch.tensor([-1, 2])}, {"hidden": 6})


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_a_matrix_that_loses_rows_and_columns_of_one_axis_is_counted_once(ratio):
    """BERT's head has a square matrix on the residual stream."""
    sizes = dict(vocab_size=8, hidden_size=96, intermediate_size=8, max_position_embeddings=32)
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, is_decoder=True)
    model = BertLMHeadModel(config).eval()
    before, axes = model.num_parameters(), discover(model)
    plan = select(axes, random_scores(axes), ratio=ratio, granularity="channel", target="parameters")
    assert abs(1 - prune_(model, plan).num_parameters() / before - ratio) < 0.005
