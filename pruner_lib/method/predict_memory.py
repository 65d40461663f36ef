"""What a scoring pass will take, before it starts (a question of machines; nothing in the paper).

One sample runs forward and everything that autograd wants to keep for backward is counted and dropped, so
that the count itself takes next to nothing and is the same code for every architecture. What is counted
grows with the samples; the largest temporary and what the process holds already come on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

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
    """Predicted bytes of a pass at its peak.

    Attributes:
        held: by the process now, with the weights (on a GPU: by tensors).
        activations: saved for backward, with the logits.
        kept: inputs and output gradients of modules that wait for the last micro-batch.
        temporary: the largest temporary: a piece of the loss, or a gradient being formed.
    """

    held: int
    activations: int
    kept: int
    temporary: int

    @property
    def extra(self) -> int:
        return self.activations + self.kept + self.temporary

    @property
    def total(self) -> int:
        return self.held + self.extra


@dataclass
class _Counted:
    """Bytes of one sample's forward pass; `layers` and `entries` have one number for each decoder layer."""

    layers: list[int]
    entries: list[int]
    outside: int = 0
    logits: int = 0
    inputs: int = 0  # of the modules whose gradient is formed, and their outputs
    outputs: int = 0
    widest: int = 0  # largest output of a module in a layer
    seen: dict[str, set[StorageWeakRef]] = field(default_factory=dict)

    def fresh(self, what: str, x: object) -> int:
        """Bytes of a tensor's storage when it is seen for the first time; weights are seen before."""
        if not isinstance(x, torch.Tensor):
            return 0
        storage = StorageWeakRef(x.untyped_storage())
        seen = self.seen.setdefault(what, set(self.seen["weights"]))
        if storage in seen:
            return 0
        seen.add(storage)
        return x.untyped_storage().nbytes()


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
    """Predict the peak memory of `estimate_members` by running one sample forward.

    Args:
        model: with its weights.
        parameters: names of those that the axes cut; None: all.
    Returns: bytes; `.total` is resident memory, on a GPU that of its tensors.
    Raises: ValueError: the model has no weights.
    """
    criteria = list(criteria)
    if _device(model).type == "meta":
        raise ValueError("a model on the meta device can't be run to count what it keeps; load its weights")
    names = {name for name, _ in model.named_parameters()} if parameters is None else parameters
    ids = torch.arange(tokens)[None] % model.get_input_embeddings().weight.shape[0]
    counted = None if set(criteria) <= set(DATA_FREE) else _count(model, names, ids)
    return _predict(model, names, counted, samples, tokens, criteria, micro_batch, checkpointing)


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
    need = partial(_predict, model, parameters, counted, samples, tokens, list(criteria))
    full = need(micro_batch, checkpointing)
    if full.extra <= available:
        return
    size = micro_batch or samples
    smaller = [size // 2**k for k in range(1, size.bit_length())]
    settings = [(s, checkpointing) for s in smaller] + [(s, True) for s in (micro_batch, *smaller)]
    tried = {setting: need(*setting).extra for setting in dict.fromkeys(settings)}
    fitting = next((setting for setting, extra in tried.items() if extra <= available), None)
    if fitting:
        advice = f"try micro_batch={fitting[0]}, checkpointing={fitting[1]}: {_gb(tried[fitting])}"
    else:
        advice = (
            f"with micro_batch=1, checkpointing=True it is {_gb(need(1, True).extra)}: take fewer or shorter "
            "samples, or a machine with more memory"
        )
    raise ValueError(
        f"scoring {samples} samples of {tokens} tokens needs {_gb(full.extra)} (activations "
        f"{_gb(full.activations)}, kept over micro-batches {_gb(full.kept)}, temporary "
        f"{_gb(full.temporary)}) beside the {_gb(full.held)} held now, and {_gb(available)} are available; "
        f"{advice}"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _predict(model, names, counted, samples, tokens, criteria, micro_batch, checkpointing) -> Memory:
    second = any(c in SECOND_ORDER for c in criteria)
    held = held_bytes(model)
    if counted is None:
        return Memory(held, 0, 0, _largest_gradient(model, names, False, magnitudes=True))
    sizes = batch_sizes(samples, tokens, micro_batch, second)
    waits = len(sizes) > 1 and not set(criteria) - set(DATA_FREE) <= set(ADDITIVE)
    largest, at_once = max(sizes), samples if waits else max(sizes)
    if checkpointing:
        activations = counted.outside + sum(counted.entries) + max(counted.layers)
    else:
        activations = counted.outside + sum(counted.layers)
    return Memory(
        held=held,
        activations=largest * (activations + counted.logits),
        kept=samples * (counted.inputs + counted.outputs) if waits else 0,
        temporary=max(
            3 * FLOAT32 * PIECE,
            _largest_gradient(model, names, second, at_once * tokens) + 3 * largest * counted.widest,
        )
        + HOLES // 2,
    )


def _largest_gradient(model, names, second: bool, n_tokens: int = 0, magnitudes: bool = False) -> int:
    """Bytes that the gradient of one parameter takes while it is formed and reduced."""
    sizes = [0]
    for prefix, module in model.named_modules():
        for key, p in module._parameters.items():
            if f"{prefix}.{key}".lstrip(".") not in names or p is None:
                continue
            sliced = magnitudes or in_slices(module)
            rows = rows_of(p.shape, p.device) if sliced else p.shape[0]
            one = FLOAT32 * rows * (p.numel() // p.shape[0])
            copies = (3 + second) * one + (0 if sliced else p.numel() * p.element_size())
            widened = product_dtype(p.dtype) != p.dtype and sliced and p.ndim > 1
            sizes.append(copies + (FLOAT32 * n_tokens * sum(p.shape) if widened else 0))
    return max(sizes)


def _count(model: nn.Module, names: set[str], ids: torch.Tensor) -> _Counted:
    """Run one sample, `(1, tokens)` ids, forward and count, without keeping anything."""
    layers = decoder_layers(model)[1]
    counted = _Counted([0] * len(layers), [0] * len(layers))
    counted.seen["weights"] = {
        StorageWeakRef(x.untyped_storage()) for x in [*model.parameters(), *model.buffers()]
    }
    within: list[int] = []  # number of the layer that is running

    def save(x: torch.Tensor) -> None:
        size = counted.fresh("saved", x)
        if within:
            counted.layers[within[-1]] += size
        else:
            counted.outside += size

    pass_ = Pass(model, names, lambda name, uses: None)
    with frozen(model), pass_.hooked(), _counting(pass_, layers, counted, within):
        with saved_tensors_hooks(save, lambda nothing: nothing):
            logits = pass_.forward(ids.to(_device(model)))
        counted.logits = counted.fresh("saved", logits)
    return replace(counted, seen={})


@contextmanager
def _counting(pass_: Pass, layers, counted: _Counted, within: list[int]) -> Iterator[None]:
    def enter(number, module, args, kwargs):
        within.append(number)
        counted.entries[number] = sum(counted.fresh("entries", x) for x in tree_leaves((args, kwargs)))

    def leave(module, args, output):
        within.pop()

    def count(module, args, kwargs, output):
        size = sum(x.nbytes for x in tree_leaves(output) if isinstance(x, torch.Tensor))
        if module in pass_.owners:
            counted.inputs += sum(counted.fresh("inputs", x) for x in tree_leaves((args, kwargs)))
            counted.outputs += size
        if within:
            counted.widest = max(counted.widest, size)

    handles = [m.register_forward_hook(count, with_kwargs=True) for m in pass_.model.modules()]
    for number, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(partial(enter, number), with_kwargs=True))
        handles.append(layer.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
