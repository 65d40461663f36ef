"""A GGUF file is the same model for llama.cpp as it is for transformers, or it is not written."""

from __future__ import annotations

import pytest
import torch
from families import VOCABULARY, build, first_of, random_scores
from gguf import GGUFReader
from gguf_client import LlamaCpp
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pruner_lib import discover, prune_, save_model, select, to_gguf
from pruner_lib.models import export
from pruner_lib.models.export import check_gguf

PROMPT = [1, 7, 42, 33, 60, 12, 17]
OPTIONS = {
    "even": {"ratio": 0.5},
    "uneven": {"ratio": 0.4, "scope": "global", "protect_first": 1},
    "channels": {"ratio": 0.25, "granularity": "channel"},
    "layers": {"ratio": 0.4, "granularity": "layer"},
}
SAME = 0.01  # of a log-probability; llama.cpp's exponentials are good to three digits


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer whose every token is a text by itself: llama.cpp reports no log-probability of others."""
    special = ["<unk>", "<s>", "</s>"]
    words = [a + b for a in "abcdefgh" for b in "abcdefgh"][: VOCABULARY - len(special)]
    known = {token: i for i, token in enumerate(special + words)}
    made = Tokenizer(models.BPE(vocab=known, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def pruned(family: str, options: str, **changes):
    model = build(family, **changes)
    axes = discover(model)
    return prune_(model, select(axes, random_scores(axes), **OPTIONS[options]), axes=axes)


def disagreement(model, path) -> float:
    return LlamaCpp(to_gguf(model, path, tokenizer=letters())).disagreement(model, PROMPT)


@pytest.fixture(scope="module")
def uneven():
    return pruned("llama-gqa", "uneven")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.gguf"


def architecture(path) -> str:
    return GGUFReader(path).fields["general.architecture"].contents()


@pytest.mark.parametrize(
    ("family", "options", "written"),
    first_of(
        [
            ("llama-gqa", "even", "llama"),
            ("llama-gqa", "uneven", "deci"),
            ("llama-tied", "channels", "llama"),
            ("llama-biases", "uneven", "deci"),
            ("mistral", "layers", "llama"),
            ("mistral", "uneven", "deci"),
            ("qwen2", "even", "llama"),
            ("qwen2", "uneven", "deci"),
        ],
        n=3,
    ),
)
def test_llama_cpp_computes_the_pruned_model(family, options, written, path):
    assert disagreement(pruned(family, options), path) < SAME
    assert architecture(path) == written


@pytest.mark.slow
def test_query_heads_of_each_key_and_value_head_may_be_fewer(path):
    model = build("llama-gqa")
    axes = discover(model, query_heads=True)
    prune_(model, select(axes, random_scores(axes), ratio=0.3, protect_first=1))
    counts = [layer.self_attn.q_proj.out_features // 8 for layer in model.model.layers]
    assert counts == [6, 4, 4] and disagreement(model, path) < SAME


@pytest.mark.slow
def test_rows_in_the_order_of_transformers_are_another_model(uneven, path, monkeypatch):
    monkeypatch.setattr(export, "interleaved", lambda rows, n_heads: rows)
    assert disagreement(uneven, path) > 10 * SAME


def test_uneven_widths_are_no_llama(uneven, path, monkeypatch):
    writer = export.GGUFWriter
    monkeypatch.setattr(export, "GGUFWriter", lambda path, name: writer(path, "llama"))
    with pytest.raises(RuntimeError, match="Failed to init"):
        disagreement(uneven, path)


def test_rows_of_a_head_are_interleaved():
    rows = torch.arange(8)[:, None] + torch.tensor([0, 100])
    assert export.interleaved(rows, 1)[:, 1].tolist() == [100, 104, 101, 105, 102, 106, 103, 107]
    assert export.interleaved(torch.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES)
def test_scaled_positions_are_the_same(rope, path, monkeypatch):
    model = pruned("llama-gqa", "uneven", rope_parameters=ROPES[rope])
    assert disagreement(model, path) < SAME
    monkeypatch.setattr(export, "_rope_factors", lambda model: None)
    assert disagreement(model, path) > 2 * SAME


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_written_and_vectors_stay_whole(dtype, uneven, path):
    to_gguf(uneven, path, tokenizer=letters(), dtype=dtype)
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    wanted = export.TYPES[dtype][0]
    assert tensors["blk.1.attn_k.weight"].tensor_type == tensors["output.weight"].tensor_type == wanted
    assert tensors["blk.1.attn_norm.weight"].tensor_type == export.TYPES[torch.float32][0]
    assert 1e-5 < LlamaCpp(path).disagreement(uneven, PROMPT) < 0.2


def test_a_folder_becomes_the_same_file(uneven, path, tmp_path):
    save_model(uneven, letters(), tmp_path / "m")
    to_gguf(tmp_path / "m", path)
    twin = to_gguf(uneven, tmp_path / "twin.gguf", tokenizer=letters())
    assert path.read_bytes() == twin.read_bytes()
    to_gguf(build("llama-gqa"), twin, tokenizer=letters())
    assert path.read_bytes() != twin.read_bytes()


def test_the_context_ends_where_a_sliding_window_begins_to_slide(path):
    for window, length in ((8, 8), (4096, 64), (None, 64)):
        to_gguf(build("mistral", sliding_window=window), path, tokenizer=letters())
        assert GGUFReader(path).fields["llama.context_length"].contents() == length


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
REFUSED = {
    "gemma2": ({}, "of the types llama, mistral, qwen2, got 'gemma2'"),
    "qwen3": ({}, "got 'qwen3'"),
    "llama-gqa": ({"hidden_act": "gelu"}, "hidden_act is gelu"),
    "llama-mha": ({"rope_parameters": YARN}, "rope_type is yarn"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(family, path):
    changes, reason = REFUSED[family]
    model = build(family, **changes)
    for refuse in (lambda: to_gguf(model, path, tokenizer=letters()), lambda: check_gguf(model, letters())):
        with pytest.raises(ValueError, match=reason):
            refuse()
    assert not list(path.parent.iterdir())
    model = build("llama-gqa")
    check_gguf(model, letters())
    with pytest.raises(ValueError, match="language models .*, got 'llama' .LlamaModel."):
        check_gguf(model.model, letters())


@pytest.mark.parametrize("part", ["scales", "rotated", "epsilons"])
def test_what_a_config_does_not_say_is_looked_at_too(part, path):
    model = build("llama-gqa")
    if part == "scales":
        model.model.layers[1].self_attn.scaling = 1.0
    elif part == "rotated":
        model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:2]
    else:
        model.model.layers[1].input_layernorm.variance_epsilon = 0.1
    with pytest.raises(ValueError, match=f"no GGUF can be written: llama.cpp does not support .*{part}"):
        to_gguf(model, path, tokenizer=letters())


def test_a_parameter_that_a_llama_has_not_is_refused(uneven, path):
    model = build("llama-gqa")
    model.model.layers[0].self_attn.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no parameter model.layers.0.self_attn.extra.weight"):
        to_gguf(model, path, tokenizer=letters())
    model = build("llama-gqa")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    with pytest.raises(ValueError, match="llama.cpp's llama has no parameter lm_head.bias"):
        to_gguf(model, path, tokenizer=letters())


def test_an_older_file_stays_where_weights_are_too_large(path):
    model = build("llama-gqa")
    to_gguf(model, path, tokenizer=letters(), dtype=torch.float16)
    before = path.read_bytes()
    with torch.no_grad():
        model.lm_head.weight[5, 5] = 1e6
    with pytest.raises(ValueError, match="output.weight has values too large for float16"):
        to_gguf(model, path, tokenizer=letters(), dtype=torch.float16)
    assert path.read_bytes() == before and [path] == list(path.parent.iterdir())
    to_gguf(model, path, tokenizer=letters(), dtype=torch.bfloat16)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": torch.nn.Linear(2, 2)}, "model must be a model of transformers, .*got Linear"),
        ({"model": "nothing"}, "unknown model 'nothing'"),
    ],
)
def test_other_arguments_are_refused(options, reason, uneven, path):
    with pytest.raises(ValueError, match=reason):
        to_gguf(**{"model": uneven, "path": path, "tokenizer": letters()} | options)
