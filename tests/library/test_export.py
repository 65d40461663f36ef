"""A GGUF file is the same model for llama.cpp as its folder is for transformers, or is not written."""

from __future__ import annotations

import pytest
import torch
from families import VOCABULARY, build, random_scores
from llama_cpp import LlamaCpp
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pruner_lib import discover, prune_, select, to_gguf
from pruner_lib.models import export

PROMPT = [1, 7, 42, 33, 60, 12, 17]
EVEN = {"ratio": 0.5}
UNEVEN = {"ratio": 0.4, "scope": "global", "protect_first": 1}
CHANNELS = {"ratio": 0.25, "granularity": "channel"}
LAYERS = {"ratio": 0.4, "granularity": "layer"}
SAME = 1e-3  # of log-probabilities in float32


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer whose every token is a text by itself, which bytes are not: llama.cpp reports such alone."""
    special = ["<unk>", "<s>", "</s>"]
    words = [a + b for a in "abcdefgh" for b in "abcdefgh"][: VOCABULARY - len(special)]
    known = {token: i for i, token in enumerate(special + words)}
    made = Tokenizer(models.BPE(vocab=known, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def pruned(family: str, options: dict, **changes):
    model = build(family, **changes)
    axes = discover(model)
    return prune_(model, select(axes, random_scores(axes), **options))


@pytest.fixture(scope="module")
def uneven():
    return pruned("llama-gqa", UNEVEN)


@pytest.mark.parametrize("options", [EVEN, UNEVEN, CHANNELS, LAYERS], ids=["even", "uneven", "channels", "layers"])
@pytest.mark.parametrize("family", ["llama-gqa", "llama-tied", "llama-biases", "mistral", "qwen2"])
def test_llama_cpp_computes_the_pruned_model(family, options, tmp_path):
    model = pruned(family, options)
    assert LlamaCpp(to_gguf(model, tmp_path / "m", tokenizer=letters())).disagreement(model, PROMPT) < SAME


def test_rows_in_the_order_of_transformers_are_another_model(uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "interleaved", lambda rows, n_heads: rows)
    path = to_gguf(uneven, tmp_path / "m.gguf", tokenizer=letters())
    assert LlamaCpp(path).disagreement(uneven, PROMPT) > 10 * SAME


def test_uneven_widths_are_no_llama(uneven, tmp_path, monkeypatch):
    writer = export.GGUFWriter
    monkeypatch.setattr(export, "GGUFWriter", lambda path, arch: writer(path, "llama"))
    path = to_gguf(uneven, tmp_path / "m.gguf", tokenizer=letters())
    with pytest.raises(RuntimeError):
        LlamaCpp(path)
