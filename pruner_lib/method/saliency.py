"""Saliencies and their sums: from slices of gradients to one number for each channel (paper Eq. 3 to 5).

Sums are taken along the dims that axes do not cut, slice by slice, in float64 between slices. How channels
become groups is in `importance`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruner_lib.method.capacity import Tidy
from pruner_lib.method.groups import Axis, Member
from pruner_lib.method.uses import rows_of


class Tables:
    """Running sums of the saliencies along the dims that axes cut, filled slice by slice."""

    def __init__(self, axes: Mapping[str, Axis], parameters: Mapping[str, torch.Tensor]):
        self.axes = axes
        self.places: dict[str, set[tuple[int, ...]]] = {}  # parameter -> dims that stay
        self.parameters = {name: p.detach() for name, p in parameters.items()}
        self.sums: dict[tuple[str, str, tuple[int, ...]], torch.Tensor] = {}
        for axis in axes.values():
            for m in axis.members:
                self.places.setdefault(m.parameter, set()).add(_dims(m))

    def add_magnitudes(self, criteria: list[str]) -> None:
        tidy = Tidy()
        for name in self.places if criteria else ():
            tidy.look()
            w = self.parameters[name]
            step = rows_of(w.shape, w.device)
            for row, part in zip(range(0, w.shape[0], step), w.split(step), strict=True):
                magnitude = part.to(torch.promote_types(w.dtype, torch.float32)).abs()
                if "l1" in criteria:
                    self._reduce("l1", name, row, magnitude)
                if "l2" in criteria:
                    self._reduce("l2", name, row, magnitude * magnitude)

    def add(self, name: str, row: int, g: torch.Tensor, a: torch.Tensor | None, criteria: list[str]) -> None:
        """Add a slice of the gradient; `g` and `a` are used up."""
        w = self.parameters[name][row : row + len(g)].to(g.dtype)
        s = g.mul_(w)
        if "vector" in criteria:
            self._reduce("vector", name, row, s)
        if a is not None:
            waw = a.mul_(w).mul_(w)
            if "element2" in criteria:
                self._reduce("element2", name, row, waw)
            if "mixed" in criteria:
                self._reduce("mixed", name, row, waw.mul_(-0.5).add_(s).abs_())
        if "element1" in criteria:
            self._reduce("element1", name, row, s.abs_())

    def _reduce(self, criterion: str, name: str, row: int, salience: torch.Tensor) -> None:
        shape = self.parameters[name].shape
        for dims in self.places[name]:
            others = [d for d in range(salience.ndim) if d not in dims]
            part = salience.sum(others) if others else salience
            key = criterion, name, dims
            if key not in self.sums:
                self.sums[key] = part.new_zeros([shape[d] for d in dims], dtype=torch.float64)
            total = self.sums[key]
            total = total[row : row + len(part)] if dims[0] == 0 else total
            total += part

    def fold(self, criterion: str) -> dict[str, torch.Tensor]:
        """Structures wider than the others (query rows of a KV head) are summed onto the common channels."""
        found = {}
        for name, axis in self.axes.items():
            tables = dict.fromkeys(axis.structures, 0)
            for m in axis.members:
                channels = self.sums[criterion, m.parameter, _dims(m)].cpu()
                if m.at:
                    channels = channels.select(_dims(m).index(m.at[0]), m.at[1])
                tables[m.structure] = tables[m.structure] + channels[m.indices]  # (n_groups, width)
            if criterion == "vector":
                tables = {structure: table.abs() for structure, table in tables.items()}
            found[name] = torch.stack(
                [t.unflatten(1, (-1, axis.width)).sum(1) for t in tables.values()]
            ).float()
        return found


def _dims(member: Member) -> tuple[int, ...]:
    """The dims of a parameter whose entries a member tells apart."""
    return tuple(sorted({member.dim} | ({member.at[0]} if member.at else set())))
