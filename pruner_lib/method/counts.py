"""How many groups of each axis go (paper section 3.2: a ratio of the groups, or of all parameters).

Pure functions of scores and sizes; which groups go is in `selection`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch

from pruner_lib.method.groups import Axes, Axis
from pruner_lib.method.siblings import even_out

EXPERT_ROWS = 8  # channels of experts are kept in multiples of it: grouped products want 16-byte rows
TOLERANCE = 0.005  # of all parameters: how near `target="parameters"` must come


def removed_counts(
    axes: Mapping[str, Axis],
    pruned: Mapping[str, Axis],
    units: Mapping[str, torch.Tensor],
    ratio: float,
    scope: str,
    multiple_of: int,
    target: str,
) -> dict[str, int]:
    """Say how many groups of each unit go.

    Args:    pruned: those of the axes where pruning applies.    units: what is ranked: an axis, or
             "axis/structure" where each matrix is ranked alone -> its scores, `(n_groups,)`.
             ratio, scope, multiple_of, target: see `select`.
    Returns: a count for each unit.
    Raises:  ValueError: no count comes near the share of parameters that is wanted.
    """
    kinds = {a.kind for a in pruned.values()}
    if target == "groups":
        counts = _counts(pruned, units, dict.fromkeys(kinds, ratio), scope, multiple_of)
        idle = sorted(
            kind
            for kind in kinds
            if not any(n for key, n in counts.items() if pruned[key.split("/")[0]].kind == kind)
        )
        if ratio > 0 and idle:
            example = next(a for a in pruned.values() if a.kind == idle[0])
            warnings.warn(
                f"ratio {ratio} of {example.n_groups} groups rounds to none for {', '.join(idle)}: "
                "nothing is removed there",
                stacklevel=3,
            )
        return counts
    total = total_parameters(axes)
    structures = {name: 1 if name in units else len(axis.structures) for name, axis in pruned.items()}

    def sparsity(ratios: Mapping[str, float]) -> float:
        counts = _counts(pruned, units, ratios, scope, multiple_of)
        gone = (
            n * pruned[k.split("/")[0]].group_parameters / structures[k.split("/")[0]]
            for k, n in counts.items()
        )
        return sum(gone) / total

    both = _bisect(lambda r: sparsity(dict.fromkeys(kinds, r)), ratio)
    ratios = dict.fromkeys(kinds, both)
    if "mlp" in kinds and scope != "joint":
        # heads come in large steps: let the MLP channels make up for the rest
        ratios["mlp"] = _bisect(lambda r: sparsity(ratios | {"mlp": r}), ratio)
    reached = sparsity(ratios)
    if abs(reached - ratio) > TOLERANCE:
        raise ValueError(
            f"no plan removes {ratio:.1%} of the parameters to within {TOLERANCE:.1%}: the nearest removes "
            f"{reached:.1%}. Protect fewer layers, lower the ratio, or use target='groups'"
        )
    return _counts(pruned, units, ratios, scope, multiple_of)


def total_parameters(axes: Mapping[str, Axis]) -> int:
    """Parameters of the whole model, which only the axes of `discover` know."""
    if not isinstance(axes, Axes):
        raise ValueError("target='parameters' needs the Axes object that discover returned, not a plain dict")
    return axes.n_parameters


def n_removed(axis: Axis, ratio: float) -> int:
    """Groups that a ratio removes from an axis: whole groups of C - int(C * (1 - ratio)) channels.

    Source: reference code, `prune_local`; at least one group stays.
    """
    channels = axis.n_groups * axis.width
    return min((channels - int(channels * (1 - ratio))) // axis.width, axis.n_groups - 1)


def _counts(pruned, units, ratios: Mapping[str, float], scope: str, multiple_of: int) -> dict[str, int]:
    """Key of `units` -> number of groups that go; `ratios` gives a ratio for each kind."""
    counts: dict[str, int] = {}
    of = {key: pruned[key.split("/")[0]] for key in units}
    if scope == "local":
        counts = {key: n_removed(of[key], ratios[of[key].kind]) for key in units}
    else:
        kinds = sorted({a.kind for a in pruned.values()})
        for together in [kinds] if scope == "joint" else [[kind] for kind in kinds]:
            keys = [key for key in units if of[key].kind in together]
            counts |= _global_counts(
                {k: units[k] for k in keys}, {k: of[k] for k in keys}, ratios[together[-1]], scope
            )
        counts = even_out(pruned, counts)
    for key in counts:
        n, kind = of[key].n_groups, of[key].kind
        step = multiple_of if kind == "mlp" else 1
        if of[key].in_stack and n >= EXPERT_ROWS and counts[key]:
            step = math.lcm(step, EXPERT_ROWS)
        if step > 1:
            kept = round((n - counts[key]) / step) * step
            counts[key] = n - min(max(kept, step), n)
    return counts


def _global_counts(
    units: dict[str, torch.Tensor], of: dict[str, Axis], ratio: float, scope: str
) -> dict[str, int]:
    """Rank all groups in one list; the best group of each axis is out of reach."""
    candidates = {key: torch.sort(values, stable=True).values[:-1] for key, values in units.items()}
    width = 1 if scope == "joint" else next(iter(of.values())).width  # the joint ratio counts groups
    total = sum(axis.n_groups * width for axis in of.values())
    n = min((total - int(total * (1 - ratio))) // width, sum(len(c) for c in candidates.values()))
    owner = torch.cat([torch.full((len(c),), i) for i, c in enumerate(candidates.values())])
    worst = torch.argsort(torch.cat(list(candidates.values())), stable=True)[:n]
    gone = torch.bincount(owner[worst], minlength=len(candidates))
    return {key: int(gone[i]) for i, key in enumerate(candidates)}


def _bisect(rising: Callable[[float], float], goal: float) -> float:
    """The x in [0, 1) whose `rising(x)` is nearest to the goal."""
    low, high = 0.0, math.nextafter(1.0, 0.0)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return min((low, high), key=lambda x: abs(rising(x) - goal))
