"""Where a model's weights are, and temporary changes to how it runs: frozen, evaluating, recomputing.

Offloaded weights, which accelerate keeps in CPU memory or on disk while modules hold meta tensors, can't be
scored or cut. A model that was built on the meta device has no weights anywhere, and may be cut.
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
    """Return the device for a model's token ids: where its embedding lies, or runs if it is offloaded."""
    embedding = model.get_input_embeddings()
    devices = (getattr(hook, "execution_device", None) for hook in _hooks(embedding))
    device = next((d for d in devices if d is not None), None) if embedding.weight.is_meta else None
    return embedding.weight.device if device is None else torch.device(device)


def _hooks(module: nn.Module) -> list:
    """Return the hooks that accelerate has put around the forward pass of a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def check_in_memory(model: nn.Module) -> None:
    """Refuse a model that is not plain (see `check_plain`) or has offloaded weights, by a ValueError."""
    check_plain(model)
    if names := offloaded(model):
        message = f"{len(names)} weights, such as {names[0]}, are offloaded to CPU memory or disk"
        advice = "score or cut the model inside `with devices.in_place(model):`"
        raise ValueError(f"{message}; {advice}, which runs it where the weights lie")


def without_weights(model: nn.Module) -> nn.Module:
    """Copy a model with all tensors on the meta device, to run it on shapes alone.

    Running a model may change it (tables of positions move to the device of the input). Activations that it
    holds can't be copied, and are replaced by empty tensors on the meta device too.
    """
    held = _with_graph(model).values()
    memo = {id(t): torch.empty_like(t, device="meta") for t in [*model.buffers(), *held]}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    memo |= {id(hook): None for m in model.modules() if (hook := getattr(m, "_hf_hook", None)) is not None}
    # without the wrappers of accelerate, which move tensors
    originals = {m: m._old_forward for m in model.modules() if {"_old_forward", "forward"} <= vars(m).keys()}
    with _replaced(originals):
        return copy.deepcopy(model, memo)


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Replace the forward methods of modules while the block runs."""
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
    """Put a model in evaluation mode without parameter gradients, then restore both.

    Also detaches state that modules, such as recurrent layers, stored meanwhile: a graph can't be copied.
    """
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
    """Map (module, attribute) to the tensor there, for all that carry a graph."""
    held = {(m, name): value for m in model.modules() for name, value in vars(m).items()}
    return {place: value for place, value in held.items() if getattr(value, "grad_fn", None) is not None}


def recomputing(model: nn.Module) -> AbstractContextManager[None]:
    """Recompute the decoder layers' activations when backward reaches them, instead of keeping them."""
    run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    return _replaced({layer: partial(run, layer.forward) for layer in decoder_layers(model)[1]})
