"""Saved folders load everywhere with the same logits, bit for bit, or are not written at all."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from families import CHANNEL_FAMILIES, FAMILIES, build, logits, random_scores, tokens
from remote_family import build_remote, prompts, remote_tokenizer
from transformers import AutoModelForCausalLM

from pruner_lib import discover, load_model, prune_, save_model, select
from pruner_lib.method.groups import Plan
from pruner_lib.models import modeling_pruned
from pruner_lib.models.load import tiny_tokenizer

UNEVEN = dict(ratio=0.4, scope="global", protect_first=1)
UNIFORM_HEADS = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8}


def _pruned(family, changes=None, **options):
    model = build(family, **changes or {})
    axes = discover(model)
    return prune_(model, select(axes, random_scores(axes), **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_checkpoint_keeps_the_logits_bit_for_bit(family, tmp_path):
    model = _pruned(family, **UNEVEN)
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    ours, _ = load_model(tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True).eval()
    for again in (ours, theirs):
        assert torch.equal(logits(again, tokens()), logits(model, tokens()))
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
    with pytest.raises(
        (ValueError, RuntimeError)
    ):  # without the layout the widths do not fit: never filled at random
        config = copy.deepcopy(theirs.config)
        type(build(family)).from_pretrained(tmp_path / "m", config=config)


@pytest.mark.parametrize(
    "family",
    ["llama-mha", "llama-tied", "llama-biases", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "glm"],
)
def test_uniform_checkpoint_is_a_plain_one(family, tmp_path):
    model = _pruned(family, ratio=0.5)
    assert model.pruning_layout is None
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert (
        not any(n.endswith((".py", ".bin", ".pt", ".pkl")) for n in names)
        and {"plan.json", "model.safetensors"} <= names
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert type(again).__name__ == type(build(family)).__name__
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


@pytest.mark.parametrize("family", CHANNEL_FAMILIES)
def test_channel_pruned_checkpoint_is_a_plain_one(family, tmp_path):
    model = _pruned(family, ratio=0.25, granularity="channel")
    save_model(model, None, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


def test_heads_that_do_not_divide_the_hidden_size_fall_back_to_a_layout(tmp_path):
    """llama's config refuses 5 heads for 24 hidden channels, so a plain folder could not be loaded."""
    model = _pruned("llama-mha", ratio=0.2)
    assert model.model.layers[0].self_attn.q_proj.out_features == 5 * 8 and model.pruning_layout
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    again, _ = load_model(tmp_path / "m")
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


def test_uneven_folder_needs_no_pruner_lib(tmp_path):
    model = _pruned("llama-gqa", **UNEVEN)
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    torch.save(logits(model, tokens()), tmp_path / "logits.pt")
    code = (
        "import sys, torch; sys.modules['pruner_lib'] = None\n"
        "from transformers import AutoModelForCausalLM as A\n"
        f"m = A.from_pretrained({str(tmp_path / 'm')!r}, trust_remote_code=True).eval()\n"
        f"ids = torch.tensor({tokens().tolist()})\n"
        f"assert torch.equal(m(ids).logits, torch.load({str(tmp_path / 'logits.pt')!r}))\n"
    )
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_loaded_model_can_be_pruned_and_saved_again(tmp_path):
    save_model(_pruned("qwen2", {"num_key_value_heads": 6}, **UNEVEN), tiny_tokenizer(), tmp_path / "one")
    model, tokenizer = load_model(tmp_path / "one")
    axes = discover(model)
    prune_(model, select(axes, random_scores(axes, 5), ratio=0.3, scope="global"))
    save_model(model, tokenizer, tmp_path / "two")
    again, _ = load_model(tmp_path / "two")
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))
    again.save_pretrained(tmp_path / "three")  # as Trainer would
    third = AutoModelForCausalLM.from_pretrained(tmp_path / "three", trust_remote_code=True).eval()
    assert torch.equal(logits(third, tokens()), logits(model, tokens()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_survives(dtype, tmp_path):
    model = _pruned("llama-gqa", **UNEVEN).to(dtype)
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    again, _ = load_model(tmp_path / "m", dtype=dtype)
    assert all(
        torch.equal(a, b) and a.dtype == dtype
        for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


def test_code_of_a_tampered_folder_is_not_run(tmp_path):
    save_model(_pruned("llama-gqa", **UNEVEN), tiny_tokenizer(), tmp_path / "m")
    (tmp_path / "m" / "modeling_pruned.py").write_text("raise SystemExit('ran')")
    model, _ = load_model(tmp_path / "m")
    assert model.pruning_layout


def _lead_astray(folder, layout, auto_map="evil.Model"):
    """Let the config name code that leaves a mark when it runs; give the mark."""
    mark = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Model: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"pruning_layout": layout, "auto_map": {"AutoModelForCausalLM": auto_map}}
    (folder / "config.json").write_text(json.dumps(config))
    return mark


@pytest.mark.parametrize("layout", [None, {}, "", 0, [], False, {"shapes": {}}, "evil.Model"])
@pytest.mark.parametrize("auto_map", ["evil.Model", "some/hub--evil.Model"])
def test_a_damaged_layout_is_refused_and_runs_no_code(layout, auto_map, tmp_path, monkeypatch):
    save_model(_pruned("llama-gqa", **UNEVEN), tiny_tokenizer(), tmp_path / "m")
    mark = _lead_astray(tmp_path / "m", layout, auto_map)
    looked_up = []
    monkeypatch.setattr(modeling_pruned, "get_class_from_dynamic_module", lambda *a, **k: looked_up.append(a))
    with pytest.raises(ValueError, match="pruning_layout must be a dict"):
        load_model(tmp_path / "m")
    assert not mark.exists() and not looked_up


@pytest.mark.parametrize(
    "part, entry",
    [
        ("shapes", {"lm_head.weight": "os.system"}),
        ("attributes", {"model": {"forward": "exit"}}),
        ("attributes", {"model": {"a b": 1}}),
        ("config", {"model.layers.0": {"head_dim": None}}),
        ("inputs", {"model": {"0": {"dim": 0, "total": 4, "keep": "all"}}}),
    ],
)
def test_an_entry_that_is_no_number_is_refused(part, entry, tmp_path):
    save_model(_pruned("llama-gqa", **UNEVEN), tiny_tokenizer(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["pruning_layout"][part] |= entry
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"damaged: pruning_layout, {part} of"):
        load_model(tmp_path / "m")


def test_a_whole_layout_with_a_foreign_auto_map_loads_by_our_own_code(tmp_path):
    model = _pruned("llama-gqa", **UNEVEN)
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    mark = _lead_astray(tmp_path / "m", model.pruning_layout)
    again, _ = load_model(tmp_path / "m")
    assert again.pruning_layout == model.pruning_layout and not mark.exists()


def test_plan_is_kept_beside_the_weights(tmp_path):
    model = _pruned("llama-gqa", **UNEVEN)
    save_model(model, None, tmp_path / "m")
    assert Plan.from_json(tmp_path / "m" / "plan.json").to_dict() == model.pruned_by[0].to_dict()


def test_tied_embeddings_are_tied_after_loading(tmp_path):
    save_model(_pruned("llama-tied", ratio=0.25, granularity="channel"), tiny_tokenizer(), tmp_path / "m")
    again, _ = load_model(tmp_path / "m")
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_foreign_folder_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no model"):
        save_model(build("llama-gqa"), None, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    model = build("llama-gqa")
    save_model(model, None, tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        (args[0] / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, None, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_layout_is_plain_json(tmp_path):
    model = _pruned("bloom", **UNEVEN)
    save_model(model, None, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["pruning_layout"] == model.pruning_layout
    assert config["auto_map"] == {"AutoModelForCausalLM": "modeling_pruned.PrunedModelForCausalLM"}


@pytest.mark.parametrize("family", ["llama-gqa", "gemma3_text", "deepseek_v3", "bloom"])
def test_model_with_fewer_layers_is_saved_and_loaded(family, tmp_path):
    """The first layer of deepseek_v3 is of another make, which its config counts from the front."""
    model = build(family)
    for keep in ([1, 2], [0, 2]):
        cut = prune_(copy.deepcopy(model), Plan({"layers": keep}, {"layers": 3}))
        save_model(cut, tiny_tokenizer(), tmp_path / "m")
        again, _ = load_model(tmp_path / "m")
        assert torch.equal(logits(copy.deepcopy(again), tokens()), logits(cut, tokens()))


def test_factor_that_follows_the_number_of_layers_stays_as_trained(tmp_path):
    model = build_remote(tmp_path / "remote")
    alpha = model.transformer.layers[0].alpha
    cut = prune_(model, Plan({"layers": [0, 2]}, {"layers": 3}))
    before = logits(cut, prompts())
    save_model(cut, remote_tokenizer(), tmp_path / "m")
    again, _ = load_model(tmp_path / "m", trust_remote_code=True)
    assert again.transformer.layers[1].alpha == alpha == pytest.approx(6**0.5)
    assert torch.equal(logits(again, prompts()), before)


def test_layers_that_the_config_cannot_name_are_refused_and_nothing_is_changed():
    model = build("deepseek_v3", num_hidden_layers=4)
    layers = model.model.layers
    layers[3] = copy.deepcopy(layers[0])  # of the first layer's make, where no config can have it
    before = logits(model, tokens())
    with pytest.raises(ValueError, match="can't say that only the layers"):
        prune_(model, Plan({"layers": [0, 1, 3]}, {"layers": 4}))
    assert torch.equal(logits(model, tokens()), before) and len(model.model.layers) == 4


def test_plain_saving_of_an_unevenly_cut_model_loads_too(tmp_path):
    model = _pruned("llama-gqa", **UNEVEN)
    model.save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    again, _ = load_model(tmp_path / "m")
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))
