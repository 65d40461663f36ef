"""What several notebooks ask beyond a comparison: agreement of scores and plans, and short summaries.

Which models differ by more than chance is decided in `compare`; nothing is measured or drawn here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from pruner_lib.method.groups import Plan
<<<<<<< HEAD
from pruner_lib.study.records import Record
=======
from pruner_lib.method.prune import prune_
from pruner_lib.method.select import select
from pruner_lib.study import compare, stages
from pruner_lib.study.compare import group_of, interval, metric_names, paper_metric, values_of
from pruner_lib.study.paper import published, published_choices, published_methods
from pruner_lib.study.records import Record, records_frame
from pruner_lib.study.results import results_dir as profile_dir
from pruner_lib.study.run import bench_of
from pruner_lib.study.settings import Experiment, settings_key
from pruner_lib.study.statistics import Interval, corrected, paired_difference, paired_ratio, paired_statistic

GAP = ["dataset", "inside", "outside", "difference", "low", "high", "sign", "draws", "n"]
DESIGNS = {  # what is cut -> the settings that say so; with target "parameters" they compare at equal ratio
    "block": {},
    "global": {"scope": "global"},
    "channel": {"granularity": "channel", "protect_first": 0, "protect_last": 0},
    "layer": {"granularity": "layer"},
}


def largest_share(
    asked: Experiment, *, profile: str = "quick", results_dir: Path | str | None = None
) -> float:
    """Tell the share of all parameters that goes when each unprotected axis keeps one group: no more can.

    Args:    asked: its model and its protected layers count; block granularity.
    """
    bench = bench_of(profile, results_dir)
    settings = [asked.model, stages.model_hash(asked.model), asked.protect_first, asked.protect_last]
    path = bench.cache(f"largest-{settings_key(settings)}.json")
    if not path.is_file():
        axes = stages.load_dense(asked.model, bench).axes
        inner = range(asked.protect_first, axes.n_layers - asked.protect_last)
        gone = sum(
            (axis.n_groups - 1) * axis.group_parameters for axis in axes.values() if axis.layer in inner
        )
        write_json(path, {"share": gone / axes.n_parameters})
    return read_json(path)["share"]


def only_layer(asked: Experiment, layer: int, n_layers: int) -> Experiment:
    """Change an experiment so that all decoder layers but one are left whole.

    Raises:  ValueError: there is no such layer.
    """
    if layer not in range(n_layers):
        raise ValueError(f"there is no layer {layer}; the model has the layers 0 to {n_layers - 1}")
    return replace(asked, protect_first=layer, protect_last=n_layers - 1 - layer)


def layers_of(record: Record) -> int:
    """Count the decoder layers of the model that a record of block granularity is about.

    Raises:  ValueError: its plan names no layers.
    """
    names = [re.match(r"layers\.(\d+)\.", name) for name in record.plan.get("kept", {})]
    numbers = [int(found[1]) for found in names if found]
    if not numbers:
        raise ValueError(f"the plan of record {record.key} names no layers; give one of block granularity")
    return 1 + max(numbers)


def set_gap(
    named: Mapping[Any, Sequence[Record]], inside: Sequence[int], outside: Sequence[int]
) -> pd.DataFrame:
    """Compare the mean damage of the layers of two sets, on the same windows and over draws.

    damage of a layer = NLL with that layer pruned - NLL of the dense model, in nats a token

    Args:    named: layer -> records with that layer alone pruned, and "dense" -> that of the dense model.
    Returns: columns dataset, inside, outside, difference, low, high (95 % interval), sign, draws, n; without
             rows if a set is empty.
    """
    rows = []
    for metric in metric_names(named["dense"], "perplexity") if inside and outside else ():
        harm = {layer: damage_of(named, layer, metric) for layer in (*inside, *outside)}
        one, other = (np.mean([harm[layer] for layer in chosen], axis=0) for chosen in (inside, outside))
        gap = paired_difference(one, other)
        numbers = (gap.mean, gap.low, gap.high, gap.sign, gap.draws, gap.n)
        rows.append((_text(metric), one.mean(), other.mean(), *numbers))
    return pd.DataFrame(rows, columns=GAP)


def damage_of(named: Mapping[Any, Sequence[Record]], name: Any, metric: str) -> np.ndarray:
    """Give the damage of a way of pruning in nats a token: `(draws, windows)` NLL - NLL of "dense"."""
    return values_of(group_of(named[name], metric), metric) - values_of(named["dense"][:1], metric)


def widths_frame(groups: Mapping[str, Sequence[Record]], n_layers: int) -> pd.DataFrame:
    """Lay out what each design leaves of every layer: columns design, draw, layer, kind, kept (a share).

    Args:    groups: design -> its records. A hidden channel runs through all layers, so that `channel` leaves
             the same share everywhere; a dropped layer keeps nothing.
    """
    rows = [
        (design, draw, layer, kind, _kept(record, layer, kind))
        for design, group in groups.items()
        for draw, record in enumerate(group)
        for layer in range(n_layers)
        for kind in ("attention", "mlp")
    ]
    return pd.DataFrame(rows, columns=["design", "draw", "layer", "kind", "kept"])


def tell(found: pd.DataFrame, by: str, *, link: str = "at") -> str:
    """Say where, in a frame of `contrasts`, the first of a pair is better, the second, or neither.

    Args:    by: the column that names the places; shares are written in percent.    link: stands before them.
    """
    one, other = found.a.iloc[0], found.b.iloc[0] if found.b.nunique() == 1 else "the other"
    said = {"a": f"{one} is better", "b": f"{other} is better", "": "they can't be told apart"}
    parts, found = [], found.replace({"dataset": {"mean": "accuracy"}})
    for better, sentence in said.items():
        places = [
            f"{f'{place:.0%}' if isinstance(place, float) else place} ({', '.join(datasets)})"
            for place, datasets in found[found.better == better].groupby(by, sort=False).dataset
        ]
        parts += [f"{sentence} {link} {', '.join(places)}"] if places else []
    return f"{one} against {other}: " + "; ".join(parts) + "."


def sideways(curve: Mapping[float, Sequence[Record]], wall: Sequence[Record], dense: Record) -> pd.DataFrame:
    """Tell at which share each draw of a sweep reaches the perplexity of another way of pruning.

    Args:    curve: share removed -> records of the draws.    wall: its (geometric) mean is the level.
    Returns: columns dataset, draw, level (perplexity), share (NaN: not within the sweep).
    """
    shares, rows = sorted(curve), []
    for metric in metric_names(wall, "perplexity"):
        level = interval(tuple(wall), metric).mean
        for draw in range(min(map(len, curve.values()))):
            heights = [dense.metrics[metric].value, *(curve[s][draw].metrics[metric].value for s in shares)]
            rows.append((_text(metric), draw, level, share_at([0.0, *shares], heights, level)))
    return pd.DataFrame(rows, columns=["dataset", "draw", "level", "share"])


def tell_sideways(found: pd.DataFrame, ours: str, wall: str) -> str:
    """Say a frame of `sideways` in a sentence a text; column `start`: the share at which `wall` stands."""
    said = []
    for text, part in found.groupby("dataset", sort=False):
        got, level, start = part.share.dropna(), part.level.iloc[0], part.start.iloc[0]
        where = f"at {got.min():.0%} to {got.max():.0%}" if len(got) else "nowhere in the sweep"
        some = f" ({len(got)} of {len(part)} draws)" if len(got) < len(part) else ""
        said.append(f"On {text}, {wall} is at {level:,.0f} when {start:.0%} is gone; {ours} {where}{some}.")
    return " ".join(said)


def published_points(tables: Mapping[float, pd.DataFrame], methods: Sequence[str]) -> pd.DataFrame:
    """Lay the paper's perplexities on WikiText2, before recovery, out as hollow points of a sweep.

    Args:    tables: share removed -> a table as `paper.published_methods` gives it.
    Returns: columns share, method, dataset, value, source ("paper"); the dense model is not among them.
    """
    rows = [
        (share, row.name, "wikitext2", row.value, "paper")
        for share, table in tables.items()
        for row in table.itertuples(index=False)
        if row.metric == "perplexity/wikitext2@128" and row.stage == "pruned" and row.name in methods
    ]
    return pd.DataFrame(rows, columns=["share", "method", "dataset", "value", "source"])


def published_designs(share: float) -> pd.DataFrame | None:
    """Read what the paper says of block, global, channel and layer at a share of 0.2 or 0.5, by our words.

    A fifth: Tables 1 and 14. One half: Table 16, and Table 8 for the accuracies after recovery, where whole
    layers are DistilBERT's way (every second one stays).

    Returns: as `paper.published_methods`; None for another share.
    """
    places = {
        0.2: ("Table 1", "Table 14", {"Element^1 - global": ("global", "pruned")}),
        0.5: (
            "Table 16",
            "Table 8",
            {"DistilBert": ("layer", "recovered"), "LLM-Pruner": ("block", "recovered")},
        ),
    }
    if share not in places:
        return None
    table, other, rows = places[share]
    first = published_methods(table).replace({"name": {"element1": "block"}})
    found = pd.concat([first, published_choices(other, rows)], ignore_index=True)
    return found.drop_duplicates(["name", "stage", "metric"], keep="last", ignore_index=True)


def share_at(shares: Sequence[float], perplexities: Sequence[float], level: float) -> float:
    """Tell the share at which a curve first reaches a level, between two points by the logarithm.

    Args:    shares: rising.    Returns: NaN where the curve never gets there.
    """
    heights, goal = np.log(np.asarray(perplexities, dtype=float)), np.log(level)
    above = np.flatnonzero(heights >= goal)
    if not len(above):
        return float("nan")
    last = int(above[0])
    first = max(last - 1, 0)
    return float(np.interp(goal, heights[first : last + 1], shares[first : last + 1]))


def _kept(record: Record, layer: int, kind: str) -> float:
    plan = record.plan
    if "layers_kept" in plan:
        return float(layer in plan["layers_kept"])
    left, there = plan["kept"]["hidden" if "hidden" in plan["kept"] else f"layers.{layer}.{kind}"]
    return left / there


def _text(metric: str) -> str:
    """Name the text of "perplexity/wiki@128"."""
    return metric.partition("/")[2].partition("@")[0]

>>>>>>> figures

Scores = Mapping[str, torch.Tensor]


def rank_correlation(one: Scores, other: Scores, axes: Iterable[str] | None = None) -> float:
    """Compare two orders of the same groups: Spearman's correlation within each axis, averaged over groups.

    rho = sum over axes a of n_a rho_a / sum of n_a, because local pruning ranks inside an axis only.

    Args:    one, other: axis name -> `(n_groups,)`.    axes: those to compare; None: all of `one`.
    Returns: in [-1, 1]; 1 is the same order. An axis whose scores are all alike has no order and counts as 0.
    Raises:  ValueError: no axis has two groups to compare.
    """
    sizes, rhos = [], []
    for name in one if axes is None else axes:
        a, b = (rankdata(scores[name].numpy()) for scores in (one, other))  # (n_groups,)
        if len(a) > 1:
            ordered = a.std() > 0 and b.std() > 0
            sizes.append(len(a))
            rhos.append(np.corrcoef(a, b)[0, 1] if ordered else 0.0)
    if not sizes:
        raise ValueError("no axis has two groups or more, so there is no order to compare")
    return float(np.average(rhos, weights=sizes))


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
<<<<<<< HEAD
    """Compare all with all: columns `method_a`, `method_b`, `overlap`, each pair once."""
=======
    """Compare all with all, for `plot_heatmap`: columns `method_a`, `method_b`, `overlap`."""
>>>>>>> figures
    pairs = combinations_with_replacement(items, 2)
    rows = [{"method_a": a, "method_b": b, "overlap": measure(items[a], items[b])} for a, b in pairs]
    return pd.DataFrame(rows)


def layers_of(record: Record) -> int:
    """Count the decoder layers of the model that a record of block granularity is about.

    Raises:  ValueError: its plan names no layers.
    """
    names = [re.match(r"layers\.(\d+)\.", name) for name in record.plan.get("kept", {})]
    numbers = [int(name[1]) for name in names if name]
    if not numbers:
        raise ValueError(f"the plan of record {record.key} names no layers; give one of block granularity")
    return 1 + max(numbers)


def summarise(compared: pd.DataFrame, by: str, *, link: str = "at") -> str:
    """Say where, in a frame of `contrasts`, the first of a pair is better, the second, or neither.

    Args:    by: the column that names the places; shares are written in percent.    link: stands before them.
    """
    one = compared.a.iloc[0]
    other = compared.b.iloc[0] if compared.b.nunique() == 1 else "the other"
    sentences = {"a": f"{one} is better", "b": f"{other} is better", "": "they can't be told apart"}
    parts, compared = [], compared.replace({"dataset": {"mean": "accuracy"}})
    for better, sentence in sentences.items():
        places = [
            f"{f'{place:.0%}' if isinstance(place, float) else place} ({', '.join(datasets)})"
            for place, datasets in compared[compared.better == better].groupby(by, sort=False).dataset
        ]
        parts += [f"{sentence} {link} {', '.join(places)}"] if places else []
    return f"{one} against {other}: " + "; ".join(parts) + "."
