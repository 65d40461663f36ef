"""Calls of a module, and the gradient of its parameters from them (paper section 3.2).

A module's gradient follows from what went into it and from the gradient that arrived at its output; that of
one sample from its part of both. It is formed in slices of rows (entries of dim 0), so that no float32 copy
of a large weight exists. Modules that are neither linear nor an embedding are called again on their inputs,
and give one slice.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

SLICE = {"cpu": 2**20}  # entries of a slice of a gradient: it stays in the cache
LARGE_SLICE = 2**24  # elsewhere
Part = Callable[[int, int], torch.Tensor]
UNSPLIT = "so its gradient can't be split by sample: use micro_batch=1, or vector or element1"


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a module on a micro-batch."""

    module: nn.Module
    key: str  # name of the parameter in the module
    inputs: Sequence[Any]  # leaves of its positional and keyword arguments; `spec` puts them together
    spec: TreeSpec
    grads: Sequence[torch.Tensor | None]  # of each output that has one, None where the model does not use it
    outputs: Sequence[int]  # which leaves of the output they are
    samples: int  # shape of the micro-batch's ids
    tokens: int
    batch: int  # number of the micro-batch
    shared: Collection[int] = ()  # which inputs hold no samples, as a weight that is handed over


def rows_of(shape: Sequence[int], device: torch.device) -> int:
    """Number of rows of a tensor in one slice."""
    entries = SLICE.get(device.type, LARGE_SLICE)
    return max(1, min(shape[0], entries * shape[0] // max(1, torch.Size(shape).numel())))


def gradient_slices(
    uses: Sequence[Use], samples: int, scale: float, per_sample: bool
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
    """Form the gradient of one parameter, a slice of rows at a time.

    g = sum over samples n of g_n    a = N * sum over samples n of g_n^2

    Args:
        uses: all calls of the modules that own the parameter.
        samples: N, of the whole batch.    scale: factor of all gradients.
    Yields: first row, g, a (None unless `per_sample`); float32 (float64 of a float64 model); both may be
        overwritten and are not valid after the next step.
    Raises: ValueError: the samples can't be separated.
    """
    weight = getattr(uses[0].module, uses[0].key)
    parts = _parts(uses, per_sample)
    sliced = all(in_slices(use.module) for use in uses)
    step = rows_of(weight.shape, weight.device) if sliced else weight.shape[0]
    for start in range(0, weight.shape[0], step):
        stop = min(start + step, weight.shape[0])
        total = squares = None
        for sample in parts:
            g = sample[0](start, stop)
            for part in sample[1:]:
                g.add_(part(start, stop))
            if per_sample:
                squares = g * g if squares is None else squares.addcmul_(g, g)
            total = g if total is None else total.add_(g)
        yield start, total.mul_(scale), squares.mul_(samples * scale**2) if per_sample else None


def _parts(uses: Sequence[Use], per_sample: bool) -> list[list[Part]]:
    """For each sample, or for all as one, what its gradient is the sum of."""
    if not per_sample:
        return [[_part(use) for use in uses]]
    parts = []
    for batch in dict.fromkeys(use.batch for use in uses):
        split = [_by_sample(use) for use in uses if use.batch == batch]
        parts += [[_part(use) for use in sample] for sample in zip(*split, strict=True)]
    return parts


def _part(use: Use) -> Part:
    """Gradient of rows start..stop from one call: a function, so that only one slice exists at a time."""
    weight = getattr(use.module, use.key)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if not in_slices(use.module):
        return lambda start, stop: _called_again(use).to(dtype)
    d = use.grads[0].reshape(-1, use.grads[0].shape[-1]).to(product_dtype(weight.dtype))  # (tokens, out)
    x = use.inputs[0].to(d.device)
    if _is_linear(use.module):
        if use.key == "bias":
            return lambda start, stop: d[:, start:stop].sum(0, dtype=dtype)
        x = x.reshape(-1, x.shape[-1]).to(d)  # (tokens, in)
        return lambda start, stop: (d[:, start:stop].T @ x).to(dtype)
    padding = -1 if use.module.padding_idx is None else use.module.padding_idx
    ids = x.reshape(-1)

    def embedded(start: int, stop: int) -> torch.Tensor:
        here = ((ids >= start) & (ids < stop) & (ids != padding)).nonzero()[:, 0]
        rows = d.new_zeros(stop - start, d.shape[-1], dtype=dtype)
        return rows.index_add_(0, ids[here] - start, d[here].to(dtype))

    return embedded


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """What gradients of a weight are multiplied in: its own type, as in any backward pass, but float16,
    whose range a sum over the tokens of a batch may leave."""
    return torch.float32 if dtype == torch.float16 else dtype


def _called_again(use: Use) -> torch.Tensor:
    own = use.module._parameters[use.key].detach().requires_grad_()
    args, kwargs = tree_unflatten(use.inputs, use.spec)
    with torch.enable_grad():
        leaves = tree_leaves(functional_call(use.module, {use.key: own}, args, kwargs))
        pairs = [(leaves[i], g) for i, g in zip(use.outputs, use.grads, strict=True) if g is not None]
        pairs = [(x, g) for x, g in pairs if x.requires_grad]  # not what is made under no_grad
        if not pairs:
            return torch.zeros_like(own)
        if uneven := [tuple(x.shape) for x, g in pairs if x.shape != g.shape]:
            raise ValueError(f"{use.module} gives tensors of shape {uneven[0]}, {UNSPLIT}")
        outputs, grads = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, own, grads, materialize_grads=True, allow_unused=True)[0]


def _is_linear(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward


def in_slices(module: nn.Module) -> bool:
    """Can the gradient of some rows of the module's weight be formed alone?"""
    is_embedding = type(module).forward is nn.Embedding.forward
    return _is_linear(module) or (is_embedding and not module.scale_grad_by_freq)


def _by_sample(use: Use) -> list[Use]:
    """Split a call into those of the single samples: all tensors that hold samples together."""
    whole = [i in use.shared or not isinstance(x, torch.Tensor) for i, x in enumerate(use.inputs)]
    pairs = zip(use.inputs, whole, strict=True)
    split = [[x] * use.samples if shared else _chunks(use, x) for x, shared in pairs]
    grads = [[None] * use.samples if g is None else _chunks(use, g, shared=False) for g in use.grads]
    numbers = range(use.samples)
    return [replace(use, inputs=[x[n] for x in split], grads=[g[n] for g in grads]) for n in numbers]


def _chunks(use: Use, x: torch.Tensor, *, shared: bool = True) -> Sequence[torch.Tensor]:
    """The samples of a tensor, by its shape; one that none has alone must be `shared`, as a gradient is not.

    (samples, ...) and (samples * tokens, ...), as most models have it, are cut along dim 0;
    (tokens, samples, ...) along dim 1; (1, ...) and numbers belong to every sample.
    """
    n, shape = use.samples, x.shape
    first = shape[0] if shape and (shared or len(shape) > 1) else 1
    if n == 1 or (shared and first == 1):
        return [x] * n
    if first == n:
        return x.chunk(n)
    if first == use.tokens:  # else one row of positions for all samples, or samples that are hidden
        if len(shape) > 1 and shape[1] == n:
            return x.chunk(n, 1)
    elif first % n == 0:
        return x.chunk(n)
    what = f"{use.module} sees tensors of shape {tuple(shape)} for {n} samples of {use.tokens} tokens"
    raise ValueError(f"{what}, {UNSPLIT}")
