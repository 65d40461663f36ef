"""What the method needs of a decoder as a whole: that it is plain, its layers, and a prompt to run it on."""

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


def check_plain(model: nn.Module) -> None:
    """Refuse a model whose weights are not ordinary floating-point tensors in modules of its own.

    Raises: ValueError: it was made or is used in inference mode, is compiled or wrapped, carries an adapter,
        is quantised, holds weights outside its modules too, or reads more than text; the message says what to
        give instead.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is wanted, got {type(model).__name__}; load_model gives one")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    kinds = {name: t.dtype for name, t in tensors if t.ndim == 2 and t.dtype != torch.bool}
    codes = [n for n, kind in kinds.items() if kind.itemsize == 1 or kind == torch.int32]  # 8 bits, or packed
    modules, config = list(model.modules()), getattr(model, "config", None)
    plain = ((path, n, v) for path, m in model.named_modules() for n, v in vars(m).items() if n[0] != "_")
    held = (f"{path}.{n}" for path, n, v in plain if any(isinstance(x, nn.Parameter) for x in tree_leaves(v)))
    if torch.is_inference_mode_enabled() or any(t.is_inference() for _, t in tensors):
        what = "is used or was made under torch.inference_mode(); use torch.no_grad(): weights must change"
    elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        what = "runs a model on several devices; give that model (model.module), and wrap what is pruned"
    elif any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in modules):
        what = "is compiled; give the model that torch.compile was given (model._orig_mod), compile it last"
    elif hasattr(model, "get_base_model") or any("base_layer" in m._modules for m in modules):
        what = "carries an adapter; give what merge_and_unload(), recover(..., merge=True) or unload() gives"
    elif codes or getattr(model, "is_quantized", False):
        place = codes[0] if codes else "model.is_quantized"
        what = f"is quantised ({place}); give it in floating point, and quantise what is pruned and saved"
    elif place := next(held, None):
        what = f"holds weights in {place}, which a cut would leave as they are; read them from their modules"
    elif hasattr(config, "get_text_config") and config.get_text_config() is not config:
        what = "reads more than text; give its language model alone: the class of config.get_text_config()"
    else:
        return
    raise ValueError(f"{type(model).__name__} {what}")


def check_reads(model: nn.Module, length: int, largest: int, smallest: int = 0) -> None:
    """Refuse what a model's tables have no row for, and a model that writes no tokens or has no weights.

    Args:   length: of the longest text, in tokens.    largest, smallest: token ids.
    Raises: ValueError: one of the four; the message says what to do.
    """
    name = type(model).__name__
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ValueError(f"{name} has no output embeddings; give a decoder that predicts tokens")
    check_weights(model)
    tokens = model.get_input_embeddings()
    if largest >= (n := len(tokens.weight)) or smallest < 0:
        came = f"the token ids run from {smallest} to {largest}, but {name} has {n} tokens, from 0 on"
        raise ValueError(f"{came}: give the tokenizer of this model, or resize_token_embeddings first")
    n = getattr(getattr(model, "config", None), "max_position_embeddings", None) or 0
    for table in model.modules():  # rotary positions have none; some tables begin with up to two other rows
        buffers = (b for b in table._buffers.values() if b is not None and b.is_floating_point())
        fixed = [b for b in buffers if b.ndim == 2 and len(b) == n]
        reach = n if len(fixed) == 1 else length  # two, cosines and sines, are made longer by their module
        if isinstance(table, nn.Embedding) and table is not tokens and 0 <= table.num_embeddings - n <= 2:
            reach = n if table.padding_idx is None else n - table.padding_idx - 1
        if length > reach:
            raise ValueError(f"{length} tokens are too long for {name}, which has {reach} positions")


def check_weights(model: nn.Module) -> None:
    """Refuse a model on the meta device, unless accelerate keeps its weights elsewhere, by a ValueError."""
    placed = any(hasattr(module, "_hf_hook") for module in model.modules())
    if not placed and any(weight.is_meta for weight in model.parameters()):
        raise ValueError(f"{type(model).__name__} lies on the meta device; load it with its weights")


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of decoder layers and its path: the module list that holds the most parameters.

    Raises: ValueError: the model has no list of layers.
    """
    stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no list of decoder layers; is it a decoder?")
    return max(stacks, key=lambda s: sum(p.numel() for p in s[1].parameters()))


def prompt_for(model: nn.Module, tokens: int) -> torch.Tensor:
    """A prompt that starts with the special tokens that the config names; `(1, tokens)` or longer."""
    if not hasattr(model, "config"):
        return torch.zeros(1, tokens, dtype=torch.long)
    config, vocabulary = model.config.to_dict(), model.get_input_embeddings().weight.shape[0]
    numbers = (v for k, v in config.items() if k.endswith("_token_id") and isinstance(v, int))
    named = sorted({v for v in numbers if 0 <= v < vocabulary})
    return torch.tensor([(named + [0] * tokens)[: max(len(named), tokens)]])
