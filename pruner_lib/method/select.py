"""Choosing: scores in, plan out (paper section 3.2, the ranking after Eq. 5, and section 4.1's
granularities).

How many groups of each axis go (a ratio of the groups, or of all parameters), and which. Pure functions of
scores and sizes: no model is seen here and nothing is cut.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from pruner_lib.method.groups import GRANULARITIES, Axes, Axis, Plan
from pruner_lib.method.options import check_names, check_scores, check_select_options, check_uniform, fits

EXPERT_ROWS = 8  # channels of experts are kept in multiples of it: grouped products want 16-byte rows
TOLERANCE = 0.005  # of all parameters: how near `target="parameters"` must come


@dataclass(frozen=True, eq=False)
class Unit:
    """What is ranked: the groups of an axis, or with `dependency=False` those of one of its structures.

    Attributes:
        key: in the plan.
        scores: `(n_groups,)` float32.
        parameters: that go with one of its groups.
    """

    key: str
    axis: Axis
    scores: torch.Tensor
    parameters: float

    @property
    def ranked(self) -> torch.Tensor:
        """`(n_groups,)` group numbers, those that go first in front."""
        return torch.argsort(self.scores, stable=True)


Counts = dict[str, int]  # key of a unit -> number of groups that go
RatioOf = Callable[[Axis], float]


def select(
    axes: Mapping[str, Axis],
    scores: Mapping[str, torch.Tensor],
    *,
    ratio: float | Mapping[str, float],
    granularity: str = "block",
    scope: str = "local",
    protect_first: int = 0,
    protect_last: int = 0,
    ignore: Sequence[str] = (),
    target: str = "groups",
    dependency: bool = True,
    multiple_of: int = 1,
    uniform: bool = False,
) -> Plan:
    """Rank the groups by their scores and say which of them stay.

    Args:
        axes: what `discover` returned, or some of it (`axes.of_kind(...)`).
        scores: axis name -> `(n_groups,)`, higher means keep; with `dependency=False` `(n_structures,
            n_groups)`, as `estimate(..., aggregation="none")` returns them.
        ratio: share of groups to remove where pruning applies, in [0, 1); with `target="parameters"` the
            share of all parameters of the model. Or names or patterns of axes -> their shares,
            `{"layers.3.mlp": 0.4, "layers.*.attention": 0.2}`: an axis takes the share of its own name, else
            of the first pattern that fits, and is left whole without one.
        granularity: "block" (attention heads and MLP channels), "channel" (residual stream) or "layer".
        scope: "local" ranks within each axis, "global" all axes of a kind together, "joint" heads and MLP
            channels in one list, each of them one group (the reference code's global ranking).
        protect_first, protect_last: decoder layers left whole at either end (block and layer granularity).
        ignore: names or patterns of axes that are left whole, `["layers.3.mlp", "layers.1?.*"]`.
        dependency: False ranks each structure (matrix) alone: same counts, own indices (the paper's Table 6).
        multiple_of: kept MLP channels are rounded to a multiple of it; channels of stacked
            experts always to one of 8, which the grouped product of torch asks for.
        uniform: require that all layers end with the same widths.
    Returns: a plan with an entry for every axis of the granularity, those left whole included.
    Raises: ValueError: an argument is out of range, a pattern fits no axis, or scores do not fit the axes.
    Source: section 3.2; rounding as in the reference code: C - int(C * (1 - ratio)) channels, whole groups
        only.
    """
    settings = dict(
        ratio=dict(ratio) if isinstance(ratio, Mapping) else ratio, granularity=granularity, scope=scope,
        protect_first=protect_first, protect_last=protect_last, ignore=list(ignore), target=target,
        dependency=dependency, multiple_of=multiple_of, uniform=uniform,
    )  # fmt: skip
    check_select_options(**settings)
    check_names(axes, ignore)
    if granularity == "layer":
        return _select_layers(axes, scores, ratio, target, _unprotected(axes, settings), settings)
    chosen = {name: a for name, a in axes.items() if a.kind in GRANULARITIES[granularity]}
    if not chosen:
        raise ValueError(
            f"no axis of granularity {granularity!r} among {sorted({a.kind for a in axes.values()})}"
        )
    check_names(chosen, ratio if isinstance(ratio, Mapping) else ())
    inner = _unprotected(axes, settings) if protect_first or protect_last else None
    pruned = [
        a
        for a in chosen.values()
        if (inner is None or a.layer in inner) and not fits(a.name, ignore) and _share(a, ratio) is not None
    ]
    units = {unit.key: unit for axis in pruned for unit in _units(axis, scores, dependency)}
    if target == "groups":
        remove = _removed(units.values(), lambda axis: _share(axis, ratio), scope, multiple_of)
        _warn_of_none(units.values(), remove, ratio)
    else:
        total = _whole_model(axes).n_parameters
        remove = _removed_parameters(units.values(), total, ratio, scope, multiple_of)
    keep, n_groups = {}, {}
    for name, axis in chosen.items():
        for key in [name] if dependency else [f"{name}/{s}" for s in axis.structures]:
            ranked = units[key].ranked if key in units else torch.arange(axis.n_groups)
            keep[key], n_groups[key] = ranked[remove.get(key, 0) :].sort().values, axis.n_groups
    if uniform:
        check_uniform(keep)
    query_heads = any(a.kind == "attention" and a.siblings for a in axes.values())
    return Plan(keep, n_groups, settings, query_heads)


def n_removed(axis: Axis, ratio: float) -> int:
    """Groups that a ratio removes from an axis: whole groups of C - int(C * (1 - ratio)) channels.

    Source: reference code, `prune_local`; at least one group stays.
    """
    channels = axis.n_groups * axis.width
    return min((channels - int(channels * (1 - ratio))) // axis.width, axis.n_groups - 1)


def even_out(units: Collection[Unit], removed: Counts) -> Counts:
    """Give siblings the same number of groups to remove: the mean of what each would lose, rounded."""
    sets: dict[tuple[str, str], list[str]] = {}
    for unit in units:
        if unit.axis.siblings:
            structure = unit.key.partition("/")[2]
            sets.setdefault((unit.axis.siblings, structure), []).append(unit.key)
    even = dict(removed)
    for keys in sets.values():
        even |= dict.fromkeys(keys, round(sum(removed[k] for k in keys) / len(keys)))
    return even


def _units(axis: Axis, scores: Mapping[str, torch.Tensor], dependency: bool) -> list[Unit]:
    check_scores(axis, scores, dependency)
    table = torch.as_tensor(scores[axis.name]).float()
    if dependency:
        return [Unit(axis.name, axis, table, axis.group_parameters)]
    share = axis.group_parameters / len(axis.structures)
    rows = zip(axis.structures, table, strict=True)
    return [Unit(f"{axis.name}/{structure}", axis, row, share) for structure, row in rows]


def _removed(units: Collection[Unit], ratio_of: RatioOf, scope: str, multiple_of: int) -> Counts:
    """How many groups of each unit go, if each axis is to lose a ratio of its groups."""
    if scope == "local":
        counts = {unit.key: n_removed(unit.axis, ratio_of(unit.axis)) for unit in units}
    else:
        lists: dict[str, list[Unit]] = {}
        for unit in units:
            lists.setdefault("joint" if scope == "joint" else unit.axis.kind, []).append(unit)
        counts = {}
        for together in lists.values():
            counts |= _removed_from_one_list(together, ratio_of(together[0].axis), scope)
        counts = even_out(units, counts)
    return {unit.key: _rounded(unit.axis, counts[unit.key], multiple_of) for unit in units}


def _removed_from_one_list(units: Sequence[Unit], ratio: float, scope: str) -> Counts:
    """Rank all groups in one list; the best group of each axis is out of reach."""
    candidates = [torch.sort(unit.scores, stable=True).values[:-1] for unit in units]
    width = 1 if scope == "joint" else units[0].axis.width  # the joint ratio counts groups
    total = sum(unit.axis.n_groups * width for unit in units)
    n = min((total - int(total * (1 - ratio))) // width, sum(len(c) for c in candidates))
    owner = torch.cat([torch.full((len(c),), i) for i, c in enumerate(candidates)])
    worst = torch.argsort(torch.cat(candidates), stable=True)[:n]
    gone = torch.bincount(owner[worst], minlength=len(units))
    return {unit.key: int(gone[i]) for i, unit in enumerate(units)}


def _rounded(axis: Axis, removed: int, multiple_of: int) -> int:
    """The number of groups to remove so that what stays is a multiple of what the hardware wants."""
    step = multiple_of if axis.kind == "mlp" else 1
    if axis.in_stack and axis.n_groups >= EXPERT_ROWS and removed:
        step = math.lcm(step, EXPERT_ROWS)
    if step == 1:
        return removed
    kept = round((axis.n_groups - removed) / step) * step
    return axis.n_groups - min(max(kept, step), axis.n_groups)


def _removed_parameters(
    units: Collection[Unit], total: int, share: float, scope: str, multiple_of: int
) -> Counts:
    """How many groups of each unit go, if a share of all parameters is to go.

    Raises: ValueError: no count comes near the share.
    """

    def counts(ratios: Mapping[str, float]) -> Counts:
        return _removed(units, lambda axis: ratios[axis.kind], scope, multiple_of)

    def sparsity(ratios: Mapping[str, float]) -> float:
        removed = counts(ratios)
        return sum(removed[unit.key] * unit.parameters for unit in units) / total

    kinds = {unit.axis.kind for unit in units}
    ratios = dict.fromkeys(kinds, _bisect(lambda r: sparsity(dict.fromkeys(kinds, r)), share))
    if "mlp" in kinds and scope != "joint":
        # heads come in large steps: let the MLP channels make up for the rest
        ratios["mlp"] = _bisect(lambda r: sparsity(ratios | {"mlp": r}), share)
    reached = sparsity(ratios)
    if abs(reached - share) > TOLERANCE:
        raise ValueError(
            f"no plan removes {share:.1%} of the parameters to within {TOLERANCE:.1%}: the nearest removes "
            f"{reached:.1%}. Protect fewer layers, lower the ratio, or use target='groups'"
        )
    return counts(ratios)


def _bisect(rising: Callable[[float], float], goal: float) -> float:
    """The x in [0, 1) whose `rising(x)` is nearest to the goal."""
    low, high = 0.0, math.nextafter(1.0, 0.0)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return min((low, high), key=lambda x: abs(rising(x) - goal))


def _select_layers(axes, scores, ratio: float, target: str, inner: range, settings: dict) -> Plan:
    """Whole layers: a layer's score is the sum over its attention and MLP groups."""
    n_layers = axes.n_layers
    totals = torch.zeros(n_layers)
    for axis in axes.values():
        if axis.layer is not None:
            check_scores(axis, scores, dependency=True)
            totals[axis.layer] += torch.as_tensor(scores[axis.name]).float().sum()
    order = [i for i in torch.argsort(totals, stable=True).tolist() if i in inner]
    if target == "groups":
        n = len(order) - int(len(order) * (1 - ratio))
    else:
        sizes = torch.tensor([0, *(axes.layer_parameters[i] for i in order)]).cumsum(0)
        n = int((sizes / axes.n_parameters - ratio).abs().argmin())
    n = min(n, n_layers - 1)
    if ratio > 0 and n == 0:
        warnings.warn(
            f"ratio {ratio} of {len(order)} layers rounds to none: nothing is removed", stacklevel=3
        )
    kept = [i for i in range(n_layers) if i not in order[:n]]
    return Plan({"layers": kept}, {"layers": n_layers}, settings)


def _whole_model(axes: Mapping[str, Axis]) -> Axes:
    if isinstance(axes, Axes):
        return axes
    raise ValueError(
        "protect_first, protect_last, target='parameters' and granularity='layer' need the layers and "
        "parameters of the whole model, which a plain dict of axes lacks: pass what discover returned, or "
        "axes.of_kind(...), and leave axes whole by ignore=[...]"
    )


def _unprotected(axes: Mapping[str, Axis], settings: Mapping) -> range:
    """The layers that may be pruned."""
    n_layers = _whole_model(axes).n_layers
    protected = settings["protect_first"] + settings["protect_last"]
    if protected >= n_layers:
        raise ValueError(
            f"protect_first + protect_last = {protected} leaves none of {n_layers} layers to prune"
        )
    return range(settings["protect_first"], n_layers - settings["protect_last"])


def _share(axis: Axis, ratio: float | Mapping[str, float]) -> float | None:
    """The ratio of one axis; None where it is left whole."""
    if not isinstance(ratio, Mapping):
        return ratio
    fitting = [share for pattern, share in ratio.items() if fits(axis.name, [pattern])]
    return ratio.get(axis.name, fitting[0] if fitting else None)


def _warn_of_none(units: Collection[Unit], removed: Counts, ratio: float | Mapping[str, float]) -> None:
    """Warn of each kind that is to lose groups and loses none."""
    hopes = {u.axis.kind: u.axis for u in reversed(list(units)) if (_share(u.axis, ratio) or 0) > 0}
    for kind in sorted(hopes.keys() - {u.axis.kind for u in units if removed[u.key]}):
        warnings.warn(
            f"ratio {_share(hopes[kind], ratio)} of {hopes[kind].n_groups} groups rounds to none for {kind}: "
            "nothing is removed there",
            stacklevel=3,
        )
