"""Norms that run over all groups of an axis at once, such as all heads (not treated in the paper).

The root mean square of n kept channels is sqrt(N / n) times that of all N channels with the others at zero.
A factor f = sqrt(N / n) on the norm's weight and f^2 on its epsilon makes up for it, so that cutting still
equals masking:  w x / sqrt(S / N + eps) = f w x / sqrt(S / n + f^2 eps),  S: sum of the kept squares.
The factor is measured on a copy of the module with random values; norms that subtract a mean have none.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from pruner_lib.method.groups import Member
from pruner_lib.method.layout import set_leaf_sizes_, set_parameter_

TOLERANCE = 1e-3  # relative, because the factor is measured with the norm's epsilon


def obstacle_in_norms(model: nn.Module, members: Sequence[Member]) -> str | None:
    """Return why these members can't be cut: a norm over all of them that no factor corrects; or None."""
    for member in norm_members(model, members):
        module = model.get_submodule(member.structure)
        n = len(member.indices)
        kept = member.indices[: max(1, n // 2)].reshape(-1).sort().values
        if n > 1 and norm_factor(module, kept) is None:
            return f"{type(module).__name__} {member.structure} normalises all of them and can't be corrected"
    return None


def norm_members(model: nn.Module, members: Sequence[Member], side_by_side: int = 1) -> list[Member]:
    """Return the members that are weights of norms: leaf modules with only vectors, as long as the axis."""
    norms = []
    for member in members:
        module = model.get_submodule(member.parameter.rpartition(".")[0])
        vectors = all(p is None or p.ndim == 1 for p in module._parameters.values())
        leaf = vectors and member.parameter.endswith(".weight") and not list(module.children())
        if leaf and module.weight.numel() == member.indices.numel() * side_by_side:
            norms.append(member)
    return norms


def norm_factor(module: nn.Module, kept: torch.Tensor) -> float | None:
    """Measure the factor on a cut norm's weight with which it acts as the dense norm on masked input.

    Args: kept: sorted kept entries.    Returns: None if there is no such factor.
    """
    # on the CPU in float32, with weights that are neither all equal nor zero
    dense = copy.deepcopy(module).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(1)
    for parameter in dense.parameters():
        parameter.data.uniform_(0.5, 1.5, generator=generator)
    cut = copy.deepcopy(dense)
    for name, parameter in dense._parameters.items():
        if parameter is not None:
            set_parameter_(cut, name, parameter.detach()[kept])
    set_leaf_sizes_(cut)
    x = torch.randn(8, dense.weight.numel(), generator=torch.Generator().manual_seed(0)) * 3
    masked = torch.zeros_like(x).index_copy(1, kept, x[:, kept])
    with torch.no_grad():
        target = dense(masked)[:, kept]  # (8, n_kept)
        output = cut(x[:, kept])
        factor = ((target * output).sum() / (output * output).sum()).item()  # least squares
        factor = 1.0 if abs(factor - 1) < TOLERANCE else factor
        cut.weight.mul_(factor)
        fits = torch.allclose(cut(x[:, kept]), target, rtol=TOLERANCE, atol=TOLERANCE)
    return factor if fits else None
