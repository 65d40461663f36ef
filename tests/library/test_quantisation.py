"""Linear layers in 8 bits: exact where whole numbers suffice, near elsewhere, and as large as published."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from pruner_lib import load_model, perplexity
from pruner_lib.data.windows import text_ids
from pruner_lib.evaluation.efficiency import count_parameters, macs, memory_mb, weight_bytes
from pruner_lib.evaluation.int8 import Int8Linear, integer_product, is_quantised, quantise_


def linear(weight, bias=None):
    weight = torch.as_tensor(weight, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(torch.as_tensor(bias))
    return layer


def error(small, whole, x):
    with torch.no_grad():
        return float((small(x) - whole(x)).norm() / whole(x).norm())


def test_weights_and_inputs_that_are_whole_numbers_are_multiplied_exactly():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (5, 16), generator=generator).float()
    x = torch.randint(-127, 128, (2, 3, 16), generator=generator).float()
    weight[:, 0], x[..., 0] = 127, 127  # so that both scales are a power of two times one
    bias = torch.arange(5.0)
    whole, small = linear(weight * 0.5, bias), Int8Linear(linear(weight * 0.5, bias), outlier=None)
    assert torch.allclose(small(x / 4), whole(x / 4), rtol=1e-6)
    assert not torch.allclose(small(x / 4 + 0.1), whole(x / 4 + 0.1), rtol=1e-6)


def test_each_output_and_each_token_has_a_scale_of_its_own():
    torch.manual_seed(0)
    weight, x = torch.randn(8, 32) * torch.logspace(-3, 3, 8)[:, None], torch.randn(4, 32)
    x *= torch.logspace(-3, 0, 4)[:, None]
    whole = linear(weight)
    fine = Int8Linear(whole, outlier=None)
    coarse = Int8Linear(whole, outlier=None, per_token=False)
    relative = [((one(x) - whole(x)).abs() / whole(x).abs().mean(0)).detach() for one in (fine, coarse)]
    row = [(one[0] / (whole(x)[0].abs() / whole(x).abs().mean(0))).median() for one in relative]
    assert row[0] < 0.05 < row[1]  # the smallest token is lost without a scale of its own


def test_columns_with_outliers_stay_exact():
    torch.manual_seed(0)
    whole, x = linear(torch.randn(16, 64)), torch.randn(10, 64)
    x[3, 7] = 60.0  # one token, one column
    assert error(Int8Linear(whole), whole, x) < 0.02
    assert error(Int8Linear(whole, outlier=None), whole, x) > 2 * error(Int8Linear(whole), whole, x)
    x[3, 7] = 5.0  # no outlier: the same either way
    assert torch.equal(Int8Linear(whole)(x), Int8Linear(whole, outlier=None)(x))


def test_zero_input_and_zero_weights_give_zero():
    assert torch.equal(Int8Linear(linear(torch.zeros(3, 8)))(torch.zeros(2, 8)), torch.zeros(2, 3))
    assert torch.equal(Int8Linear(linear(torch.ones(3, 8)))(torch.zeros(2, 8)), torch.zeros(2, 3))


@pytest.mark.parametrize("sizes", [(1, 8, 8), (5, 13, 3), (40, 100, 50)])
def test_product_of_any_sizes_is_that_of_the_whole_numbers(sizes):
    m, k, n = sizes
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (m, k), generator=generator, dtype=torch.int8)
    b = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
    assert torch.equal(integer_product(a, b), (a.int() @ b.int().T).float())


def test_model_stays_nearly_the_same_and_its_output_layer_the_very_same():
    model, tokenizer = load_model("tiny")
    ids = text_ids("tiny", tokenizer, length=16, windows=8)
    before, parameters, bytes_before = perplexity(model, ids), count_parameters(model), weight_bytes(model)
    counted = macs(model)
    assert not is_quantised(model)
    quantise_(model)
    assert is_quantised(model) and type(model.get_output_embeddings()) is nn.Linear
    after = perplexity(model, ids)
    assert after != before and after == pytest.approx(before, rel=0.03)
    assert count_parameters(model) == parameters and weight_bytes(model) < 0.6 * bytes_before
    assert macs(model) >= counted


def test_half_precision_goes_in_and_comes_out():
    torch.manual_seed(0)
    layer = linear(torch.randn(8, 16)).to(torch.bfloat16)
    out = Int8Linear(layer)(torch.randn(3, 16, dtype=torch.bfloat16))
    assert (
        out.dtype == torch.bfloat16
        and error(Int8Linear(layer.float()), layer.float(), torch.randn(3, 16)) < 0.02
    )


def test_llama_7b_in_8_bits_takes_the_memory_that_was_published():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig())  # its defaults are those of LLaMA-7B
    assert memory_mb(quantise_(model)) == pytest.approx(6777.7, abs=0.05)  # Table 13
    assert count_parameters(model) == 6_738_415_616


def test_model_without_plain_linear_layers_is_refused():
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=8)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        ValueError, match="GPT2LMHeadModel has no linear layers .torch.nn.Linear. to quantise"
    ):
        quantise_(model)
