"""One backward pass, one parameter at a time (paper section 3.2: the gradients that Eq. 3 to 5 need).

The reference keeps every gradient and every squared gradient. Here the parameters are frozen, so that
backward only carries gradients of activations; when it reaches a module, the gradient of that module's
parameters is formed from the saved input and the arriving output gradient, handed to a visitor, and
forgotten. Gradients of single samples, which the second-order terms need, come out of the same pass,
because a module's input and output gradient still know which sample they belong to.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

Visitor = Callable[[str, torch.Tensor, torch.Tensor | None], None]


@dataclass(frozen=True, eq=False)
class _Use:
    """One call of a module that owns a parameter: its input, and the gradient that arrived at its output."""

    module: nn.Module
    key: str
    inputs: tuple
    grad: torch.Tensor


def visit_gradients(
    model: nn.Module, ids: torch.Tensor, parameters: set[str], visit: Visitor, per_sample: bool
) -> float:
    """Run one forward and backward pass over a calibration batch and show each parameter's gradient once.

    L = mean over all predicted tokens of the batch; A = (1/N) sum over samples n of (dL_n / dW)^2, where
    L_n is the mean loss of sample n alone.

    Args:
        ids: `(samples, tokens)` int64.
        parameters: names of the parameters to visit.
        visit: called as `visit(name, g, a)` with `g = dL/dW` and `a = A`, both float32 in the weight's
            shape; `a` is None unless `per_sample`. Neither may be kept.
    Returns: the loss.
    Raises: ValueError: the loss is not finite, or a parameter's samples can't be told apart.
    Source: paper Eq. 3 to 5; reference code `hf_prune.py`, which divides the sum of Eq. 5 by N as here.
    """
    pass_ = _Pass(model, ids.shape[0], parameters, visit, per_sample)
    with _frozen(model), pass_.hooked():
        logits = model(input_ids=ids, use_cache=False, **_positions(model, ids)).logits
        vocabulary = logits.shape[-1]
        loss = functional.cross_entropy(
            logits[:, :-1].float().reshape(-1, vocabulary), ids[:, 1:].reshape(-1)
        )
        if not torch.isfinite(loss):
            raise ValueError(
                f"the calibration loss is {loss.item()}; use a wider dtype or other calibration samples"
            )
        del logits
        loss.backward()
    missed = parameters - pass_.visited
    if missed:
        raise ValueError(
            f"no gradient reached {sorted(missed)[:3]}; they take no part in the forward pass of this model"
        )
    return loss.item()


class _Pass:
    """State of one pass: what was used in forward, and what still waits for its gradient in backward."""

    def __init__(
        self, model: nn.Module, n_samples: int, parameters: set[str], visit: Visitor, per_sample: bool
    ):
        self.model, self.n_samples, self.visit, self.per_sample = model, n_samples, visit, per_sample
        wanted = {id(p): name for name, p in model.named_parameters() if name in parameters}
        self.owners = [
            (
                module,
                {
                    key: wanted[id(p)]
                    for key, p in module._parameters.items()
                    if p is not None and id(p) in wanted
                },
            )
            for module in model.modules()
        ]
        self.pending: dict[str, int] = defaultdict(int)
        self.uses: dict[str, list[_Use]] = defaultdict(list)
        self.visited: set[str] = set()
        self.local = False  # True while a module is called again for its own parameters

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles = [
            m.register_forward_hook(self._opener())
            for m in self.model.modules()
            if isinstance(m, nn.Embedding)
        ]
        handles += [m.register_forward_hook(self._watcher(names)) for m, names in self.owners if names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _opener(self) -> Callable:
        def hook(module, inputs, output):
            return output if self.local or output.requires_grad else output.requires_grad_()

        return hook

    def _watcher(self, names: dict[str, str]) -> Callable:
        def hook(module, inputs, output):
            if self.local:
                return
            if not output.requires_grad:
                output.requires_grad_()
            for name in names.values():
                self.pending[name] += 1
            kept = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in inputs)
            output.register_hook(lambda grad: self._arrive(module, names, kept, grad))

        return hook

    def _arrive(self, module: nn.Module, names: dict[str, str], inputs: tuple, grad: torch.Tensor) -> None:
        for key, name in names.items():
            self.uses[name].append(_Use(module, key, inputs, grad.detach()))
            self.pending[name] -= 1
            if self.pending[name] == 0:  # a shared parameter waits for the gradient of its last use
                g, a = self._gradient(self.uses.pop(name))
                self.visit(name, g, a)
                self.visited.add(name)

    def _gradient(self, uses: list[_Use]) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self.per_sample:
            return sum(self._local(use, use.inputs, use.grad) for use in uses), None
        total = squares = None
        split = [self._by_sample(use) for use in uses]
        for n in range(self.n_samples):
            g = sum(self._local(use, *samples[n]) for use, samples in zip(uses, split, strict=True))
            if total is None:
                total, squares = g.clone(), g.square()
            else:
                total.add_(g)
                squares.addcmul_(g, g)
        return total, squares.mul_(self.n_samples)

    def _by_sample(self, use: _Use) -> list[tuple[tuple, torch.Tensor]]:
        """Split a use into those of the single samples, whether or not the model flattens (samples,
        tokens)."""
        n, first = self.n_samples, use.inputs[0]
        if first.shape[0] % n or use.grad.shape[0] % n:
            raise ValueError(
                f"{use.module} sees inputs of shape {tuple(first.shape)} for {n} samples, so its gradient "
                "can't be told apart by sample; second-order criteria need that, use vector or element1"
            )
        inputs, grads = first.chunk(n), use.grad.chunk(n)
        return [((x, *use.inputs[1:]), d) for x, d in zip(inputs, grads, strict=True)]

    def _local(self, use: _Use, inputs: tuple, grad: torch.Tensor) -> torch.Tensor:
        """Gradient of one parameter of one module from its input and output gradient, float32."""
        if type(use.module).forward is nn.Linear.forward:
            d = grad.reshape(-1, grad.shape[-1]).float()
            return d.sum(0) if use.key == "bias" else d.T @ inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        weights = {
            k: p.detach().requires_grad_(k == use.key)
            for k, p in use.module._parameters.items()
            if p is not None
        }
        self.local = True
        try:
            with torch.enable_grad():
                output = torch.func.functional_call(use.module, weights, inputs)
                return torch.autograd.grad(output, weights[use.key], grad)[0].float()
        finally:
            self.local = False


def _positions(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Position ids of every sample, where the model takes them: a row shared by all would mix their
    gradients."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": torch.arange(ids.shape[1], device=ids.device).expand_as(ids)}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
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
