"""A pruned model is saved right by whoever saves it: save_pretrained, Trainer, peft, push_to_hub, pickle."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from types import MethodType

import pytest
import torch
from families import COMMON, FAMILIES, build, first_of, logits, random_scores, tokens
from remote_family import CODE, build_remote, prompts, remote_tokenizer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    XLMConfig,
    XLMWithLMHeadModel,
    modeling_utils,
)
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaModel
from transformers.utils.hub import PushToHubMixin

from pruner_lib import discover, load_model, mask_, prune_, save_model, select
from pruner_lib.method import prune
from pruner_lib.method.groups import Plan
from pruner_lib.method.layout import set_layout
from pruner_lib.models.modeling_pruned import make_saveable_
from pruner_lib.models.tiny import tiny_tokenizer

UNEVEN = dict(ratio=0.4, scope="global", protect_first=1)
ALIKE = ("llama-gqa", "mistral", "qwen2")  # as llama-mha here; other tests save the first and the last
OURS = {"modeling_pruned.py", "layout.py"}
CODE_NAMES = {path.name for path in CODE}


def plan_of(model, seed: int = 0, **options) -> Plan:
    axes = discover(model)
    return select(axes, random_scores(axes, seed), **options)


def cut_(model, seed: int = 0, **options):
    axes = discover(model)
    return prune_(model, select(axes, random_scores(axes, seed), **options), axes=axes)


def uneven(family: str = "llama-gqa", **changes):
    model = build(family, **changes)
    return cut_(model, **UNEVEN)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_loads(folder, model, tokenizer=None, ids=None, **trust):
    """Both ways of loading give the same logits, bit for bit."""
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    ids = tokens() if ids is None else ids
    wanted = logits(model, ids)
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ours, _ = load_model(folder, **trust)
    for again in (theirs, ours):
        assert torch.equal(logits(again, ids), wanted)
        assert type(again).__name__ == type(model).__name__


class _Squared(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.up_proj(x).relu() ** 2 + self.gate_proj(x))


@pytest.mark.parametrize("options", [{"ratio": 0.5}, UNEVEN], ids=["plain", "uneven"])
@pytest.mark.parametrize(
    ("replace", "said"),
    [
        (
            lambda mlp: setattr(mlp, "__class__", _Squared),
            " is of class .*_Squared .* would build .*LlamaMLP",
        ),
        (
            lambda mlp: setattr(mlp, "forward", MethodType(_Squared.forward, mlp)),
            " is of class .*LlamaMLP with custom forward in ",
        ),
        (
            lambda mlp: mlp.register_forward_hook(lambda _module, _args, out: out * 2),
            " is of class .*LlamaMLP with custom hook .function. ",
        ),
        (lambda mlp: setattr(mlp, "act_fn", torch.nn.GELU()), ".act_fn is of class .*GELU .* build .*SiLU"),
    ],
)
def test_a_model_that_would_load_with_other_modules_is_not_saved(replace, said, options, tmp_path):
    """All its tensors are those of a llama, and what loads would compute something else."""
    model = build("llama-gqa")
    replace(model.model.layers[1].mlp)
    cut_(model, **options)
    with pytest.raises(ValueError, match=f"layers.1.mlp{said}.*modules that were replaced, remove hooks"):
        save_model(model, tiny_tokenizer(), tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_a_float_that_the_config_does_not_know_is_not_saved(tmp_path):
    """But for what changes nothing in evaluation mode: dropout, and the hooks of libraries."""
    model = build("llama-gqa")
    cut_(model, **UNEVEN)
    model.enable_input_require_grads()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.25
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    check_loads(tmp_path / "m", model)
    model.model.layers[1].self_attn.scaling = 0.5
    with pytest.raises(
        ValueError, match="layers.1.self_attn.scaling is 0.5 .*nothing was saved; set it in the"
    ):
        save_model(model, tiny_tokenizer(), tmp_path / "made")
    assert not (tmp_path / "made").exists()


class TiedMLP(LlamaMLP):
    def __init__(self, config):
        super().__init__(config)
        self.gate_proj.weight = self.up_proj.weight


class TiedLlama(LlamaForCausalLM):
    """Ties weights by itself, and does not say so."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = TiedMLP(config)


def test_weights_that_are_tied_and_not_listed_are_refused_in_a_sentence(tmp_path):
    model = TiedLlama(LlamaConfig(**FAMILIES["llama-gqa"][1]))
    cut_(model, **UNEVEN)
    with pytest.raises(
        ValueError, match="one weight under several names.*nothing was saved; list them in its"
    ):
        save_model(model, tiny_tokenizer(), tmp_path / "made")
    assert not (tmp_path / "made").exists()


class GainMLP(LlamaMLP):
    """Multiplies by a number that no checkpoint holds."""

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.nn.Buffer(torch.ones(1), persistent=False)

    def forward(self, x):
        return super().forward(x) * self.gain


class GainModel(LlamaModel):
    """Makes these numbers anew when it is loaded: from the width, or from the place of the layer."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = GainMLP(config)

    def _init_weights(self, module):
        super()._init_weights(module)
        for number, layer in enumerate(self.layers):
            if layer.mlp is module:
                module.gain.fill_(self.config.growth**number * 40 / module.gate_proj.out_features)


class GainLlama(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = GainModel(config)


@pytest.mark.parametrize(("growth", "saved"), [(1.0, "plain"), (2.0, "layers"), (1.0, "uneven")])
def test_a_number_that_the_class_would_make_anew_otherwise_is_not_saved(growth, saved, tmp_path):
    model = GainLlama(LlamaConfig(**FAMILIES["llama-gqa"][1], growth=growth))
    for layer in model.model.layers:
        model.model._init_weights(layer.mlp)
    save_model(model, tiny_tokenizer(), tmp_path / "whole")
    plan = Plan({"layers": [1, 2]}, {"layers": 3})
    if saved != "layers":
        plan = plan_of(model, **{"plain": {"ratio": 0.5}, "uneven": UNEVEN}[saved])
    prune_(model, plan)
    said = r"layers.*mlp.gain is .* in GainLlama, but its class would compute .* when it is loaded"
    with pytest.raises(ValueError, match=said):
        save_model(model, tiny_tokenizer(), tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_a_number_that_is_made_from_the_hidden_size_when_a_model_is_loaded_is_kept(tmp_path):
    """RecurrentGemma multiplies its embeddings by the root of the hidden size, which is not saved."""
    torch.manual_seed(0)
    given = COMMON | {"lru_width": 24, "attention_window_size": 4, "block_types": ["recurrent", "attention"]}
    model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**given)).eval()
    cut_(model, ratio=0.4, granularity="channel")
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    check_loads(tmp_path / "m", model)


@pytest.mark.slow
def test_a_table_that_the_class_makes_anew_as_wide_as_its_config_says_is_not_saved(tmp_path):
    """XLM fills a table of sines on loading, though the folder holds one, and of the width before the cut."""
    sines = dict(sinusoidal_embeddings=True, n_langs=1, causal=True)
    sizes = dict(vocab_size=64, emb_dim=24, n_layers=3, n_heads=6, max_position_embeddings=64)
    torch.manual_seed(0)
    model = XLMWithLMHeadModel(XLMConfig(**sizes, **sines)).eval()
    channels = cut_(copy.deepcopy(model), ratio=0.4, granularity="channel")
    with pytest.raises(ValueError, match="could not be loaded, .*nothing was saved.*granularity='block'"):
        save_model(channels, tiny_tokenizer(), tmp_path / "channels")
    assert not (tmp_path / "channels").exists()
    cut_(model, **UNEVEN)
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    check_loads(tmp_path / "m", model)


@pytest.mark.slow
def test_numbers_of_the_config_that_count_no_heads_stay(tmp_path):
    """A router's `n_group` is as large as the number of heads, and may lie in the way of the edits."""
    changes = dict(num_attention_heads=4, num_key_value_heads=4, n_group=4, topk_group=2, n_routed_experts=8)
    model = build("deepseek_v3", **changes)
    cut_(model, ratio={"*.attention": 0.5})
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 2)
    assert (model.config.n_group, model.config.topk_group) == (4, 2)
    save_model(model, tiny_tokenizer(), tmp_path / "made")
    check_loads(tmp_path / "made", model)


@pytest.mark.parametrize("family", first_of(name for name in FAMILIES if name not in ALIKE))
def test_plain_saving_of_an_unevenly_pruned_model_loads_everywhere(family, tmp_path):
    model = uneven(family)
    assert model.pruning_layout
    model.save_pretrained(tmp_path / "m")
    assert names(tmp_path / "m") >= OURS
    check_loads(tmp_path / "m", model)
    with pytest.raises((ValueError, RuntimeError)):  # the plain class has no such widths: nothing is drawn
        type(model).dense_class.from_pretrained(tmp_path / "m", config=copy.deepcopy(model.config))


def test_pruning_sets_the_class_and_keeps_its_name():
    model = build("llama-gqa")
    cls = type(model)
    cut_(model, ratio=0.0)
    assert type(model) is cls and not hasattr(model.config, "auto_map"), "the config alone describes it"
    cut_(model, **UNEVEN)
    assert isinstance(model, LlamaForCausalLM) and type(model) is not cls
    assert type(model).__name__ == "LlamaForCausalLM" and type(model).dense_class is cls
    assert model.config.auto_map["AutoModelForCausalLM"] == "modeling_pruned.PrunedModelForCausalLM"


@pytest.mark.slow
def test_a_model_cut_again_saves_its_last_widths(tmp_path):
    model = uneven("qwen2", num_key_value_heads=6)
    model.save_pretrained(tmp_path / "one")
    first = [p.shape for p in model.parameters()]
    cut_(model, 5, ratio=0.3, scope="global")
    assert [p.shape for p in model.parameters()] != first and type(model).dense_class is type(build("qwen2"))
    model.save_pretrained(tmp_path / "two")
    check_loads(tmp_path / "two", model)
    loaded, _ = load_model(tmp_path / "two")
    cut_(loaded, 7, ratio=0.3, scope="global")
    loaded.save_pretrained(tmp_path / "two")  # over the folder that it came from
    check_loads(tmp_path / "two", loaded)


@pytest.mark.slow
def test_a_model_whose_config_describes_it_again_is_a_plain_one(tmp_path):
    model = uneven()
    dense = type(model).dense_class
    fresh = build("llama-gqa")
    fresh.__class__, fresh.config = type(model), model.config  # as after a cut that the config can describe
    set_layout(fresh, None)
    make_saveable_(fresh)
    assert type(fresh) is dense and fresh.config.auto_map == {}
    fresh.save_pretrained(tmp_path / "m")
    assert not names(tmp_path / "m") & OURS
    check_loads(tmp_path / "m", fresh)


@pytest.mark.parametrize("family", first_of(["llama-gqa", "deepseek_v3"]))
def test_a_model_with_fewer_layers_is_a_plain_one(family, tmp_path):
    model = build(family)
    cls = type(model)
    prune_(model, Plan({"layers": [0, 2]}, {"layers": 3}))
    model.save_pretrained(tmp_path / "m")
    assert type(model) is cls and not names(tmp_path / "m") & OURS
    check_loads(tmp_path / "m", model)
    cut_(model, **UNEVEN)
    model.save_pretrained(tmp_path / "uneven")
    check_loads(tmp_path / "uneven", model)


@pytest.mark.slow
def test_a_model_with_code_of_its_own_takes_it_along(tmp_path):
    model = build_remote(tmp_path / "remote")
    cls = type(model)
    cut_(model, **UNEVEN)
    assert isinstance(model, cls) and type(model).__name__ == cls.__name__
    model.save_pretrained(tmp_path / "m")
    assert names(tmp_path / "m") >= OURS | CODE_NAMES
    check_loads(tmp_path / "m", model, remote_tokenizer(), prompts(), trust_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load_model(tmp_path / "m")


@pytest.mark.slow
def test_a_remote_model_with_fewer_layers_takes_its_layout_along(tmp_path):
    """Its factor follows the number of layers; the layout keeps it as trained.

    A layer that moved up would divide and multiply by another number, which can't be seen to cancel.
    """
    model = build_remote(tmp_path / "remote")
    with pytest.raises(ValueError, match="compute with the number 2, which follows the place"):
        prune_(model, Plan({"layers": [0, 2]}, {"layers": 3}))
    prune_(model, Plan({"layers": [0, 1]}, {"layers": 3}))
    assert model.pruning_layout["attributes"] and model.transformer.layers[1].alpha == pytest.approx(6**0.5)
    model.save_pretrained(tmp_path / "m")
    check_loads(tmp_path / "m", model, remote_tokenizer(), prompts(), trust_remote_code=True)


@pytest.mark.slow
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_whole_and_apart(copied, tmp_path):
    model = uneven("bloom")
    before = logits(model, tokens())
    again = copied(model)
    assert type(again) is type(model) and again.config is not model.config
    assert torch.equal(logits(again, tokens()), before)
    cut_(again, 3, **UNEVEN)
    assert torch.equal(logits(model, tokens()), before) and again.pruning_layout != model.pruning_layout
    for each in (model, again):
        each.save_pretrained(tmp_path / "m")
        check_loads(tmp_path / "m", each)


@pytest.mark.slow
def test_a_copy_is_cut_as_its_original():
    """cut = mask, on a copy of a model that was cut before."""
    model = uneven()
    plan = plan_of(model, 5, ratio=0.3)
    cut, masked = prune_(copy.deepcopy(model), plan), mask_(copy.deepcopy(model), plan)
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4
    assert (logits(model, tokens()) - logits(masked, tokens())).abs().max() > 1e-2


def test_the_class_builds_whole_models_too():
    model, whole = uneven(), build("llama-gqa")
    assert [p.shape for p in type(model)(whole.config).parameters()] == [p.shape for p in whole.parameters()]
    assert [p.shape for p in type(model)(model.config).parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("through", ["push_to_hub", "save_pretrained"])
def test_all_code_is_uploaded(through, tmp_path, monkeypatch):
    """The hub is a stand-in that notes which files are new enough to be sent."""
    sent = set()

    def upload(self, folder, repo_id, files_timestamps, **options):
        times = {name: os.path.getmtime(os.path.join(folder, name)) for name in os.listdir(folder)}
        sent.update(n for n, t in times.items() if n not in files_timestamps or t > files_timestamps[n])

    class Hub:
        def create_repo(self, repo_id, **options):
            return type("Url", (), {"repo_id": repo_id})

    class Card:
        def save(self, path):
            pass

    for module in (modeling_utils, sys.modules[PushToHubMixin.__module__]):
        monkeypatch.setattr(module, "hf_api", Hub)
        monkeypatch.setattr(module, "create_and_tag_model_card", lambda *args, **options: Card())
    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    if through == "push_to_hub":
        uneven().push_to_hub("me/pruned")
    else:
        uneven().save_pretrained(tmp_path / "m", push_to_hub=True, repo_id="me/pruned")
    assert sent >= OURS | {"config.json", "model.safetensors"}


def test_a_class_in_no_file_is_refused_before_anything_is_written(tmp_path):
    model = build("llama-gqa")
    model.__class__ = type("Local", (type(model),), {"__module__": "__main__"})
    cut_(model, **UNEVEN)
    for save in (model.save_pretrained, lambda folder: save_model(model, None, folder)):
        with pytest.raises(ValueError, match="Local is defined in __main__.*separate module"):
            save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_what_the_bare_cut_gives_is_made_saveable_by_save_model(tmp_path):
    model = build("llama-gqa")
    prune.prune_(model, plan_of(model, **UNEVEN))
    assert type(model) is type(build("llama-gqa"))
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(RuntimeError, match="size mismatch|mismatched|ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "bare", trust_remote_code=True)
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    check_loads(tmp_path / "m", model)
