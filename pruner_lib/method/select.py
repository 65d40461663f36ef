"""Choosing: scores in, plan out (paper section 3.2, the ranking after Eq. 5, and section 4.1's
granularities).

How many groups of each axis go (a ratio of the groups, or of all parameters), and which. Pure functions of
scores and sizes: no model is seen here and nothing is cut.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch

from pruner_lib.method.groups import GRANULARITIES, Axes, Axis, Plan

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


SCOPES = ("local", "global", "joint")
TARGETS = ("groups", "parameters")


def select(
    axes: Mapping[str, Axis],
    scores: Mapping[str, torch.Tensor],
    *,
    ratio: float,
    granularity: str = "block",
    scope: str = "local",
    protect_first: int = 0,
    protect_last: int = 0,
    target: str = "groups",
    dependency: bool = True,
    multiple_of: int = 1,
    uniform: bool = False,
) -> Plan:
    """Rank the groups by their scores and say which of them stay.

    Args:
        axes: what `discover` returned.
        scores: axis name -> `(n_groups,)`, higher means keep; with `dependency=False` `(n_structures,
            n_groups)`, as `estimate(..., aggregation="none")` returns them.
        ratio: share of groups to remove where pruning applies, in [0, 1); with `target="parameters"` the
            share of all parameters of the model.
        granularity: "block" (attention heads and MLP channels), "channel" (residual stream) or "layer".
        scope: "local" ranks within each axis, "global" all axes of a kind together, "joint" heads and MLP
            channels in one list, each of them one group (the reference code's global ranking).
        protect_first, protect_last: decoder layers left whole at either end (block and layer granularity).
        dependency: False ranks each structure (matrix) alone: same counts, own indices (the paper's Table 6).
        multiple_of: kept MLP channels are rounded to a multiple of it; channels of stacked
            experts always to one of 8, which the grouped product of torch asks for.
        uniform: require that all layers end with the same widths.
    Returns: a plan with an entry for every axis of the granularity, protected ones whole.
    Raises: ValueError: an argument is out of range, or scores do not fit the axes.
    Source: section 3.2; rounding as in the reference code: C - int(C * (1 - ratio)) channels, whole groups
        only.
    """
    _check_options(ratio, granularity, scope, target, protect_first, protect_last, multiple_of)
    n_layers = getattr(
        axes, "n_layers", 1 + max((a.layer for a in axes.values() if a.layer is not None), default=-1)
    )
    _check_together(granularity, scope, n_layers, protect_first + protect_last, dependency, uniform)
    settings = dict(
        ratio=ratio, granularity=granularity, scope=scope, protect_first=protect_first,
        protect_last=protect_last, target=target, dependency=dependency, multiple_of=multiple_of,
        uniform=uniform,
    )  # fmt: skip
    inner = range(protect_first, n_layers - protect_last)
    if granularity == "layer":
        return _select_layers(axes, scores, ratio, target, n_layers, inner, settings)
    chosen = {name: a for name, a in axes.items() if a.kind in GRANULARITIES[granularity]}
    if not chosen:
        raise ValueError(
            f"no axis of granularity {granularity!r} among {sorted({a.kind for a in axes.values()})}"
        )
    for axis in chosen.values():
        _check_scores(axis, scores, dependency)
    pruned = {name: a for name, a in chosen.items() if a.layer is None or a.layer in inner}
    units = _units(pruned, scores, dependency)
    remove = removed_counts(axes, pruned, units, ratio, scope, multiple_of, target)
    keep, n_groups = {}, {}
    for name, axis in chosen.items():
        for key in [name] if dependency else [f"{name}/{s}" for s in axis.structures]:
            n_groups[key] = axis.n_groups
            order = torch.argsort(units[key], stable=True) if key in units else torch.arange(axis.n_groups)
            keep[key] = order[remove.get(key, 0) :].sort().values
    return Plan(keep, n_groups, settings)


def _check_options(ratio, granularity, scope, target, protect_first, protect_last, multiple_of) -> None:
    if not isinstance(ratio, (int, float)) or isinstance(ratio, bool) or not 0 <= ratio < 1:
        raise ValueError(f"ratio must be in [0, 1), got {ratio!r}; 0.25 removes a quarter")
    for name, value, known in (
        ("granularity", granularity, tuple(GRANULARITIES)),
        ("scope", scope, SCOPES),
        ("target", target, TARGETS),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
    counts = (
        ("protect_first", protect_first, 0),
        ("protect_last", protect_last, 0),
        ("multiple_of", multiple_of, 1),
    )
    for name, value, least in counts:
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_together(
    granularity: str, scope: str, n_layers: int, protected: int, dependency: bool, uniform: bool
) -> None:
    """Refuse options that exclude each other."""
    if granularity == "channel" and protected:
        raise ValueError(
            "channel granularity cuts the residual stream of every layer: protect_first and protect_last "
            "must be 0"
        )
    if protected >= max(n_layers, 1):
        raise ValueError(
            f"protect_first + protect_last = {protected} leaves none of {n_layers} layers to prune"
        )
    if uniform and (protected or scope != "local"):
        raise ValueError(
            "uniform=True needs scope='local' and no protected layers, else the widths differ between layers"
        )
    if granularity == "layer" and not dependency:
        raise ValueError(
            "dependency=False ranks the structures of a group; a whole layer has none: "
            "use granularity='block'"
        )


def _check_scores(axis: Axis, scores: Mapping[str, torch.Tensor], dependency: bool) -> None:
    if axis.name not in scores:
        raise ValueError(
            f"no scores for axis {axis.name}; scores cover {sorted(scores)[:4]}...: "
            "run estimate on the same axes"
        )
    got = torch.as_tensor(scores[axis.name])
    wanted = (axis.n_groups,) if dependency else (len(axis.structures), axis.n_groups)
    if tuple(got.shape) != wanted:
        hint = "" if dependency else "; dependency=False needs estimate(..., aggregation='none')"
        raise ValueError(f"scores of {axis.name} have shape {tuple(got.shape)}, wanted {wanted}{hint}")
    if not torch.isfinite(got).all():
        raise ValueError(f"scores of {axis.name} are not all finite; check the calibration loss")


def _units(
    pruned: Mapping[str, Axis], scores: Mapping[str, torch.Tensor], dependency: bool
) -> dict[str, torch.Tensor]:
    """What is ranked: the groups of an axis, or each of its structures alone. Key -> `(n_groups,)`."""
    units = {}
    for name, axis in pruned.items():
        table = torch.as_tensor(scores[name]).float()
        if dependency:
            units[name] = table
        else:
            units |= {f"{name}/{s}": row for s, row in zip(axis.structures, table, strict=True)}
    return units


def _select_layers(axes, scores, ratio, target, n_layers, inner, settings) -> Plan:
    """Whole layers: a layer's score is the sum over its attention and MLP groups."""
    totals = torch.zeros(n_layers)
    for axis in axes.values():
        if axis.layer is not None:
            _check_scores(axis, scores, dependency=True)
            totals[axis.layer] += torch.as_tensor(scores[axis.name]).float().sum()
    order = [i for i in torch.argsort(totals, stable=True).tolist() if i in inner]
    if target == "groups":
        n = len(order) - int(len(order) * (1 - ratio))
    else:
        sizes = torch.tensor([0, *(axes.layer_parameters[i] for i in order)]).cumsum(0)
        sizes = sizes / total_parameters(axes)
        n = int((sizes - ratio).abs().argmin())
    n = min(n, n_layers - 1)
    if ratio > 0 and n == 0:
        warnings.warn(
            f"ratio {ratio} of {len(order)} layers rounds to none: nothing is removed", stacklevel=3
        )
    gone = set(order[:n])
    return Plan(
        {"layers": torch.tensor([i for i in range(n_layers) if i not in gone])},
        {"layers": n_layers},
        settings,
    )


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
