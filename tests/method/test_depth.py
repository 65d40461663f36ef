"""Scores of whole layers: what changes nothing goes first, and every second layer is every second one."""

from __future__ import annotations

import copy

import pytest
import torch
from families import COMMON, FAMILIES, build, first_of, generates_alike_with_cache, logits, tokens
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pruner_lib import discover, mask_, prune_, save_model, select
from pruner_lib.method.depth import block_influence, every_second
from pruner_lib.method.groups import Plan

IDS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(20)
        for silent in (model.model.layers[i] for i in (1, 4)):  # these pass on what they get
            silent.self_attn.o_proj.weight.zero_()
            silent.mlp.down_proj.weight.zero_()
    return model


def test_layer_that_changes_nothing_has_no_influence(model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    scores = block_influence(model, IDS)
    assert scores.shape == (6,) and scores[[1, 4]].abs().max() < 1e-6 and scores[[0, 2, 3, 5]].min() > 1e-3
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(layer._forward_hooks for layer in model.model.layers) and not model.training
    with pytest.raises(ValueError, match="token ids run from .* LlamaForCausalLM has 64 tokens"):
        block_influence(model, IDS + 60)


def test_influence_is_the_one_of_the_hidden_states(model):
    with torch.no_grad():
        states = model.model(IDS, output_hidden_states=True).hidden_states  # the last one is normalised
    wanted = [1 - torch.cosine_similarity(states[i], states[i + 1], dim=-1).mean() for i in range(5)]
    assert torch.allclose(block_influence(model, IDS)[:5], torch.stack(wanted), atol=1e-6)


def test_layers_of_least_score_are_dropped(model):
    axes = discover(model)
    plan = select(axes, {"layers": block_influence(model, IDS)}, ratio=1 / 3, granularity="layer")
    assert plan.keep["layers"].tolist() == [0, 2, 3, 5]
    plan = select(axes, {"layers": every_second(6)}, ratio=0.5, granularity="layer")
    assert plan.keep["layers"].tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match=r"scores of layers have shape \(5,\), but it needs \(6,\)"):
        select(axes, {"layers": every_second(5)}, ratio=0.5, granularity="layer")


@pytest.mark.slow
def test_a_model_that_is_not_traced_at_once_may_lose_its_first_layer():
    """OPT breaks off in its first layer with the first mask: what was seen of it must not count."""
    model = build("opt")
    left = copy.deepcopy(model)
    left.model.decoder.layers = left.model.decoder.layers[1:]
    prune_(model, Plan({"layers": [1, 2]}, {"layers": 3}))
    assert torch.equal(logits(model, tokens()), logits(left, tokens()))


def test_few_of_every_second_layer_are_spread_evenly():
    order = every_second(30).argsort().tolist()
    assert sorted(order[:15]) == list(range(1, 30, 2)), "each second one goes before any other"
    for n in (2, 4, 8):
        gone = sorted(order[:n])
        gaps = [after - before for before, after in zip(gone, gone[1:], strict=False)]
        assert min(gaps) >= 30 // n - 3 and max(gaps) <= 30 // n + 4, gone


@pytest.mark.parametrize(
    ("family", "kept", "layers"),
    first_of([("lfm2", [1, 2], 4), ("qwen3_next", [2, 3], 4), ("falcon_h1", [1], 3)]),
)
def test_layers_of_several_kinds_are_renumbered_in_each(family, kept, layers, tmp_path):
    """An attention that is missing in the first layer finds its own place in the cache, too."""
    model = prune_(build(family), Plan({"layers": kept}, {"layers": layers}))
    numbers = {
        name: m.layer_idx
        for name, m in model.named_modules()
        if isinstance(getattr(m, "layer_idx", None), int)
    }
    assert {f".layers.{number}." in f".{name}." for name, number in numbers.items()} == {True}
    assert generates_alike_with_cache(model, tokens()[:1])
    save_model(model, None, tmp_path / "m")
    again = type(model).from_pretrained(tmp_path / "m").eval()
    assert torch.equal(logits(copy.deepcopy(again), tokens()), logits(model, tokens()))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kept"), [("lfm2", [0, 2]), ("qwen3_next", [0, 1])])
def test_layers_that_do_not_run_with_a_cache_by_themselves_are_refused(family, kept):
    """A cache counts its tokens in a layer of attention, and none would be left."""
    model = build(family)
    before = logits(model, tokens())
    with pytest.raises(ValueError, match=r"the layers \[0, .\] of 4 alone do not run with a cache"):
        prune_(model, Plan({"layers": kept}, {"layers": 4}))
    assert torch.equal(logits(model, tokens()), before)


PLACED = {  # numbers that each layer computes from its place; a kind of layers that none is left of
    "diffllama": ("DiffLlamaConfig", COMMON, [1, 2], {"lambda_init"}),
    "gpt2": (
        "GPT2Config",
        FAMILIES["gpt2"][1] | {"scale_attn_by_inverse_layer_idx": True},
        [1, 2],
        {"scaling"},
    ),
    "beam": ("BeamConfig", COMMON, [0, 2], {"attn_residual_add_idx", "mlp_residual_add_idx"}),
    "gemma3-of-two-kinds": (
        "Gemma3TextConfig",
        COMMON | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        [0, 2],
        set(),
    ),
}


@pytest.mark.parametrize("family", first_of(PLACED))
def test_the_folder_of_a_layer_cut_is_the_model_that_was_cut(family, tmp_path, monkeypatch):
    config, arguments, kept, numbers = PLACED[family]
    monkeypatch.setitem(FAMILIES, family, (config, arguments))
    model = prune_(build(family), Plan({"layers": kept}, {"layers": 3}))
    layout = model.pruning_layout or {"attributes": {}}
    assert {name for values in layout["attributes"].values() for name in values} == numbers
    save_model(model, None, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True).eval()
    assert torch.equal(logits(copy.deepcopy(again), tokens()), logits(model, tokens()))


def _marked(monkeypatch, name, mark):
    """The class llama, whose layers note something by their place and double their output if it is true."""
    plain = LlamaDecoderLayer.__init__

    def build_layer(self, config, layer_idx):
        plain(self, config, layer_idx)
        setattr(self, name, mark(layer_idx))
        self.register_forward_hook(lambda layer, _, out: out * (2 if getattr(layer, name) else 1))

    monkeypatch.setattr(LlamaDecoderLayer, "__init__", build_layer)


def test_a_truth_that_follows_from_the_place_of_a_layer_is_kept_with_it(tmp_path, monkeypatch):
    _marked(monkeypatch, "is_odd", lambda i: i % 2 == 1)
    dense, plan = build("llama-gqa"), Plan({"layers": [1, 2]}, {"layers": 3})
    model = prune_(copy.deepcopy(dense), plan)
    assert [layer.is_odd for layer in model.model.layers] == [True, False]
    save_model(model, None, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True).eval()
    assert torch.equal(logits(copy.deepcopy(again), tokens()), logits(model, tokens()))
    dense.model.layers = dense.model.layers[1:]
    assert torch.equal(logits(dense, tokens()), logits(model, tokens()))


WORDS = [("last", "first"), (None, "first"), ([0.5], [0.25]), ({"gain": (2, "a")}, {"gain": (1, "a")})]


@pytest.mark.parametrize(("word", "other"), first_of(WORDS))
def test_a_word_or_list_that_follows_from_the_place_of_a_layer_is_refused(word, other, monkeypatch):
    _marked(monkeypatch, "word", lambda i: word if i == 2 else other)
    model = build("llama-gqa")
    before = logits(model, tokens())
    with pytest.raises(
        ValueError, match=r"layers.\d.word is .* builds another value for its new position.*nothing was cut"
    ):
        prune_(model, Plan({"layers": [2]}, {"layers": 3}))
    assert torch.equal(logits(model, tokens()), before) and len(model.model.layers) == 3
    prune_(model, Plan({"layers": [0, 1]}, {"layers": 3}))


READ = {  # by forward -> layers that can still be kept alone
    "number of the layer": (lambda layer, out: out / (layer.self_attn.layer_idx + 1), [0, 1]),
    "number of layers": (lambda layer, out: out / layer.self_attn.config.num_hidden_layers**0.5, [0, 1, 2]),
    "first or not": (lambda layer, out: out if layer.self_attn.layer_idx else out.tanh(), [0, 1]),
    "second or not": (lambda layer, out: out.tanh() if layer.self_attn.layer_idx == 1 else out, [0, 1]),
}


@pytest.mark.parametrize("name", first_of(READ))
def test_what_follows_the_place_or_count_of_layers_is_refused(name):
    function, kept = READ[name]
    model = build("llama-gqa")
    for layer in model.model.layers:
        layer.register_forward_hook(lambda layer, _, out: function(layer, out))
    before = logits(model, tokens())
    with pytest.raises(
        ValueError, match="would compute with .* follows the place or count .*nothing was cut"
    ):
        prune_(model, Plan({"layers": [1, 2]}, {"layers": 3}))
    assert torch.equal(logits(model, tokens()), before) and len(model.model.layers) == 3
    assert len(prune_(model, Plan({"layers": kept}, {"layers": 3})).model.layers) == len(kept)


def test_a_list_of_the_config_that_modules_repeat_is_shortened_with_it(tmp_path):
    model = prune_(build("gpt_neo"), Plan({"layers": [1, 2]}, {"layers": 3}))
    assert [block.attn.attention_layers for block in model.transformer.h] == [["local", "global"]] * 2
    save_model(model, None, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


@pytest.mark.parametrize("shared", ["", "mlp"])
def test_layers_that_share_weights_are_not_dropped(shared):
    model = build("llama-gqa")
    path = f"model.layers.{{}}.{shared}".rstrip(".")
    model.set_submodule(path.format(1), model.get_submodule(path.format(0)))
    before = copy.deepcopy(model.state_dict())
    for change in (prune_, mask_):
        with pytest.raises(ValueError, match="layers share weights and can't be removed one by one"):
            change(model, Plan({"layers": [0, 2]}, {"layers": 3}))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
