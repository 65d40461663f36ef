"""Norms that run over all groups of an axis at once, as over all heads (paper section 3.1 has no such case).

The root mean square over n of N channels is larger than over all N with the others at zero by sqrt(N / n).
The weight of the norm can make up for that, so that cutting still equals masking. Whether and by how much is
measured on a copy of the module, with values of our own; a norm that also subtracts a mean can't be helped.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from pruner_lib.method.groups import Member
from pruner_lib.method.layout import set_leaf_sizes_, set_parameter_

TOLERANCE = 1e-3  # relative; a norm's epsilon stays as it was, and its share of the mean square changes


def obstacle_in_norms(model: nn.Module, members: Sequence[Member]) -> str | None:
    """Why these members can't be cut, a norm over all of them that can't be made up for, or None."""
    for member in norm_members(model, members):
        module = model.get_submodule(member.structure)
        n = len(member.indices)
        kept = member.indices[: max(1, n // 2)].reshape(-1).sort().values
        if n > 1 and norm_factor(module, kept) is None:
            return f"{type(module).__name__} {member.structure} mixes them and changes when some are gone"
    return None


def norm_members(model: nn.Module, members: Sequence[Member], side_by_side: int = 1) -> list[Member]:
    """The members that are the weight of a module which holds nothing but vectors, all as long as the axis.

    Args: side_by_side: of the axis, see `Axis`.
    """
    found = []
    for member in members:
        module = model.get_submodule(member.parameter.rpartition(".")[0])
        vectors = all(p is None or p.ndim == 1 for p in module._parameters.values())
        leaf = vectors and member.parameter.endswith(".weight") and not list(module.children())
        if leaf and module.weight.numel() == member.indices.numel() * side_by_side:
            found.append(member)
    return found


def norm_factor(module: nn.Module, kept: torch.Tensor) -> float | None:
    """By what the weight of a cut norm must be multiplied to act as the whole norm on masked input.

    Args: kept: sorted entries that stay.    Returns: None if no factor does.
    """
    whole = _with_values(module)
    size = whole.weight.numel()
    cut = copy.deepcopy(whole)
    for name, parameter in whole._parameters.items():
        if parameter is not None:
            set_parameter_(cut, name, parameter.detach()[kept])
    set_leaf_sizes_(cut)
    x = torch.randn(8, size, generator=torch.Generator().manual_seed(0)) * 3
    masked = torch.zeros_like(x)
    masked[:, kept] = x[:, kept]
    with torch.no_grad():
        wanted = whole(masked)[:, kept]
        got = cut(x[:, kept])
        factor = ((wanted * got).sum() / (got * got).sum()).item()
        if abs(factor - 1) < TOLERANCE and torch.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE):
            return 1.0
        cut.weight.mul_(factor)
        fits = torch.allclose(cut(x[:, kept]), wanted, rtol=TOLERANCE, atol=TOLERANCE)
    return factor if fits else None


def _with_values(module: nn.Module) -> nn.Module:
    """A copy on the CPU in float32 with weights that are neither all equal nor zero."""
    made = copy.deepcopy(module).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return made
