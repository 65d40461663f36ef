"""Choosing: scores in, plan out (paper section 3.2, the ranking after Eq. 5; granularities: section 4.1).

Decides how many groups of each axis to remove (by a ratio of the groups, or of all parameters), and which.
These are pure functions of scores and sizes; no model is read or cut.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations

import torch

from pruner_lib.method.checks import plain_number, require
from pruner_lib.method.groups import Axes, Axis, Plan
from pruner_lib.method.names import GRANULARITIES
from pruner_lib.method.options import check_axes, check_names, check_options, check_scores, check_uniform

EXPERT_ROWS = 8  # experts keep a multiple of this many channels: grouped products need 16-byte aligned rows
TOLERANCE = 0.005  # of all parameters: allowed error of `target="parameters"`


@dataclass(frozen=True, eq=False)
class Unit:
    """Groups that are ranked together: of an axis or, with `dependency=False`, of one of its structures."""

    key: str  # in the plan
    axis: Axis
    scores: torch.Tensor  # `(n_groups,)` float32
    parameters: float  # removed with one group
    twice: float  # per pair of groups, counted by both: in matrices with both dims on the axis

    def removed(self, n: int) -> float:
        """Return the number of parameters removed with `n` groups."""
        return n * self.parameters - n * n * self.twice


Counts = dict[str, int]  # key of a unit -> number of groups to remove
Ratios = Mapping[str, float]  # axis name -> share of its groups to remove


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
    """Rank the groups by their scores and choose which of them to keep.

    Args:
        axes: the result of `discover`, or some of its axes (`axes.of_kind(...)`).
        scores: axis name -> `(n_groups,)`, higher means keep; with `dependency=False` `(n_structures,
            n_groups)`, as `estimate(..., aggregation="none")` returns them; for granularity "layer" also
            `{"layers": scores}` with `(n_layers,)`.
        ratio: share of groups to remove from the axes that are pruned, in [0, 1); with `target="parameters"`
            the share of all parameters of the model. Or names or patterns of axes -> their shares,
            `{"layers.3.mlp": 0.4, "layers.*.attention": 0.2}`: the exact name has priority, then the first
            matching pattern; axes without a match are not pruned. Each pattern must apply to an axis.
        granularity: "block" (attention heads and MLP channels), "channel" (residual stream) or "layer".
        scope: "local" ranks within each axis, "global" all axes of a kind together, "joint" heads and MLP
            channels in one list, each counted as one group (the reference code's global ranking).
        protect_first, protect_last: decoder layers at either end not to prune (granularity "block", "layer").
        ignore: names or patterns of axes not to prune, `["layers.3.mlp", "layers.1?.*"]`.
        dependency: False ranks each structure (matrix) alone: all lose the same number of rows or columns,
            but different ones (the paper's Table 6).
        multiple_of: round the number of kept MLP channels to a multiple of this; stacked experts always
            keep a multiple of 8, which torch's grouped product needs.
        uniform: require that all layers keep the same widths.
    Returns: a plan with an entry for every axis of the granularity, also for those that are not pruned.
    Raises: ValueError: an argument is out of range, a pattern applies to no axis, or scores do not fit.
    Source: section 3.2; whole groups of C - int(C * (1 - ratio)) channels, as in the reference code.
    """
    settings = {n: plain_number(v) for n, v in locals().items() if n not in ("axes", "scores")}
    check_axes(axes)
    require(Mapping, scores=scores)
    check_options(settings, axes)
    ratio, settings["ignore"] = settings["ratio"], list(ignore)
    limited = protect_first or protect_last or granularity == "layer"
    layers = range(protect_first, axes.n_layers - protect_last) if limited else None
    if granularity == "layer":
        return _select_layers(axes, scores, ratio, target, layers, settings)
    chosen = {name: a for name, a in axes.items() if a.kind in GRANULARITIES[granularity]}
    if not chosen:
        raise ValueError(f"no axis of granularity {granularity!r} was found; see the notes of discover")
    ratios = _ratios(chosen, ratio, ignore, layers)
    units = [unit for name in ratios for unit in _units(axes[name], scores, dependency)]
    if target == "parameters":
        removed = _removed_parameters(units, axes.n_parameters, ratio, scope, multiple_of)
    else:
        removed = _removed(units, ratios, scope, multiple_of)
        _warn_of_none(units, removed, ratios)
    n_groups = {key: a.n_groups for a in chosen.values() for key in _keys(a, dependency)}
    keep = {key: torch.arange(n) for key, n in n_groups.items()}
    for unit in units:
        keep[unit.key] = torch.argsort(unit.scores, stable=True)[removed[unit.key] :].sort().values
    if uniform:
        check_uniform(keep)
    query_heads = any(a.kind == "attention" and a.siblings for a in axes.values())
    return Plan(keep, n_groups, settings, query_heads)


def n_removed(axis: Axis, ratio: float) -> int:
    """Return how many groups a ratio removes from an axis; one is always kept (reference: `prune_local`)."""
    channels = axis.n_groups * axis.width
    return min((channels - int(channels * (1 - ratio))) // axis.width, axis.n_groups - 1)


def _keys(axis: Axis, dependency: bool) -> list[str]:
    return [axis.name] if dependency else [f"{axis.name}/{s}" for s in axis.structures]


def _units(axis: Axis, scores: Mapping[str, torch.Tensor], dependency: bool) -> list[Unit]:
    keys = _keys(axis, dependency)
    shape = (axis.n_groups,) if dependency else (len(keys), axis.n_groups)
    table = check_scores(scores, axis.name, shape).view(len(keys), -1)
    share = axis.group_parameters / len(keys)
    pairs = combinations([m for m in axis.members if m.expert is None], 2)
    twice = sum(a.width * b.width for a, b in pairs if a.parameter == b.parameter) / len(keys)
    return [Unit(key, axis, row, share, twice) for key, row in zip(keys, table, strict=True)]


def _ratios(axes: Mapping[str, Axis], ratio: float | Ratios, ignore: Iterable[str], layers: range | None):
    """Return axis name -> share of its groups to remove, for the axes to prune."""
    by_name = ratio if isinstance(ratio, Mapping) else {"*": ratio}
    check_names(axes, by_name)
    matching = {name: [p for p in by_name if fnmatchcase(name, p)] for name in axes}
    first = {name: name if name in by_name else found[0] for name, found in matching.items() if found}
    free = {name for name in first if layers is None or axes[name].layer in layers}
    free -= {name for name in free if any(fnmatchcase(name, pattern) for pattern in ignore)}
    for pattern, share in by_name.items():
        if pattern not in {first[name] for name in free} and (share or by_name is ratio):
            others = sorted({first[name] for name in free if fnmatchcase(name, pattern)})
            reason = f"{others} come first" if others else "they are ignored or in protected layers"
            raise ValueError(f"ratio {share} of {pattern!r} applies to none of its axes: {reason}")
    return {name: by_name[pattern] for name, pattern in first.items() if name in free}


def _removed(units: Collection[Unit], ratios: Ratios, scope: str, multiple_of: int) -> Counts:
    """Return how many groups to remove from each unit, given the ratio of each axis."""
    if scope == "local":
        counts = {unit.key: n_removed(unit.axis, ratios[unit.axis.name]) for unit in units}
    else:
        counts = {}
        kinds = dict.fromkeys("joint" if scope == "joint" else unit.axis.kind for unit in units)
        for kind in kinds:
            ranked = [unit for unit in units if kind in ("joint", unit.axis.kind)]
            counts |= _removed_from_one_list(ranked, ratios[ranked[0].axis.name], scope)
        counts = _even_out(units, counts)
    return {unit.key: _rounded(unit.axis, counts[unit.key], multiple_of) for unit in units}


def _removed_from_one_list(units: Sequence[Unit], ratio: float, scope: str) -> Counts:
    """Rank all groups in one list; the best group of each axis is always kept."""
    candidates = [torch.sort(unit.scores, stable=True).values[:-1] for unit in units]
    width = 1 if scope == "joint" else units[0].axis.width  # the joint ratio counts groups
    total = sum(unit.axis.n_groups * width for unit in units)
    n = min((total - int(total * (1 - ratio))) // width, sum(len(c) for c in candidates))
    owner = torch.cat([torch.full((len(c),), i) for i, c in enumerate(candidates)])
    worst = torch.argsort(torch.cat(candidates), stable=True)[:n]
    removed = torch.bincount(owner[worst], minlength=len(units)).tolist()
    return {unit.key: n for unit, n in zip(units, removed, strict=True)}


def _even_out(units: Iterable[Unit], removed: Counts) -> Counts:
    """Give siblings the same number of groups to remove: their mean, rounded."""
    siblings: dict[tuple[str, str], list[str]] = {}
    for unit in units:
        if unit.axis.siblings:
            siblings.setdefault((unit.axis.siblings, unit.key.partition("/")[2]), []).append(unit.key)
    even = dict(removed)
    for keys in siblings.values():
        even |= dict.fromkeys(keys, round(sum(removed[k] for k in keys) / len(keys)))
    return even


def _rounded(axis: Axis, removed: int, multiple_of: int) -> int:
    """Round the number of groups to remove, so that the number of kept groups suits the hardware."""
    step = multiple_of if axis.kind == "mlp" else 1
    if axis.in_stack and axis.n_groups >= EXPERT_ROWS and removed:
        step = math.lcm(step, EXPERT_ROWS)
    if step == 1:
        return removed
    kept = round((axis.n_groups - removed) / step) * step
    return axis.n_groups - min(max(kept, step), axis.n_groups)


def _removed_parameters(units: list[Unit], total: int, share: float, scope: str, multiple_of: int) -> Counts:
    """Return how many groups to remove from each unit, given the share of all parameters to remove."""

    def counts(by_kind: Ratios) -> Counts:
        return _removed(units, {u.axis.name: by_kind[u.axis.kind] for u in units}, scope, multiple_of)

    def sparsity(by_kind: Ratios) -> float:
        removed = counts(by_kind)
        return sum(unit.removed(removed[unit.key]) for unit in units) / total

    kinds = {unit.axis.kind for unit in units}
    by_kind = dict.fromkeys(kinds, _bisect(lambda r: sparsity(dict.fromkeys(kinds, r)), share))
    if "mlp" in kinds and scope != "joint":
        # heads come in large steps: adjust the MLP channels to compensate
        by_kind["mlp"] = _bisect(lambda r: sparsity(by_kind | {"mlp": r}), share)
    reached = sparsity(by_kind)
    if abs(reached - share) > TOLERANCE:
        message = f"no plan removes {share:.1%} of the parameters: the nearest removes {reached:.1%}"
        advice = "protect fewer layers, lower the ratio or multiple_of, or use target='groups'"
        raise ValueError(f"{message}; {advice}")
    return counts(by_kind)


def _bisect(rising: Callable[[float], float], goal: float) -> float:
    """Return the x in [0, 1) whose `rising(x)` is nearest to the goal."""
    low, high = 0.0, math.nextafter(1.0, 0.0)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return min((low, high), key=lambda x: abs(rising(x) - goal))


def _select_layers(axes: Axes, scores, ratio: float, target: str, layers: range, settings: dict) -> Plan:
    """Rank decoder layers by their own scores, or by the sum over their attention and MLP groups."""
    if "layers" in scores:
        totals = check_scores(scores, "layers", (axes.n_layers,))
    else:
        totals = torch.zeros(axes.n_layers)
        for axis in (a for a in axes.values() if a.layer is not None):
            totals[axis.layer] += check_scores(scores, axis.name, (axis.n_groups,)).sum()
    order = [i for i in torch.argsort(totals, stable=True).tolist() if i in layers]
    if target == "groups":
        n = len(order) - int(len(order) * (1 - ratio))
    else:
        sizes = torch.tensor([0, *(axes.layer_parameters[i] for i in order)]).cumsum(0)
        n = int((sizes / axes.n_parameters - ratio).abs().argmin())
    n = min(n, axes.n_layers - 1)
    if ratio > 0 and n == 0:
        warnings.warn(f"ratio {ratio} of {len(order)} layers rounds to none: none is removed", stacklevel=3)
    kept = [i for i in range(axes.n_layers) if i not in order[:n]]
    return Plan({"layers": kept}, {"layers": axes.n_layers}, settings)


def _warn_of_none(units: Collection[Unit], removed: Counts, ratios: Ratios) -> None:
    """Warn of each kind whose ratio is above zero, but of which no group is removed."""
    first = {u.axis.kind: u.axis for u in reversed(list(units)) if ratios[u.axis.name] > 0}
    for kind in sorted(first.keys() - {u.axis.kind for u in units if removed[u.key]}):
        axis = first[kind]
        message = f"ratio {ratios[axis.name]} of {axis.n_groups} groups rounds to none for {kind}"
        warnings.warn(f"{message}: nothing is removed there", stacklevel=3)
