"""Repair in closed form: exact where the lost columns say nothing new, better than the cut where they do."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from types import MethodType

import pytest
import torch
from families import build, first_of, logits, random_scores, tokens
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from pruner_lib import Plan, discover, estimate, mask_, prune_, select
from pruner_lib.method.groups import Member
from pruner_lib.method.repair import _fits, _gram, _last, _matrix, _visit_inputs, obs_scores, repair_

# one matrix of another kind each: plain, fused query, key and value, transposed, interleaved, parallel branch
KINDS = ("llama-gqa", "glm", "gpt2", "bloom", "gpt_neox", "qwen3", "opt")
IDS = tokens(samples=20, length=24)


def block_plan(axes, ratio=0.5):
    return select(axes, random_scores(axes), ratio=ratio)


@pytest.mark.parametrize("family", first_of(KINDS, 2))
def test_repaired_whole_model_is_the_cut_one(family):
    model = build(family)
    plan, before = block_plan(discover(model)), deepcopy(model)
    repairs = repair_(model, plan, IDS)
    last = {_last(model, axis).parameter for axis in discover(model).values() if axis.layer is not None}
    assert set(repairs) == last
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name)) == (name not in last), name
    whole = logits(model, IDS[:2])
    assert torch.allclose(logits(prune_(model, plan), IDS[:2]), whole, atol=1e-4)
    assert not torch.allclose(whole, logits(before, IDS[:2]), atol=1e-2)


def test_no_hook_is_left():
    model = build("llama-gqa")
    repair_(model, block_plan(discover(model)), IDS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_columns_that_repeat_others_are_lost_for_nothing():
    model = build("llama-mha")
    axes, keep = discover(model), {}
    for layer in model.model.layers:  # the second half of the channels repeats the first
        for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
            matrix.weight.data[20:] = matrix.weight.data[:20]
    for name, axis in axes.items():
        keep[name] = torch.arange(20 if axis.kind == "mlp" else axis.n_groups)
    plan = Plan(keep, {name: axis.n_groups for name, axis in axes.items()})
    whole = logits(model, IDS[:2])
    cut = prune_(deepcopy(model), plan)
    repair_(model, plan, IDS, ridges=[1e-9])
    assert torch.allclose(logits(prune_(model, plan), IDS[:2]), whole, atol=1e-3)
    assert not torch.allclose(logits(cut, IDS[:2]), whole, atol=0.1)


@pytest.mark.slow
def test_strong_ridge_leaves_the_weights_as_they_were():
    model = build("llama-gqa")
    plan = block_plan(discover(model))
    cut = logits(prune_(deepcopy(model), plan), IDS[:2])
    weak = deepcopy(model)
    repair_(model, plan, IDS, ridges=[1e9])
    repair_(weak, plan, IDS, ridges=[0.01])
    assert torch.allclose(logits(prune_(model, plan), IDS[:2]), cut, atol=1e-4)
    assert not torch.allclose(logits(prune_(weak, plan), IDS[:2]), cut, atol=1e-2)


def test_ridge_with_the_least_error_on_the_held_out_samples_is_taken():
    ridges, name = [1e-6, 0.1, 1e6], "model.layers.2.mlp.down_proj.weight"
    model = build("llama-gqa")
    plan, few = block_plan(discover(model)), tokens(samples=5, length=12)
    on_few = repair_(deepcopy(model), plan, few, ridges=ridges)
    for one in on_few.values():
        assert list(one.held_out) == ridges and one.held_out[one.ridge] == min(one.held_out.values())
        assert one.held_out[1e6] == pytest.approx(one.cut, rel=1e-3), "a strong ridge repairs nothing"
    assert on_few[name].held_out[1e-6] > on_few[name].cut, "48 tokens for 20 columns: a plain fit over-fits"
    on_many = repair_(model, plan, IDS, ridges=ridges)
    assert on_many[name].ridge < 1e6 and on_many[name].held_out[on_many[name].ridge] < on_many[name].cut
    assert on_many[name].fitted < on_many[name].cut


@pytest.mark.parametrize("family", ["llama-gqa", "opt", "qwen2_moe"])
def test_a_fifth_of_the_samples_is_held_out_however_the_matrix_reads_them(family):
    model = build(family)
    axes = {name: axis for name, axis in discover(model).items() if axis.kind == "mlp" and not axis.in_stack}
    plan, name, read = block_plan(axes), _last(model, next(iter(axes.values()))).parameter, []
    last = model.get_submodule(name.removesuffix(".weight"))  # of the first layer: it reads what it did
    hook = last.register_forward_pre_hook(lambda _, args: read.append(args[0].flatten(0, -2)))
    logits(model, IDS)
    hook.remove()
    x, weight = read[0][-4 * IDS.shape[1] :], _matrix(model, name).clone()
    kept = plan.keep[next(iter(axes))]
    lost = x @ weight.T - x[:, kept] @ weight[:, kept].T
    wanted = lost.square().sum() / (x @ weight.T).square().sum()
    assert repair_(model, plan, IDS)[name].cut == pytest.approx(wanted.item(), rel=1e-4)


class KeywordMLP(LlamaMLP):
    def forward(self, x):
        return self.down_proj(input=self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class TwiceMLP(KeywordMLP):
    def forward(self, x):
        once = super().forward(x)
        return once + super().forward(once)


@pytest.mark.slow
def test_matrix_called_by_keyword_is_repaired_as_any():
    model = build("llama-gqa")
    plan, by_keyword = block_plan(discover(model)), deepcopy(model)
    for layer in by_keyword.model.layers:
        layer.mlp.forward = MethodType(KeywordMLP.forward, layer.mlp)
    assert repair_(by_keyword, plan, IDS) == repair_(model, plan, IDS)
    assert obs_scores(by_keyword, discover(model).of_kind("mlp"), IDS)


def test_matrix_that_runs_twice_is_fitted_to_both_calls():
    model = build("llama-gqa", num_hidden_layers=1)
    mlp, config = model.model.layers[0].mlp, model.config
    model.model.layers[0].mlp = TwiceMLP(config)
    model.model.layers[0].mlp.load_state_dict(mlp.state_dict())
    axes, name, read = discover(model).of_kind("mlp"), "model.layers.0.mlp.down_proj.weight", []
    plan, weight = block_plan(axes), model.get_parameter(name).detach().clone()
    last = model.model.layers[0].mlp.down_proj
    hook = last.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input"]), with_kwargs=True
    )
    logits(model, IDS)
    hook.remove()
    gram = _gram(torch.cat(read).flatten(0, -2))
    wanted = _fits(weight.double(), gram, torch.isin(torch.arange(40), plan.keep["layers.0.mlp"]), [0.1])[0.1]
    repair_(model, plan, IDS, ridges=[0.1])
    assert len(read) == 2 and torch.allclose(last.weight.double(), wanted, atol=1e-5)


def test_fit_is_the_least_squares_of_the_inputs():
    model = build("llama-gqa")
    axes = discover(model)
    plan = select(axes, random_scores(axes), ratio=0.5, ignore=["*.attention", "layers.[12].*"])
    [name], weight = (
        {_last(model, axes["layers.0.mlp"]).parameter},
        model.model.layers[0].mlp.down_proj.weight,
    )
    seen = []
    hook = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model, IDS)
    hook.remove()
    x, before = seen[0].flatten(0, 1).double(), weight.detach().double().clone()  # (tokens, columns)
    kept = plan.keep["layers.0.mlp"]
    pull = 0.1 * x.square().mean()
    rows = torch.cat([x[:, kept], (pull * len(x)).sqrt() * torch.eye(len(kept))])
    wanted = torch.cat([x @ before.T, (pull * len(x)).sqrt() * before[:, kept].T])
    assert list(repair_(model, plan, IDS, ridges=[0.1])) == [name]
    fitted = torch.linalg.lstsq(rows, wanted).solution.T
    assert torch.allclose(weight[:, kept].double(), fitted, atol=1e-4)
    assert not torch.allclose(weight[:, kept].double(), before[:, kept], atol=1e-2)


@pytest.mark.parametrize("family", first_of(KINDS, 2))
def test_layers_are_walked_through_as_the_model_does(family):
    model = build(family)
    names = [_last(model, axis).parameter for axis in discover(model).values() if axis.layer is not None]
    seen = {}
    for name in names:
        model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].flatten(0, -2)})
        )
    logits(model, IDS)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    walked = {}
    _visit_inputs(model, IDS, names, walked.update)
    assert set(walked) == set(names)
    assert all(torch.allclose(*walked[name], seen[name], atol=1e-4) for name in names)


def test_obs_is_what_the_best_repair_leaves():
    model = build("llama-gqa")
    axes = discover(model).of_kind("attention", "mlp")
    scores = obs_scores(model, axes, IDS, ridge=0.1)
    assert scores.keys() == axes.keys()
    for name in ("layers.1.attention", "layers.2.mlp"):
        member = _last(model, axes[name])
        inputs = {}
        _visit_inputs(model, IDS, [member.parameter], inputs.update)
        [x], w = inputs[member.parameter], _matrix(model, member.parameter).double()
        rows = x.double()
        gram = rows.T @ rows / len(rows)
        gram.diagonal().add_(0.1 * gram.diagonal().mean())
        for group in (0, 1):
            kept = torch.ones(len(gram), dtype=torch.bool)
            kept[member.indices[group]] = False
            best = torch.zeros_like(w)  # the least |(W - W') x|^2 + ridge |W - W'|^2 without the group
            best[:, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ w.T).T
            left = ((w - best) @ gram * (w - best)).sum()
            assert float(scores[name][group]) == pytest.approx(float(left), rel=1e-3)


@pytest.mark.slow
def test_obs_and_repair_do_better_than_chance_on_their_own_tokens():
    model = build("gpt2")
    axes = discover(model)
    whole, off = logits(model, IDS), {}
    for name, scores in {"obs": obs_scores(model, axes, IDS), "random": random_scores(axes)}.items():
        plan = select(axes, scores, ratio=0.3)
        for repaired in (False, True):
            other = deepcopy(model)
            if repaired:
                repair_(other, plan, IDS)
            off[name, repaired] = float((logits(prune_(other, plan), IDS) - whole).square().mean())
    assert off["obs", True] < off["obs", False] and off["random", True] < off["random", False]
    assert off["obs", True] < off["random", True]


def test_criterion_obs_is_these_scores():
    model = build("llama-gqa")
    axes = discover(model).of_kind("attention", "mlp")
    named = estimate(model, axes, IDS, criterion="obs")
    assert all(torch.equal(named[name], one) for name, one in obs_scores(model, axes, IDS).items())
    with pytest.raises(ValueError, match="has no aggregation 'max'; leave it out"):
        estimate(model, axes, IDS, criterion="obs", aggregation="max")


@pytest.mark.parametrize(
    ("family", "how", "ids", "said"),
    [
        ("llama-gqa", {"granularity": "channel"}, IDS, "supports heads and MLP channels"),
        ("llama-gqa", {"dependency": False}, IDS, "dependency=True"),
        ("llama-gqa", {"granularity": "layer"}, IDS, "granularity='block'"),
        ("llama-gqa", {}, IDS[:1], "needs at least 2, got 1"),
        ("mixtral", {}, IDS, "can be cut, but not repaired"),
        ("olmo2", {}, IDS, "q_norm mixes the groups of layers.0.attention before .*o_proj"),
    ],
)
def test_what_can_not_be_repaired_is_left_alone(family, how, ids, said):
    model = build(family)
    axes, before = discover(model), deepcopy(model.state_dict())
    plan = select(axes, random_scores(axes, dependency="dependency" not in how), ratio=0.5, **how)
    with pytest.raises(ValueError, match=said):
        repair_(model, plan, ids)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize("change_", [lambda model, plan: repair_(model, plan, IDS), mask_, prune_])
def test_nothing_takes_a_plan_whose_groups_are_already_pruned(change_):
    model = build("llama-gqa")
    axes = discover(model)
    plan = select(axes, random_scores(axes), ratio=0.5)
    prune_(model, plan)
    with pytest.raises(
        ValueError, match="make a plan for this model, and call mask_ and repair_ before prune_"
    ):
        change_(model, plan)


def test_matrix_that_layers_share_is_not_repaired_by_what_the_first_of_them_reads():
    model = build("llama-gqa")
    model.model.layers[2].mlp = model.model.layers[0].mlp
    axes, before = discover(model), deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="layers.0.mlp, belongs to several modules.*ignore it"):
        repair_(model, block_plan(axes), IDS)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert repair_(model, select(axes, random_scores(axes), ratio=0.5, ignore=["layers.0.mlp"]), IDS)


class _TwiceOver(nn.ModuleList):
    """Layers that a model goes through twice, as a recurrent-depth model does."""

    def __getitem__(self, which):
        layers = super().__getitem__(which)
        return [*layers, *layers] if isinstance(which, slice) else layers


@pytest.mark.slow
def test_layers_that_run_more_than_once_are_neither_repaired_nor_scored_by_their_first_run():
    model = build("llama-gqa")
    model.model.layers.__class__ = _TwiceOver
    axes, before = discover(model), deepcopy(model.state_dict())
    assert torch.allclose(
        *(logits(change(deepcopy(model), block_plan(axes)), IDS) for change in (prune_, mask_)), atol=1e-4
    )
    with pytest.raises(ValueError, match="runs its 3 decoder layers more than once.*not repaired"):
        repair_(model, block_plan(axes), IDS)
    with pytest.raises(ValueError, match="runs its 3 decoder layers more than once"):
        estimate(model, axes, IDS, criterion="obs")
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_groups_that_meet_before_the_last_matrix_are_not_scored_by_it():
    model = build("olmo2", num_hidden_layers=1)
    axes = discover(model)
    with pytest.raises(ValueError, match="q_norm mixes the groups.* out of the axes"):
        obs_scores(model, axes, IDS)
    assert obs_scores(model, axes.of_kind("mlp"), IDS).keys() == {"layers.0.mlp"}
    attention, scales = axes["layers.0.attention"], model.model.layers[0].self_attn
    scales.dt_proj, rows = nn.Linear(24, 6), torch.arange(24).view(6, 4)  # as Doge's: a row a head, from all
    dt_proj = Member("model.layers.0.self_attn.dt_proj.weight", 1, rows, "in", "dt_proj")
    others = [m for m in attention.members if not m.structure.endswith("norm")]
    with pytest.raises(ValueError, match="dt_proj mixes the groups"):
        _last(model, replace(attention, members=(dt_proj, *others)))
    assert _last(model, replace(attention, members=tuple(others))).structure.endswith("o_proj")


def test_ridges_must_be_above_zero():
    model = build("llama-gqa")
    plan = block_plan(discover(model))
    for ridges in ([], [0.1, 0.0]):
        with pytest.raises(ValueError, match=r"ridges.* must be .* number in \(0, inf\)"):
            repair_(model, plan, IDS, ridges=ridges)
