"""One backward pass, one parameter at a time (paper section 3.2: the gradients that Eq. 3 to 5 need).

The reference keeps every gradient and every squared gradient. Here the parameters are frozen, so that
backward only carries gradients of activations; when it reaches a module, the gradient of that module's
parameters is formed from the saved input and the arriving output gradient (see `uses`), shown to a visitor,
and forgotten. Gradients of single samples, which the second-order terms need, come out of the same pass.

Micro-batches: what is additive over samples is shown after each of them. For the rest, |g * w|, the
gradient of the whole batch is needed first: inputs and output gradients of the modules are then kept until
the last micro-batch; they are much smaller than the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pruner_lib.method.graph import decoder_layers
from pruner_lib.method.hooks import Pass
from pruner_lib.method.loss import loss_and_gradient_
from pruner_lib.method.uses import Use, gradient_slices

Visitor = Callable[[str, int, torch.Tensor, torch.Tensor | None], None]


def visit_gradients(
    model: nn.Module,
    ids: torch.Tensor,
    parameters: set[str],
    visit: Visitor,
    *,
    per_sample: bool,
    micro_batch: int | None = None,
    additive: bool = False,
    checkpointing: bool = False,
) -> float:
    """Run one forward and backward pass over a calibration batch and show each parameter's gradient.

    L = mean over all predicted tokens of the batch; A = (1/N) sum over samples n of (dL_n / dW)^2, where
    L_n is the mean loss of sample n alone.

    Args:
        ids: `(samples, tokens)` int64.
        parameters: names of the parameters to visit.
        visit: called as `visit(name, row, g, a)` with slices `g` of `dL/dW` and `a` of `A`, from that row of
            the weight on, float32 (float64 of a float64 model); `a` is None unless `per_sample`. Both may be
            overwritten, neither may be kept.
        micro_batch: samples of one forward pass, None: all.
        additive: show the gradients of each micro-batch by themselves; their sum is the gradient. Without,
            each entry is shown once.
        checkpointing: compute each decoder layer once more in backward instead of keeping its activations.
    Returns: the loss.
    Raises: ValueError: the loss is not finite, or a parameter's samples can't be told apart.
    Source: paper Eq. 3 to 5; reference code `hf_prune.py`, which divides the sum of Eq. 5 by N as here.
    """
    n_samples, n_tokens = ids.shape
    sizes = batch_sizes(n_samples, n_tokens, micro_batch, per_sample)
    scale = 1 / (n_samples * (n_tokens - 1))
    pass_ = Pass(model, parameters, partial(_show, visit, n_samples, scale, per_sample))
    loss = 0.0
    with frozen(model), pass_.hooked(), _recomputing(model) if checkpointing else nullcontext():
        for number, part in enumerate(ids.split(sizes)):
            logits = pass_.forward(part, number)
            summed, gradient = loss_and_gradient_(logits, part)
            loss += summed * scale
            if not math.isfinite(loss):
                raise ValueError(
                    f"the calibration loss is {loss}; use a wider dtype or other calibration samples"
                )
            pass_.backward(logits, gradient, finish=additive or number == len(sizes) - 1)
            del logits, gradient
    missed = parameters - pass_.visited
    if missed:
        raise ValueError(
            f"no gradient reached {sorted(missed)[:3]}; they take no part in the forward pass of this model"
        )
    return loss


def batch_sizes(samples: int, tokens: int, micro_batch: int | None, per_sample: bool) -> list[int]:
    """Sizes of the micro-batches. As many samples as tokens could not be told apart: one is split off."""
    size = min(micro_batch or samples, samples)
    sizes = [size] * (samples // size) + [samples % size] * (samples % size > 0)
    return [part for s in sizes for part in ([s - 1, 1] if per_sample and s == tokens else [s])]


def _show(visit: Visitor, samples: int, scale: float, per_sample: bool, name: str, uses: list[Use]) -> None:
    for row, g, a in gradient_slices(uses, samples, scale, per_sample):
        visit(name, row, g, a)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter gradients; both restored afterwards."""
    training, flags = model.training, {p: p.requires_grad for p in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Let the decoder layers forget their activations, and compute them again when backward reaches them."""
    layers = decoder_layers(model)[1]
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
