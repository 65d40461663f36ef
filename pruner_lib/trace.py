"""Dependency tracing: run the model once on index labels (paper section 3.1, "discovery stage").

One forward pass on the meta device (batch 1, 3 tokens, eager attention) runs under a dispatch mode that
carries labels through every operator. Operators that move data are executed on the labels too; operators
that combine two labelled tensors record what depends on what. No rule knows an architecture; an operator
without a rule raises and names itself.

This module only collects. `graph` turns what was collected into groups.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruner_lib.labels import Recording, labels_of, set_labels
from pruner_lib.rules import MissingRuleError, labels_for, tensors_in

N_TOKENS = 3


class LabelMode(TorchDispatchMode):
    """Carry labels through every operator of a forward pass on the meta device."""

    def __init__(self, recording: Recording):
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if any(labels_of(x) is not None for x in tensors_in([*args, *kwargs.values()])):
            labels = labels_for(self.recording, func, args, kwargs, out)
            for tensor, label in zip(tensors_in([out]), labels, strict=False):
                set_labels(tensor, label)
        return out


def trace(model: nn.Module, layers: nn.ModuleList) -> Recording:
    """Run `model` on labels and return what was recorded.

    Args:
        model: a decoder on any device; its weights are neither read nor copied.
        layers: its decoder layers, at whose entry unlabelled inputs (position biases) get labels.
    Raises: ValueError: the forward pass has an operator without a rule, or does not run on the meta device.
    """
    rec = Recording()
    tensors = {n: torch.empty_like(p, device="meta") for n, p in model.named_parameters()}
    for name, tensor in tensors.items():
        set_labels(tensor, rec.label(tensor, name, "parameter"))
    tensors |= {n: torch.empty_like(b, device="meta") for n, b in model.named_buffers()}
    paths = {module: name for name, module in model.named_modules()}
    hooks = [
        layer.register_forward_pre_hook(
            lambda m, a, k: _label_constants(rec, paths[m], a, k), with_kwargs=True
        )
        for layer in layers
    ]
    try:
        with eager_attention(model), torch.no_grad(), LabelMode(rec):
            out = _forward_on_meta(model, tensors)
    finally:
        for hook in hooks:
            hook.remove()
    logits = out[0] if isinstance(out, tuple) else out.logits
    labels = labels_of(logits)
    if labels is None:
        raise ValueError(
            f"{type(model).__name__} returned logits that hold no parameter; is it a decoder with a head?"
        )
    rec.outputs.append(torch.unique(labels.tensors[0]).numpy())
    return rec


def _forward_on_meta(model: nn.Module, tensors: dict[str, torch.Tensor]):
    ids = torch.zeros(1, N_TOKENS, dtype=torch.long, device="meta")
    masks = (
        torch.zeros(1, 1, N_TOKENS, N_TOKENS, device="meta"),
        None,
    )  # some models build their own from None only
    errors = []
    for mask in masks:
        arguments = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        training = model.training
        try:
            model.eval()
            return torch.func.functional_call(model, tensors, (), arguments)
        except MissingRuleError as error:
            raise ValueError(str(error)) from error
        except Exception as error:  # noqa: BLE001  the model's own code may raise anything
            errors.append(f"{type(error).__name__}: {error}")
        finally:
            model.train(training)
    raise ValueError(
        f"{type(model).__name__} does not run on the meta device with {N_TOKENS} tokens, so its groups can't "
        "be traced: " + " | ".join(dict.fromkeys(errors))
    )


@contextmanager
def eager_attention(model: nn.Module):
    """Let attention be computed by plain matrix products while the block runs."""
    config = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    if before is not None:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        if before is not None:
            config._attn_implementation = before


def _label_constants(rec: Recording, path: str, args: tuple, kwargs: dict) -> None:
    """Give tensors that enter a decoder layer without labels (position biases, masks, rotary tables) their
    own."""
    for argument, value in [*((str(i), a) for i, a in enumerate(args)), *kwargs.items()]:
        labels = labels_of(value)
        unlabelled = labels is None or labels.source == "constant"
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim and unlabelled:
            set_labels(value, rec.label(value, f"{path}:{argument}", "constant"))
