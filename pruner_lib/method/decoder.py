"""What the method needs of a decoder as a whole: that it is plain, its layers, and a prompt to run it on."""

from __future__ import annotations

import torch
from torch import nn


def check_plain(model: nn.Module) -> None:
    """Refuse a model whose weights are not ordinary floating-point tensors in modules of its own.

    Raises: ValueError: it was made or is used in inference mode, is compiled, carries an adapter, is
        quantised, or reads more than text; the message says what to give instead.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is wanted, got {type(model).__name__}; load_model gives one")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    small = [name for name, t in tensors if t.ndim == 2 and _is_code(t.dtype)]
    modules, config = list(model.modules()), getattr(model, "config", None)
    checks = (
        (
            torch.is_inference_mode_enabled() or any(t.is_inference() for _, t in tensors),
            "is used or was made under torch.inference_mode(), where weights can't be changed; "
            "use torch.no_grad() instead",
        ),
        (
            any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in modules),
            "is compiled; give the model that torch.compile was given (model._orig_mod) and compile it last",
        ),
        (
            hasattr(model, "get_base_model") or any("base_layer" in m._modules for m in modules),
            "carries an adapter; give the plain model that merge_and_unload() or recover(..., merge=True) "
            "returns, with the adapter in its weights, or unload(), without it",
        ),
        (
            bool(small) or getattr(model, "is_quantized", False),
            f"is quantised ({', '.join(small[:1] or ['model.is_quantized'])}); give the model in floating "
            "point, and quantise it when it is pruned and saved",
        ),
        (
            hasattr(config, "get_text_config") and config.get_text_config() is not config,
            "reads more than text, which is all that a cut is proven on; give its language model alone, as "
            "the ...ForCausalLM of config.get_text_config(), with its weights",
        ),
    )
    for wrong, what in checks:
        if wrong:
            raise ValueError(f"{type(model).__name__} {what}")


def _is_code(dtype: torch.dtype) -> bool:
    """Numbers that stand for weights: of 8 bits, or several packed into 32."""
    return (dtype.itemsize == 1 and dtype != torch.bool) or dtype == torch.int32


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


def residual_stream(output: torch.Tensor | tuple) -> torch.Tensor:
    """The residual stream in what a decoder layer returns: all of it, or the first of several."""
    return output[0] if isinstance(output, tuple) else output


def prompt_for(model: nn.Module, tokens: int) -> torch.Tensor:
    """A prompt that starts with the special tokens that the config names; `(1, tokens)` or longer."""
    if not hasattr(model, "config"):
        return torch.zeros(1, tokens, dtype=torch.long)
    config, vocabulary = model.config.to_dict(), model.get_input_embeddings().weight.shape[0]
    numbers = (v for k, v in config.items() if k.endswith("_token_id") and isinstance(v, int))
    named = sorted({v for v in numbers if 0 <= v < vocabulary})
    return torch.tensor([(named + [0] * tokens)[: max(len(named), tokens)]])
