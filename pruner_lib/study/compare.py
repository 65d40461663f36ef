"""Compare ways of pruning by their records: before and after, side by side, and beside what is published.

A way of pruning is a name with its group of records: one for each draw of the calibration, before and after
recovery, texts and tasks alike. Two models that answered the same questions, or read the same windows of
text, are compared question by question and window by window (`statistics`): what both find hard cancels.
Nothing is measured or drawn here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pruner_lib.study.records import Metric, Record, records_frame
from pruner_lib.study.run import run_all
from pruner_lib.study.settings import DATA_FREE, Experiment
from pruner_lib.study.statistics import Interval, corrected, mean_interval, paired_difference, paired_ratio

Group = tuple[Record, ...]


def groups_of(records: Iterable[Record]) -> list[Group]:
    """Put records that differ only in their draw (of samples, or of random scores) together."""
    found: dict[str, list[Record]] = {}
    for record in {record.key: record for record in records}.values():
        found.setdefault(_without_draw(record), []).append(record)
    return [
        tuple(sorted(group, key=lambda record: (draw_of(record), record.key))) for group in found.values()
    ]


def draw_of(record: Record) -> int:
    """Number the draw of a record: the seed of its scores or of its samples; -1 for the first documents."""
    asked = record.experiment
    if asked.criterion in DATA_FREE:
        return asked.seed
    return -1 if asked.calibration.seed is None else asked.calibration.seed


def metric_names(group: Sequence[Record], kind: str) -> list[str]:
    """List the metrics of a kind ("perplexity", "accuracy") that all records of a group hold."""
    named = [[name for name in one.metrics if name.startswith(f"{kind}/")] for one in group]
    return [name for name in named[0] if all(name in others for others in named)] if named else []


def values_of(group: Sequence[Record], metric: str) -> np.ndarray | dict[str, np.ndarray]:
    """Give a metric's values: `(draws, windows)` NLL, `(draws, questions)` 0 or 1.

    Args:    metric: "perplexity/wiki@128", "accuracy/boolq", or "accuracy/mean": task -> its answers.
    Raises:  ValueError: a record lacks the metric or its values (the message names both).
    """
    if metric == "accuracy/mean":
        tasks = metric_names(group, "accuracy")
        if not tasks:
            raise ValueError(f"records {_keys(group)} have no task in common; add tasks to their evaluation")
        return {task: values_of(group, task) for task in tasks}
    for record in group:
        if metric not in record.metrics or not record.metrics[metric].values:
            raise ValueError(
                f"record {record.key} holds no values of {metric}; it has {list(record.metrics)}"
            )
    return np.array([record.metrics[metric].values for record in group])


def interval(group: Sequence[Record], metric: str, *, level: float = 0.95) -> Interval:
    """Estimate a metric over a group's draws: an accuracy, or a perplexity (averaged in the logarithm)."""
    found = mean_interval(values_of(group, metric), level=level)
    return found.map(_exp) if metric.startswith("perplexity/") else found


def ratio(a: Group, b: Group, metric: str, *, level: float = 0.95) -> Interval:
    """Estimate perplexity of a / perplexity of b, or accuracy of a / accuracy of b, paired.

    Raises:  ValueError: they were measured by different protocols, or hold other items.
    """
    a, b = paired_draws(a, b)
    one, other = _values(a, b, metric)
    if metric.startswith("perplexity/"):
        return Interval(**vars(paired_difference(one, other, level=level))).map(_exp)
    return paired_ratio(one, other, level=level)


def difference(a: Group, b: Group, metric: str, *, level: float = 0.95) -> Interval:
    """Estimate a - b, paired: of accuracies in [-1, 1], of perplexities in nats a token (log a - log b).

    Raises:  as `ratio`.
    """
    a, b = paired_draws(a, b)
    return paired_difference(*_values(a, b, metric), level=level)


def paired_draws(a: Group, b: Group) -> tuple[Group, Group]:
    """Bring two groups into the same order of draws: by their seeds, else one after the other.

    A group of one record that knows no draws (dense, L2) stands beside every draw of the other.
    """
    if 1 in (len(a), len(b)) and any(_drawless(group) for group in (a, b)):
        return a, b
    seeds = [{draw_of(record): record for record in group} for group in (a, b)]
    common = [seed for seed in seeds[0] if seed in seeds[1]]
    if common:
        return tuple(seeds[0][seed] for seed in common), tuple(seeds[1][seed] for seed in common)
    n = min(len(a), len(b))
    return a[:n], b[:n]


def _drawless(group: Group) -> bool:
    return all(
        one.experiment.criterion in DATA_FREE and one.experiment.criterion != "random" for one in group
    )


def _values(a: Group, b: Group, metric: str) -> tuple:
    records_frame([*a, *b])  # refuses different protocols
    return values_of(a, metric), values_of(b, metric)


def _without_draw(record: Record) -> str:
    settings = record.experiment.canonical().settings()
    settings["seed"] = settings["calibration"]["seed"] = None
    return json.dumps(settings, sort_keys=True)


def _keys(group: Sequence[Record]) -> str:
    return ", ".join(record.key for record in group)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


Named = Mapping[str, Sequence[Record]]
TEXTS = ("wikitext2", "ptb")  # our first text stands beside the paper's WikiText2, the second beside PTB


def run_named(asked: Mapping[str, Sequence[Experiment]], *, profile: str) -> dict[str, list[Record]]:
    """Give the records of named lists of experiments, all in one study."""
    records = iter(run_all([one for experiments in asked.values() for one in experiments], profile=profile))
    return {name: [next(records) for _ in experiments] for name, experiments in asked.items()}


def kept_frame(named: Named, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """Tell what each way of pruning keeps of the whole model, beside what the paper's keeps of its own.

    ours = perplexity / dense perplexity, or accuracy / dense accuracy, paired and over draws

    Both sides are relative to their dense model, because models and texts differ.

    Args:    named: the whole model's records among them, under "dense".
             known: what is published: columns name, stage, metric, value, with rows of the name "dense".
    Returns: a row for each name, stage and number: columns name, stage, metric ("perplexity", "accuracy"),
             dataset ("mean": of all tasks), value (as measured), ours, low, high (95 % interval of ours),
             paper (NaN if there is none), difference (ours - paper), draws, n (windows or questions).
    Raises:  ValueError: the dense model was not measured likewise, or by another protocol.
    """
    theirs, rows, dense = _relative(known), [], named.get("dense", ())
    for name, records in named.items():
        for stage in dict.fromkeys(record.experiment.stage for record in records if name != "dense"):
            for place, metric in enumerate(metrics_of(records)):
                group, whole = group_of(records, metric, stage), group_of(dense, metric)
                if not group:
                    continue
                if not whole:
                    raise ValueError(f"the dense model lacks {metric}; measure it like {name}")
                found, value = _share(group, whole[:1], metric), interval(group, metric).mean
                paper = theirs.get((name, stage, paper_metric(metric, place)), float("nan"))
                numbers = (value, found.mean, found.low, found.high, paper, found.mean - paper)
                rows.append((name, stage, *_split(metric), *numbers, len(group), found.n))
    columns = "name stage metric dataset value ours low high paper difference draws n"
    return pd.DataFrame(rows, columns=columns.split())


def contrasts(
    named: Named, pairs: Sequence[tuple[str, str]], *, stage: str = "pruned", level: float = 0.95
) -> pd.DataFrame:
    """Compare ways of pruning in pairs: the same windows and questions and, draw by draw, the same samples.

    difference = log perplexity (a) - log perplexity (b) in nats a token, or accuracy (a) - accuracy (b)

    Args:    level: at which the intervals of one column of pairs hold together (Bonferroni).
    Returns: a row for each text, and one for the mean of the tasks if there are any: columns a, b, metric,
             dataset, difference, low, high, draws, n, better ("a", "b", or "": they can't be told apart).
    """
    rows, each = [], corrected(level, len(pairs))
    for a, b in pairs:
        for metric in metrics_of(named[a], tasks=False):
            one, other = group_of(named[a], metric, stage), group_of(named[b], metric, stage)
            if one and other:
                found = difference(one, other, metric, level=each)
                better = {0: "", 1: "a", -1: "b"}[found.sign * (-1 if metric != "accuracy/mean" else 1)]
                numbers = (found.mean, found.low, found.high, found.draws, found.n, better)
                rows.append((a, b, *_split(metric), *numbers))
    columns = "a b metric dataset difference low high draws n better"
    return pd.DataFrame(rows, columns=columns.split())


def told(found: pd.DataFrame) -> str:
    """Say a frame of `contrasts` as a Markdown list; inside the noise neither side is called better."""
    return "\n".join(f"- {_sentence(row)}" for row in found.itertuples()) or "- There is nothing to compare."


def metrics_of(records: Sequence[Record], *, tasks: bool = True) -> list[str]:
    """List what was measured, in order: texts, then the mean of the tasks and, if wanted, each task."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    texts = [name for name in names if name.startswith("perplexity/")]
    answers = [name for name in names if name.startswith("accuracy/")]
    return texts + ["accuracy/mean"] * bool(answers) + answers * tasks


def group_of(records: Sequence[Record], metric: str, stage: str = "") -> Group:
    """Pick the draws that hold a metric, in order; those of one stage, if one is named (or dense)."""
    kind = metric if metric != "accuracy/mean" else "accuracy/"
    held = {
        record.key: record
        for record in records
        if any(name.startswith(kind) for name in record.metrics)
        and (not stage or record.experiment.stage in (stage, "dense"))
    }
    group = tuple(sorted(held.values(), key=draw_of))
    return group if metric != "accuracy/mean" or metric_names(group, "accuracy") else ()


def paper_metric(metric: str, place: int) -> str:
    """Name the paper's number that stands beside one of ours; `place` counts our texts."""
    if not metric.startswith("perplexity/"):
        return metric
    text = _split(metric)[1]
    return f"perplexity/{text if text in TEXTS or place >= len(TEXTS) else TEXTS[place]}@128"


def _share(group: Group, whole: Group, metric: str) -> Interval:
    """Divide by the dense model; no number where it answered nothing right."""
    if interval(whole, metric).mean > 0:
        return ratio(group, whole, metric)
    values = values_of(whole, metric)
    n = sum(one.shape[1] for one in (values.values() if isinstance(values, dict) else [values]))
    return Interval(math.nan, math.nan, math.nan, n, len(group))


def _relative(known: pd.DataFrame | None) -> dict[tuple[str, str, str], float]:
    if known is None:
        return {}
    dense = known[known.name == "dense"].set_index("metric").value
    return {
        (row.name, row.stage, row.metric): row.value / dense[row.metric]
        for row in known.itertuples(index=False)
        if row.metric in dense
    }


def _sentence(row: Any) -> str:
    perplexity = row.metric == "perplexity"
    what, unit = ("perplexity on ", "nats a token") if perplexity else ("accuracy, ", "points")
    digits, scale = (3, 1) if perplexity else (1, 100)
    middle, low, high = (f"{x * scale:+.{digits}f}" for x in (row.difference, row.low, row.high))
    shown = f"{middle} [{low}, {high}] {unit}"
    if not row.better:
        return f"{row.a} and {row.b} can't be told apart by {what}{row.dataset} ({shown})."
    best, rest = (row.a, row.b) if row.better == "a" else (row.b, row.a)
    return f"**{best} is better than {rest}** by {what}{row.dataset} ({row.a} - {row.b}: {shown})."


def _split(metric: str) -> tuple[str, str]:
    kind, _, dataset = metric.partition("/")
    return kind, dataset.partition("@")[0]


TWO_SIDED_95 = 1.96  # standard errors to either side that hold 95 % of a normal distribution


def with_mean_accuracy(frame: pd.DataFrame) -> pd.DataFrame:
    """Add a row "mean" for each record's accuracies: every task counts alike, as in the paper's "Average".

    stderr = sqrt(sum over tasks of stderr^2) / (number of tasks): the questions of two tasks are independent.

    Args:    frame: as `records_frame` gives it.    Returns: the frame; longer by a row for each such record.
    """
    rows = []
    for _, tasks in frame[frame.metric == "accuracy"].groupby("key", sort=False):
        mean = {"dataset": "mean", "value": tasks.value.mean(), "n": tasks.n.sum()}
        rows.append(tasks.iloc[-1].to_dict() | mean | {"stderr": math.hypot(*tasks.stderr) / len(tasks)})
    return pd.concat([frame, pd.DataFrame(rows)], ignore_index=True) if rows else frame


def way_of(records: Sequence[Record]) -> pd.DataFrame:
    """List stages and values of the dense, the pruned and the recovered model.

    Returns: columns stage, source ("ours"), model (with the text, where there is one), metric, value, stderr:
             a row for each perplexity and each mean accuracy, in the order of the records.
    """
    frame = with_mean_accuracy(records_frame(records))
    frame = frame[frame.metric.eq("perplexity") | frame.dataset.eq("mean")].assign(source="ours")
    texts = frame.dataset.map(lambda name: "" if name == "mean" else f", {name}")
    return frame.assign(model=frame.model + texts)[["stage", "source", "model", "metric", "value", "stderr"]]


def beside_published(record: Record, known: pd.DataFrame) -> pd.DataFrame:
    """Put the accuracies of a record beside published ones of the same model, and say whether they agree.

    They agree where they differ by at most 1.96 of our standard errors; the published ones are not known.

    Args:    known: as `paper.published_whole` gives it: columns metric, value (in %), source. The task "arc"
             is the mean of arc_easy and arc_challenge.
    Returns: columns dataset, ours, stderr, published (shares in [0, 1]), difference, agrees, n, source; a row
             for each published number that the record has too.
    """
    ours = {
        name.partition("/")[2]: one for name, one in record.metrics.items() if name.startswith("accuracy/")
    }
    if {"arc_easy", "arc_challenge"} <= set(ours):
        easy, hard = ours["arc_easy"], ours["arc_challenge"]
        error = math.hypot(easy.stderr, hard.stderr) / 2
        ours["arc"] = Metric((easy.value + hard.value) / 2, error, easy.n + hard.n)
    rows = []
    for metric, percent, source in zip(known.metric, known.value, known.source, strict=True):
        task = metric.partition("/")[2]
        if metric.startswith("accuracy/") and task in ours:
            one, there = ours[task], percent / 100
            agrees = abs(one.value - there) <= TWO_SIDED_95 * one.stderr
            rows.append((task, one.value, one.stderr, there, one.value - there, agrees, one.n, source))
    columns = ["dataset", "ours", "stderr", "published", "difference", "agrees", "n", "source"]
    return pd.DataFrame(rows, columns=columns)


def changes(before: Record, after: Record) -> pd.DataFrame:
    """Compare what two records hold in common, question by question and window by window.

    Perplexities as a ratio after / before, accuracies as a difference; "mean" is that of all tasks.

    Returns: columns metric, dataset, before, after, change, low, high (the ends of its 95 % interval), n
             (windows or questions).
    Raises:  ValueError: nothing in common, or measured by different protocols.
    """
    records_frame([before, after])  # refuses different protocols
    names = [name for name in before.metrics if name in after.metrics]
    if not names:
        raise ValueError(f"records {before.key} and {after.key} have no metric in common; measure both alike")
    rows = []
    for name in names:
        kind, _, dataset = name.partition("/")
        one, other = before.metrics[name], after.metrics[name]
        found = paired_difference(other.values, one.values)
        found = found.map(math.exp) if kind == "perplexity" else found  # its values are a window's NLL
        rows.append((kind, dataset.partition("@")[0], one.value, other.value, found))
    tasks = [name for name in names if name.startswith("accuracy/")]
    if tasks:
        first, second = ({name: record.metrics[name] for name in tasks} for record in (before, after))
        means = [sum(one.value for one in side.values()) / len(tasks) for side in (first, second)]
        answers = [{name: one.values for name, one in side.items()} for side in (second, first)]
        rows.append(("accuracy", "mean", *means, paired_difference(*answers)))
    wide = [(*row[:-1], row[-1].mean, row[-1].low, row[-1].high, row[-1].n) for row in rows]
    return pd.DataFrame(wide, columns=["metric", "dataset", "before", "after", "change", "low", "high", "n"])
