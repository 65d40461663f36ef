"""How far criteria, or calibrations, agree: on the order of the groups, and on the groups that go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import torch

from pruner_lib.method.groups import Plan

if TYPE_CHECKING:
    import pandas as pd

Scores = Mapping[str, torch.Tensor]


def rank_correlation(one: Scores, other: Scores, axes: Iterable[str] | None = None) -> float:
    """Compare two orders of the same groups: Spearman's correlation within each axis, averaged over groups.

    rho = sum over axes a of n_a rho_a / sum of n_a, because local pruning ranks inside an axis only.

    Args:    one, other: axis name -> `(n_groups,)`.    axes: those to compare; None: all of `one`.
    Returns: in [-1, 1]; 1 is the same order. An axis whose scores are all alike has no order and counts as 0.
    Raises:  ValueError: no axis has two groups to compare.
    """
    from scipy.stats import rankdata

    total = weight = 0.0
    for name in one if axes is None else axes:
        a, b = (torch.as_tensor(rankdata(s[name].numpy())) for s in (one, other))
        if len(a) < 2:
            continue
        a, b = a - a.mean(), b - b.mean()
        norm = float(a.norm() * b.norm())
        total += len(a) * (float(a @ b) / norm if norm else 0.0)
        weight += len(a)
    if not weight:
        raise ValueError("no axis has two groups or more, so there is no order to compare")
    return total / weight


def removed(plan: Plan) -> set[tuple[str, int]]:
    """List the groups that a plan cuts, as (axis name, group number)."""
    kept = {(name, int(group)) for name in plan.keep for group in plan.keep[name]}
    return {(name, group) for name, n in plan.n_groups.items() for group in range(n)} - kept


def jaccard(one: Plan, other: Plan) -> float:
    """Compare the groups that two plans cut: those in both over those in either; 1 if neither cuts any.

    Source:  Jaccard index, |A and B| / |A or B|.
    """
    a, b = removed(one), removed(other)
    return len(a & b) / len(a | b) if a | b else 1.0


def chance_jaccard(plan: Plan) -> float:
    """Tell the Jaccard index that two random plans with the counts of this one have, to first order in 1/n.

    An axis that loses k of n groups in both shares k^2 / n of them by chance.
    """
    counts = {name: (n - len(plan.keep[name]), n) for name, n in plan.n_groups.items()}
    both = sum(k * k / n for k, n in counts.values())
    cut = sum(k for k, _ in counts.values())
    return both / (2 * cut - both) if cut else 1.0


def agreement_table(items: Mapping[str, Any], measure: Callable[[Any, Any], float]) -> pd.DataFrame:
    """Compare all with all, for `plotting.plot_overlap`: columns `method_a`, `method_b`, `overlap`."""
    import pandas as pd

    pairs = combinations_with_replacement(items, 2)
    rows = [{"method_a": a, "method_b": b, "overlap": measure(items[a], items[b])} for a, b in pairs]
    return pd.DataFrame(rows)
