"""Small random decoders of the families that the study must cut right, with weights that show a wrong cut.

Norms are randomised and weights scaled up: at ones and near zero a wrong cut would pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from pruner_lib import Axes, discover

VOCABULARY = 64
COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
MHA = {"num_key_value_heads": 6}

NO_HEAD_DIM = {k: v for k, v in COMMON.items() if k != "head_dim"}
OLD_GPT = dict(vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=6, n_positions=256)

FAMILIES = {  # name -> (config class, its arguments)
    "llama-mha": ("LlamaConfig", COMMON | MHA),
    "llama-gqa": ("LlamaConfig", COMMON),
    "llama-tied": ("LlamaConfig", COMMON | {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaConfig", COMMON | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", COMMON),
    "qwen2": ("Qwen2Config", NO_HEAD_DIM),
    "qwen3": ("Qwen3Config", COMMON),
    "gemma2": ("Gemma2Config", COMMON | {"sliding_window": 4}),
    "phi3": ("Phi3Config", NO_HEAD_DIM),
    "gpt_neox": ("GPTNeoXConfig", NO_HEAD_DIM),
    "gpt2": ("GPT2Config", OLD_GPT),
    "bloom": ("BloomConfig", dict(vocab_size=VOCABULARY, hidden_size=24, n_layer=3, n_head=6)),
    "glm": ("GlmConfig", COMMON),
}
FALCON = dict(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=3, num_attention_heads=6, bias=False)
EXPERTS = dict(moe_intermediate_size=32, num_experts_per_tok=2)
LATENT = dict(
    q_lora_rank=12, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
    n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1,
)  # fmt: skip
MORE_FAMILIES = {
    "mixtral": ("MixtralConfig", NO_HEAD_DIM | {"num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig", NO_HEAD_DIM | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 28},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", COMMON | EXPERTS | {"num_experts": 4}),
    "gemma": ("GemmaConfig", COMMON),
    "gemma3_text": ("Gemma3TextConfig", COMMON | {"sliding_window": 4}),
    "phi": ("PhiConfig", NO_HEAD_DIM | MHA),
    "gptj": ("GPTJConfig", OLD_GPT | {"rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCodeConfig", OLD_GPT),
    "opt": (
        "OPTConfig",
        dict(
            vocab_size=VOCABULARY, hidden_size=24, ffn_dim=40, num_hidden_layers=3, num_attention_heads=6,
            max_position_embeddings=256, word_embed_proj_dim=24,
        ),
    ),
    "falcon-mqa": ("FalconConfig", FALCON | {"new_decoder_architecture": False, "multi_query": True}),
    "falcon-new": ("FalconConfig", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "glm4": ("Glm4Config", COMMON),
    "stablelm": ("StableLmConfig", NO_HEAD_DIM),
    "olmo2": ("Olmo2Config", NO_HEAD_DIM),
    "starcoder2": ("Starcoder2Config", NO_HEAD_DIM),
    "cohere": ("CohereConfig", NO_HEAD_DIM),
    "granite": ("GraniteConfig", NO_HEAD_DIM),
    "deepseek_v3": (
        "DeepseekV3Config",
        NO_HEAD_DIM | EXPERTS | LATENT | {"num_key_value_heads": 6},
    ),
    "smollm3": ("SmolLM3Config", NO_HEAD_DIM),
    "olmo": ("OlmoConfig", NO_HEAD_DIM),
    "nemotron": ("NemotronConfig", NO_HEAD_DIM),
    "helium": ("HeliumConfig", NO_HEAD_DIM | MHA | {"head_dim": 4}),
    "apertus": ("ApertusConfig", NO_HEAD_DIM),
    "seed_oss": ("SeedOssConfig", COMMON),
    "hunyuan_v1_dense": ("HunYuanDenseV1Config", COMMON),
    "ernie4_5": ("Ernie4_5Config", COMMON),
    "exaone4": ("Exaone4Config", NO_HEAD_DIM),
    "biogpt": ("BioGptConfig", NO_HEAD_DIM | {"max_position_embeddings": 256}),
    "gpt_neo": (
        "GPTNeoConfig",
        dict(
            vocab_size=VOCABULARY, hidden_size=24, num_layers=3, num_heads=6, intermediate_size=40,
            attention_types=[[["global", "local", "global"], 1]], max_position_embeddings=256, window_size=4,
        ),
    ),
    "persimmon": ("PersimmonConfig", NO_HEAD_DIM | MHA),
    "gpt_oss": (
        "GptOssConfig", COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "deepseek_v2": ("DeepseekV2Config", NO_HEAD_DIM | EXPERTS | LATENT | {"num_key_value_heads": 6}),
}  # fmt: skip
IN_BLOCKS = {  # heads in four blocks, which must all keep as many
    "codegen": ("CodeGenConfig", OLD_GPT | {"n_embd": 32, "n_head": 8, "rotary_dim": 4}),
}
HYBRIDS = {  # layers of several kinds, or parts that stay whole
    "falcon_h1": (
        "FalconH1Config",
        COMMON | dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8),
    ),
    "llama4_text": ("Llama4TextConfig", COMMON | {"num_local_experts": 4, "intermediate_size_mlp": 40}),
    "qwen3_next": (
        "Qwen3NextConfig",
        COMMON | EXPERTS | dict(
            num_experts=4, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
            linear_value_head_dim=8, shared_expert_intermediate_size=28, num_hidden_layers=4,
        ),
    ),
    "jamba": (
        "JambaConfig",
        NO_HEAD_DIM | dict(
            num_hidden_layers=8, num_experts=2, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False
        ),
    ),
    "lfm2": (
        "Lfm2Config", NO_HEAD_DIM | dict(num_hidden_layers=4, full_attn_idxs=[1, 3], block_multiple_of=8),
    ),
}  # fmt: skip
KV2, KV6, ONE = (2, 4), (6, 4), (1, 4)
WIDE2 = (2, 8)
# family -> what a person would draw in layer 1: {axis: (groups, channels of a group)}, in three layers
DRAWN = {
    "llama-mha": {"attention": (6, 8), "mlp": (40, 1)},
    "llama-gqa": {"attention": WIDE2, "mlp": (40, 1)},
    "llama-tied": {"attention": WIDE2, "mlp": (40, 1)},
    "llama-biases": {"attention": WIDE2, "mlp": (40, 1)},
    "mistral": {"attention": WIDE2, "mlp": (40, 1)},
    "mixtral": {"attention": KV2} | {f"mlp.experts.{e}": (40, 1) for e in range(4)},
    "qwen2": {"attention": KV2, "mlp": (40, 1)},
    "qwen3": {"attention": WIDE2, "mlp": (40, 1)},
    "qwen2_moe": {"attention": KV2, "mlp.shared_expert": (28, 1)}
    | {f"mlp.experts.{e}": (32, 1) for e in range(4)},
    "qwen3_moe": {"attention": WIDE2} | {f"mlp.experts.{e}": (32, 1) for e in range(4)},
    "gemma": {"attention": WIDE2, "mlp": (40, 1)},
    "gemma2": {"attention": WIDE2, "mlp": (40, 1)},
    "gemma3_text": {"attention": WIDE2, "mlp": (40, 1)},
    "phi": {"attention": KV6, "mlp": (40, 1)},
    "phi3": {"attention": KV2, "mlp": (40, 1)},
    "gpt_neox": {"attention": KV6, "mlp": (40, 1)},
    "gpt2": {"attention": KV6, "mlp": (96, 1)},
    "gptj": {"attention": KV6, "mlp": (96, 1)},
    "gpt_bigcode": {"attention": ONE, "mlp": (96, 1)},
    "opt": {"attention": KV6, "mlp": (40, 1)},
    "bloom": {"attention": KV6, "mlp": (96, 1)},
    "falcon-mqa": {"attention": ONE, "mlp": (96, 1)},
    "falcon-new": {"attention": KV2, "mlp": (96, 1)},
    "glm": {"attention": WIDE2, "mlp": (40, 1)},
    "glm4": {"attention": WIDE2, "mlp": (40, 1)},
    "stablelm": {"attention": KV2, "mlp": (40, 1)},
    "olmo2": {"attention": KV2, "mlp": (40, 1)},
    "starcoder2": {"attention": KV2, "mlp": (40, 1)},
    "cohere": {"attention": KV2, "mlp": (40, 1)},
    "granite": {"attention": KV2, "mlp": (40, 1)},
    "deepseek_v3": {"attention": KV6, "mlp.shared_experts": (32, 1)}
    | {f"mlp.experts.{e}": (32, 1) for e in range(4)},
    "smollm3": {"attention": KV2, "mlp": (40, 1)},
    "olmo": {"attention": KV2, "mlp": (40, 1)},
    "nemotron": {"attention": KV2, "mlp": (40, 1)},
    "helium": {"attention": KV6, "mlp": (40, 1)},
    "apertus": {"attention": KV2, "mlp": (40, 1)},
    "seed_oss": {"attention": WIDE2, "mlp": (40, 1)},
    "hunyuan_v1_dense": {"attention": WIDE2, "mlp": (40, 1)},
    "ernie4_5": {"attention": WIDE2, "mlp": (40, 1)},
    "exaone4": {"attention": KV2, "mlp": (40, 1)},
    "biogpt": {"attention": KV6, "mlp": (40, 1)},
    "gpt_neo": {"attention": KV6, "mlp": (40, 1)},
    "persimmon": {"attention": KV6, "mlp": (40, 1)},
    # a head goes with its sink, a single number: what its matrices share is one channel
    "gpt_oss": {"attention": (2, 1)} | {f"mlp.experts.{e}": (40, 1) for e in range(4)},
    "deepseek_v2": {"attention": KV6, "mlp.shared_experts": (64, 1)}
    | {f"mlp.experts.{e}": (32, 1) for e in range(4)},
    "codegen": {"attention": (8, 4), "mlp": (128, 1)},
}
QWEN_EXPERTS = {"mlp.shared_expert": (28, 1)} | {f"mlp.experts.{e}": (32, 1) for e in range(4)}
JAMBA_EXPERTS = {f"feed_forward.experts.{e}": (40, 1) for e in range(2)}
ATTENTION4 = {"attention": KV2}
HYBRIDS_DRAWN = {  # the same, layer by layer
    "falcon_h1": [{"attention": WIDE2, "mlp": (40, 1)}] * 3,
    "llama4_text": [
        {"attention": WIDE2, "feed_forward.experts": (40, 1), "feed_forward.shared_expert": (40, 1)}
    ] * 3,
    "qwen3_next": [QWEN_EXPERTS] * 3 + [{"attention": WIDE2} | QWEN_EXPERTS],
    "jamba": [
        {"mlp": (40, 1)}, JAMBA_EXPERTS, {"mlp": (40, 1)}, JAMBA_EXPERTS,
        ATTENTION4 | {"mlp": (40, 1)}, JAMBA_EXPERTS, {"mlp": (40, 1)}, JAMBA_EXPERTS,
    ],
    "lfm2": [{"mlp": (32, 1)}, ATTENTION4 | {"mlp": (32, 1)}] * 2,
}  # fmt: skip
CHANNEL_FAMILIES = ("llama-gqa", "llama-tied", "llama-biases", "qwen2")
# those whose modules or dataflow differ in kind: tied, biases, norms of heads, capped logits, fused,
# interleaved or transposed matrices, position biases, parallel branches, one key and value head, experts
DIFFERENT = (
    "llama-tied", "llama-biases", "qwen3", "gemma2", "phi3", "gpt_neox", "gpt2", "bloom", "glm", "olmo2",
    "gpt_bigcode", "opt", "falcon-new", "mixtral", "qwen2_moe", "deepseek_v3",
)  # fmt: skip
GREEDY = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)


def first_of(cases: Iterable, n: int = 1) -> list:
    """The first `n` cases as they are; the others, which try the same on other models, are slow."""
    cases = list(cases)
    others = [case if isinstance(case, tuple) else (case,) for case in cases[n:]]
    return [*cases[:n], *(pytest.param(*case, marks=pytest.mark.slow) for case in others)]


def build(name: str, **changes) -> torch.nn.Module:
    """A random model of a family, in evaluation mode; `changes` go into its config."""
    config_class, arguments = (FAMILIES | MORE_FAMILIES | HYBRIDS | IN_BLOCKS)[name]
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


@cache
def discovered(name: str) -> tuple[torch.nn.Module, Axes]:
    """The model of a family and its axes, shared by all tests of a process: copy what you change."""
    model = build(name)
    return model, discover(model)


def tokens(samples: int = 2, length: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def generates_alike_with_cache(model: torch.nn.Module, ids: torch.Tensor) -> bool:
    """Is greedy generation the same with and without the cache of keys and values?"""
    with_cache, without = (model.generate(ids, use_cache=use, **GREEDY) for use in (True, False))
    return torch.equal(with_cache, without)


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
