"""Loading: every name, folder and hub id gives a decoder in evaluation mode, or an error that helps."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import stand_ins
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaModel

from pruner_lib import discover
from pruner_lib.data.assets import cache_root
from pruner_lib.method.layout import empty_layout
from pruner_lib.models import load
from pruner_lib.models.load import find_model, load_model
from pruner_lib.models.tiny import tiny_tokenizer
from pruner_lib.study.results import model_revision

IDS = torch.arange(4, 20)[None]  # (1, 16)


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture(scope="session")
def smollm2():
    return load_model("smollm2-135m")


def test_tiny_is_a_small_decoder_with_shared_kv_heads():
    model, tokenizer = load_model("tiny")
    assert not model.training and model.dtype == torch.float32
    assert model.config.num_attention_heads == 2 * model.config.num_key_value_heads
    assert len(tokenizer) == model.config.vocab_size
    changed = IDS.clone()
    changed[0, -1] = 100
    first, second = model(IDS).logits[0], model(changed).logits[0]
    assert torch.equal(first[:-1], second[:-1])  # a decoder does not look ahead
    assert not torch.allclose(first[-1], second[-1])


def test_seed_decides_the_weights_of_tiny_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    logits = [load_model("tiny", seed=seed)[0](IDS).logits for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=0.1)


def test_tiny_norms_are_random():
    norms = [p for p in load_model("tiny")[0].parameters() if p.dim() == 1]
    assert norms and all(p.std() > 0.1 for p in norms)


def test_dtype_is_the_one_asked_for(checkpoint):
    assert load_model("tiny", dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert load_model(checkpoint, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert load_model(checkpoint)[0].dtype == torch.float32


def test_tiny_tokenizer_gives_back_any_text():
    tokenizer, text = tiny_tokenizer(), "Grüße,  漢字\n\n123 <tag>"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) and min(ids) > 3  # one token a byte, none special
    assert tokenizer.decode(ids) == text


def test_tiny_tokenizer_has_the_special_tokens():
    tokenizer = tiny_tokenizer()
    specials = (
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    assert specials == (0, 1, 2, 3)
    assert tokenizer("<s>a</s>")["input_ids"][::2] == [1, 2]
    assert tokenizer.decode([1, 68, 2], skip_special_tokens=True) == tokenizer.decode([68])


def test_folder_gives_the_same_logits_and_tokens(checkpoint):
    model, tokenizer = load_model("tiny")
    again, tokenizer_again = load_model(checkpoint)
    assert not again.training
    assert torch.equal(model(IDS).logits, again(IDS).logits)
    assert tokenizer("a <s> ü")["input_ids"] == tokenizer_again("a <s> ü")["input_ids"]
    assert tokenizer_again.pad_token_id == 3


def test_local_data_directory_goes_first(checkpoint, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_DATA", str(checkpoint.parent))
    assert find_model("checkpoint") == checkpoint
    monkeypatch.delenv("PRUNER_LIB_DATA")
    with pytest.raises(ValueError, match="unknown model 'checkpoint'"):
        find_model("checkpoint")


@pytest.mark.parametrize("name", ["smollm", "./no/folder", "/no/folder", "a/b/c", "folder/"])
def test_unknown_model_names_the_known_ones(name):
    with pytest.raises(
        ValueError, match=f"unknown model '{name}'.*135m, .*135m-mha, .*135m-glm, tiny.*PRUNER_LIB_DATA"
    ):
        load_model(name)


def test_hub_id_without_the_hub_fails_at_once():
    with pytest.raises(ValueError, match="'nobody/nothing' was not found .*cache.*Known names: smollm2-135m"):
        load_model("nobody/nothing")


def test_hub_id_takes_the_revision_that_is_named(checkpoint, tmp_path, monkeypatch):
    """Two revisions of a model in the hub's own cache, which is what there is without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    old, new = "a" * 40, "b" * 40
    place = tmp_path / "hub/models--some--model"
    for number, commit in enumerate((old, new)):
        model, tokenizer = load_model("tiny", seed=number)
        for part in (model, tokenizer):
            part.save_pretrained(place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(new)
    latest, _ = load_model("some/model")
    pinned, _ = load_model(f"some/model@{old}")
    assert torch.equal(latest(IDS).logits, load_model("tiny", seed=1)[0](IDS).logits)
    assert torch.equal(pinned(IDS).logits, load_model("tiny", seed=0)[0](IDS).logits)
    assert [model_revision(name) for name in ("some/model", f"some/model@{old}")] == [new, old]
    assert [model_revision(name) for name in ("tiny", str(checkpoint), "other/model")] == [None] * 3


def test_encoder_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=260, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no decoder.*BertForMaskedLM"):
        load_model(tmp_path)


def test_decoder_without_its_head_is_refused(tmp_path):
    LlamaModel(load_model("tiny")[0].config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="language-model head.*LlamaModel.*LlamaForCausalLM"):
        load_model(tmp_path)


def test_missing_weight_is_an_error_not_a_random_one(checkpoint):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has 1 missing weights.*layers.0.mlp.up_proj"):
        load_model(checkpoint)


def test_weight_without_a_place_is_an_error_not_left_out(checkpoint):
    change(checkpoint / "config.json", num_hidden_layers=1)
    with pytest.raises(ValueError, match="has 9 unexpected weights.*layers.1.input_layernorm"):
        load_model(checkpoint)


def test_buffers_that_older_versions_saved_are_left_out(checkpoint):
    path, layer = checkpoint / "model.safetensors", "model.layers.0.self_attn"
    extra = {f"{layer}.rotary_emb.inv_freq": torch.ones(8), "model.layers.0.attn.masked_bias": torch.ones(1)}
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    assert torch.equal(load_model(checkpoint)[0](IDS).logits, load_model("tiny")[0](IDS).logits)


@pytest.mark.parametrize(
    "damage", ["no config", "no JSON", "no weights", "half the weights", "other shapes", "auto_map"]
)
def test_broken_checkpoint_is_an_error_that_names_the_folder(checkpoint, damage):
    config, weights = checkpoint / "config.json", checkpoint / "model.safetensors"
    if damage == "no config":
        config.unlink()
    elif damage == "no JSON":
        config.write_text("{")
    elif damage == "auto_map":
        change(config, auto_map=3)
    elif damage == "no weights":
        weights.unlink()
    elif damage == "half the weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    else:
        config.write_text(config.read_text().replace('"intermediate_size": 96', '"intermediate_size": 80'))
    with pytest.raises(ValueError, match=str(checkpoint)):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"num_hidden_layers": "2"}),
        ("config.json", {"hidden_act": "nope"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"model_type": "nope"}),
        ("config.json", {"pad_token_id": 9999}),
        ("config.json", {"rope_parameters": {"rope_type": "yarn"}}),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        ("tokenizer.json", {"model": {}}),
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A"}}),  # a panic
        ("tokenizer.json", None),
        ("tokenizer_config.json", None),
    ],
)
def test_settings_that_the_libraries_cannot_read_give_one_sentence(checkpoint, file, values):
    if values is None:
        (checkpoint / file).write_text('{"cut')
    else:
        change(checkpoint / file, **values)
    part = "tokenizer" if file.startswith("tokenizer") else "model"
    with pytest.raises(ValueError, match=f"the {part} of .* can't be loaded: [A-Z]") as caught:
        load_model(checkpoint)
    assert str(checkpoint) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_tokenizer_a_missing_model_and_a_missing_library_are_told_apart(checkpoint):
    files = {path: path.read_bytes() for path in checkpoint.iterdir()}
    for pattern, found in (
        ("token*", "the tokenizer of .*: ValueError"),
        ("*.safetensors", "the model of .*: OSError"),
    ):
        for path in checkpoint.glob(pattern):
            path.unlink()
        with pytest.raises(ValueError, match=found):
            load_model(checkpoint)
        for path, content in files.items():
            path.write_bytes(content)
    change(
        checkpoint / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    with pytest.raises(ValueError, match="the model of .* requires bitsandbytes: `pip install"):
        load_model(checkpoint)


def test_weights_outside_the_folder_are_refused(checkpoint):
    """What a number rests on is the folder, by the content of its files."""
    names = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").rename(checkpoint / "part.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")}))
    load_model(checkpoint)
    for away in ("../part.safetensors", "sub/part.safetensors", str(checkpoint / "part.safetensors")):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, away)}))
        with pytest.raises(ValueError, match=f"index.json names {away}, which is not in the same folder"):
            load_model(checkpoint)


@pytest.mark.parametrize("layout", ["none at all", None, {}, "", empty_layout()])
def test_code_in_a_folder_is_never_run(layout, checkpoint):
    """Named as model, config, tokenizer, generation or attention: refused, or as without it."""
    mark = checkpoint / "ran"
    code = f"import transformers\nopen({str(mark)!r}, 'w').close()\n"
    code += "class Pruned(transformers.LlamaForCausalLM):\n    pass\n"
    (checkpoint / "custom_generate").mkdir()
    for name in ("modeling_pruned.py", "custom_generate/generate.py"):
        (checkpoint / name).write_text(code)
    names = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling_pruned.Pruned")
    given = {} if layout == "none at all" else {"pruning_layout": layout}
    change(checkpoint / "config.json", auto_map=names, _attn_implementation="some/kernel", **given)
    tokenizer = ["modeling_pruned.Pruned"] * 2
    change(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": tokenizer})
    if layout in ("none at all", empty_layout()):
        model, _ = load_model(checkpoint)
        model.generate(IDS, max_new_tokens=1)
        assert torch.equal(model(IDS).logits, load_model("tiny")[0](IDS).logits)
    else:
        with pytest.raises(ValueError, match="config.json is damaged: pruning_layout must be"):
            load_model(checkpoint)
    assert not mark.exists()


def test_embedded_model_is_plain_float32_safetensors(smollm2):
    model, _ = smollm2
    folder = cache_root() / "models" / "smollm2-135m"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert (folder / "model.safetensors").is_file() and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


def test_embedded_tokenizer_is_the_instruct_one(smollm2):
    model, tokenizer = smollm2
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert len(tokenizer) == model.config.vocab_size == 49152
    text = "Hello  world!\n\n 1234 don't é 漢字"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]  # digits stand alone
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_embedded_model_knows_english(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"


@pytest.mark.slow
def test_twin_with_own_heads_computes_the_same(smollm2):
    model, tokenizer = smollm2
    twin, own = load_model("smollm2-135m-mha")
    heads = model.config.num_attention_heads
    assert (model.config.num_key_value_heads, twin.config.num_key_value_heads) == (3, heads)
    ids = torch.tensor([tokenizer("The moon is made of")["input_ids"]])
    assert own("The moon is made of")["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        assert torch.allclose(twin(ids).logits, model(ids).logits, atol=1e-4)
    added = 2 * (heads - 3) * 64 * 576 * 30  # key and value rows of the copies, in 30 layers
    assert twin.num_parameters() - model.num_parameters() == added
    axes = discover(twin)
    assert axes["layers.0.attention"].n_groups == heads


def test_twin_is_made_of_the_embedded_model_and_not_of_the_users_own(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "smollm2-135m").mkdir()  # the user's own, and no checkpoint
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path))
    monkeypatch.setenv("PRUNER_LIB_CACHE", str(tmp_path / "cache"))
    copy = partial(shutil.copytree, checkpoint, dirs_exist_ok=True)
    monkeypatch.setattr(load, "_dequantise", copy)
    assert load_model("smollm2-135m-mha")[0].config.num_key_value_heads == 4


def test_tokenizer_of_the_first_llama_conversions_is_read_as_a_healthy_one(tmp_path):
    texts = []
    for name in ("healthy", "unhealthy"):
        stand_ins._llama_style(tmp_path / name, seed=0, first_conversion=name == "unhealthy")
        _, tokenizer = load_model(tmp_path / name)
        texts.append([tokenizer(text)["input_ids"] for text in ("the red dog", " A river.\n", "123 ?")])
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert texts[0] == texts[1] and texts[0][0][0] == 1
    with pytest.raises(RecursionError):
        AutoTokenizer.from_pretrained(tmp_path / "unhealthy")
