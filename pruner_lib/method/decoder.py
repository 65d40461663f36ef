"""What the method needs of a decoder as a whole: its layers, and the prompt that it is run on."""

from __future__ import annotations

import torch
from torch import nn


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of decoder layers and its path: the module list that holds the most parameters.

    Raises: ValueError: the model has no list of layers.
    """
    stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not stacks:
        raise ValueError(
            f"{type(model).__name__} has no list of decoder layers (an nn.ModuleList); is it a decoder?"
        )
    return max(stacks, key=lambda s: sum(p.numel() for p in s[1].parameters()))


def prompt_for(model: nn.Module, tokens: int) -> torch.Tensor:
    """A prompt that starts with the special tokens that the config names; `(1, tokens)` or longer."""
    if not hasattr(model, "config"):
        return torch.zeros(1, tokens, dtype=torch.long)
    config, vocabulary = model.config.to_dict(), model.get_input_embeddings().weight.shape[0]
    numbers = (v for k, v in config.items() if k.endswith("_token_id") and isinstance(v, int))
    named = sorted({v for v in numbers if 0 <= v < vocabulary})
    return torch.tensor([(named + [0] * tokens)[: max(len(named), tokens)]])
