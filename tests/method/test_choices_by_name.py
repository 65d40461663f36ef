"""Axes are left whole, or lose a share of their own, by name; the layers are counted in the whole model."""

from __future__ import annotations

import copy

import pytest
import torch
from families import discovered, logits, random_scores, tokens

from pruner_lib import mask_, prune_, select


@pytest.fixture(scope="module")
def axes():
    return discovered("llama-mha")[1]


@pytest.fixture(scope="module")
def scores(axes):
    return random_scores(axes)


def _kept(plan) -> dict[str, int]:
    return {name: len(kept) for name, kept in plan.keep.items()}


def test_ignored_axes_stay_whole_and_the_others_are_pruned_as_before(axes, scores):
    plan = select(axes, scores, ratio=0.5, ignore=["layers.1.mlp", "layers.2.*"])
    assert _kept(plan) == {
        "layers.0.attention": 3, "layers.0.mlp": 20, "layers.1.attention": 3, "layers.1.mlp": 40,
        "layers.2.attention": 6, "layers.2.mlp": 40,
    }  # fmt: skip
    usual = select(axes, scores, ratio=0.5)
    assert all(torch.equal(plan.keep[name], usual.keep[name]) for name in plan.cut)


def test_ignored_axes_take_no_part_in_a_global_ranking(axes, scores):
    low = scores | {"layers.0.mlp": scores["layers.0.mlp"] - 9}
    plan = select(axes, low, ratio=0.5, scope="global", ignore=["layers.0.mlp"])
    kept = _kept(plan)
    assert kept["layers.0.mlp"] == 40 and kept["layers.1.mlp"] + kept["layers.2.mlp"] == 40
    assert _kept(select(axes, low, ratio=0.5, scope="global"))["layers.0.mlp"] == 1


def test_ignored_axes_need_no_scores(axes, scores):
    block = {name: s for name, s in scores.items() if axes[name].kind == "mlp"}
    plan = select(axes, block, ratio=0.5, ignore=["*.attention"])
    assert {name.rpartition(".")[2] for name in plan.cut} == {"mlp"}
    with pytest.raises(ValueError, match="no scores for axis layers.0.attention"):
        select(axes, block, ratio=0.5)


def test_parameter_target_is_met_by_what_is_not_ignored(axes, scores):
    plan = select(axes, scores, ratio=0.15, target="parameters", ignore=["*.attention"])
    gone = sum((40 - len(kept)) * axes[name].group_parameters for name, kept in plan.cut.items())
    assert abs(gone / axes.n_parameters - 0.15) <= 0.005 and len(plan.keep["layers.0.attention"]) == 6


def test_each_axis_loses_the_share_that_its_name_is_given(axes, scores):
    ratio = {"layers.*.mlp": 0.25, "layers.1.mlp": 0.5, "layers.1.attention": 1 / 3, "layers.2.*": 0.0}
    assert _kept(select(axes, scores, ratio=ratio)) == {
        "layers.0.attention": 6, "layers.0.mlp": 30, "layers.1.attention": 4, "layers.1.mlp": 20,
        "layers.2.attention": 6, "layers.2.mlp": 30,
    }  # fmt: skip
    everywhere = select(axes, scores, ratio={"*": 0.5})
    assert _kept(everywhere) == _kept(select(axes, scores, ratio=0.5))


def test_a_share_that_rounds_to_no_group_warns(axes, scores):
    with pytest.warns(UserWarning, match="ratio 0.1 of 6 groups rounds to none for attention"):
        select(axes, scores, ratio={"layers.0.attention": 0.1, "layers.1.mlp": 0.5})


def test_a_model_cut_by_names_is_the_masked_model(axes, scores):
    model, ids = discovered("llama-mha")[0], tokens()
    plan = select(axes, scores, ratio={"layers.1.*": 0.5, "layers.2.mlp": 0.3}, ignore=["layers.1.attention"])
    assert set(plan.cut) == {"layers.1.mlp", "layers.2.mlp"}
    cut, masked = prune_(copy.deepcopy(model), plan), mask_(copy.deepcopy(model), plan)
    assert (logits(cut, ids) - logits(masked, ids)).abs().max() < 1e-4
    assert (logits(model, ids) - logits(masked, ids)).abs().max() > 1e-2


WRONG = {
    "'layers.9.mlp' matches none of the 7 axes": dict(ratio=0.2, ignore=["layers.9.mlp"]),
    "'layers.0.ffn' matches none": dict(ratio={"layers.0.ffn": 0.5}),
    "'hidden' matches none of the 6 axes": dict(ratio={"hidden": 0.5}),
    "must be a list of names": dict(ratio=0.2, ignore="layers.0.mlp"),
    "got 1.5": dict(ratio={"layers.0.mlp": 1.5}),
    "'mlp' matches none .*: use '\\*.mlp'$": dict(ratio={"mlp": 0.5}),
    "'attention' matches none .*: use '\\*.attention'$": dict(ratio=0.5, ignore=["attention"]),
    "ratios by axis need scope='local'": dict(ratio={"layers.0.mlp": 0.5}, scope="global"),
    "and target='groups'": dict(ratio={"layers.0.mlp": 0.5}, target="parameters"),
    "needs one number as ratio": dict(ratio={"layers.0.mlp": 0.5}, granularity="layer"),
    "an empty ignore": dict(ratio=0.5, ignore=["layers.0.mlp"], granularity="layer"),
    "no protected or ignored layers": dict(ratio=0.5, ignore=["layers.0.mlp"], uniform=True),
}


@pytest.mark.parametrize("message", WRONG)
def test_names_and_options_that_do_not_fit_are_refused(axes, scores, message):
    with pytest.raises(ValueError, match=message):
        select(axes, scores, **WRONG[message])


WITHOUT_EFFECT = [
    ("'layers.0.mlp'", "they are ignored or in protected layers", dict(protect_first=1)),
    ("'layers.2.*'", "they are ignored or in protected layers", dict(protect_last=1)),
    ("'layers.0.mlp'", "they are ignored or in protected layers", dict(ignore=["layers.0.*"])),
    ("'layers.2.*'", "['*.mlp', 'layers.2.attention'] come first", {}),
    ("'layers.1.ml?'", "['*.mlp'] come first", dict(ignore=["layers.0.*"])),
]


@pytest.mark.parametrize(("pattern", "reason", "options"), WITHOUT_EFFECT)
def test_a_ratio_that_applies_to_no_axis_is_refused(axes, scores, pattern, reason, options):
    names = {"*.mlp": 0.25, "layers.2.attention": 0.5} if "first" in reason else {"layers.1.*": 0.25}
    with pytest.raises(ValueError) as caught:
        select(axes, scores, ratio=names | {pattern.strip("'"): 0.5}, **options)
    assert str(caught.value) == f"ratio 0.5 of {pattern} applies to none of its axes: {reason}"
    assert select(axes, scores, ratio=names, **options).cut


def test_one_ratio_needs_an_axis_that_is_not_ignored_unless_it_is_zero(axes, scores):
    with pytest.raises(ValueError, match="ratio 0.5 of '\\*' applies to none of its axes"):
        select(axes, scores, ratio=0.5, ignore=["*"])
    assert not select(axes, scores, ratio=0.0, ignore=["*"]).cut


def test_the_hint_names_the_experts_of_a_mixture(axes, scores):
    with pytest.raises(ValueError, match=r": use '\*\.mlp\.\*'$"):
        select(discovered("mixtral")[1], {}, ratio={"mlp": 0.5})


def test_uniform_widths_may_leave_all_attention_whole(axes, scores):
    plan = select(axes, scores, ratio=0.5, ignore=["*.attention"], uniform=True)
    assert set(_kept(plan).values()) == {6, 20}


def test_layers_are_counted_in_the_whole_model_even_if_the_last_has_no_axis(axes, scores):
    """Without the last layer's axes, protecting one layer at the end protects that layer and no other."""
    some = axes.of_kind("attention", "mlp")
    for kind in ("attention", "mlp"):
        del some[f"layers.2.{kind}"]
    plan = select(some, scores, ratio=0.5, protect_last=1)
    assert {name.split(".")[1] for name in plan.cut} == {"0", "1"}
    assert {n.split(".")[1] for n in select(some, scores, ratio=0.5, protect_last=2).cut} == {"0"}


def test_axes_of_a_kind_still_know_the_whole_model(axes, scores):
    inner = axes.of_kind("mlp")
    assert (inner.n_layers, inner.n_parameters) == (3, axes.n_parameters) and inner.notes == axes.notes
    plan = select(inner, scores, ratio=0.15, target="parameters", protect_last=1)
    gone = sum((40 - len(kept)) * axes[name].group_parameters for name, kept in plan.keep.items())
    assert abs(gone / axes.n_parameters - 0.15) <= 0.005
    again = copy.deepcopy(inner)
    assert list(again) == list(inner) and again.n_layers == 3


@pytest.mark.parametrize(
    "options",
    [dict(protect_last=1), dict(protect_first=1), dict(target="parameters"), dict(granularity="layer")],
)
def test_a_plain_dict_of_axes_is_refused_where_the_whole_model_counts(axes, scores, options):
    with pytest.raises(ValueError, match="pass what discover returned"):
        select(dict(axes), scores, ratio=0.2, **options)
    assert _kept(select(dict(axes), scores, ratio=0.5)) == _kept(select(axes, scores, ratio=0.5))
