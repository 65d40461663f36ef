"""Exact twins of the embedded model: the same function, in the shape of another architecture.

LLaMA-7B has a key and a value head for each query head; SmolLM2 shares three of them among nine. Cut into
quarters, three heads lose none or one, so the paper's setting (25 % of the groups) can't be carried out. The
twin `smollm2-135m-mha` repeats each shared head: nine heads, each a group of its own, and the same logits.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from transformers import PreTrainedModel

SHARED = ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias")


@torch.no_grad()
def with_own_heads(model: PreTrainedModel) -> PreTrainedModel:
    """Give each query head its own copy of the key and value head that it shares (GQA becomes MHA).

    Query head q of n reads key-value head q // (n / n_kv), so each is repeated n / n_kv times in a row.

    Args:    model: of the LLaMA kind, with `k_proj` and `v_proj` of shape `(n_kv * head_dim, hidden)`.
    Returns: a new model with the same logits and more parameters.
    """
    config = deepcopy(model.config)
    n_kv, config.num_key_value_heads = config.num_key_value_heads, config.num_attention_heads
    times = config.num_attention_heads // n_kv
    weights = {
        name: weight.unflatten(0, (n_kv, -1)).repeat_interleave(times, 0).flatten(0, 1)  # (n * head_dim, ...)
        if name.endswith(SHARED)
        else weight
        for name, weight in model.state_dict().items()
    }
    with torch.device("meta"):
        twin = type(model)(config)
    twin.load_state_dict(weights, assign=True)
    twin.tie_weights()
    twin.generation_config = model.generation_config
    return twin.eval()
