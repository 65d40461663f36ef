"""What the notebooks ask beyond a comparison: sweeps, agreement of scores, recovery on its way, savings.

The sweeps over ratio, layer and granularity belong to the paper's Figures 3 and 4 and Tables 8, 14, 16 and
17. Which models differ by more than chance is decided in `compare`; nothing is drawn here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from pruner_lib.evaluation.efficiency import count_parameters, macs, memory_mb
from pruner_lib.evaluation.int8 import quantise_
from pruner_lib.files import read_json, write_json
from pruner_lib.method.discover import discover
from pruner_lib.method.groups import Plan
from pruner_lib.method.select import select
from pruner_lib.models.prune import prune_
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
    """Lay the paper's perplexities on WikiText2, before recovery, out as hollow points of `plot_sweep`.

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


Scores = Mapping[str, torch.Tensor]


def rank_correlation(one: Scores, other: Scores, axes: Iterable[str] | None = None) -> float:
    """Compare two orders of the same groups: Spearman's correlation within each axis, averaged over groups.

    rho = sum over axes a of n_a rho_a / sum of n_a, because local pruning ranks inside an axis only.

    Args:    one, other: axis name -> `(n_groups,)`.    axes: those to compare; None: all of `one`.
    Returns: in [-1, 1]; 1 is the same order. An axis whose scores are all alike has no order and counts as 0.
    Raises:  ValueError: no axis has two groups to compare.
    """
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
    """Compare all with all, for `curves.plot_overlap`: columns `method_a`, `method_b`, `overlap`."""
    pairs = combinations_with_replacement(items, 2)
    rows = [{"method_a": a, "method_b": b, "overlap": measure(items[a], items[b])} for a, b in pairs]
    return pd.DataFrame(rows)


MODULES = {"all-linear": "ALL", "without-mlp": "- MLP", "without-attention": "- MHA"}  # rows of Table 12
NEVER = 1e12  # steps, where nothing is gained
PAPER_STEPS = 1400  # the last of Table 15
PAPER_BATCH = 64


def step_of(record: Record) -> int:
    """Tell after how many steps of recovery a record was measured; 0 before any."""
    return int(record.history[-1]["step"]) if record.history else 0


def effort(record: Record) -> dict[str, float]:
    """Tell what a record's recovery took: steps, samples (sequences seen), tokens and seconds of training."""
    last = record.history[-1] if record.history else {"step": 0, "tokens": 0, "seconds": 0.0}
    batch = record.experiment.recovery.batch_size if record.experiment.recovery else 0
    found = {"step": int(last["step"]), "samples": int(last["step"]) * batch}
    return found | {"tokens": int(last["tokens"]), "seconds": float(last["seconds"])}


def times(group: Sequence[Record], other: Sequence[Record], metric: str, *, level: float = 0.95) -> Interval:
    """Compare perplexities as a ratio on the same windows, draw i of one with draw i of the other.

    times = exp(mean over draws and windows of NLL of group - NLL of other)

    Args:    group, other: a record a draw (of calibration or of instructions); one stands beside all.
    Raises:  ValueError: measured by different protocols, on other windows, or not as many draws.
    """
    records_frame([*group, *other])  # refuses different protocols
    sides = [compare.values_of(side, metric) for side in (group, other)]
    return Interval(**vars(paired_difference(*sides, level=level))).map(math.exp)


def times_frame(
    groups: Mapping[Any, Sequence[Record]], other: Sequence[Record], name: str, *, level: float = 0.95
) -> pd.DataFrame:
    """Compare every group with the same other one; see `times`.

    Args:    groups: what tells the group from the others -> its records, one a draw.    name: of that column.
    Returns: a row a group and text: columns `name`, what the recovery took (`effort`, mean over draws),
             dataset, value (perplexity), times, low, high (the interval), draws, n (windows).
    """
    rows = []
    for key, group in groups.items():
        took = {what: float(np.mean([effort(one)[what] for one in group])) for what in effort(group[0])}
        for metric in compare.metric_names([*group, *other], "perplexity"):
            found, value = times(group, other, metric, level=level), compare.interval(group, metric).mean
            number = {"value": value, "times": found.mean, "low": found.low, "high": found.high}
            row = {name: key} | {what: took[what] for what in took if what != name}
            rows.append(row | {"dataset": text_of(metric)} | number | {"draws": len(group), "n": found.n})
    return pd.DataFrame(rows)


def beside_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """Put Table 15 beside a recovery: columns paper (perplexity over that at step 0) and difference.

    A recovery as long as the paper's is compared step by step; another one at the same share of its steps,
    between two of the paper's along a line.

    Args:    frame: of `times_frame` with the name "step"; the first text stands beside WikiText2.
    """
    theirs, last = published("Table 15"), frame.step.max()
    scale = 1.0 if last >= PAPER_STEPS else PAPER_STEPS / max(last, 1)
    paper = []
    for step, text in zip(frame.step, frame.dataset, strict=True):
        curve = _curve(
            theirs, paper_metric(f"perplexity/{text}", list(dict.fromkeys(frame.dataset)).index(text))
        )
        inside = step * scale <= PAPER_STEPS and len(curve)
        paper.append(np.interp(step * scale, curve.index, curve) / curve[0] if inside else np.nan)
    return frame.assign(paper=paper, difference=frame.times - np.array(paper))


def amount(steps: Mapping[int, Record], metric: str, share: float, *, level: float = 0.95) -> Interval:
    """Estimate after how many steps `share` of the best gain is there, between two measured steps by a line.

    gain(s) = mean NLL at step 0 - mean NLL at step s, over the same windows

    The interval tells how sure the windows make us; the luck of the training is not in it.

    Args:    steps: step -> the record measured there; one at 0, and two more at least.
    Returns: steps; infinite where nothing was gained.
    Raises:  ValueError: no record at step 0, or too few.
    """
    if 0 not in steps or len(steps) < 3:
        raise ValueError(f"records at the steps {sorted(steps)}, wanted one at 0 and two more at least")
    at = np.array(sorted(steps), dtype=float)
    records_frame(steps.values())  # refuses different protocols
    sides = [compare.values_of([steps[int(step)]], metric) for step in at]
    found = paired_statistic(lambda means: reach(at, means, share), *sides, level=level)
    return found.map(lambda step: math.inf if step > at[-1] else step)


def reach(at: np.ndarray, losses: np.ndarray, share: float) -> np.ndarray:
    """Find where a falling curve first has `share` of its best fall.

    Args:    at: `(n,)` increasing, the first where the fall begins.    losses: `(n, k)`, k curves.
    Returns: `(k,)`; NEVER where nothing falls.
    """
    gain = losses[0] - losses  # (n, k)
    wanted = share * gain.max(axis=0)  # (k,)
    first = np.maximum((gain >= wanted).argmax(axis=0), 1)
    k = np.arange(losses.shape[1])
    before, after = gain[first - 1, k], gain[first, k]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((wanted - before) / (after - before), 0, 1)
    found = at[first - 1] + np.nan_to_num(part) * (at[first] - at[first - 1])
    return np.where(wanted > 0, found, NEVER)


def paper_amount(share: float, text: str = "wikitext2") -> float:
    """Tell after how many steps the paper's recovery has `share` of its best gain (Table 15), as `amount`."""
    curve = _curve(published("Table 15"), f"perplexity/{text}@128")
    return float(reach(curve.index.to_numpy(float), np.log(curve.to_numpy())[:, None], share)[0])


def modules_frame(groups: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
    """Compare recoveries that train parts of the model with the one that trains all, beside Table 12.

    Args:    groups: a value of `target_modules` -> its records, one a draw; "all-linear" is among them.
    Returns: rows as `times_frame` with the name "modules", without "all-linear" itself: times is the
             perplexity over that of "all-linear"; paper and difference likewise. The intervals of one text
             hold together at 95 %.
    """
    parts = {name: group for name, group in groups.items() if name != "all-linear"}
    found = times_frame(parts, groups["all-linear"], "modules", level=corrected(0.95, len(parts)))
    printed = published("Table 12").pivot(index="row", columns="metric", values="value")
    texts, paper = list(dict.fromkeys(found.dataset)), []
    for row in found.itertuples():
        metric = paper_metric(f"perplexity/{row.dataset}", texts.index(row.dataset))
        there = metric in printed and row.modules in MODULES
        paper.append(printed[metric][MODULES[row.modules]] / printed[metric]["ALL"] if there else np.nan)
    return found.assign(paper=paper, difference=found.times - np.array(paper))


def accuracy_frame(dense: Record, stops: Sequence[Record]) -> pd.DataFrame:
    """Tell which share of the dense model's accuracy is there after some samples, beside Tables 10 and 15.

    Args:    stops: models on their way, the pruned one first, all asked the questions of `dense`.
    Returns: a row a model: columns samples, seconds, ours, low, high, paper, difference (shares of the dense
             model's mean accuracy), n (questions). The paper's are before recovery, on the way at the same
             share of the steps, and after 50,000 samples; its 2.59 million have a row of their own.
             Empty if no question was asked.
    """
    columns = ["samples", "seconds", "ours", "low", "high", "paper", "difference", "n"]
    if not all(compare.metric_names([dense, one], "accuracy") for one in stops):
        return pd.DataFrame(columns=columns)
    table_15, table_10 = published("Table 15"), published("Table 10")
    means = table_10[table_10.metric == "accuracy/mean"].set_index("row").value
    curve, whole = _curve(table_15, "accuracy/mean"), means["LLaMA-7B"]
    rows, most = [], max(effort(one)["samples"] for one in stops)
    for one in stops:
        found, took = compare.ratio((one,), (dense,), "accuracy/mean"), effort(one)
        last = took["samples"] == most
        paper = (
            means["LLaMA-5.4B / Alpaca"]
            if last
            else np.interp(took["samples"] / most * PAPER_STEPS, curve.index, curve)
        )
        ours = (found.mean, found.low, found.high)
        rows.append(
            (took["samples"], took["seconds"], *ours, paper / whole, found.mean - paper / whole, found.n)
        )
    lamini = (2.59e6, *[np.nan] * 4, means["LLaMA-5.4B / LaMini"] / whole, np.nan, 0)
    return pd.DataFrame([*rows, lamini], columns=columns)


def text_of(metric: str) -> str:
    """Name the text or task of a metric: "perplexity/wiki@128" -> "wiki"."""
    return metric.partition("/")[2].partition("@")[0]


def _curve(table: pd.DataFrame, metric: str) -> pd.Series:
    """Give a metric of Table 15 over its steps."""
    found = table[table.metric == metric]
    return found.value.set_axis(found.row.str.removeprefix("step ").astype(int)).sort_index()


BASE = "LLaMA-7B/Vicuna-7B / base"
CUTS = {  # the rows of Table 3 -> how `select` chooses what goes
    BASE: {},
    "Channel 20%": {"ratio": 0.2, "granularity": "channel"},
    "Block 20%": {"ratio": 0.25, "protect_first": 4, "protect_last": 2},
    "Channel 50%": {"ratio": 0.5, "granularity": "channel"},
    "Block 50%": {"ratio": 0.6, "protect_first": 3, "protect_last": 1},
}
TABLES_MB = 32  # constant tables that the paper's LLaMA kept beside its weights, MiB
ROWS = {  # (model, in 8 bits) -> its row of Table 13
    ("dense", False): "LLaMA-7B",
    ("dense", True): "LLM.int8()",
    ("recovered", False): "LLaMA-5.4B",
    ("recovered", True): "LLaMA-5.4B + LLM.int8()",
}


def without_weights(layers: int = 32) -> nn.Module:
    """Build LLaMA-7B on the meta device: shapes, and no numbers.

    Args:    layers: fewer make a smaller model of the same widths.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=layers))  # else its defaults


def count_cuts(
    cuts: Mapping[str, Mapping[str, Any]] = CUTS,
    *,
    layers: int = 32,
    profile: str = "quick",
    results_dir: Path | str | None = None,
) -> pd.DataFrame:
    """Cut LLaMA-7B without weights in several ways, by random scores, and count what is left; once.

    Args:    cuts: a name -> the settings of `select`; none: the whole model.
    Returns: a row a name: columns row, parameters (billions), macs (billions, 64 tokens), memory (MiB, 16
             bits), memory_int8 (MiB, linear layers in 8 bits).
    """
    key = settings_key(["cuts", {name: dict(how) for name, how in cuts.items()}, layers])
    path = profile_dir(profile, results_dir) / "measured" / f"{key}.json"
    if not path.is_file():
        write_json(path, _count(cuts, layers))
    return pd.DataFrame(read_json(path))


def _count(cuts: Mapping[str, Mapping[str, Any]], layers: int) -> list[dict[str, Any]]:
    whole, rows, generator = without_weights(layers), [], torch.Generator().manual_seed(0)
    axes = discover(whole)
    scores = {name: torch.rand(axis.n_groups, generator=generator) for name, axis in axes.items()}
    for name, how in cuts.items():
        model = deepcopy(whole)
        if how:
            prune_(model, select(axes, scores, **how), axes=axes)
        row = {"row": name, "parameters": count_parameters(model) / 1e9, "macs": macs(model) / 1e9}
        row["memory"] = memory_mb(model, tables_mb=TABLES_MB)
        rows.append(row | {"memory_int8": memory_mb(quantise_(model))})
    return rows


def beside_table_3(counted: pd.DataFrame) -> pd.DataFrame:
    """Put the counts beside Table 3: columns row, metric, unit, ours (NaN for times), paper, difference."""
    printed = published("Table 3").rename(columns={"value": "paper"})
    ours = counted.set_index("row")
    known = [(row, metric) for row, metric in zip(printed.row, printed.metric, strict=True)]
    found = [ours[m][row] if m in ours and row in ours.index else np.nan for row, m in known]
    table = printed.assign(ours=found, difference=np.array(found) - printed.paper)
    return table[["row", "metric", "unit", "ours", "paper", "difference"]]


def quality(records: Sequence[Record], whole: Sequence[Record], kind: str) -> Interval | None:
    """Compare a model with the whole one on the same windows or questions, whatever their number formats.

    Args:    records, whole: of one model each.
             kind: "perplexity" (of the first text) or "accuracy" (mean of the tasks).
    Returns: perplexity / that of the whole model, or accuracy / its; None where that was not measured.
    Raises:  ValueError: measured by different protocols, apart from the number format.
    """
    sides = [[one for one in side if metric_names([one], kind)][:1] for side in (records, whole)]
    if not all(sides):
        return None
    records_frame([one for side in sides for one in side], allow=("dtype",))
    if kind == "accuracy":
        return paired_ratio(*(values_of(side, "accuracy/mean") for side in sides))
    name = metric_names(sides[0], kind)[0]
    return Interval(**vars(paired_difference(*(values_of(side, name) for side in sides)))).map(np.exp)


def int8_frame(
    measured: Mapping[tuple[str, bool], Sequence[Record]],
    size: Mapping[tuple[str, bool], float],
    seconds: Mapping[tuple[str, bool], Interval],
) -> pd.DataFrame:
    """Lay quality, bytes and seconds out beside Table 13, all relative to the dense model in floating point.

    Args:    measured: (model, in 8 bits) -> its records.    size: the same -> bytes.
             seconds: the same -> share of the dense model's seconds.
    Returns: a row a model and number: columns model, int8, number ("bytes", "seconds", "perplexity",
             "accuracy"), ours, low, high, paper (NaN where it has none), difference.
    """
    rows, whole = [], measured["dense", False]
    for key, records in measured.items():
        share = size[key] / size["dense", False]
        found = {"bytes": Interval(share, share, share, 1), "seconds": seconds[key]}
        found |= {kind: quality(records, whole, kind) for kind in ("perplexity", "accuracy")}
        for number, one in found.items():
            if one is not None:
                rows.append((*key, number, one.mean, one.low, one.high, _table_13(key, number)))
    frame = pd.DataFrame(rows, columns=["model", "int8", "number", "ours", "low", "high", "paper"])
    return frame.assign(difference=frame.ours - frame.paper)


def _table_13(key: tuple[str, bool], number: str) -> float:
    metric = {"bytes": "memory", "seconds": "latency", "accuracy": "accuracy/mean"}.get(number)
    table = published("Table 13").pivot(index="row", columns="metric", values="value")
    return float(table[metric][ROWS[key]] / table[metric]["LLaMA-7B"]) if metric and key in ROWS else np.nan
