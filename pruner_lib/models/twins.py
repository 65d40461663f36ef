"""Exact twins of the embedded model: the same function in another architecture.

LLaMA-7B has a key-value head for each query head; SmolLM2's nine query heads share three. The paper removes
25 % of the groups, which is impossible with three. The twin `smollm2-135m-mha` repeats each shared head: it
has nine groups per layer and the same logits.

The twin `smollm2-135m-glm` is a GLM: its gate and up projections are one matrix, and channels that rotate
together are adjacent. It has the same groups as the llama, at other indices.
"""

from copy import deepcopy

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM, PreTrainedModel

SHARED = ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias")


@torch.no_grad()
def with_own_heads(model: PreTrainedModel) -> PreTrainedModel:
    """Give each query head a copy of the key-value head that it shares (turn GQA into MHA).

    Query head q of n uses key-value head q // (n / n_kv), so each is repeated n / n_kv times in a row.

    Args:    model: LLaMA-like, with `k_proj` and `v_proj` of shape `(n_kv * head_dim, hidden)`.
    Returns: a new model with the same logits and more parameters.
    """
    config = deepcopy(model.config)
    n_kv, config.num_key_value_heads = config.num_key_value_heads, config.num_attention_heads
    times = config.num_attention_heads // n_kv
    weights = model.state_dict()
    for name in (name for name in weights if name.endswith(SHARED)):
        heads = weights[name].unflatten(0, (n_kv, -1))  # (n_kv, head_dim, ...)
        weights[name] = heads.repeat_interleave(times, 0).flatten(0, 1)  # (n * head_dim, ...)
    return _build(type(model), config, weights, model)


@torch.no_grad()
def as_glm(model: PreTrainedModel) -> PreTrainedModel:
    """Convert a llama to a GLM.

    Args:    model: LLaMA-like, with the same widths in all layers and no biases in its MLPs.
    Returns: a new model with the same logits and number of parameters; unchanged ones are shared.
    """
    old = model.config
    theta = old.rope_parameters["rope_theta"]
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 1.0}
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "attention_bias",
            "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip
    config = GlmConfig(**{key: getattr(old, key) for key in same}, rope_parameters=rope)
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if name.endswith((".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias")):
            weight = interleaved(weight, len(weight) // old.head_dim)
        elif name.endswith(".gate_proj.weight"):
            up = model.get_parameter(name.replace("gate_proj", "up_proj"))
            name, weight = name.replace("gate_proj", "gate_up_proj"), torch.cat([weight, up])
        if not name.endswith(".up_proj.weight"):
            weights[name] = weight
    return _build(GlmForCausalLM, config, weights, model)


def interleaved(rows: Tensor, n_heads: int) -> Tensor:
    """Reorder the rows of each head as GLM and llama.cpp rotate them.

    A llama rotates row i of a head together with row i + head_dim / 2, they rotate row 2 i with 2 i + 1:

        0 1 2 3 | 4 5 6 7  ->  0 4 1 5 2 6 3 7

    Args:    rows: `(n_heads * head_dim, ...)`, a weight or a bias.
    """
    halves = rows.unflatten(0, (n_heads, 2, -1))  # (n_heads, 2, head_dim / 2, ...)
    return halves.transpose(1, 2).flatten(0, 2)


def _build(cls: type, config: object, weights: dict[str, Tensor], model: PreTrainedModel) -> PreTrainedModel:
    with init_empty_weights():  # only parameters are empty; buffers such as frequencies are computed
        twin = cls(config)
    twin.load_state_dict(weights, assign=True)
    twin.tie_weights()
    twin.generation_config = model.generation_config
    return twin.eval()
