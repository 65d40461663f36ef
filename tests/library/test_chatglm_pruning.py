"""ChatGLM-6B from the hub's files is pruned, saved, loaded, recovered and measured like any other decoder."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from chatglm_folder import IDS, SIZES, prompts, random_chatglm, write_hub_folder
from families import generates_alike_with_cache, logits, random_scores
from huggingface_hub import constants
from made_questions import row
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from pruner_lib import (
    discover,
    estimate,
    load_model,
    mask_,
    perplexity,
    prune_,
    recover,
    save_model,
    select,
    zero_shot,
)
from pruner_lib.data.windows import text_ids
from pruner_lib.evaluation.efficiency import macs, memory_mb
from pruner_lib.evaluation.perplexity import generate_samples
from pruner_lib.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from pruner_lib.recovery.instructions import IGNORED, encode

HEADS, HEAD, INNER, HIDDEN = SIZES["num_attention_heads"], 8, SIZES["inner_hidden_size"], SIZES["hidden_size"]
UNEVEN, UNIFORM = dict(ratio=0.4, scope="global", protect_first=1), dict(ratio=0.34, uniform=True)
TEXT = "the old dog sees a red river near the small tree"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with the hub's files."""
    folder = tmp_path_factory.mktemp("hub") / "chatglm-6b"
    write_hub_folder(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(hub):
    return load_model(hub)


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded[1]


@pytest.fixture(scope="module")
def axes(model):
    return discover(model)


def pruned(model, axes, **options):
    plan = select(axes, random_scores(axes), **options)
    return prune_(copy.deepcopy(model), plan, axes=axes), plan


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("trusted", [False, True])
def test_hub_files_load_by_our_own_class_and_never_by_their_code(trusted, hub):
    """Each of the folder's code files raises an error as soon as it is run."""
    model, tokenizer = load_model(hub, trust_remote_code=trusted)
    assert type(model) is ChatGLMForConditionalGeneration and model.dtype == torch.float32
    wanted = random_chatglm().half().float()
    wanted.lm_head.weight.data = wanted.transformer.word_embeddings.weight.data
    assert torch.equal(logits(model, prompts()), logits(wanted, prompts()))
    assert tokenizer("the dog")["input_ids"][-1] == model.config.bos_token_id == IDS["bos_token_id"]
    assert model.generation_config.eos_token_id == IDS["eos_token_id"]


def test_output_layer_is_one_with_the_embedding_where_they_are_equal(model, tmp_path):
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    write_hub_folder(tmp_path, tied=False)
    untied, _ = load_model(tmp_path)
    assert untied.lm_head.weight is not untied.transformer.word_embeddings.weight
    assert untied.num_parameters() - model.num_parameters() == SIZES["vocab_size"] * HIDDEN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frequencies_in_the_files_are_not_read(dtype, hub, tmp_path):
    """Those of the hub hold ones here, the other folder none."""
    write_hub_folder(tmp_path)
    for path in tmp_path.glob("pytorch_model*"):
        path.unlink()
    model, _ = load_model(hub, dtype=dtype)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not any("inv_freq" in name for name in weights) and model.dtype == dtype
    assert torch.equal(logits(load_model(tmp_path, dtype=dtype)[0], prompts()), logits(model, prompts()))


def test_pickle_that_is_more_than_numbers_is_refused_and_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    write_hub_folder(tmp_path)
    torch.save({"lm_head.weight": Harmful()}, tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ValueError, match="more than numbers.*convert them to safetensors"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_later_versions_of_the_same_type_are_code_of_their_own(hub, tmp_path):
    write_hub_folder(tmp_path)
    change(tmp_path / "config.json", padded_vocab_size=65024)
    with pytest.raises(ValueError, match="custom code .*modeling_chatglm.py.*trust_remote_code=True"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="code of the folder was run"):
        load_model(tmp_path, trust_remote_code=True)
    (tmp_path / "config.json").write_text((hub / "config.json").read_text())
    change(tmp_path / "config.json", quantization_bit=4)
    with pytest.raises(
        ValueError, match="quantization_bit=4; expected the original ChatGLM-6B in floating point"
    ):
        load_model(tmp_path)


@pytest.mark.slow
def test_hub_id_is_found_in_the_hubs_cache_whole_or_pruned(model, axes, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place, commit = tmp_path / "models--THUDM--chatglm-6b", "a" * 40
    write_hub_folder(place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)
    found, own = load_model("THUDM/chatglm-6b")
    assert torch.equal(logits(found, prompts()), logits(model, prompts())) and own(TEXT) == tokenizer(TEXT)
    cut, _ = pruned(model, axes, **UNEVEN)
    save_model(cut, tokenizer, place / "snapshots" / ("b" * 40))
    found = copy.deepcopy(load_model(f"THUDM/chatglm-6b@{'b' * 40}")[0])
    assert torch.equal(logits(found, prompts()), logits(cut, prompts()))


def test_axes_are_those_that_a_person_would_draw(axes, model):
    """Head h holds rows 24 h to 24 h + 23 of the fused matrix: its query, its key, its value."""
    assert not axes.notes and len(axes) == 2 * SIZES["num_layers"] + 1
    for axis in axes.of_kind("attention").values():
        weight, bias, dense = axis.members
        assert (axis.n_groups, axis.width, dense.dim) == (HEADS, HEAD, 1)
        for member in (weight, bias):
            assert torch.equal(member.indices.sort().values, torch.arange(3 * HEADS * HEAD).view(HEADS, -1))
        assert torch.equal(dense.indices.sort().values, torch.arange(HEADS * HEAD).view(HEADS, HEAD))
    for axis in axes.of_kind("mlp").values():
        names = [(member.parameter.rpartition("mlp.")[2], member.dim) for member in axis.members]
        assert axis.n_groups == INNER
        assert names == [("dense_h_to_4h.weight", 0), ("dense_h_to_4h.bias", 0), ("dense_4h_to_h.weight", 1)]
    assert axes["hidden"].n_groups == HIDDEN
    assert len(discover(copy.deepcopy(model).to("meta"))) == len(axes)
    assert macs(model) == macs(copy.deepcopy(model).to("meta")) > 0


@pytest.mark.parametrize("ids", [prompts(3), prompts(3)[:, 7:]], ids=["prompts", "plain text"])
def test_every_criterion_scores_and_element1_is_that_of_plain_gradients(ids, model, axes):
    for criterion in ("random", "l1", "l2", "vector", "element1", "element2", "mixed"):
        scores = estimate(model, axes, ids, criterion=criterion)
        assert set(scores) == set(axes)
        assert all(torch.isfinite(score).all() and score.std() > 0 for score in scores.values()), criterion
    whole = copy.deepcopy(model)
    whole(ids, labels=ids).loss.backward()
    mlp, scores = whole.transformer.layers[1].mlp, estimate(model, axes, ids, criterion="element1")
    up, down = mlp.dense_h_to_4h, mlp.dense_4h_to_h
    wanted = (up.weight * up.weight.grad).abs().sum(1) + (up.bias * up.bias.grad).abs()
    wanted += (down.weight * down.weight.grad).abs().sum(0)
    torch.testing.assert_close(scores["layers.1.mlp"], wanted.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("options", [UNEVEN, UNIFORM, dict(ratio=0.5, protect_last=1)])
def test_cut_equals_mask(options, model, axes):
    cut, plan = pruned(model, axes, **options)
    masked = mask_(copy.deepcopy(model), plan, axes=axes)
    for ids in (prompts(3), prompts(3)[:, 7:]):
        assert (logits(cut, ids) - logits(masked, ids)).abs().max() < 1e-4
        assert (logits(model, ids) - logits(masked, ids)).abs().max() > 1e-2
    for i, layer in enumerate(cut.transformer.layers):
        kept = len(plan.keep.get(f"layers.{i}.attention", range(HEADS)))
        assert layer.attention.num_attention_heads == kept
        assert layer.attention.query_key_value.weight.shape == (3 * kept * HEAD, HIDDEN)
    assert generates_alike_with_cache(cut, prompts(1))


@pytest.mark.slow
def test_hidden_channels_and_whole_layers_go_too(model, axes, tmp_path):
    for granularity in ("channel", "layer"):
        cut, _ = pruned(model, axes, granularity=granularity, ratio=0.3)
        assert cut.num_parameters() < model.num_parameters() and generates_alike_with_cache(cut, prompts(1))
        save_model(cut, None, tmp_path / granularity)
    assert json.loads((tmp_path / "layer" / "config.json").read_text())["num_layers"] == 2
    assert json.loads((tmp_path / "channel" / "config.json").read_text())["hidden_size"] < HIDDEN


ELSEWHERE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.modules["pruner_lib"] = None
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model.generate(**tokenizer("the dog", return_tensors="pt"), max_new_tokens=2)
    torch.save(model(torch.load("ids.pt")).logits.detach(), f"{folder}.pt")
"""


@pytest.mark.slow
def test_folders_load_with_the_same_bits_here_and_where_pruner_lib_is_missing(
    model, axes, tokenizer, tmp_path
):
    kinds = {"whole": model, "uniform": pruned(model, axes, **UNIFORM)[0]}
    kinds["uneven"] = pruned(model, axes, **UNEVEN)[0]
    ids = prompts()
    torch.save(ids, tmp_path / "ids.pt")
    for kind, one in kinds.items():
        save_model(one, tokenizer, tmp_path / kind)
        config = json.loads((tmp_path / kind / "config.json").read_text())
        assert ("pruning_layout" in config) == (kind == "uneven")
        again, own = load_model(tmp_path / kind)
        assert isinstance(again, ChatGLMForConditionalGeneration) and own(TEXT) == tokenizer(TEXT)
        assert torch.equal(logits(copy.deepcopy(again), ids), logits(one, ids))
        assert again.lm_head.weight is again.transformer.word_embeddings.weight
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", ELSEWHERE, *kinds]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for kind, one in kinds.items():
        assert torch.equal(torch.load(tmp_path / f"{kind}.pt"), logits(one, ids))


def test_response_alone_is_learned_and_stands_behind_sop(tokenizer):
    [row] = encode([{"instruction": "Say it.", "output": "the red dog"}], tokenizer)
    ids, labels = row["input_ids"], row["labels"]
    start = ids.index(IDS["bos_token_id"]) + 1
    assert ids[start - 2] == IDS["gmask_token_id"] and labels[:start] == [IGNORED] * start
    answer = tokenizer("the red dog", add_special_tokens=False)["input_ids"]
    assert labels[start:] == ids[start:] == [*answer, IDS["eos_token_id"]]


@pytest.mark.slow
def test_recovery_trains_and_merges_the_adapter(model, axes, tokenizer, tmp_path):
    cut, _ = pruned(model, axes, **UNEVEN)
    examples = [{"instruction": "Say a.", "output": "a dog"}, {"instruction": "Say b.", "output": "b"}]
    result = recover(
        copy.deepcopy(cut), tokenizer, examples, output_dir=tmp_path / "r", steps=4, batch_size=2,
        micro_batch_size=2, warmup_steps=0, learning_rate=1e-2, merge=True,
    )  # fmt: skip
    losses = [one["loss"] for one in result.history if one["loss"] is not None]
    assert losses[-1] < losses[0]
    assert not torch.allclose(logits(result.model, prompts()), logits(cut, prompts()))
    save_model(result.model, tokenizer, tmp_path / "m")
    again = copy.deepcopy(load_model(tmp_path / "m")[0])
    assert torch.equal(logits(again, prompts()), logits(result.model, prompts()))


def test_perplexity_is_that_of_text_behind_an_empty_prompt(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path))
    (tmp_path / "mine.txt").write_text("\n\n".join([f"{TEXT} {i}" for i in range(9)]))
    ids = text_ids("mine", tokenizer, length=16)
    assert not torch.isin(ids, torch.tensor(tokenizer.prompt_end_ids)).any()
    opening = torch.tensor([tokenizer.prompt_end_ids]).expand(len(ids), -1)
    scored = logits(model, torch.cat([opening, ids], 1))[:, 2:-1]
    wanted = cross_entropy(scored.flatten(0, 1), ids[:, 1:].flatten()).exp().item()
    assert perplexity(model, ids) == pytest.approx(wanted, rel=1e-4)
    begun = text_ids("mine", tokenizer, length=16, bos=True)
    assert begun[0, :2].tolist() == tokenizer.prompt_end_ids and torch.equal(begun[0, 2:], ids[0, :14])
    assert torch.isfinite(torch.tensor(perplexity(model, begun)))


def test_text_is_generated_behind_a_prompt(model, tokenizer):
    [sample] = generate_samples(model, tokenizer, ["the old dog"], max_new_tokens=5, do_sample=False)
    ids = torch.tensor([tokenizer("the old dog")["input_ids"]])
    made = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert sample.text == tokenizer.decode(made, skip_special_tokens=True)


def test_choices_are_scored_behind_the_question_and_the_gap(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path))
    (tmp_path / "tasks").mkdir()
    rows = [row("piqa", number) for number in range(4)]
    (tmp_path / "tasks/piqa.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.warns(UserWarning, match="choice by choice"):
        score = zero_shot(model, tokenizer, ["piqa"])["piqa"]
    for question, bits in zip(rows, score.bits_per_byte, strict=True):
        prompt = tokenizer(f"Question: {question['goal']}\nAnswer:")["input_ids"]
        right = (question["sol1"], question["sol2"])[question["label"]]
        ids = torch.tensor([prompt + tokenizer(right, add_special_tokens=False)["input_ids"]])
        log = logits(model, ids)[0, len(prompt) - 1 : -1].log_softmax(-1)
        nats = -log.gather(-1, ids[0, len(prompt) :, None]).sum().item()
        assert bits == pytest.approx(nats / math.log(2) / len(f" {right}"), rel=1e-3)


@pytest.mark.slow
def test_full_size_has_the_parameters_and_the_memory_of_the_preprints_table_3():
    """6.17 billion and 5.57 billion; an eighth of the groups of 24 layers is the paper's "10 %"."""
    with torch.device("meta"):
        whole = ChatGLMForConditionalGeneration(ChatGLMConfig(tie_word_embeddings=True))
    assert whole.num_parameters() == 6_173_286_400
    assert memory_mb(whole) == pytest.approx(11775.3, abs=0.5)
    axes = discover(whole)
    plan = select(axes, random_scores(axes), ratio=0.125, protect_first=3, protect_last=1)
    cut = prune_(whole, plan, axes=axes)
    assert cut.num_parameters() == 5_569_220_608 and memory_mb(cut) == pytest.approx(10622.8, abs=0.5)
