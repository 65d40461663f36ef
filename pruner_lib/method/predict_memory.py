"""What a scoring pass will take, before it starts (a question of machines; nothing in the paper).

One sample runs forward and everything that autograd wants to keep for backward is counted and dropped, so
that the count itself takes next to nothing and is the same code for every architecture. What is counted
grows with the samples; the largest temporary and what the process holds already come on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.gradients import PIECE, Pass, batch_sizes
from pruner_lib.method.groups import ADDITIVE, DATA_FREE, SECOND_ORDER
from pruner_lib.method.memory import HOLES, available_bytes, held_bytes
from pruner_lib.method.module_gradients import in_slices, product_dtype, rows_of
from pruner_lib.method.offload import frozen

FLOAT32 = 4


@dataclass(frozen=True)
class Memory:
    """Predicted bytes of a pass at its peak."""

    held: int  # by the process now, with the weights (on a GPU: by tensors)
    activations: int  # saved for backward, with the logits
    kept: int  # inputs and output gradients of modules that wait for the last micro-batch
    temporary: int  # the largest temporary: a piece of the loss, or a gradient being formed

    @property
    def extra(self) -> int:
        return self.activations + self.kept + self.temporary

    @property
    def total(self) -> int:
        return self.held + self.extra


class FreshBytes:
    """Counts the bytes of tensors that it has not seen; those of the model it has seen."""

    def __init__(self, model: nn.Module):
        tensors = [*model.parameters(), *model.buffers()]
        self.seen = {StorageWeakRef(x.untyped_storage()) for x in tensors}

    def __call__(self, *values: object) -> int:
        total = 0
        for x in tree_leaves(values):
            if isinstance(x, torch.Tensor) and StorageWeakRef(x.untyped_storage()) not in self.seen:
                self.seen.add(StorageWeakRef(x.untyped_storage()))
                total += x.untyped_storage().nbytes()
        return total


@dataclass
class Forward:
    """Bytes that a forward pass keeps for backward."""

    saved: list[int]  # in each decoder layer; the last number is for what lies outside of them
    entries: list[int]  # of the inputs of each decoder layer
    fresh: FreshBytes  # has seen what was saved
    widest: int = 0  # the largest output of a module in a layer
    result: object = None  # of the pass


@dataclass
class _Counted:
    """Bytes of one sample's forward pass."""

    forward: Forward
    logits: int  # of the logits, where backward does not save them anyway
    inputs: int  # of the modules whose gradient is formed
    outputs: int


def predict_memory(
    model: nn.Module,
    samples: int,
    tokens: int,
    criteria: Iterable[str],
    micro_batch: int | None = None,
    checkpointing: bool = False,
    *,
    parameters: set[str] | None = None,
) -> Memory:
    """Predict the peak memory of `estimate_members` with calibration ids by running one sample forward.

    Args:
        model: with its weights.
        parameters: names of those that the axes cut; None: all.
    Returns: bytes; `.total` is resident memory, on a GPU that of its tensors.
    Raises: ValueError: the model has no weights.
    """
    if _device(model).type == "meta":
        raise ValueError("a model on the meta device can't be run to count what it keeps; load its weights")
    names = {name for name, _ in model.named_parameters()} if parameters is None else parameters
    ids = torch.arange(tokens)[None] % model.get_input_embeddings().weight.shape[0]
    counted = _count(model, names, ids)
    return _predict(model, names, counted, samples, tokens, set(criteria), micro_batch, checkpointing)


def check_memory(
    model: nn.Module,
    ids: torch.Tensor,
    criteria: Iterable[str],
    micro_batch: int | None,
    checkpointing: bool,
    *,
    parameters: set[str],
) -> None:
    """Refuse a pass over `ids`, `(samples, tokens)`, that would not fit.

    Raises: ValueError: with what is needed, what is available, and a setting to try.
    """
    available = available_bytes(_device(model))
    if available is None:
        return
    samples, tokens = ids.shape
    counted = _count(model, parameters, ids[:1])
    need = partial(_predict, model, parameters, counted, samples, tokens, set(criteria))
    full = need(micro_batch, checkpointing)
    if full.extra <= available:
        return
    size = micro_batch or samples
    sizes = [size // 2**k for k in range(size.bit_length())]  # down to 1
    for recompute, smaller in product(sorted({checkpointing, True}), sizes):
        needed = need(smaller, recompute)
        if needed.extra <= available:
            break
    fits = needed.extra <= available
    advice = "try" if fits else "take fewer or shorter samples, or a machine with more memory: even with"
    raise ValueError(
        f"scoring {samples} samples of {tokens} tokens needs {_gb(full.extra)} (activations "
        f"{_gb(full.activations)}, kept over micro-batches {_gb(full.kept)}, temporary "
        f"{_gb(full.temporary)}) beside the {_gb(full.held)} held now, and {_gb(available)} are available; "
        f"{advice} micro_batch={smaller}, checkpointing={recompute} it is {_gb(needed.extra)}"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _predict(
    model: nn.Module, names: set[str], counted: _Counted, samples: int, tokens: int, criteria: set[str],
    micro_batch: int | None, checkpointing: bool,
) -> Memory:  # fmt: skip
    second = not criteria.isdisjoint(SECOND_ORDER)
    sizes = batch_sizes(samples, tokens, micro_batch, second)
    waits = len(sizes) > 1 and not criteria - set(DATA_FREE) <= set(ADDITIVE)
    largest, at_once = max(sizes), samples if waits else max(sizes)
    *layers, outside = counted.forward.saved
    kept = sum(counted.forward.entries) + max(layers) if checkpointing else sum(layers)
    gradient = _largest_gradient(model, names, second, at_once * tokens)
    return Memory(
        held=held_bytes(model),
        activations=largest * (outside + kept + counted.logits),
        kept=samples * (counted.inputs + counted.outputs) if waits else 0,
        temporary=max(3 * FLOAT32 * PIECE, gradient + 3 * largest * counted.forward.widest) + HOLES // 2,
    )


def _largest_gradient(model: nn.Module, names: set[str], second: bool, n_tokens: int) -> int:
    """Bytes that the gradient of one parameter takes while it is formed and reduced."""
    sizes = [0]
    for prefix, module in model.named_modules():
        for key, p in module._parameters.items():
            if f"{prefix}.{key}".lstrip(".") not in names or p is None:
                continue
            sliced = in_slices(module)
            rows = rows_of(p.shape, p.device) if sliced else p.shape[0]
            one = FLOAT32 * rows * (p.numel() // p.shape[0])
            copies = (3 + second) * one + (0 if sliced else p.numel() * p.element_size())
            widened = product_dtype(p.dtype) != p.dtype and sliced and p.ndim > 1
            sizes.append(copies + (FLOAT32 * n_tokens * sum(p.shape) if widened else 0))
    return max(sizes)


def _count(model: nn.Module, names: set[str], ids: torch.Tensor) -> _Counted:
    """Run one sample, `(1, tokens)` ids, forward and count, without keeping anything."""
    pass_, used = Pass(model, names, lambda name, uses: None), FreshBytes(model)
    inputs = outputs = 0

    def look(module, args, kwargs, output) -> None:
        nonlocal inputs, outputs
        if module in pass_.owners:
            inputs += used(args, kwargs)
            outputs += sum(x.nbytes for x in tree_leaves(output) if isinstance(x, torch.Tensor))

    with frozen(model), pass_.hooked():
        forward = count_forward(model, lambda: pass_.forward(ids.to(_device(model))), look)
    return _Counted(forward, forward.fresh(forward.result), inputs, outputs)


def count_forward(
    model: nn.Module, run: Callable[[], object], look: Callable[..., None] = lambda *_: None
) -> Forward:
    """Run a forward pass and count what autograd would keep, while nothing is kept.

    Args:    run: the pass, with the model.    look: a forward hook (module, args, kwargs, output) for each
             module.
    """
    layers = decoder_layers(model)[1]
    counted = Forward([0] * (len(layers) + 1), [0] * len(layers), FreshBytes(model))
    entered, place = FreshBytes(model), -1  # number of the layer that is running

    def save(x: torch.Tensor) -> None:
        counted.saved[place] += counted.fresh(x)

    def enter(number, module, args, kwargs) -> None:
        nonlocal place
        place = number
        counted.entries[number] = entered(args, kwargs)

    def leave(module, args, output) -> None:
        nonlocal place
        place = -1

    def watch(module, args, kwargs, output) -> None:
        size = sum(x.nbytes for x in tree_leaves(output) if isinstance(x, torch.Tensor))
        counted.widest = max(counted.widest, size if place >= 0 else 0)
        look(module, args, kwargs, output)

    with ExitStack() as stack:
        hooks = [m.register_forward_hook(watch, with_kwargs=True) for m in model.modules()]
        for number, layer in enumerate(layers):
            hooks.append(layer.register_forward_pre_hook(partial(enter, number), with_kwargs=True))
            hooks.append(layer.register_forward_hook(leave))
        for hook in hooks:
            stack.callback(hook.remove)
        with saved_tensors_hooks(save, lambda nothing: nothing):
            counted.result = run()
    return counted
