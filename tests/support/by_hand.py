"""The scores the long way, as the reference does: a backward pass of the batch and one of each sample."""

from __future__ import annotations

from functools import wraps

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

GRADIENT = ("vector", "element1", "element2", "mixed")


class _Wide(TorchFunctionMode):
    """Read float32 as float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        wide = {torch.float32: torch.float64}
        args = [wide.get(x, x) if isinstance(x, torch.dtype) else x for x in args]
        kwargs = {k: wide.get(x, x) if isinstance(x, torch.dtype) else x for k, x in (kwargs or {}).items()}
        return func(*args, **kwargs)


def in_float64(model):
    """The same model in float64, in its norms as well, with its experts computed one after the other."""
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"
    for module in model.modules():
        if type(module).forward is not torch.nn.Linear.forward:
            module.forward = _in_wide(module.forward)
    return model.double()


def _in_wide(forward):
    @wraps(forward)
    def wide(*args, **kwargs):
        with _Wide():
            return forward(*args, **kwargs)

    return wide


def loss(model, ids):
    logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def gradients(model, ids):
    """g and A of every parameter."""
    parameters = dict(model.named_parameters())

    def of(part):
        found = torch.autograd.grad(loss(model, part), parameters.values(), allow_unused=True)
        return dict(zip(parameters, found, strict=True))

    g, a = of(ids), {n: torch.zeros_like(p) for n, p in parameters.items()}
    for sample in ids:
        for name, grad in of(sample[None]).items():
            if grad is not None:
                a[name] += grad.square() / len(ids)
    return g, a


def member_scores(model, axis, found, criterion):
    """`(n_structures, n_groups, channels)`, float64."""
    g, a = found
    raw: dict = dict.fromkeys(axis.structures, 0)
    for m in axis.members:
        w = model.get_parameter(m.parameter).detach()
        s = w * g[m.parameter]
        salience = {
            "vector": s, "element1": s.abs(), "element2": w * a[m.parameter] * w,
            "mixed": (s - w * a[m.parameter] * w / 2).abs(),
        }[criterion]  # fmt: skip
        dim = m.dim
        if m.expert is not None:
            salience, dim = salience[m.expert], dim - 1
        channels = salience.double().movedim(dim, 0).flatten(1).sum(1) if salience.ndim > 1 else salience
        raw[m.structure] = raw[m.structure] + channels.double()[m.indices]
    tables = [t.abs() if criterion == "vector" else t for t in raw.values()]
    return torch.stack([t.reshape(axis.n_groups, -1, axis.width).sum(1) for t in tables])
