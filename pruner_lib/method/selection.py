"""Choosing: scores in, plan out (paper section 3.2, the ranking after Eq. 5, and section 4.1's
granularities).

Pure functions: no model is seen here and nothing is cut. How many groups go is in `counts`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from pruner_lib.method.counts import removed_counts, total_parameters
from pruner_lib.method.groups import GRANULARITIES, Axis, Plan

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
