"""What several notebooks ask beyond a comparison: agreement of scores and plans, and short summaries.

Which models differ by more than chance is decided in `compare`; nothing is measured or drawn here.
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


def rank_correlation(one: Scores, other: Scores, axes: Iterable[str] | None = None) -> float:
    """Compare two orders of the same groups: Spearman's correlation within each axis, averaged over groups.

    rho = sum over axes a of n_a rho_a / sum of n_a, because local pruning ranks inside an axis only.

    Args:    one, other: axis name -> `(n_groups,)`.    axes: those to compare; None: all of `one`.
    Returns: in [-1, 1]; 1 is the same order. An axis whose scores are all alike has no order and counts as 0.
    Raises:  ValueError: no axis has two groups to compare.
    """
    names = [name for name in (one if axes is None else axes) if len(one[name]) > 1]
    if not names:
        raise ValueError("no axis has two groups or more, so there is no order to compare")
    pairs = [[pd.Series(scores[name].numpy()) for scores in (one, other)] for name in names]
    with np.errstate(divide="ignore", invalid="ignore"):
        rhos = [a.corr(b, method="spearman") for a, b in pairs]  # NaN where one is constant
    return float(np.average(np.nan_to_num(rhos), weights=[len(one[name]) for name in names]))


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
    """Estimate the Jaccard index of two random plans with the counts of this one, to first order in 1/n.

    An axis that loses k of n groups in both shares k^2 / n of them by chance.
    """
    counts = {name: (n - len(plan.keep[name]), n) for name, n in plan.n_groups.items()}
    both = sum(k * k / n for k, n in counts.values())
    cut = sum(k for k, _ in counts.values())
    return both / (2 * cut - both) if cut else 1.0


def agreement_table(items: Mapping[str, Any], measure: Callable[[Any, Any], float]) -> pd.DataFrame:
    """Compare all with all: columns `method_a`, `method_b`, `overlap`, each pair once."""
    pairs = combinations_with_replacement(items, 2)
    rows = [{"method_a": a, "method_b": b, "overlap": measure(items[a], items[b])} for a, b in pairs]
    return pd.DataFrame(rows)


def layers_of(record: Record) -> int:
    """Count the decoder layers of the model that a record of block granularity is about."""
    return 1 + max(int(number) for number in re.findall(r"layers\.(\d+)\.", " ".join(record.plan["kept"])))


def relative_table(kept: pd.DataFrame, *index: str) -> pd.DataFrame:
    """Lay a frame of `kept_frame` out for reading: the perplexities, and of the accuracies their mean.

    Args:    index: the columns that name a row.
    Returns: value, relative (to the dense model: the frame's `ours`), low, high, paper, difference, draws;
             without the columns in which there is nothing.
    """
    rows = kept[(kept.metric == "perplexity") | (kept.dataset == "mean")].rename(columns={"ours": "relative"})
    columns = ["value", "relative", "low", "high", "paper", "difference", "draws"]
    return rows.set_index(list(index))[columns].dropna(axis=1, how="all")


def clearest_difference(groups: Mapping[str, Group], metric: MetricName) -> str:
    """Say which two of several models differ most surely in perplexity, as a bold sentence.

    All pairs are compared on the same windows, at a level that is corrected for their number (Bonferroni); of
    the ratios, that with the highest lower end is given.

    Returns: a Markdown sentence, a ratio of 100 or more in two digits; inside the noise it says that no two
             differ clearly.
    """
    pairs = list(permutations(groups, 2))
    level = corrected(0.95, len(pairs) // 2)
    times = {(a, b): ratio(groups[a], groups[b], metric, level=level) for a, b in pairs}
    (worse, better), most = max(times.items(), key=lambda pair: pair[1].low, default=(("", ""), None))
    if most is None or most.low <= 1:
        return f"On {metric.dataset}, no two of the {len(groups)} differ clearly."
    digits = 2
    if most.mean >= 100:
        digits, most = 0, most.map(lambda times: float(f"{times:.2g}"))
    return f"**On {metric.dataset}, {worse} has {most.show(digits)} times the perplexity of {better}.**"
