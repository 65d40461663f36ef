"""How a model runs for a while: on other tensors, frozen, recomputing its layers; and where its weights are.

A model that is scored or cut needs its weights in its modules. accelerate can keep weights outside, in CPU
memory or on a disk; meanwhile the module holds a parameter on the meta device. A model that was built on the
meta device is another case: it has no weights anywhere and may be cut.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pruner_lib.method.decoder import check_plain, decoder_layers


def offloaded(model: nn.Module) -> list[str]:
    """List the parameters whose weights are kept outside their modules."""
    names = []
    for path, module in model.named_modules():
        if any(getattr(hook, "offload", False) for hook in _hooks(module)):
            prefix = f"{path}." if path else ""
            names += [prefix + name for name, p in module.named_parameters(recurse=False) if p.is_meta]
    return names


def input_device(model: nn.Module) -> torch.device:
    """The device for a model's token ids: that of its embedding, or where that is computed if offloaded."""
    embedding = model.get_input_embeddings()
    places = [getattr(hook, "execution_device", None) for hook in _hooks(embedding)]
    place = next((p for p in places if p is not None), None) if embedding.weight.is_meta else None
    return embedding.weight.device if place is None else torch.device(place)


def _hooks(module: nn.Module) -> list:
    """The hooks that accelerate has put around the forward pass of a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def check_in_memory(model: nn.Module) -> None:
    """Refuse a model whose weights are not in its modules, as they are in a plain one.

    Raises:  ValueError: see `check_plain`, or some are offloaded; the message names one and says what to do.
    """
    check_plain(model)
    if names := offloaded(model):
        what = f"{len(names)} weights, such as {names[0]}, are offloaded to CPU memory or disk"
        advice = "score or cut the model inside `with devices.in_place(model):`"
        raise ValueError(f"{what}; {advice}, which computes where the weights lie")


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model to run on shapes alone: parameters and buffers on the meta device, nothing offloaded.

    A model may change while it runs (tables of positions move to the device of the input); the copy does.
    Activations that it holds can't be copied and go to the meta device too.
    """
    held = [t for m in model.modules() for t in vars(m).values() if getattr(t, "grad_fn", None) is not None]
    memo = {id(t): torch.empty_like(t, device="meta") for t in [*model.buffers(), *held]}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    memo |= {id(hook): None for m in model.modules() if (hook := getattr(m, "_hf_hook", None)) is not None}
    # without what accelerate put around the forward pass of modules to move tensors
    own = {m: m._old_forward for m in model.modules() if "_old_forward" in vars(m) and "forward" in vars(m)}
    with _running(own):
        return copy.deepcopy(model, memo)


@contextmanager
def _running(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Let modules run other forward passes while the block runs."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without gradients, then restore the mode of every module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter gradients; both restored afterwards. A state that a module keeps from
    within, as a recurrent layer does, loses its graph, with which the model could not be copied."""
    flags, held = {p: p.requires_grad for p in model.parameters()}, _with_graph(model)
    model.requires_grad_(False)
    try:
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for (module, name), state in _with_graph(model).items():
            if held.get((module, name)) is not state:
                vars(module)[name] = state.detach()


def _with_graph(model: nn.Module) -> dict[tuple[nn.Module, str], torch.Tensor]:
    """Module and attribute -> the tensor there, of those that carry a graph."""
    held = {(m, name): value for m in model.modules() for name, value in vars(m).items()}
    return {place: value for place, value in held.items() if getattr(value, "grad_fn", None) is not None}


def recomputing(model: nn.Module) -> AbstractContextManager[None]:
    """Let the decoder layers forget their activations, and compute them again when backward reaches them."""
    how = {"use_reentrant": False, "preserve_rng_state": False}
    return _running({layer: partial(checkpoint, layer.forward, **how) for layer in decoder_layers(model)[1]})
