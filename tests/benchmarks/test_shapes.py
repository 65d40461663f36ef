"""The models of the benchmark: published shapes, weights made in place, one copy in one type."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.shapes import SHAPES, meta_model, random_model, shape_config


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_sizes_are_what_their_names_say():
    assert count(meta_model("7")) == 6_738_415_616, "LLaMA-7B"
    for size in SHAPES:
        if size != "tiny":
            assert count(meta_model(size)) / 1e9 == pytest.approx(float(size), rel=0.36)
    assert count(meta_model("70")) == 68_976_648_192, "LLaMA 2 70B"
    grid = shape_config("8x1024")
    assert (grid.num_hidden_layers, grid.hidden_size, grid.num_attention_heads) == (8, 1024, 16)


@pytest.mark.parametrize("size", ["", "6.7", "0x64", "2x0", "2x100", "x64"])
def test_an_unknown_size_names_the_known_ones(size):
    with pytest.raises(ValueError, match="give one of tiny, 0.1, .* such as 8x1024"):
        shape_config(size)


def test_random_weights_give_a_model_that_computes():
    model = random_model("2x128")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32 and not model.training
    logits = model(torch.tensor([[5, 6, 7]])).logits.float()
    assert torch.isfinite(logits).all() and logits.std() > 0.05
    first, second = model.model.layers[0].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight
    assert 0.019 < first.float().std() < 0.021 and not torch.equal(first, second)
    assert torch.equal(random_model("2x128").lm_head.weight, model.lm_head.weight), "the same each time"
