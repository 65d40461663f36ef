"""The gradient of a module's parameters from the recorded calls of the module (paper section 3.2).

It follows from the input and the output gradient of each call, for a sample from its part of both. Slices of
rows (entries of dim 0) avoid a float32 copy of a large weight. Modules that are neither linear nor an
embedding are called again on their inputs, and give a single slice.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

SLICE = {"cpu": 2**20}  # entries of a slice of a gradient, which fits the processor's cache
LARGE_SLICE = 2**24  # on other devices
Part = Callable[[int, int], torch.Tensor]  # first row, end -> gradient of these rows
UNSPLIT = "so its gradient can't be split by sample: use micro_batch=1, or vector or element1"


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a module on a micro-batch."""

    module: nn.Module
    key: str  # name of the parameter in the module
    inputs: Sequence[Any]  # leaves of its positional and keyword arguments, to be unflattened by `spec`
    spec: TreeSpec
    grads: Sequence[torch.Tensor | None]  # of each differentiable output; None if the model does not use it
    outputs: Sequence[int]  # their positions among the leaves of the output
    samples: int  # shape of the micro-batch's ids
    tokens: int
    batch: int  # number of the micro-batch
    shared: Collection[int] = ()  # positions of inputs without a batch dim, such as a weight passed on


def rows_of(shape: Sequence[int], device: torch.device) -> int:
    """Return the number of rows in one slice of a tensor."""
    entries = SLICE.get(device.type, LARGE_SLICE)
    return max(1, min(shape[0], entries * shape[0] // max(1, torch.Size(shape).numel())))


def gradient_slices(
    uses: Sequence[Use], samples: int, scale: float, per_sample: bool
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
    """Compute the gradient of one parameter, a slice of rows at a time.

    g = sum over samples n of g_n    a = N * sum over samples n of g_n^2

    Args:
        uses: all calls of the modules that own the parameter.
        samples: N, of the whole batch.    scale: factor of all gradients.
    Yields: first row, g, a (None unless `per_sample`); float32 (float64 for a float64 model). The caller may
        overwrite both; they are not valid after the next step.
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
    """Return the terms whose sum is the gradient, for each sample, or for the whole batch as one."""
    if not per_sample:
        return [[_part(use) for use in uses]]
    parts = []
    for batch in dict.fromkeys(use.batch for use in uses):
        split = [_by_sample(use) for use in uses if use.batch == batch]
        parts += [[_part(use) for use in sample] for sample in zip(*split, strict=True)]
    return parts


def _part(use: Use) -> Part:
    """Return a function that computes the gradient of rows start..stop from one call."""
    weight = getattr(use.module, use.key)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if not in_slices(use.module):
        return lambda start, stop: _call_again(use).to(dtype)
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
        tokens = ((ids >= start) & (ids < stop) & (ids != padding)).nonzero()[:, 0]
        rows = d.new_zeros(stop - start, d.shape[-1], dtype=dtype)
        return rows.index_add_(0, ids[tokens] - start, d[tokens].to(dtype))

    return embedded


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for gradients: the weight's, but float32 for float16, in which sums may overflow."""
    return torch.float32 if dtype == torch.float16 else dtype


def _call_again(use: Use) -> torch.Tensor:
    """Repeat a call of a module, and return the gradient of its whole parameter."""
    weight = use.module._parameters[use.key].detach().requires_grad_()
    args, kwargs = tree_unflatten(use.inputs, use.spec)
    with torch.enable_grad():
        leaves = tree_leaves(functional_call(use.module, {use.key: weight}, args, kwargs))
        pairs = [(leaves[i], g) for i, g in zip(use.outputs, use.grads, strict=True) if g is not None]
        pairs = [(x, g) for x, g in pairs if x.requires_grad]  # False if computed under no_grad
        if not pairs:
            return torch.zeros_like(weight)
        if uneven := [tuple(x.shape) for x, g in pairs if x.shape != g.shape]:
            raise ValueError(f"{use.module} returns tensors of shape {uneven[0]}, {UNSPLIT}")
        outputs, grads = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, weight, grads, materialize_grads=True, allow_unused=True)[0]


def _is_linear(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward


def in_slices(module: nn.Module) -> bool:
    """True if the gradient of single rows of the module's weight can be computed."""
    is_embedding = type(module).forward is nn.Embedding.forward
    return _is_linear(module) or (is_embedding and not module.scale_grad_by_freq)


def _by_sample(use: Use) -> list[Use]:
    """Split a call into one call per sample."""
    shared = {i for i, x in enumerate(use.inputs) if i in use.shared or not isinstance(x, torch.Tensor)}
    inputs = [[x] * use.samples if i in shared else _chunks(use, x) for i, x in enumerate(use.inputs)]
    grads = [[None] * use.samples if g is None else _chunks(use, g, shared=False) for g in use.grads]
    numbers = range(use.samples)
    return [replace(use, inputs=[x[n] for x in inputs], grads=[g[n] for g in grads]) for n in numbers]


def _chunks(use: Use, x: torch.Tensor, *, shared: bool = True) -> Sequence[torch.Tensor]:
    """Split a tensor by sample, as its shape tells.

    (samples, ...) and (samples * tokens, ...), the usual forms, are split along dim 0; (tokens, samples, ...)
    along dim 1. (1, ...) and numbers belong to every sample if `shared`, which gradients are not.
    """
    n, shape = use.samples, x.shape
    first = shape[0] if shape and (shared or len(shape) > 1) else 1
    if n == 1 or (shared and first == 1):
        return [x] * n
    if first == n:
        return x.chunk(n)
    if first == use.tokens:  # otherwise positions that all samples share, or an unknown order of samples
        if len(shape) > 1 and shape[1] == n:
            return x.chunk(n, 1)
    elif first % n == 0:
        return x.chunk(n)
    message = f"{use.module} sees tensors of shape {tuple(shape)} for {n} samples of {use.tokens} tokens"
    raise ValueError(f"{message}, {UNSPLIT}")
