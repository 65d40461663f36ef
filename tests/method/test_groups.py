"""Axes and plans print on a screen what goes together and what stays, and plans do not change."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from families import build, discovered, random_scores
from transformers import LlamaConfig, LlamaForCausalLM

from pruner_lib import discover, mask_, prune_, select
from pruner_lib.method.groups import Plan

SCREEN = 40 * 110


@pytest.fixture(scope="module")
def deep():
    with torch.device("meta"):
        config = LlamaConfig(num_hidden_layers=12, num_attention_heads=32, num_key_value_heads=8)
        model = LlamaForCausalLM(config)
    return discover(model)


def test_axes_of_many_layers_print_on_a_screen(deep):
    text = repr(deep)
    assert len(text) < SCREEN and str(deep) == text and text.count("\n") < 12
    for words in (
        "12 decoder layers", f"{deep.n_parameters:,} parameters", "What goes together:", "What stays whole:",
        "layers.*.attention: 12 axes, layers 0 to 11: 8 groups of 128 channels",
        "q_proj 512, k_proj 128, v_proj 128, o_proj 512", "gate_proj 1, up_proj 1, down_proj 1", "hidden",
    ):  # fmt: skip
        assert words in text


def test_axes_that_differ_have_lines_of_their_own():
    model = build("llama-gqa")
    prune_(model, select(axes := discover(model), random_scores(axes), ratio=0.5, protect_last=1))
    assert "2 axes, layers 0 to 1: 20 groups" in repr(discover(model))
    assert "layers.*.mlp: 40 groups" in repr(discover(model))
    experts = repr(discovered("mixtral")[1])
    assert "layers.*.mlp.experts.*: 12 axes, layers 0 to 2" in experts and len(experts) < SCREEN


def test_what_is_left_whole_is_said():
    notes = repr(discovered("gpt_bigcode")[1])
    assert "all query heads share one key-value head" in notes.split("What stays whole:")[1]
    assert "nothing that could be a group" in repr(discovered("gpt2")[1])


def test_an_axis_and_a_member_print_on_a_screen(deep):
    assert all(len(repr(axis)) < SCREEN for axis in deep.values())
    attention = repr(deep["layers.3.attention"])
    assert attention.startswith("layers.3.attention: 8 groups of 128 channels, 5,242,880 parameters each")
    assert "model.layers.3.self_attn.q_proj.weight: 512 of dim 0 per group (out)" in attention
    assert "... and 101 more" in repr(deep["hidden"])
    expert = discovered("mixtral")[1]["layers.0.mlp.experts.2"].members[0]
    assert repr(expert).endswith("2 of dim 1 of slice 2 per group (out)")


def test_a_plan_prints_on_a_screen_what_stays(deep):
    plan = select(deep, random_scores(deep), ratio=0.25, protect_first=4, protect_last=2)
    text = repr(plan)
    assert len(text) < SCREEN and str(plan) == text
    assert "ratio = 0.25" in text and "protect_first = 4" in text
    assert "layers.*.attention: keeps 6 of 8 groups in 6 of 12 axes" in text
    some = repr(select(deep, random_scores(deep), ratio=0.25, ignore=["*.attention"]))
    assert "layers.*.attention: keeps all 8 groups in all 12 axes" in some
    alone = select(deep, random_scores(deep, dependency=False), ratio=0.25, dependency=False)
    assert len(repr(alone)) < SCREEN
    uneven = repr(select(deep, random_scores(deep), ratio=0.25, scope="global"))
    assert "layers.*.mlp: keeps " in uneven and " to " in uneven


def test_html_has_a_row_for_each_axis(deep):
    plan = select(deep, random_scores(deep), ratio=0.25)
    assert deep._repr_html_().count("<tr>") == 26 and "q_proj, k_proj, v_proj, o_proj" in deep._repr_html_()
    assert plan._repr_html_().count("<tr>") == 25 and "<td>25.0%</td>" in plan._repr_html_()


def test_a_plan_takes_nothing_of_its_maker_and_can_not_be_changed():
    keep, groups, settings = {"hidden": [0, 2]}, {"hidden": 4}, {"ratio": 0.5}
    plan = Plan(keep, groups, settings)
    assert keep == {"hidden": [0, 2]}
    keep["hidden"], groups["hidden"], settings["ratio"] = [1], 9, 0.1
    assert plan.keep["hidden"].tolist() == [0, 2] and plan.n_groups["hidden"] == 4
    assert plan.settings["ratio"] == 0.5
    kept = torch.tensor([0, 2])
    other = Plan({"hidden": kept}, {"hidden": 4})
    kept[1] = 3
    assert other.keep["hidden"].tolist() == [0, 2]
    for change in (
        lambda: plan.keep.__setitem__("hidden", [1]),
        lambda: plan.settings.update(ratio=0.1),
        lambda: setattr(plan, "keep", {}),
    ):
        with pytest.raises((TypeError, AttributeError)):
            change()


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_plans_are_copied_with_their_models(copied):
    plan = Plan({"hidden": [0, 2]}, {"hidden": 4}, {"ratio": 0.5}, query_heads=True)
    assert copied(plan).to_dict() == plan.to_dict() and copied(plan).query_heads


@pytest.mark.parametrize("query_heads", [False, True])
@pytest.mark.parametrize("family", ["llama-gqa", "falcon-mqa"])
def test_a_plan_for_query_heads_says_so(family, query_heads, monkeypatch):
    """The axes are discovered once, of the sort that the plan is for."""
    model, calls = build(family), []
    axes = discover(model, query_heads=query_heads)
    plan = select(axes, random_scores(axes), ratio=0.5, ignore=["layers.0.*"])
    assert plan.query_heads is query_heads and Plan.from_json(plan.to_json()).query_heads is query_heads
    monkeypatch.setattr("pruner_lib.method.prune.discover", lambda m, **how: calls.append(how) or axes)
    prune_(copy.deepcopy(model), plan)
    mask_(copy.deepcopy(model), plan)
    assert calls == [{"query_heads": query_heads}] * 2
