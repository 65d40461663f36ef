"""Saliency: signed numbers of the shape of a weight, summed to one for each channel (paper Eq. 3 to 5).

Weights and gradients come in slices of rows. Sums are taken along the dims that axes do not cut, slice by
slice, in float64 between slices. What is made of the channels' numbers is in `importance`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from pruner_lib.method.groups import Axis, Member
from pruner_lib.method.memory import HeapTrimmer
from pruner_lib.method.module_gradients import rows_of

Criterion = str | Callable[[Tensor, Tensor], Tensor]


def magnitudes(w: Tensor, criteria: Collection[Criterion]) -> Iterator[tuple[Criterion, Tensor]]:
    """Yield the saliency of each entry of a weight by each of the criteria that need no data.

    l1: |w|    l2: w^2
    """
    magnitude = w.to(torch.promote_types(w.dtype, torch.float32)).abs()
    if "l1" in criteria:
        yield "l1", magnitude
    if "l2" in criteria:
        yield "l2", magnitude * magnitude


def saliencies(
    w: Tensor, g: Tensor, a: Tensor | None, criteria: Collection[Criterion]
) -> Iterator[tuple[Criterion, Tensor]]:
    """Yield the saliency of each entry of a weight by each of the criteria that need gradients.

    With s = g * w:    vector: s    element1: |s|    element2: w a w    mixed: |s - w a w / 2|

    Args:
        w: a slice of a weight.    g: gradient of the batch loss, used up.    a: mean squared gradient of the
            samples, used up; None without second-order criteria. All of one shape.
    Raises: ValueError: a criterion of the user's returned another shape.
    """
    for criterion in criteria:
        if callable(criterion):
            saliency = criterion(w.clone(), g.clone())
            if not isinstance(saliency, Tensor) or saliency.shape != w.shape:
                got = tuple(saliency.shape) if isinstance(saliency, Tensor) else type(saliency).__name__
                raise ValueError(
                    f"criterion {_name(criterion)} returned {got} for a weight of shape {tuple(w.shape)}; it "
                    "must return one number for each entry, a tensor of the weight's shape"
                )
            yield criterion, saliency
    s = g.mul_(w)
    if "vector" in criteria:
        yield "vector", s
    if a is not None:
        waw = a.mul_(w).mul_(w)
        if "element2" in criteria:
            yield "element2", waw
        if "mixed" in criteria:
            yield "mixed", waw.mul_(-0.5).add_(s).abs_()
    if "element1" in criteria:
        yield "element1", s.abs_()


class ChannelSums:
    """Running sums of the saliencies along the dims that axes cut, filled slice by slice."""

    def __init__(self, axes: Mapping[str, Axis], parameters: Mapping[str, Tensor]):
        self.axes = axes
        self.parameters = {name: p.detach() for name, p in parameters.items()}
        self.kept_dims: dict[str, set[tuple[int, ...]]] = {}  # parameter -> dims not summed over
        self.sums: dict[tuple[Criterion, str, tuple[int, ...]], Tensor] = {}
        for axis in axes.values():
            for m in axis.members:
                self.kept_dims.setdefault(m.parameter, set()).add(_dims(m))

    def add_magnitudes(self, criteria: Collection[Criterion]) -> None:
        trimmer = HeapTrimmer()
        for name in self.kept_dims if criteria else ():
            trimmer.check()
            w = self.parameters[name]
            step = rows_of(w.shape, w.device)
            for row, part in zip(range(0, w.shape[0], step), w.split(step), strict=True):
                for criterion, saliency in magnitudes(part, criteria):
                    self._add(criterion, name, row, saliency)

    def add_gradient(
        self, name: str, row: int, g: Tensor, a: Tensor | None, criteria: Collection[Criterion]
    ) -> None:
        """Add a slice of the gradient, from `row` on; `g` and `a` are used up."""
        w = self.parameters[name][row : row + len(g)].to(g.dtype)
        for criterion, saliency in saliencies(w, g, a, criteria):
            self._add(criterion, name, row, saliency)

    def _add(self, criterion: Criterion, name: str, row: int, saliency: Tensor) -> None:
        shape = self.parameters[name].shape
        for dims in self.kept_dims[name]:
            others = [d for d in range(saliency.ndim) if d not in dims]
            part = saliency.sum(others) if others else saliency
            key = criterion, name, dims
            if key not in self.sums:
                self.sums[key] = part.new_zeros([shape[d] for d in dims], dtype=torch.float64)
            total = self.sums[key]
            total = total[row : row + len(part)] if dims[0] == 0 else total
            total += part

    def by_structure(self, criterion: Criterion) -> dict[str, Tensor]:
        """Axis name -> `(n_structures, n_groups, channels)`; structures wider than the others (query rows of
        a KV head) are summed onto the common channels."""
        scores = {}
        for name, axis in self.axes.items():
            tables = dict.fromkeys(axis.structures, 0)
            for m in axis.members:
                channels = self.sums[criterion, m.parameter, _dims(m)].cpu()
                if m.at:
                    channels = channels.select(_dims(m).index(m.at[0]), m.at[1])
                tables[m.structure] = tables[m.structure] + channels[m.indices]  # (n_groups, width)
            if criterion == "vector":
                tables = {structure: table.abs() for structure, table in tables.items()}
            # (n_groups, width) -> (n_groups, width / channels, channels) -> (n_groups, channels)
            common = [t.unflatten(1, (-1, axis.width)).sum(1) for t in tables.values()]
            scores[name] = torch.stack(common).float()
        return scores


def _dims(member: Member) -> tuple[int, ...]:
    """The dims of a parameter whose entries a member tells apart."""
    return tuple(sorted({member.dim} | ({member.at[0]} if member.at else set())))


def _name(criterion: Criterion) -> str:
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", repr(criterion))
