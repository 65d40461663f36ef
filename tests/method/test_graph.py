"""Discovery finds the groups that a person would draw, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from families import (
    CHANNEL_FAMILIES,
    FAMILIES,
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
from torch import nn
from transformers import BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from pruner_lib import Plan, discover, estimate, mask_, perplexity, prune_, select
from pruner_lib.method.trace import trace


def test_llama_groups_are_those_of_figure_2():
    """2 KV heads of width 8, each with 3 query heads:

    q rows   0..23 | 24..47        gate row k
    k rows   0..7  |  8..15        up   row k
    v rows   0..7  |  8..15        down column k
    o cols   0..23 | 24..47
    """
    axes = discovered("llama-gqa")[1]
    found = {m.parameter.split(".")[-2]: m for m in axes["layers.1.attention"].members}
    assert list(found) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert [(m.dim, m.role) for m in found.values()] == [(0, "out"), (0, "out"), (0, "out"), (1, "in")]
    assert found["q_proj"].indices.tolist() == [list(range(24)), list(range(24, 48))]
    assert (
        found["k_proj"].indices.tolist()
        == found["v_proj"].indices.tolist()
        == [list(range(8)), list(range(8, 16))]
    )
    assert found["o_proj"].indices.tolist() == found["q_proj"].indices.tolist()
    mlp = {
        m.parameter.split(".")[-2]: (m.dim, m.indices.flatten().tolist())
        for m in axes["layers.1.mlp"].members
    }
    assert mlp == {
        "gate_proj": (0, list(range(40))),
        "up_proj": (0, list(range(40))),
        "down_proj": (1, list(range(40))),
    }
    assert axes["layers.1.attention"].last.endswith("o_proj") and axes["layers.1.mlp"].last.endswith(
        "down_proj"
    )


def test_kv_head_takes_its_queries_only():
    q = next(m for m in discovered("llama-gqa")[1]["layers.0.attention"].members if "q_proj" in m.parameter)
    assert q.indices[0].max() < q.indices[1].min()


def test_interleaved_query_key_value_rows_follow_their_head():
    """gpt_neox stores q, k, v of head 0, then of head 1; phi3 stores all q, all k, all v; gpt2 too, in
    columns."""
    neox = discovered("gpt_neox")[1]["layers.0.attention"].members[0]
    assert neox.indices[1].tolist() == list(range(12, 24))
    phi3 = discovered("phi3")[1]["layers.0.attention"].members[0]
    assert phi3.indices[1].tolist() == [*range(12, 24), *range(28, 32), *range(36, 40)]
    gpt2 = next(
        m for m in discovered("gpt2")[1]["layers.0.attention"].members if m.parameter.endswith("weight")
    )
    assert gpt2.dim == 1 and gpt2.indices[1].tolist() == [*range(4, 8), *range(28, 32), *range(52, 56)]


def test_fused_gate_and_up_rows_go_together():
    gate_up = discovered("phi3")[1]["layers.0.mlp"].members[0]
    assert gate_up.indices[3].tolist() == [3, 43]


def test_norm_shared_by_all_heads_belongs_to_none():
    axes = discovered("qwen3")[1]
    assert not any(
        "q_norm" in m.parameter or "k_norm" in m.parameter for a in axes.values() for m in a.members
    )


def test_biases_go_with_their_rows():
    names = {m.parameter for m in discovered("qwen2")[1]["layers.0.attention"].members}
    assert "model.layers.0.self_attn.q_proj.bias" in names
    assert "model.layers.0.self_attn.o_proj.bias" not in names


def test_position_bias_per_head_is_seen():
    assert discovered("bloom")[1]["layers.0.attention"].constants == (("transformer.h.0", "alibi", 0),)
    assert discovered("gpt2")[1]["layers.0.attention"].constants == ()


@pytest.mark.parametrize("family", CHANNEL_FAMILIES)
def test_residual_stream_holds_every_matrix_that_touches_it(family):
    model, axes = discovered(family)
    members = {(m.parameter, m.dim) for m in axes["hidden"].members}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    wanted = {
        (n, d) for n, shape in shapes.items() for d, size in enumerate(shape) if touches_stream(n, d, size)
    }
    assert members == wanted


def test_meta_device_is_enough():
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=32)
        )
    assert discover(model)["layers.0.attention"].n_groups == 4


def _one_rotary(model):
    for layer in model.model.layers:
        layer.self_attn.rotary = model.model.rotary_emb


def _head_with_two_names(model):
    model.output = model.lm_head


def _one_norm(model):
    for layer in model.model.layers:
        layer.input_layernorm = model.model.layers[0].input_layernorm


def _one_layer_twice(model):
    model.model.layers[1] = model.model.layers[0]


def _one_weight(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def _one_linear(model):
    for layer in model.model.layers:
        layer.self_attn.q_proj = model.model.layers[0].self_attn.q_proj


def _frequencies_of_length(model):
    """phi3's tables for long texts, which a forward pass moves to the device of its input."""
    model.model.rotary_emb = build("phi3", **LONG).model.rotary_emb


def _partly_in_training(model):
    model.train().model.layers[0].eval()
    model.config._attn_implementation = "sdpa"
    model.model.norm.weight.requires_grad_(False)


def _hooked(model):
    model.model.norm.register_forward_hook(lambda module, inputs, output: output * 1)


def _activation_held(model):
    model.model.kept = model.model.embed_tokens(torch.arange(3))


LONG = dict(
    max_position_embeddings=64,
    hidden_size=48,
    rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4, "original_max_position_embeddings": 32,
    },
)  # fmt: skip
KINDS = [_one_rotary, _head_with_two_names, _one_norm, _one_layer_twice, _one_weight, _one_linear]
KINDS += [_activation_held, _frequencies_of_length, _partly_in_training, _hooked]


def _state(model) -> list:
    """Everything that a module holds: tensors with their values, modes, hooks, its own attributes."""
    state = [model.config.to_dict(), model.config._attn_implementation]
    for module in model.modules():
        for name, value in vars(module).items():
            held = value.items() if isinstance(value, dict) else [(name, value)]
            state += [(module, name, key, id(v), getattr(v, "requires_grad", None)) for key, v in held]
            state += [(v.device, v.tolist()) for _, v in held if isinstance(v, torch.Tensor)]
    return state


@pytest.mark.parametrize("change", first_of(KINDS, 4))
def test_reading_leaves_the_model_as_it_was(change):
    model, ids = build("llama-gqa"), torch.randint(0, 32, (2, 6))
    change(model)
    wanted = model(ids).logits
    before = _state(model)
    estimate(model, discover(model), ids, criterion="element2")
    perplexity(model, ids)
    assert _state(model) == before
    assert torch.equal(model(ids).logits, wanted)


class _Odd(nn.Module):
    """A decoder that compares its channels with each other: no rule can say which entry went where."""

    def __init__(self, sort: bool):
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))])
        self.sort = sort

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        x = self.embed(input_ids)
        x = x + self.layers[0](x)
        return (self.head(torch.cummax(x, -1)[0] if self.sort else x),)


def test_operator_without_a_rule_leaves_whole_what_it_touches_and_is_named():
    axes = discover(_Odd(sort=True))
    assert list(axes) == ["layers.0.mlp"] and axes["layers.0.mlp"].n_groups == 6
    assert any("cummax" in note and "left whole" in note for note in axes.notes)
    assert set(discover(_Odd(sort=False))) == {"layers.0.mlp", "hidden"}


class _Wrapped(nn.Module):
    """A decoder that is the first entry of a list."""

    def __init__(self):
        super().__init__()
        self.whole = nn.Sequential(_Odd(sort=False))

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return self.whole[0](input_ids)


def test_a_decoder_inside_a_list_has_its_residual_stream():
    axes = discover(_Wrapped())
    assert {name: axis.n_groups for name, axis in axes.items()} == {"layers.0.mlp": 6, "hidden": 4}


class _Convolved(nn.Module):
    """A decoder with a layer that can't be cut, a fixed convolution over its channels, and one that can."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.mix = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.layers = nn.ModuleList([nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)]) for _ in range(2)])

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        x = self.embed(input_ids)
        for i, (up, down) in enumerate(self.layers):
            inner = up(x)
            inner = self.mix(inner.transpose(1, 2)).transpose(1, 2) if i == 0 else inner
            x = x + down(inner.relu())
        return (self.head(x),)


def test_convolution_is_left_whole_and_the_rest_is_offered():
    axes = discover(_Convolved())
    assert set(axes) == {"layers.1.mlp", "hidden"}
    assert axes["hidden"].n_groups == 4 and axes["layers.1.mlp"].n_groups == 6
    assert any("layers.0" in note and "convolution" in note for note in axes.notes)


def test_query_heads_of_a_key_and_value_head_are_its_groups():
    axes = discover(build("llama-gqa"), query_heads=True)
    first, second = axes["layers.1.attention.0"], axes["layers.1.attention.1"]
    assert first.siblings == second.siblings == "layers.1.attention"
    assert [(m.parameter.split(".")[-2], m.dim) for m in second.members] == [("q_proj", 0), ("o_proj", 1)]
    for member in second.members:  # 2 KV heads with 3 query heads of 8 channels each
        assert member.indices.tolist() == [list(range(h * 8, h * 8 + 8)) for h in (3, 4, 5)]


def test_query_heads_that_share_values_before_a_norm_over_all_of_them_stay():
    """Without its query a head still reads the mean of the values, which the norm would count."""
    sizes = dict(vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, pad_token_id=0)
    model = BitNetForCausalLM(BitNetConfig(**sizes, num_attention_heads=6, num_key_value_heads=2)).eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.1, 0.9)
    axes, whole = discover(model, query_heads=True), discover(model)
    assert not axes.of_kind("attention") and len(axes.of_kind("mlp")) == 2
    assert all(f"layers.{i}.self_attn.attn_sub_norm takes a mean" in axes.notes[i] for i in (0, 1))
    plan = select(whole, random_scores(whole), ratio=0.5)
    cut, masked = (change(copy.deepcopy(model), plan, axes=whole) for change in (prune_, mask_))
    assert not whole.notes and (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4
    before_the_product = discover(build("olmo2"), query_heads=True)  # norms over queries, which are zero
    assert before_the_product["layers.1.attention.0"].n_groups == 3


def test_query_heads_that_share_values_before_a_sum_over_all_of_them_stay(monkeypatch):
    def attend(*args, **kwargs):
        out, weights = usual(*args, **kwargs)  # (batch, tokens, heads, head size)
        return out + out.sum(2, keepdim=True), weights

    usual = modeling_llama.eager_attention_forward
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", attend)
    model = build("llama-gqa")
    model.config._attn_implementation = "eager"
    axes, whole = discover(model, query_heads=True), discover(model)
    assert not axes.of_kind("attention") and any("the model adds up what they read" in n for n in axes.notes)
    plan = select(whole, random_scores(whole), ratio=0.5)
    cut, masked = (change(copy.deepcopy(model), plan, axes=whole) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4


class _ValuesOfTheFirst(nn.Linear):
    """Values to which those of the first layer are added."""

    def forward(self, x):
        own = super().forward(x)
        self.first[:] = [own] if self.is_first else self.first
        return own + self.first[0]


def test_heads_that_layers_share_are_in_the_notes():
    model, first = build("llama-mha", num_hidden_layers=2), []
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.v_proj.__class__ = _ValuesOfTheFirst
        layer.self_attn.v_proj.is_first, layer.self_attn.v_proj.first = i == 0, first
    axes = discover(model)
    assert not axes.of_kind("attention")
    [heads] = [axis for axis in axes.of_kind("hidden").values() if axis.n_groups == 6]
    [note] = axes.notes
    assert "q_proj.weight: 6 attention heads that layers share" in note and "'channel' alone" in note
    plan = Plan({heads.name: [0, 2, 5]}, {heads.name: 6})
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4


class _Halves(nn.Module):
    """An MLP of two halves, each with an activation of its own, before one output matrix."""

    def __init__(self, config):
        super().__init__()
        self.one, self.two = (nn.Linear(24, n, bias=False) for n in (26, 14))
        self.down = nn.Linear(40, 24, bias=False)

    def forward(self, x):
        return self.down(torch.cat([self.one(x).relu(), self.two(x).tanh()], -1))


@pytest.mark.slow
def test_all_axes_of_a_module_have_names_and_can_be_cut(monkeypatch):
    monkeypatch.setattr(modeling_llama, "LlamaMLP", _Halves)
    model = build("llama-gqa")
    axes = discover(model)
    groups = [(name, axis.n_groups) for name, axis in axes.items() if axis.layer == 1]
    assert groups == [("layers.1.attention", 2), ("layers.1.mlp.0", 26), ("layers.1.mlp.1", 14)]
    plan = select(axes, random_scores(axes), ratio=0.5)
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4


@pytest.mark.slow
def test_heads_with_modules_of_their_own_are_all_there_and_stay(monkeypatch):
    """stablelm has a list of norms, one a head: no head's weights lie as another's do."""
    monkeypatch.setitem(FAMILIES, "normed", ("StableLmConfig", NO_HEAD_DIM | MHA | {"qk_layernorm": True}))
    model = build("normed")
    axes = discover(model)
    heads = [axis for axis in axes.values() if axis.kind == "attention"]
    assert len(heads) == 3 * 6 and {axis.n_groups for axis in heads} == {1}
    assert sum("each head has its own modules" in note for note in axes.notes) == 3 * 6
    assert not any("share one key-value head" in note for note in axes.notes)
    assert {axis.kind for axis in axes.values()} == {"attention", "mlp", "hidden"}


def test_experts_have_channels_of_their_own():
    axes = discovered("mixtral")[1]
    third = axes["layers.1.mlp.experts.2"]
    found = {m.parameter.split(".")[-1]: m for m in third.members}
    assert set(found) == {"gate_up_proj", "down_proj"} and {m.expert for m in third.members} == {2}
    assert found["gate_up_proj"].indices[7].tolist() == [7, 47] and found["gate_up_proj"].dim == 1
    assert found["down_proj"].indices[7].tolist() == [7] and found["down_proj"].dim == 2
    assert third.group_parameters == 3 * 24


def test_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="no list of decoder layers"):
        discover(nn.Linear(2, 2))


def test_group_parameters_count_what_a_cut_removes():
    axes = discovered("llama-biases")[1]
    assert axes["layers.0.mlp"].group_parameters == 3 * 24 + 2
    assert axes["layers.0.attention"].group_parameters == (3 + 1 + 1) * 8 * (24 + 1) + 3 * 8 * 24


SEVEN_BILLION = dict(
    hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32
)


def _without_weights(layers: int, **widths) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **widths))


def test_what_is_recorded_grows_with_the_layers_and_no_faster():
    """Discovery takes time in proportion to the labels and the pairs of them that it records."""
    sizes = []
    for layers in (1, 2, 3):
        model = _without_weights(layers, **SEVEN_BILLION)
        rec = trace(model)
        sizes.append((rec.n_labels, sum(len(pairs) for pairs in [*rec.equal, *rec.shared, *rec.spread])))
    for one, two, three in zip(*sizes, strict=True):
        assert 0 < two - one == three - two
