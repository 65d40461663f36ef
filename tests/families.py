"""Small random decoders of the families that the study must cut right, and how to tell a wrong cut from a
right one.

Norms are randomised and weights scaled up: at ones and near zero a wrong cut would pass.
"""

from __future__ import annotations

import torch
import transformers
from transformers import AutoModelForCausalLM

VOCABULARY = 64
COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
MHA = {"num_key_value_heads": 6}

# name -> (config class, its arguments, KV groups, channels of a group, MLP channels)
FAMILIES = {
    "llama-mha": ("LlamaConfig", COMMON | MHA, 6, 8, 40),
    "llama-gqa": ("LlamaConfig", COMMON, 2, 8, 40),
    "llama-tied": ("LlamaConfig", COMMON | {"tie_word_embeddings": True}, 2, 8, 40),
    "llama-biases": ("LlamaConfig", COMMON | {"attention_bias": True, "mlp_bias": True}, 2, 8, 40),
    "mistral": ("MistralConfig", COMMON, 2, 8, 40),
    "qwen2": ("Qwen2Config", {k: v for k, v in COMMON.items() if k != "head_dim"}, 2, 4, 40),
    "qwen3": ("Qwen3Config", COMMON, 2, 8, 40),
    "gemma2": ("Gemma2Config", COMMON | {"sliding_window": 4}, 2, 8, 40),
    "phi3": ("Phi3Config", {k: v for k, v in COMMON.items() if k != "head_dim"}, 2, 4, 40),
    "gpt_neox": ("GPTNeoXConfig", {k: v for k, v in COMMON.items() if k != "head_dim"}, 6, 4, 40),
    "gpt2": (
        "GPT2Config",
        dict(vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=6, n_positions=64), 6, 4, 96,
    ),
    "bloom": ("BloomConfig", dict(vocab_size=VOCABULARY, hidden_size=24, n_layer=3, n_head=6), 6, 4, 96),
    "glm": ("GlmConfig", COMMON, 2, 8, 40),
}  # fmt: skip
CHANNEL_FAMILIES = ("llama-mha", "llama-gqa", "llama-tied", "llama-biases", "mistral", "qwen2")


def build(name: str, **changes) -> torch.nn.Module:
    """A random model of a family, in evaluation mode; `changes` go into its config."""
    config_class, arguments = FAMILIES[name][:2]
    config = getattr(transformers, config_class)(**arguments | changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
            else:
                parameter.uniform_(0.5, 1.5)
    return model


def tokens(samples: int = 2, length: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def random_scores(axes, seed: int = 0, dependency: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(
            axis.n_groups if dependency else (len(axis.structures), axis.n_groups), generator=generator
        )
        for name, axis in axes.items()
    }


def touches_stream(name: str, dim: int, size: int) -> bool:
    """Is this dim of a llama-like parameter one entry a hidden channel? Written down by hand."""
    rows_of_heads = dim == 0 and any(x in name for x in ("q_proj", "k_proj", "v_proj"))
    columns_of_heads = dim == 1 and "o_proj" in name
    return size == 24 and not rows_of_heads and not columns_of_heads
