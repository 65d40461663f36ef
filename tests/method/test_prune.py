"""The theorem of the method: a model with groups cut out is the model with those groups' weights at zero."""

from __future__ import annotations

import ast
import copy
import re
from functools import partial

import pytest
import torch
from families import (
    CHANNEL_FAMILIES,
    FAMILIES,
    IN_BLOCKS,
    MHA,
    NO_HEAD_DIM,
    build,
    discovered,
    first_of,
    logits,
    random_scores,
    tokens,
    touches_stream,
)
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaModel

from pruner_lib import discover, estimate, mask_, prune_, repair_, save_model, select
from pruner_lib.method.groups import Plan
from pruner_lib.method.layout import LayerConfig

PLANS = {
    "every layer": dict(ratio=0.5),
    "inner layer": dict(ratio=0.5, protect_first=1, protect_last=1),
    "global": dict(ratio=0.4, scope="global"),
    "parameters": dict(ratio=0.15, target="parameters", scope="global"),
    "layers": dict(ratio=0.4, granularity="layer"),
}
# uneven widths of every family are in test_architectures; these take other ways through the config
CASES = [("llama-gqa", name) for name in PLANS] + [
    (family, name) for family in FAMILIES if family != "llama-gqa" for name in ("every layer", "layers")
]


def _plan(model, seed=0, *, axes=None, **options) -> Plan:
    axes = discover(model) if axes is None else axes
    return select(axes, random_scores(axes, seed, options.get("dependency", True)), **options)


def _pruned(family: str, **options) -> torch.nn.Module:
    model, axes = discovered(family)
    return prune_(copy.deepcopy(model), _plan(model, axes=axes, **options), axes=axes)


@pytest.mark.parametrize(("family", "name"), first_of(CASES, len(PLANS)))
def test_cut_equals_mask(family, name):
    (model, axes), ids = discovered(family), tokens()
    plan = _plan(model, axes=axes, **PLANS[name])
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, ids) - logits(masked, ids)).abs().max() < 1e-4
    assert (logits(model, ids) - logits(masked, ids)).abs().max() > 1e-2  # the mask does something
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())


SHARED_HEADS = {  # an even number of query heads for each KV head
    "phi3": {"num_attention_heads": 4, "hidden_size": 16},
    "falcon-new": {"num_attention_heads": 4, "hidden_size": 16},
    "olmo2": {"num_attention_heads": 8, "hidden_size": 32},
}


@pytest.mark.parametrize("family", first_of(SHARED_HEADS))
def test_cut_equals_mask_where_heads_share_keys_and_values(family):
    """olmo2 has a norm over all heads, whose epsilon is another after the cut; test_heads cuts unevenly."""
    model = build(family, **SHARED_HEADS[family])
    axes = discover(model)
    plan = _plan(model, axes=axes, **PLANS["every layer"])
    assert axes["layers.1.attention"].width == 4
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4


NORMED_HEADS = {  # leaves that repeat the shape of their weight stand in the attention, or beside it
    "bert": ("BertConfig", NO_HEAD_DIM | {"is_decoder": True}),
    "phi-gqa": ("PhiConfig", NO_HEAD_DIM | {"qk_layernorm": True}),
    "phi-mha": ("PhiConfig", NO_HEAD_DIM | MHA | {"qk_layernorm": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", NORMED_HEADS)
def test_cut_equals_mask_where_a_norm_stands_among_the_heads(family, monkeypatch):
    monkeypatch.setitem(FAMILIES, family, NORMED_HEADS[family])
    model = build(family)
    axes = discover(model)
    plan = _plan(model, axes=axes, ratio=0.5)
    assert sum("attention" in name for name in plan.cut) == 3
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4
    for module in cut.modules():
        assert not isinstance(module, torch.nn.LayerNorm) or module.normalized_shape == module.weight.shape


@pytest.mark.slow
def test_a_model_with_a_module_that_its_class_does_not_build_is_refused():
    model = build("llama-gqa")
    model.score = torch.nn.Linear(24, 1)  # beside what is cut
    prune_(copy.deepcopy(model), _plan(model, ratio=0.5))
    model.model.layers[1].mlp = torch.nn.Sequential(torch.nn.Linear(24, 30), torch.nn.Linear(30, 24))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"LlamaForCausalLM does not build model.layers.1.mlp.0"):
        prune_(model, _plan(model, ratio=0.5))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class _Twice(LlamaModel):
    """Each layer runs a second time, after all of them."""

    def forward(self, *args, **kwargs):
        return self.again(super().forward(*args, **kwargs), self.layers)

    def again(self, out, layers):
        x = out.last_hidden_state
        turns = self.rotary_emb(x, torch.arange(x.shape[1], device=x.device)[None])
        for layer in layers:
            x = layer(x, position_embeddings=turns)
        out.last_hidden_state = x
        return out


class _MoreLayers(_Twice):
    """Two more layers, in a list of their own."""

    def __init__(self, config):
        super().__init__(config)
        self.more = torch.nn.ModuleList([modeling_llama.LlamaDecoderLayer(config, i) for i in (3, 4)])

    def forward(self, *args, **kwargs):
        return self.again(LlamaModel.forward(self, *args, **kwargs), self.more)


@pytest.mark.parametrize("part", first_of(["", "mlp", "self_attn"]))
def test_layers_that_share_modules_are_cut_together(part):
    model = build("llama-gqa")
    path = f"model.layers.{{}}.{part}".rstrip(".")
    model.set_submodule(path.format(1), model.get_submodule(path.format(0)))
    axes = discover(model)
    plan = _plan(model, axes=axes, ratio=0.5)
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4
    assert len(plan.cut) == 6 - (2 if not part else 1)


@pytest.mark.parametrize("kind", first_of([_Twice, _MoreLayers]))
@pytest.mark.parametrize("name", ["every layer", "layers"])
def test_cut_equals_mask_where_layers_run_twice_or_stand_in_two_lists(kind, name, monkeypatch):
    monkeypatch.setattr(modeling_llama, "LlamaModel", kind)
    model = build("llama-gqa")
    axes = discover(model)
    plan = _plan(model, axes=axes, **PLANS[name])
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4
    # what lies in the second list is no hidden channel: it is left whole, and named
    assert [axis.n_groups for axis in axes.values() if axis.kind == "hidden"] == [24]
    beside = [note for note in axes.notes if "part of a list beside the decoder layers" in note]
    assert len(beside) == (4 if kind is _MoreLayers else 0) == len(axes.notes)


XGLM = dict(vocab_size=64, d_model=24, ffn_dim=40, num_layers=3, attention_heads=6)
BREAKING = {"codegen": (*IN_BLOCKS["codegen"], "block", "mix the")}  # heads in four blocks


def _breaking(family: str, monkeypatch) -> torch.nn.Module:
    monkeypatch.setitem(FAMILIES, family, BREAKING[family][:2])
    return build(family)


def test_hidden_channels_stay_where_a_table_of_positions_is_made_from_the_width(monkeypatch):
    monkeypatch.setitem(FAMILIES, "xglm", ("XGLMConfig", XGLM))
    axes = discover(build("xglm"))
    assert "hidden" not in axes and "embed_positions.weights has entries of each" in " ".join(axes.notes)


@pytest.mark.slow
@pytest.mark.parametrize("family", BREAKING)
def test_a_plan_that_breaks_the_model_is_refused_and_nothing_is_changed(family, monkeypatch):
    model = _breaking(family, monkeypatch)
    before, config, wanted = (
        copy.deepcopy(model.state_dict()),
        model.config.to_dict(),
        logits(model, tokens()),
    )
    plan = _plan(model, ratio=0.5, granularity=BREAKING[family][2])
    with pytest.raises(ValueError, match=BREAKING[family][3]) as refusal:
        prune_(model, plan)
    assert list(plan.cut)[0] in str(refusal.value)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], v) for k, v in after.items())
    assert model.config.to_dict() == config and torch.equal(logits(model, tokens()), wanted)


def test_heads_in_blocks_can_be_cut_where_every_block_keeps_as_many(monkeypatch):
    model = _breaking("codegen", monkeypatch)
    plan = Plan({"layers.1.attention": [0, 3, 4, 7]}, {"layers.1.attention": 8})
    cut, masked = (change(copy.deepcopy(model), plan) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4


def test_layers_that_the_model_reads_by_number_are_kept():
    model = build("llama-gqa")
    model.model.register_forward_pre_hook(lambda module, _: setattr(module, "third", module.layers[2].mlp))
    with pytest.raises(ValueError, match="LlamaForCausalLM. would fail.*nothing was cut. Keep other"):
        prune_(model, Plan({"layers": [0, 1]}, {"layers": 3}))
    assert len(model.model.layers) == model.config.num_hidden_layers == 3


def _of_fixed_size(*sizes: int):
    """Hook: a module reads the last dim of what it is given as a table of a size that code fixes."""
    return lambda module, args: (args[0].unflatten(-1, sizes).flatten(-len(sizes)), *args[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "sizes", "how", "at_fault", "advice"),
    [
        ("layers.1.mlp.down_proj", (5, 8), {}, "layers.1.mlp (LlamaMLP)", "ignore=['layers.*.mlp']"),
        (
            "layers.1.self_attn.o_proj", (6, 8), {},
            "layers.1.self_attn (LlamaAttention)", "ignore=['layers.*.attention'])",
        ),
        (
            "layers.1.self_attn.o_proj", (6, 8), {"query_heads": True},
            "layers.1.self_attn (LlamaAttention)", "axes: select(..., ignore=['layers.*.attention*']), or",
        ),
        ("norm", (3, 8), {"granularity": "channel"}, "model (LlamaModel)", "granularity='block'"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_follow_is_named_with_what_to_do_instead(place, sizes, how, at_fault, advice):
    """The advice is good: what it names is cut no more, and the rest is."""
    model, how = build("llama-gqa"), dict(how)
    model.model.get_submodule(place).register_forward_pre_hook(_of_fixed_size(*sizes))
    axes = discover(model, query_heads=(by_query := how.pop("query_heads", False)))
    choose = partial(select, axes, random_scores(axes), ratio=0.5)
    with pytest.raises(ValueError, match="nothing was cut") as refusal:
        prune_(copy.deepcopy(model), choose(**how), axes=axes)
    said = str(refusal.value)
    assert f"{at_fault} would fail" in said and advice in said and "[RuntimeError: unflatten" in said
    assert by_query == ("discover(model, query_heads=False)" in said)
    name, value = re.search(r"select\(\.\.\., (\w+)=([^)]+)\)", said).groups()
    plan = choose(**how | {name: ast.literal_eval(value)})
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert plan.cut and (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "bloom", "phi3"])
def test_ratio_zero_is_the_dense_model(family):
    pruned = _pruned(family, ratio=0)
    assert torch.equal(logits(pruned, tokens()), logits(discovered(family)[0], tokens()))


@pytest.mark.parametrize("name", ["inner layer", "layers"])
def test_axes_that_are_known_need_not_be_discovered_again(name, monkeypatch):
    (model, axes), ids = discovered("llama-gqa"), tokens()
    plan = _plan(model, axes=axes, **PLANS[name])
    first, again = (copy.deepcopy(model) for _ in range(2))
    prune_(first, plan)
    monkeypatch.setattr("pruner_lib.method.prune.discover", lambda *_, **__: pytest.fail("discovered again"))
    mask_(copy.deepcopy(model), plan, axes=axes)
    prune_(again, plan, axes=axes)
    assert torch.equal(logits(first, ids), logits(again, ids))
    if name != "layers":
        with pytest.raises(ValueError, match="parameters, but this one has"):
            prune_(again, plan, axes=axes)


def test_hooks_and_attributes_of_parameters_stay():
    model, seen = build("llama-gqa"), []
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.no_decay = True
    weight.register_hook(lambda grad: seen.append(tuple(grad.shape)))
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.shape)))
    prune_(model, _plan(model, ratio=0.5))
    cut = model.model.layers[1].mlp.up_proj.weight
    assert cut.no_decay and seen == []
    model(tokens(), labels=tokens()).loss.backward()
    assert seen == [(20, 24), (20, 24)] == [tuple(cut.shape)] * 2


def test_parameters_that_lie_in_one_memory_are_masked_apart():
    """Tied by `.data`: two parameters, of groups that are not the same."""
    model = build("llama-gqa")
    first, other = (model.model.layers[i].mlp.up_proj.weight for i in (0, 1))
    other.data = first.data
    plan = Plan(
        {"layers.0.mlp": range(10), "layers.1.mlp": range(30, 40)}, {"layers.0.mlp": 40, "layers.1.mlp": 40}
    )
    cut, masked = prune_(copy.deepcopy(model), plan), mask_(model, plan)
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4
    assert (logits(cut, tokens()) - logits(build("llama-gqa"), tokens())).abs().max() > 0.1


def test_cutting_one_member_alone_breaks_the_model():
    model = build("llama-mha")
    o_proj = model.model.layers[0].self_attn.o_proj
    o_proj.weight = torch.nn.Parameter(o_proj.weight[:, 8:])
    with pytest.raises(RuntimeError):
        logits(model, tokens())


@pytest.mark.parametrize("family", first_of(CHANNEL_FAMILIES))
def test_channel_cut_equals_the_formula(family):
    """Keep hidden channels by hand in every matrix that touches the stream: the same logits."""
    (model, axes), ids = discovered(family), tokens()
    plan = _plan(model, axes=axes, granularity="channel", ratio=0.25)
    kept = plan.keep["hidden"]
    by_hand = {}
    for name, p in model.named_parameters():
        p = p.detach()
        for dim, size in enumerate(p.shape):
            if touches_stream(name, dim, size):
                p = p.index_select(dim, kept)
        by_hand[name] = p
    pruned = prune_(copy.deepcopy(model), plan, axes=axes)
    assert len(kept) == 18
    assert {n: p.tolist() for n, p in pruned.named_parameters()} == {
        n: p.tolist() for n, p in by_hand.items()
    }
    assert torch.isfinite(logits(pruned, ids)).all() and pruned.config.hidden_size == 18
    rebuilt = type(model)(pruned.config).eval()
    rebuilt.load_state_dict(pruned.state_dict())
    assert torch.equal(logits(rebuilt, ids), logits(pruned, ids))


def test_tied_embeddings_stay_tied():
    pruned = _pruned("llama-tied", granularity="channel", ratio=0.25)
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    assert build("llama-gqa").lm_head.weight is not build("llama-gqa").model.embed_tokens.weight


@pytest.mark.parametrize("family", first_of(["qwen2", "bloom", "gpt2"]))
def test_pruning_twice_equals_pruning_once_by_the_composed_plan(family):
    (model, axes), ids = discovered(family), tokens()
    first = _plan(model, 0, axes=axes, ratio=0.3, scope="global")
    once = prune_(copy.deepcopy(model), first, axes=axes)
    second = _plan(once, 1, ratio=0.3, scope="global", protect_first=1)
    composed = Plan({n: first.keep[n][second.keep[n]] for n in first.keep}, first.n_groups)
    direct = prune_(copy.deepcopy(model), composed, axes=axes)
    twice = prune_(once, second)
    assert torch.equal(logits(twice, ids), logits(direct, ids))
    assert twice.pruning_layout == direct.pruning_layout and len(twice.pruned_by) == 2


@pytest.mark.parametrize(
    "order", [(False, True, False), pytest.param((True, False, True), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("family", first_of(["qwen2", "phi3", "falcon-new"]))
def test_query_heads_and_those_they_share_go_one_after_the_other(family, order, tmp_path):
    """In layers that an earlier cut left uneven, the config says how many of them another model had."""
    shared = "num_kv_heads" if family == "falcon-new" else "num_key_value_heads"
    model = build(family, num_attention_heads=12, hidden_size=48, **{shared: 4})
    for turn, query_heads in enumerate(order):
        axes = discover(model, query_heads=query_heads)
        attention = axes.of_kind("attention")
        plan = select(attention, random_scores(axes, turn), ratio=0.4, protect_first=1)
        assert all(name in plan.cut for name in attention if "layers.0" not in name)
        masked = mask_(copy.deepcopy(model), plan, axes=axes)
        assert (
            logits(prune_(model, plan, axes=axes), tokens()) - logits(masked, tokens())
        ).abs().max() < 1e-4
        folder = save_model(model, None, tmp_path / str(turn))
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def test_attention_implementation_may_change_after_the_cut():
    pruned = _pruned("llama-gqa", ratio=0.5, protect_first=1)
    before = logits(pruned, tokens())
    for attention in ("eager", "sdpa"):
        pruned.set_attn_implementation(attention)
        assert pruned.model.layers[1].self_attn.config._attn_implementation == attention
        torch.testing.assert_close(logits(pruned, tokens()), before, atol=1e-5, rtol=0)


def test_layers_see_their_own_widths_in_their_config():
    pruned = _pruned("phi3", ratio=0.5, protect_first=1)
    assert [layer.self_attn.config.num_key_value_heads for layer in pruned.model.layers] == [2, 1, 1]
    assert pruned.config.num_key_value_heads == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [PLANS["every layer"], PLANS["inner layer"], dict(ratio=0.5, granularity="channel"), PLANS["layers"]],
)
def test_another_model_of_the_same_config_object_stays_as_it_is(options):
    student = build("llama-gqa")
    teacher = type(student)(student.config).eval()
    shared, before, dense = teacher.config, teacher.config.to_dict(), logits(teacher, tokens())
    prune_(student, _plan(student, **options))
    assert torch.equal(logits(teacher, tokens()), dense)
    assert teacher.config is shared and shared.to_dict() == before and not hasattr(shared, "pruning_layout")
    # its layers' own configs, too, are of one copy
    again = prune_(student, _plan(student, 1, axes=discover(student).of_kind("mlp"), ratio=0.25))
    assert {
        id(c._shared) for m in again.modules() if isinstance(c := vars(m).get("config"), LayerConfig)
    } <= {id(again.config)}


def test_linear_layers_know_their_sizes():
    for module in _pruned("llama-gqa", ratio=0.5).modules():
        if isinstance(module, torch.nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)


def test_independent_ranking_keeps_counts_and_breaks_the_match():
    model, ids = build("llama-mha"), tokens()
    together = prune_(copy.deepcopy(model), _plan(model, ratio=0.5))
    plan = _plan(model, ratio=0.5, dependency=False)
    alone = prune_(copy.deepcopy(model), plan)
    assert [p.shape for p in alone.parameters()] == [p.shape for p in together.parameters()]
    assert not torch.allclose(logits(alone, ids), logits(mask_(copy.deepcopy(model), plan), ids), atol=1e-2)


@pytest.mark.slow
def test_plan_of_another_model_changes_nothing():
    model, other = build("llama-gqa"), build("llama-gqa", intermediate_size=32)
    before = copy.deepcopy(model.state_dict())
    for change in (prune_, mask_):
        with pytest.raises(ValueError, match="32 groups at layers.0.mlp, but this model has 40: make a plan"):
            change(model, _plan(other, ratio=0.5))
    unknown = Plan({"layers.9.mlp": torch.arange(3)}, {"layers.9.mlp": 40})
    with pytest.raises(ValueError, match="layers.9.mlp, which this model does not have"):
        prune_(model, unknown)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_axes_of_another_model_are_refused_in_one_sentence():
    """Of a copy, or of another class with the same weights, they are as good as its own."""
    (model, axes), ids = discovered("llama-gqa"), tokens()
    total = "parameters, but this one has"
    doors = {
        "estimate": lambda other, axes: estimate(other, axes, ids, criterion="l1"),
        "prune_": lambda other, axes: prune_(other, _plan(model, axes=axes, ratio=0.5), axes=axes),
        "mask_": lambda other, axes: mask_(other, _plan(model, axes=axes, ratio=0.5), axes=axes),
    }
    for door in doors.values():
        for other in (build("gpt2"), build("llama-gqa", intermediate_size=32)):
            with pytest.raises(ValueError, match=total):
                door(other, axes)
            same_total = copy.copy(axes)
            same_total.n_parameters = sum(one.numel() for one in other.parameters())
            with pytest.raises(ValueError, match="axes are from another model: they divide .* entries of"):
                door(other, same_total)
        door(build("mistral"), axes)
    with pytest.raises(ValueError, match="they divide 40 entries of model.layers.0.mlp.gate_proj.weight"):
        estimate(build("llama-gqa", intermediate_size=32), dict(axes.of_kind("mlp")), ids, criterion="l1")
    more_heads = build("llama-gqa", num_attention_heads=12, num_key_value_heads=4, head_dim=4)
    with pytest.raises(ValueError, match="would mix the groups of layers.0.attention"):
        doors["prune_"](more_heads, axes)  # the same names, shapes and total
    before, plan = copy.deepcopy(more_heads.state_dict()), _plan(model, axes=axes, ratio=0.5)
    for door in (doors["mask_"], lambda other, axes: repair_(other, plan, ids, axes=axes)):
        with pytest.raises(ValueError, match="axes are from another model: .*run discover again"):
            door(more_heads, axes)
    assert all(torch.equal(before[name], value) for name, value in more_heads.state_dict().items())


def test_axes_that_were_changed_by_hand_are_refused_in_one_sentence():
    """A copy without some of them is as good as all, but where weights are shared with what it lacks."""
    model, axes = discovered("mixtral")
    before, whole = copy.deepcopy(model.state_dict()), _plan(model, axes=axes, ratio=0.5)
    moved = copy.copy(axes)
    moved["layers.1.attention"] = axes["layers.2.attention"]
    doors = {
        "estimate": lambda: estimate(model, moved, criterion="l1"),
        "select": lambda: select(moved, random_scores(axes), ratio=0.5),
        "prune_": lambda: prune_(model, whole, axes=moved),
    }
    for door in doors.values():
        with pytest.raises(ValueError, match="the axis at 'layers.1.attention' is layers.2.attention"):
            door()
    some = copy.copy(axes)
    del some["layers.1.mlp.experts.2"], some["layers.2.attention"]
    plan = _plan(model, axes=some, ratio=0.5)
    for given, message in (
        (some, "some axes that share .*layers.1.* are missing"),
        (None, "must all keep the"),
    ):
        with pytest.raises(ValueError, match=message):
            prune_(model, plan, axes=given)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for expert in (0, 1, 3):
        del some[f"layers.1.mlp.experts.{expert}"]
    plan = _plan(model, axes=some, ratio=0.5)
    cut, masked = prune_(copy.deepcopy(model), plan, axes=some), mask_(copy.deepcopy(model), plan)
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4


def test_lopsided_independent_plan_is_refused():
    model = build("llama-mha")
    plan = _plan(model, ratio=0.5, dependency=False)
    key = next(k for k in plan.keep if k.endswith("down_proj"))
    lopsided = Plan(plan.keep | {key: plan.keep[key][1:]}, plan.n_groups)
    with pytest.raises(ValueError, match="must all keep the same number"):
        prune_(model, lopsided)


def test_gradients_flow_through_the_cut_model():
    pruned = _pruned("qwen3", ratio=0.5, protect_first=1)
    pruned(tokens(), labels=tokens()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pruned.parameters())
