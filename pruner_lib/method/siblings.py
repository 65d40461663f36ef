"""Axes that must keep equally many groups, because their weights make up one tensor.

The experts of a layer are stacked in one parameter; the query heads of each key and value head lie side by
side in another. Every expert, and every key and value head, has groups of its own, but the tensors stay
rectangular only if all of them lose the same number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from pruner_lib.method.groups import Axis


def split_experts(axis: Axis, n_experts: int) -> list[Axis]:
    """One axis for each matrix of a stack `(experts, ...)`."""
    return [
        replace(
            axis,
            name=f"{axis.name}.{e}",
            members=tuple(replace(m, at=(0, e)) for m in axis.members),
            group_parameters=axis.group_parameters // n_experts,
            siblings=axis.name,
        )
        for e in range(n_experts)
    ]


def split_queries(axis: Axis, owner: np.ndarray) -> list[Axis]:
    """One axis for each key and value head, whose groups are its query heads.

    Args: owner: `(n_groups,)` which key and value head each query head uses.
    """
    heads = list(dict.fromkeys(owner.tolist()))
    rows = {head: np.flatnonzero(owner == head) for head in heads}
    return [
        replace(
            axis,
            name=f"{axis.name}.{i}",
            n_groups=len(rows[head]),
            members=tuple(replace(m, indices=m.indices[rows[head]]) for m in axis.members),
            siblings=axis.name,
            side_by_side=len(heads),
        )
        for i, head in enumerate(heads)
    ]


def even_out(axes: Mapping[str, Axis], removed: Mapping[str, int]) -> dict[str, int]:
    """Give siblings the same number of groups to remove: the mean of what each would lose, rounded.

    Args: removed: axis name, or `axis/structure`, -> number of groups.
    """
    sets: dict[tuple[str, str], list[str]] = {}
    for key in removed:
        name, _, structure = key.partition("/")
        if axes[name].siblings:
            sets.setdefault((axes[name].siblings, structure), []).append(key)
    even = dict(removed)
    for keys in sets.values():
        even |= dict.fromkeys(keys, round(sum(removed[k] for k in keys) / len(keys)))
    return even


def check_even(axes: Mapping[str, Axis], kept: Mapping[str, int]) -> None:
    """Refuse a plan that would leave a stack ragged.

    Args: kept: axis name -> groups kept, for the axes that lose some.
    Raises: ValueError: siblings keep different numbers of groups.
    """
    touched = {axes[name].siblings for name in kept} - {""}
    for siblings in touched:
        counts = {n: kept.get(n, a.n_groups) for n, a in axes.items() if a.siblings == siblings}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"the axes of {siblings} share their tensors and must all keep the same number of groups; "
                f"the plan keeps {_some(f'{n}: {k}' for n, k in counts.items())}"
            )


def _some(parts: Iterable[str], n: int = 6) -> str:
    parts = list(parts)
    return ", ".join(parts[:n]) + (" ..." if len(parts) > n else "")
