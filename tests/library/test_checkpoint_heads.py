"""An unevenly pruned folder under other heads and after other changes, and what it needs trust for."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from families import build, first_of, logits, random_scores, tokens
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    LlamaModel,
)

from pruner_lib import discover, load_model, mask_, prune_, save_model, select
from pruner_lib.models.tiny import tiny_tokenizer

PLAIN, UNEVEN = {"ratio": 0.5}, {"ratio": 0.4, "scope": "global", "protect_first": 1}
CHANNELS = {"ratio": 0.25, "granularity": "channel"}
ODD = {"ratio": 0.3, "granularity": "channel"}  # of a width that the config can't say
HEADS = [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification]


def pruned(family: str, options: dict, **changes):
    model = build(family, **changes)
    axes = discover(model)
    return prune_(model, select(axes, random_scores(axes), **options), axes=axes)


def load(folder, head=AutoModelForCausalLM, **options):
    return head.from_pretrained(folder, trust_remote_code=True, **options).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("folders")
    kinds = {"plain": PLAIN, "uneven": UNEVEN}
    return {
        kind: save_model(pruned("llama-gqa", options), tiny_tokenizer(), made / kind)
        for kind, options in kinds.items()
    }


def hidden(model) -> torch.Tensor:
    with torch.no_grad():
        return model.base_model(tokens()).last_hidden_state


@pytest.mark.parametrize("family", first_of(["llama-tied", "gpt2", "opt", "glm"]))
def test_the_body_loads_alone_and_under_a_classifier(family, tmp_path):
    """And is saved again, from where the language model's body loads, too."""
    model = pruned(family, UNEVEN)
    folder = save_model(model, None, tmp_path / "m")
    for head in (AutoModel, AutoModelForSequenceClassification):
        once = load(folder, head)
        assert torch.equal(hidden(once), hidden(model))
        once.save_pretrained(tmp_path / head.__name__)
        for other in (head, AutoModelForCausalLM):
            again = load(tmp_path / head.__name__, other)
            assert torch.equal(hidden(again), hidden(model))
            ours, theirs = ([p.shape for p in one.base_model.parameters()] for one in (model, again))
            assert ours == theirs


@pytest.mark.parametrize("family", first_of(["bloom", "qwen2"]))
def test_a_folder_that_was_loaded_with_its_own_code_is_cut_again(family, tmp_path):
    """Its layers' configs and the selection of its position biases are of classes in the folder's code."""
    model = load(save_model(pruned(family, UNEVEN), None, tmp_path / "m"))
    axes = discover(model)
    plan = select(axes, random_scores(axes, 1), ratio=0.4, protect_first=1)
    masked = logits(mask_(copy.deepcopy(model), plan), tokens())
    assert (logits(prune_(model, plan), tokens()) - masked).abs().max() < 1e-4
    model.set_attn_implementation("eager")
    configs = [module.config for module in model.modules() if "config" in vars(module)]
    assert {config._attn_implementation for config in configs} == {"eager"}


@pytest.mark.parametrize("family", first_of(["llama-tied", "gpt2"]))
def test_tokens_are_classified_on_the_same_body(family, tmp_path):
    model = pruned(family, UNEVEN)
    once = load(save_model(model, None, tmp_path / "m"), AutoModelForTokenClassification)
    assert torch.equal(hidden(once), hidden(model))


@pytest.mark.parametrize("mismatch", [False, True])
@pytest.mark.parametrize("by_name", first_of([LlamaForCausalLM, LlamaModel, LlamaForTokenClassification]))
def test_a_class_that_is_called_by_its_name_is_stopped(by_name, mismatch, folders):
    """It would build the dense widths, and fill them at random where it may."""
    with pytest.raises(ValueError, match="AutoModelForCausalLM.from_pretrained.*trust_remote_code=True"):
        by_name.from_pretrained(folders["uneven"], ignore_mismatched_sizes=mismatch)
    assert by_name.from_pretrained(folders["plain"], ignore_mismatched_sizes=mismatch)


def test_trust_lets_no_other_head_fill_the_body_at_random(folders):
    with pytest.raises(ValueError, match="AutoModelForCausalLM.from_pretrained.*trust_remote_code=True"):
        load(folders["uneven"], AutoModelForQuestionAnswering, ignore_mismatched_sizes=True)


@pytest.mark.slow
def test_a_head_that_transformers_has_not_is_named(folders, tmp_path):
    save_model(pruned("granite", UNEVEN), None, tmp_path / "m")
    with pytest.raises(ValueError, match="has no AutoModelForSequenceClassification for granite"):
        load(tmp_path / "m", AutoModelForSequenceClassification)
    assert load(tmp_path / "m", AutoModel)
    with pytest.raises(ValueError, match="has no AutoModelForMultipleChoice for llama"):
        load(folders["uneven"], AutoModelForMultipleChoice)


@pytest.mark.parametrize("mismatch", [False, True])
@pytest.mark.parametrize("head", HEADS, ids=lambda c: c.__name__)
def test_without_trust_nothing_is_filled_at_random(head, mismatch, folders, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "n")  # on a terminal transformers asks
    with pytest.raises(ValueError, match="pass the argument `trust_remote_code=True`"):
        head.from_pretrained(folders["uneven"], ignore_mismatched_sizes=mismatch)
    trusted = load(folders["uneven"], head, ignore_mismatched_sizes=mismatch)
    assert torch.equal(hidden(trusted), hidden(load(folders["uneven"])))
    assert head.from_pretrained(folders["plain"], ignore_mismatched_sizes=mismatch)


@pytest.mark.parametrize("kind", ["plain", "uneven"])
def test_the_tokenizer_needs_no_trust(kind, folders, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    assert tokenizer("a b")["input_ids"] == tiny_tokenizer()("a b")["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [UNEVEN, CHANNELS, ODD], ids=["uneven", "channels", "odd"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_may_grow_after_the_cut(tied, options, tmp_path):
    model = pruned("llama-gqa", options, tie_word_embeddings=tied)
    model.resize_token_embeddings(70)
    save_model(model, None, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    for name in ("ours", "theirs"):
        again = load(tmp_path / name)
        assert torch.equal(logits(again, tokens()), logits(model, tokens()))
        assert again.get_output_embeddings().weight.shape == model.get_output_embeddings().weight.shape
        assert len(again.get_input_embeddings().weight) == 70
        assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied


@pytest.mark.slow
@pytest.mark.parametrize("options", [UNEVEN, ODD], ids=["uneven", "odd"])
def test_a_model_whose_vocabulary_grew_can_be_cut_again(options, tmp_path):
    model = pruned("llama-gqa", options)
    model.resize_token_embeddings(70)
    axes = discover(model)
    plan = select(axes, random_scores(axes, seed=1), ratio=0.5, protect_first=1)
    masked = logits(mask_(copy.deepcopy(model), plan, axes=axes), tokens())
    assert (logits(prune_(model, plan, axes=axes), tokens()) - masked).abs().max() < 1e-4
    save_model(model, None, tmp_path / "m")
    assert torch.equal(logits(load(tmp_path / "m"), tokens()), logits(model, tokens()))


def test_folders_of_an_earlier_form_load(folders, tmp_path):
    """Their config named the causal language model alone, and stopped nobody."""
    model, old = load(folders["uneven"]), tmp_path / "old"
    model.save_pretrained(old)
    tiny_tokenizer().save_pretrained(old)
    settings = json.loads((old / "config.json").read_text())
    head = "AutoModelForCausalLM"
    del settings["transformers_weights"]
    settings["auto_map"] = {head: settings["auto_map"][head]}
    (old / "config.json").write_text(json.dumps(settings))
    for again in (load(old), load_model(old)[0], load_model(old, trust_remote_code=True)[0]):
        assert torch.equal(logits(again, tokens()), logits(model, tokens()))
