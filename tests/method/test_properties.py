"""What holds for any sizes and any plan: discovery, choice and cut on random ones.

The same examples are drawn in every run (`derandomize`); a failure shows the smallest that still fails.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from families import build, logits, random_scores, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from pruner_lib import discover, mask_, prune_, select
from pruner_lib.method.select import n_removed

pytestmark = pytest.mark.slow
FEW = settings(max_examples=5, derandomize=True, deadline=None, database=None)


@st.composite
def models(draw):
    """A llama of random sizes, with what was drawn."""
    heads, queries = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sizes = {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_key_value_heads": heads,
        "num_attention_heads": heads * queries,
        "head_dim": 2 * draw(st.integers(1, 4)),
        "hidden_size": heads * queries * draw(st.integers(2, 4)),
        "intermediate_size": draw(st.integers(2, 30)),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
    }
    return build("llama-gqa", **sizes), sizes


@st.composite
def plans(draw):
    """A model, its axes, scores and a plan."""
    model, sizes = draw(models())
    axes = discover(model, query_heads=draw(st.booleans()))
    options = {
        "ratio": draw(st.floats(0, 0.95)),
        "protect_first": draw(st.integers(0, sizes["num_hidden_layers"] - 1)),
        "multiple_of": draw(st.integers(1, 4)),
        "dependency": draw(st.booleans()),
    }
    options["scope"] = draw(st.sampled_from(["local", "global", "joint"][: 1 + 2 * options["dependency"]]))
    scores = random_scores(axes, draw(st.integers(0, 99)), options["dependency"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ratio .* rounds to none")
        return model, axes, scores, select(axes, scores, **options)


@FEW
@given(models())
def test_groups_of_an_axis_share_each_dim_out(drawn):
    model, sizes = drawn
    axes = discover(model)
    for layer in range(sizes["num_hidden_layers"]):
        assert axes[f"layers.{layer}.attention"].n_groups == sizes["num_key_value_heads"]
        assert axes[f"layers.{layer}.mlp"].n_groups == sizes["intermediate_size"]
    assert axes["hidden"].n_groups == sizes["hidden_size"]
    for axis in axes.values():
        going = 0  # entries of one group in all parameters
        for member in axis.members:
            weight = model.get_parameter(member.parameter)
            every = torch.arange(weight.shape[member.dim])
            assert torch.equal(member.indices.flatten().sort().values, every), member
            going += weight.numel() // axis.n_groups
        assert axis.kind == "hidden" or axis.group_parameters == going
    assert axes.n_parameters == sum(one.numel() for one in model.parameters())


@FEW
@given(plans())
def test_what_stays_scores_higher_than_what_goes(drawn):
    _, axes, scores, plan = drawn
    for key, kept in plan.keep.items():
        name, _, structure = key.partition("/")
        row = scores[name][axes[name].structures.index(structure)] if structure else scores[name]
        gone = torch.ones(len(row), dtype=torch.bool)
        gone[kept] = False
        assert len(kept) >= 1 and (not gone.any() or row[kept].min() >= row[gone].max())


@FEW
@given(models(), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_higher_ratio_leaves_a_part_of_what_a_lower_one_leaves(drawn, one, other):
    axes = discover(drawn[0])
    scores, low, high = random_scores(axes, 0), min(one, other), max(one, other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few, many = (select(axes, scores, ratio=ratio).keep for ratio in (high, low))
    for name, axis in axes.items():
        if axis.kind != "hidden":
            assert set(few[name].tolist()) <= set(many[name].tolist())
            assert axis.n_groups - len(few[name]) == n_removed(axis, high)


@FEW
@given(plans())
def test_any_cut_is_the_mask_and_loses_the_parameters_that_were_counted(drawn):
    model, axes, _, plan = drawn
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    if plan.settings["dependency"]:  # else what is cut is pushed together, and other channels meet
        ids = tokens()
        assert torch.allclose(logits(cut, ids), logits(masked, ids), atol=1e-4)
    counted = 0.0
    for key, kept in plan.cut.items():
        axis = axes[key.partition("/")[0]]
        share = len(axis.structures) if "/" in key else 1
        counted += (axis.n_groups - len(kept)) * axis.group_parameters / share
    before, after = (sum(one.numel() for one in each.parameters()) for each in (model, cut))
    assert before - after == pytest.approx(counted)


@FEW
@given(models(), st.floats(0.05, 0.5))
def test_a_share_of_the_parameters_is_met_or_refused(drawn, ratio):
    model, _ = drawn
    axes = discover(model)
    total = axes.n_parameters
    try:
        plan = select(axes, random_scores(axes, 1), ratio=ratio, target="parameters")
    except ValueError as error:
        assert "no plan removes" in str(error)
        return
    cut = prune_(copy.deepcopy(model), plan, axes=axes)
    assert 1 - sum(one.numel() for one in cut.parameters()) / total == pytest.approx(ratio, abs=0.0051)


@FEW
@given(plans())
def test_a_plan_as_json_is_the_same_plan(drawn):
    plan = drawn[3]
    again = type(plan).from_json(plan.to_json())
    assert again.to_dict() == plan.to_dict()
