"""What the criteria estimate, measured: the loss of the model without a group (left-hand side of Eq. 3).

Nothing is approximated here, so nothing is cheap: each number is a forward pass over the calibration batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from pruner_lib.measuring.evaluation import perplexity_result
from pruner_lib.method.groups import Axis


def loss_of(model: nn.Module, ids: torch.Tensor) -> float:
    """Measure the loss L(D): the mean over all predicted tokens of the batch, in nats a token.

    Args:    ids: `(samples, tokens)` int64.
    Raises:  ValueError: ids that do not fit the model, or a loss that is not finite.
    """
    return float(perplexity_result(model, ids).nll.mean())


@contextmanager
def faded(
    model: nn.Module, axis: Axis, group: int, *, share: float = 1.0, structures: Collection[str] | None = None
) -> Iterator[nn.Module]:
    """Take a share of one group's weights away, W -> (1 - share) W; give them back bit for bit afterwards.

    Args:    share: 1 is what pruning does; less shows where the Taylor expansion holds.
             structures: some of the group's matrices; None: all of them.
    Raises:  ValueError: the axis has no such group or structure.
    """
    if not 0 <= group < axis.n_groups:
        raise ValueError(f"{axis.name} has the groups 0..{axis.n_groups - 1}, not {group}")
    if strange := set(structures or ()) - set(axis.structures):
        raise ValueError(
            f"{axis.name} has no structure {', '.join(sorted(strange))}; it has {', '.join(axis.structures)}"
        )
    members = [m for m in axis.members if structures is None or m.structure in structures]
    before = []
    try:
        with torch.no_grad():
            for member in members:
                weight = model.get_parameter(member.parameter)
                index = member.indices[group].to(weight.device)
                slices = weight.index_select(member.dim, index)
                before.append((weight, member.dim, index, slices))
                weight.index_copy_(member.dim, index, slices * (1 - share))
        yield model
    finally:
        with torch.no_grad():
            for weight, dim, index, slices in reversed(before):
                weight.index_copy_(dim, index, slices)


def loss_changes(
    model: nn.Module,
    axes: Mapping[str, Axis],
    groups: Sequence[tuple[str, int]],
    ids: torch.Tensor,
    *,
    progress: bool = False,
) -> list[float]:
    """Measure how the loss changes when each of some groups, alone, is set to zero.

    dL_G = L(D; W_G = 0) - L(D)

    Args:    groups: (axis name, group number).    ids: `(samples, tokens)` int64.    progress: show a bar.
    Returns: one number a group, nats a token; below 0 where the model is better without it.
    Source:  paper Eq. 3, whose left-hand side is the absolute value of this. No difference known.
    """
    from tqdm.auto import tqdm

    whole = loss_of(model, ids)
    changes = []
    for name, group in tqdm(groups, desc="loss without a group", unit="group", disable=not progress):
        with faded(model, axes[name], group):
            changes.append(loss_of(model, ids) - whole)
    return changes
