"""What watches a pass: which modules were called on what, and the gradients that arrive at their outputs.

The hooks hand the calls of a parameter's modules over when all their gradients are there; what is made of
them is known to `gradients`.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pruner_lib.method.capacity import Tidy
from pruner_lib.method.graph import decoder_layers
from pruner_lib.method.uses import Use


class _Kept(torch.autograd.Function):
    """Tensors kept for backward like those of any operator, so that checkpointing drops and recomputes
    them too."""

    @staticmethod
    def forward(ctx, spark, *tensors):
        ctx.save_for_backward(*tensors)
        return spark.clone()

    @staticmethod
    def backward(ctx, grad):  # no gradient passes here
        return (grad, *[None] * (len(ctx.needs_input_grad) - 1))


class Pass:
    """State of one pass: what was used in forward, and what still waits for its gradient in backward.

    Args:
        parameters: names of those whose gradient is wanted.
        finish: called as `finish(name, uses)` when all gradients of a parameter have arrived.
    """

    def __init__(self, model: nn.Module, parameters: set[str], finish: Callable[[str, list[Use]], None]):
        self.model, self.finish = model, finish
        wanted = {id(p): name for name, p in model.named_parameters() if name in parameters}
        self.owners = {
            module: {key: wanted[id(p)] for key, p in module._parameters.items() if id(p) in wanted}
            for module in model.modules()
        }
        self.owners = {module: names for module, names in self.owners.items() if names}
        self.pending: dict[str, int] = defaultdict(int)
        self.uses: dict[str, list[Use]] = defaultdict(list)
        self.visited: set[str] = set()
        self.finishing = self.in_backward = False
        self.local = False  # True while a module is called again for its own parameters
        self.shape = (1, 1, 0)  # samples, tokens and number of the micro-batch

    @contextmanager
    def hooked(self) -> Iterator[None]:
        embeddings = (m for m in self.model.modules() if isinstance(m, nn.Embedding))
        handles = [m.register_forward_hook(self._open) for m in embeddings]
        handles += [m.register_forward_hook(self._watch, with_kwargs=True) for m in self.owners]
        tidy = Tidy()
        handles += [m.register_forward_hook(partial(_tidied, tidy)) for m in _layers(self.model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forward(self, ids: torch.Tensor, number: int = 0) -> torch.Tensor:
        """Run the model on a micro-batch; `(samples, tokens, vocabulary)`."""
        self.shape = (*ids.shape, number)
        self.pending.clear()
        return self.model(input_ids=ids, use_cache=False, **_positions(self.model, ids)).logits

    def backward(self, logits: torch.Tensor, gradient: torch.Tensor, *, finish: bool) -> None:
        self.finishing, self.in_backward = finish, True
        try:
            torch.autograd.backward(logits, gradient)
        finally:
            self.in_backward = False
        for name in list(self.uses) if finish else ():  # not used by the last micro-batch
            self._finish(name)

    def _open(self, module, inputs, output):
        return output if self.local or output.requires_grad else output.requires_grad_()

    def _watch(self, module: nn.Module, args: tuple, kwargs: dict, output):
        if self.local:
            return output
        leaves, spec = tree_flatten(output)
        floats = [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]
        if not any(x.requires_grad for x in floats):
            for x in floats:
                x.requires_grad_()
        places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.requires_grad]
        if len(places) > 1:  # one output may be made from another: watch what the model takes from each
            leaves = [x.view_as(x) if i in places else x for i, x in enumerate(leaves)]
            output = tree_unflatten(leaves, spec)
        arrive = self._receiver(module, places, *tree_flatten((args, kwargs)))
        if not self.in_backward:
            for name in self.owners[module].values():
                self.pending[name] += 1
        if len(places) > 1:
            register_multi_grad_hook([leaves[i] for i in places], arrive)
        elif places:
            leaves[places[0]].register_hook(lambda grad: arrive([grad]))
        return output

    def _receiver(self, module: nn.Module, places: list[int], inputs: list, spec) -> Callable:
        """What is to be done with the gradients of a call's outputs; holds the inputs until then."""
        tensors = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
        spark = torch.zeros((), requires_grad=True)
        kept = [_Kept.apply(spark, *(inputs[i].detach() for i in tensors)).grad_fn]
        others = {i: x for i, x in enumerate(inputs) if i not in tensors}
        shape = self.shape

        def arrive(grads) -> None:
            found = others | dict(zip(tensors, kept.pop().saved_tensors, strict=True))
            grads = [g if g is None else g.detach() for g in grads]
            inputs = [found[i] for i in range(len(found))]
            for key, name in self.owners[module].items():
                self._arrive(name, Use(module, key, inputs, spec, grads, places, *shape))

        return arrive

    def _arrive(self, name: str, use: Use) -> None:
        self.uses[name].append(use)
        self.pending[name] -= 1
        if self.pending[name] == 0 and self.finishing:  # a shared parameter waits for its last use
            self._finish(name)

    def _finish(self, name: str) -> None:
        self.visited.add(name)
        self.local = True
        try:
            self.finish(name, self.uses.pop(name))
        finally:
            self.local = False


def _layers(model: nn.Module) -> list[nn.Module]:
    with suppress(ValueError):  # it has none
        return list(decoder_layers(model)[1])
    return []


def _tidied(tidy: Tidy, layer: nn.Module, inputs: tuple, output) -> None:
    """Look at the memory after a layer, in forward and in backward."""
    tidy.look()
    for x in tree_leaves(output):
        if isinstance(x, torch.Tensor) and x.requires_grad:
            x.register_hook(lambda grad: tidy.look())


def _positions(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Position ids of every sample, where the model takes them: a row shared by all would mix their
    gradients."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": torch.arange(ids.shape[1], device=ids.device).expand_as(ids)}
