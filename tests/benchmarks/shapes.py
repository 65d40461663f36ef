"""The models that the benchmark measures: llamas of a given size, on the meta device or with random weights.

A size is a name from SHAPES (roughly, billions of parameters) or `LAYERSxWIDTH`, such as `8x1024`. Weights
are random, since time and memory do not depend on their values, and written in place in their final type.
"""

from __future__ import annotations

import re

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

# size -> hidden, MLP width, layers, heads, KV heads; the last three as published
SHAPES = {
    "tiny": (64, 96, 2, 4, 4),
    "0.1": (768, 2048, 12, 12, 12),
    "0.5": (1536, 4096, 16, 16, 16),
    "1": (2048, 5504, 20, 32, 32),
    "3": (3200, 8640, 26, 32, 32),
    "7": (4096, 11008, 32, 32, 32),
    "70": (8192, 28672, 80, 64, 8),
}
HEAD = 64  # size of a head of `LAYERSxWIDTH`
POOL = 2**22 + 3  # random numbers that fill all weights; an odd number, so that rows differ
SPREAD = 0.02  # standard deviation of the weights


def shape_config(size: str) -> LlamaConfig:
    """Return the config of a size.

    Raises:  ValueError: neither a known name nor LAYERSxWIDTH with a width in steps of 64.
    """
    drawn = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    if size not in SHAPES and not (drawn and int(drawn[2]) % HEAD == 0):
        raise ValueError(
            f"size is {size!r}; give one of {', '.join(SHAPES)}, or LAYERSxWIDTH with a width in steps of "
            f"{HEAD}, such as 8x1024"
        )
    if size in SHAPES:
        hidden, inner, layers, heads, kv_heads = SHAPES[size]
    else:
        layers, hidden = int(drawn[1]), int(drawn[2])
        inner, heads = hidden * 8 // 3 // HEAD * HEAD, hidden // HEAD
        kv_heads = heads
    return LlamaConfig(
        vocab_size=256 if size == "tiny" else 32_000, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        tie_word_embeddings=False,
    )  # fmt: skip


def meta_model(size: str, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    """Build a llama on the meta device; only the tables of its rotary embedding have real values."""
    with init_empty_weights(include_buffers=False):
        model = LlamaForCausalLM(shape_config(size))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # parameters only: rotary tables stay float32
    return model.eval()


def random_model(
    size: str, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu"
) -> LlamaForCausalLM:
    """Build a llama with random weights, written in place."""
    model = meta_model(size, dtype)
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).mul_(SPREAD).to(dtype).to(device)
    start = 0  # in the pool
    for module in model.modules():
        for name, empty in list(module._parameters.items()):
            if empty is None:
                continue
            weight = torch.empty(empty.shape, dtype=dtype, device=device)
            flat, done = weight.view(-1), 0
            while done < len(flat):
                n = min(len(pool) - start, len(flat) - done)
                flat[done : done + n] = pool[start : start + n]
                done, start = done + n, (start + n) % len(pool)
            module._parameters[name] = nn.Parameter(weight.add_(1) if weight.ndim == 1 else weight)
    return model.to(device)


def weights_mb(model: nn.Module) -> float:
    """Count the bytes of all parameters in their own types, in MiB; tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
