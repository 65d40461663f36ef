"""Helpers that several notebooks share: the agreement of scores and plans, and short summaries.

`compare` decides which models differ by more than chance; nothing is measured or drawn here.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations_with_replacement, permutations
from typing import Any

import numpy as np
import pandas as pd
import torch

from pruner_lib.method.groups import Plan
from pruner_lib.study.compare import Group, ratio
from pruner_lib.study.records import MetricName, Record
from pruner_lib.study.statistics import corrected

Scores = Mapping[str, torch.Tensor]


def rank_correlation(a: Scores, b: Scores, axes: Iterable[str] | None = None) -> float:
    """Compare two rankings of the same groups: Spearman's correlation within each axis, averaged over groups.

    rho = sum over axes x of n_x rho_x / sum of n_x, because local pruning ranks only within an axis.

    Args:    a, b: axis name -> `(n_groups,)`.    axes: those to compare; None: all of `a`.
    Returns: in [-1, 1]; 1 is the same order. An axis whose scores are all equal has no order and counts as 0.
    Raises:  ValueError: no axis has two groups to compare.
    """
    names = [name for name in (a if axes is None else axes) if len(a[name]) > 1]
    if not names:
        raise ValueError("no axis has two groups or more, so there is no order to compare")
    pairs = [[pd.Series(scores[name].numpy()) for scores in (a, b)] for name in names]
    with np.errstate(divide="ignore", invalid="ignore"):
        rhos = [first.corr(second, method="spearman") for first, second in pairs]  # NaN if one is constant
    return float(np.average(np.nan_to_num(rhos), weights=[len(a[name]) for name in names]))


def removed(plan: Plan) -> set[tuple[str, int]]:
    """Return the groups that a plan removes, as (axis name, group number)."""
    kept = {(name, int(group)) for name in plan.keep for group in plan.keep[name]}
    return {(name, group) for name, n in plan.n_groups.items() for group in range(n)} - kept


def jaccard(a: Plan, b: Plan) -> float:
    """Compute the Jaccard index of the groups that two plans remove, |A and B| / |A or B|; 1 if none are."""
    a, b = removed(a), removed(b)
    return len(a & b) / len(a | b) if a | b else 1.0


def chance_jaccard(plan: Plan) -> float:
    """Estimate the Jaccard index of two random plans with this plan's counts, to first order in 1/n.

    If both remove k of an axis's n groups at random, they share k^2 / n of them on average.
    """
    counts = {name: (n - len(plan.keep[name]), n) for name, n in plan.n_groups.items()}
    both = sum(k * k / n for k, n in counts.values())
    cut = sum(k for k, _ in counts.values())
    return both / (2 * cut - both) if cut else 1.0


def agreement_table(items: Mapping[str, Any], measure: Callable[[Any, Any], float]) -> pd.DataFrame:
    """Compare every pair of items once: columns `method_a`, `method_b`, `overlap`."""
    pairs = combinations_with_replacement(items, 2)
    rows = [{"method_a": a, "method_b": b, "overlap": measure(items[a], items[b])} for a, b in pairs]
    return pd.DataFrame(rows)


def layers_of(record: Record) -> int:
    """Count the decoder layers of the model in a record of block granularity."""
    return 1 + max(int(number) for number in re.findall(r"layers\.(\d+)\.", " ".join(record.plan["kept"])))


def relative_table(kept: pd.DataFrame, *index: str) -> pd.DataFrame:
    """Shorten a frame of `kept_frame` for reading: the perplexities and the mean accuracies.

    Args:    index: the columns that identify a row.
    Returns: value, relative (to the dense model: the frame's `ours`), low, high, paper, difference, draws;
             without empty columns.
    """
    rows = kept[(kept.metric == "perplexity") | (kept.dataset == "mean")].rename(columns={"ours": "relative"})
    columns = ["value", "relative", "low", "high", "paper", "difference", "draws"]
    return rows.set_index(list(index))[columns].dropna(axis=1, how="all")


def clearest_difference(groups: Mapping[str, Group], metric: MetricName) -> str:
    """Say in a bold sentence which two of several models differ most clearly in perplexity.

    All pairs are compared on the same windows, at a level corrected for their number (Bonferroni). The
    sentence gives the pair whose ratio has the highest lower bound.

    Returns: a Markdown sentence, with two significant digits for ratios of 100 or more; if no lower bound is
             above 1, it says that no two models differ clearly.
    """
    pairs = list(permutations(groups, 2))
    level = corrected(0.95, len(pairs) // 2)
    ratios = {(a, b): ratio(groups[a], groups[b], metric, level=level) for a, b in pairs}
    (worse, better), times = max(ratios.items(), key=lambda item: item[1].low, default=(("", ""), None))
    if times is None or times.low <= 1:
        return f"On {metric.dataset}, no two of the {len(groups)} differ clearly."
    digits = 2
    if times.mean >= 100:
        digits, times = 0, times.map(lambda number: float(f"{number:.2g}"))
    return f"**On {metric.dataset}, {worse} has {times.show(digits)} times the perplexity of {better}.**"
