"""A recovery that takes a second: small random models, made-up instructions, what is compared of a run."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig

from pruner_lib.models.tiny import tiny_tokenizer

EXAMPLES = [
    {
        "instruction": f"Add {i} to {i + 1}.",
        "input": "" if i % 3 else f"note {i}",
        "output": f"{2 * i + 1} " * (1 + i % 4),
    }
    for i in range(20)
]
QUICK = {"steps": 6, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 1}
KEEP = {"keep_at": [2, 4], "evaluate_at": [2, 4], "save_steps": 3, **QUICK}
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_DROPOUT = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2": GPT2Config(  # Conv1D, tied
        n_embd=24, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, **NO_DROPOUT
    ),
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0),
    "gpt_neox": GPTNeoXConfig(**SIZES),
}


def make(family: str = "llama") -> nn.Module:
    """A small random model; the MLP of a llama's last layer is narrower than the other, as after pruning."""
    config = copy.deepcopy(FAMILIES[family])
    config.vocab_size = len(tiny_tokenizer())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, weight in model.named_parameters():
            weight.data = torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.1) + ("norm" in name)
    if family == "llama":
        mlp = model.model.layers[-1].mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight, linear.out_features = nn.Parameter(linear.weight[:29].detach().clone()), 29
        linear = mlp.down_proj
        linear.weight, linear.in_features = nn.Parameter(linear.weight[:, :29].detach().clone()), 29
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12).reshape(2, 6)).logits


def score(model: nn.Module) -> dict[str, float]:
    """Measure a model; one of the numbers is random."""
    return {"score": logits(model).square().mean().item(), "drawn": torch.rand(1).item()}


class Stop:
    """Stops a run when it is measured for the n-th time."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return score(model)


def adapter(folder: Path, name: str = "adapter") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_time(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]
