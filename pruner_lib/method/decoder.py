"""What the method needs of a decoder as a whole: ordinary weights, a list of layers, and a prompt."""

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


def check_plain(model: nn.Module) -> None:
    """Refuse a model whose weights are not ordinary floating-point tensors held by its own modules.

    Raises: ValueError: the model was created or runs in inference mode, is compiled or wrapped, carries an
        adapter, is quantised, holds weights outside its modules as well, or is multimodal; the message says
        what to pass instead.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is expected, got {type(model).__name__}; load_model returns one")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    dtypes = {name: t.dtype for name, t in tensors if t.ndim == 2 and t.dtype != torch.bool}
    codes = [name for name, d in dtypes.items() if d.itemsize == 1 or d == torch.int32]  # 8 bits, or packed
    modules, config = list(model.modules()), getattr(model, "config", None)
    plain = ((path, n, v) for path, m in model.named_modules() for n, v in vars(m).items() if n[0] != "_")
    held = (f"{path}.{n}" for path, n, v in plain if any(isinstance(x, nn.Parameter) for x in tree_leaves(v)))
    if torch.is_inference_mode_enabled() or any(t.is_inference() for _, t in tensors):
        fault = "was created or runs under torch.inference_mode(), which fixes weights; use torch.no_grad()"
    elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        fault = "is a wrapper for several devices; pass its model.module, and wrap the pruned model"
    elif any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in modules):
        fault = "is compiled; pass the original model (model._orig_mod), and compile after pruning"
    elif hasattr(model, "get_base_model") or any("base_layer" in m._modules for m in modules):
        fault = "carries an adapter; call merge_and_unload() or unload(), or recover(..., merge=True)"
    elif codes or getattr(model, "is_quantized", False):
        place = codes[0] if codes else "model.is_quantized"
        fault = f"is quantised ({place}); pass it in floating point, and quantise the pruned and saved model"
    elif place := next(held, None):
        fault = f"holds weights in {place}, which pruning would leave as they are; keep them in modules alone"
    elif hasattr(config, "get_text_config") and config.get_text_config() is not config:
        fault = "reads more than text; pass its language model alone: the class of config.get_text_config()"
    else:
        return
    raise ValueError(f"{type(model).__name__} {fault}")


def check_reads(model: nn.Module, length: int, largest: int, smallest: int = 0) -> None:
    """Refuse tokens and positions that the model has no embedding for, and a model without logits or weights.

    Args:   length: of the longest text, in tokens.    largest, smallest: token ids.
    Raises: ValueError: one of the above; the message says what to do.
    """
    name = type(model).__name__
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ValueError(f"{name} has no output embeddings; pass a decoder that predicts tokens")
    check_weights(model)
    tokens = model.get_input_embeddings()
    if largest >= (n := len(tokens.weight)) or smallest < 0:
        message = f"the token ids run from {smallest} to {largest}, but {name} has {n} tokens, from 0 on"
        raise ValueError(f"{message}: use the tokenizer of this model, or call resize_token_embeddings first")
    n = getattr(getattr(model, "config", None), "max_position_embeddings", None) or 0
    for module in model.modules():  # tables of positions; rotary models have none
        buffers = (b for b in module._buffers.values() if b is not None and b.is_floating_point())
        tables = [b for b in buffers if b.ndim == 2 and len(b) == n]
        limit = n if len(tables) == 1 else length  # a module with two, cosines and sines, extends them itself
        # some embeddings of positions have up to two extra rows
        if isinstance(module, nn.Embedding) and module is not tokens and 0 <= module.num_embeddings - n <= 2:
            limit = n if module.padding_idx is None else n - module.padding_idx - 1
        if length > limit:
            raise ValueError(f"{length} tokens are too long for {name}, which has {limit} positions")


def check_weights(model: nn.Module) -> None:
    """Raise a ValueError for a model on the meta device, unless accelerate offloaded its weights."""
    offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    if not offloaded and any(weight.is_meta for weight in model.parameters()):
        raise ValueError(f"{type(model).__name__} lies on the meta device; load it with its weights")


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the decoder layers and their path: the module list that holds the most parameters.

    Raises: ValueError: the model has no list of layers.
    """
    stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no list of decoder layers; is it a decoder?")
    return max(stacks, key=lambda s: sum(p.numel() for p in s[1].parameters()))


def prompt_for(model: nn.Module, tokens: int) -> torch.Tensor:
    """Return a prompt that starts with the special tokens of the config; `(1, tokens)` or longer."""
    if not hasattr(model, "config"):
        return torch.zeros(1, tokens, dtype=torch.long)
    config, vocabulary = model.config.to_dict(), model.get_input_embeddings().weight.shape[0]
    ids = (v for k, v in config.items() if k.endswith("_token_id") and isinstance(v, int))
    special = sorted({v for v in ids if 0 <= v < vocabulary})
    return torch.tensor([(special + [0] * tokens)[: max(len(special), tokens)]])
