"""Compare pruning methods by their records: with the dense model, each other, and published numbers.

A method is a name and its group of records: one per calibration draw, before and after recovery, with texts
and tasks. Models that answered the same questions, or read the same windows of text, are compared item by
item (`statistics`), so that the difficulty of the items cancels. Nothing is measured here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from pruner_lib.evaluation.tasks import CHANCES
from pruner_lib.study.paper import paper_metric, relative_to_dense
from pruner_lib.study.records import MetricName, Record, refuse_mixed_protocols
from pruner_lib.study.settings import DATA_FREE
from pruner_lib.study.statistics import Interval, corrected, mean_interval, paired_difference, paired_ratio

Group = Sequence[Record]
Named = Mapping[Any, Group]
Pair = tuple[Group, Group]
SHARES = ("accuracy", "p_right")  # kinds that are measured above chance, and for which higher is better


def draw_of(record: Record) -> tuple[int, int]:
    """Return a record's seeds: that of its samples or random scores, and that of its instructions.

    A calibration without a seed, on the first documents of a corpus, counts as seed -1.
    """
    experiment = record.experiment
    seed = experiment.seed if experiment.criterion in DATA_FREE else experiment.calibration.seed
    return -1 if seed is None else seed, experiment.recovery.seed if experiment.recovery else 0


def metrics_of(records: Group, *, tasks: bool = True) -> list[MetricName]:
    """List what was measured: texts, then for each kind of answers the mean and, with `tasks`, each task."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    ordered = [name for name in names if name.kind == "perplexity"]
    for kind in dict.fromkeys(name.kind for name in names if name.kind != "perplexity"):
        ordered += [MetricName(kind, "mean")] + [name for name in names if name.kind == kind] * tasks
    return ordered


def metric_names(group: Group, kind: str) -> list[MetricName]:
    """List the metrics of a kind (one of `records.KINDS`) that all records of a group have."""
    names = [name for name in group[0].metrics if name.kind == kind] if group else []
    return [name for name in names if all(name in record.metrics for record in group)]


def group_of(records: Group, metric: MetricName, stage: str = "") -> Group:
    """Select the records that have a metric and, if one is named, a stage (or are dense), sorted by draw."""
    is_mean = metric.dataset == "mean"  # of any tasks

    def fits(record: Record) -> bool:
        has_metric = metric_names([record], metric.kind) if is_mean else metric in record.metrics
        return bool(has_metric) and (not stage or record.experiment.stage in (stage, "dense"))

    unique = {record.key: record for record in records if fits(record)}
    group = tuple(sorted(unique.values(), key=draw_of))
    return group if not is_mean or metric_names(group, metric.kind) else ()


def values_of(group: Group, metric: MetricName) -> np.ndarray | dict[MetricName, np.ndarray]:
    """Return a metric's values: `(draws, windows)` NLL, `(draws, questions)` 0 or 1, probabilities or bits.

    Args:    metric: for the mean of the tasks, the result is a mapping: task -> its answers.
    """
    if metric.dataset == "mean":
        return {task: values_of(group, task) for task in metric_names(group, metric.kind)}
    return np.array([record.metrics[metric].values for record in group])


def interval(group: Group, metric: MetricName) -> Interval:
    """Estimate a metric over a group's draws; perplexities are averaged in the logarithm."""
    mean = mean_interval(values_of(group, metric))
    return mean.exp() if metric.kind == "perplexity" else mean


def ratio(
    a: Group, b: Group, metric: MetricName, *, level: float = 0.95, allow: Sequence[str] = ()
) -> Interval:
    """Estimate perplexity of a / perplexity of b, or accuracy of a / accuracy of b, paired.

    Args:    allow: protocol fields that may differ, such as "dtype" to compare number formats.
    Raises:  ValueError: a and b were measured by different protocols or on different items.
    """
    sides = _paired_values(a, b, metric, allow)
    if metric.kind == "perplexity":
        return paired_difference(*sides, level=level).exp()
    return paired_ratio(*sides, level=level)


def kept(a: Group, b: Group, metric: MetricName) -> Interval:
    """Estimate the share of b's ability to answer that a keeps: (a - chance) / (b - chance), paired.

    A model that guesses has kept nothing, although its plain accuracy ratio may be high.

    Args:    metric: an accuracy or the probability of the right answer, of a task or the mean of the tasks.
    Raises:  as `ratio`.
    """
    return paired_ratio(*(_less_chance(side, metric) for side in _paired_values(a, b, metric)))


def above_chance(a: Group, _: Group, metric: MetricName) -> Interval:
    """Estimate how far a's answers are above chance: accuracy - chance; a `measure` for `parts`."""
    return mean_interval(_less_chance(values_of(a, metric), metric))


def _less_chance(values: Any, metric: MetricName) -> dict[MetricName, np.ndarray]:
    by_task = values if isinstance(values, dict) else {metric: values}
    return {task: by_task[task] - CHANCES[task.dataset] for task in by_task}


def parts(
    a: Group,
    b: Group,
    kind: str = "perplexity",
    *,
    stages: tuple[str, str] = ("pruned", "pruned"),
    measure: Callable[[Group, Group, MetricName], Interval] | None = None,
) -> dict[str, Interval]:
    """Compare a with b, as a claim needs it: the perplexity on every text, or the mean of the tasks.

    Args:    kind: one of `records.KINDS`.    stages: of a and b, "pruned" or "recovered"; dense fits either.
             measure: None: the `ratio` of perplexities, the share `kept` of accuracies and probabilities, the
             `difference` of bits.
    Returns: text, or "mean" -> the number; only metrics that both a and b have.
    """
    measure = measure or {"perplexity": ratio, "bits_per_byte": difference}.get(kind, kept)
    numbers = {}
    for metric in metrics_of(a, tasks=False):
        sides = group_of(a, metric, stages[0]), group_of(b, metric, stages[1])
        if metric.kind == kind and all(sides):
            numbers[metric.dataset] = measure(*sides, metric)
    return numbers


def named_parts(pairs: Mapping[str, Pair], kind: str = "perplexity", **options: Any) -> dict[str, Interval]:
    """Compare several pairs for one claim, see `parts`: "name of the pair, text" -> the number."""
    by_pair = {name: parts(*pair, kind, **options) for name, pair in pairs.items()}
    return {", ".join(filter(None, (name, text))): n for name in by_pair for text, n in by_pair[name].items()}


def each_task_left_out(pairs: Mapping[str, Pair], kind: str, **options: Any) -> dict[str, dict]:
    """Compare again without each task in turn, since a mean of few tasks may depend on one of them.

    Args:    as `named_parts`.
    Returns: task -> the numbers without it; tasks are omitted if a number would be lost.
    """
    if kind == "perplexity":
        return {}
    records = [record for pair in pairs.values() for group in pair for record in group]
    tasks = [name.dataset for name in metrics_of(records) if name.kind == kind and name.dataset != "mean"]
    numbers = {task: named_parts(without(pairs, task), kind, **options) for task in tasks}
    names = named_parts(pairs, kind, **options).keys()
    return {task: found for task, found in numbers.items() if found.keys() == names}


def without(pairs: Mapping[str, Pair], task: str) -> dict[str, Pair]:
    """Remove a task from the records of pairs, so that their means are those of the other tasks."""

    def others(record: Record) -> Record:
        return replace(record, metrics={n: m for n, m in record.metrics.items() if n.dataset != task})

    return {name: tuple([*map(others, group)] for group in pair) for name, pair in pairs.items()}


def difference(a: Group, b: Group, metric: MetricName, *, level: float = 0.95) -> Interval:
    """Estimate a - b, paired: for perplexities in nats per token (log a - log b), for answers in their unit.

    Raises:  as `ratio`.
    """
    return paired_difference(*_paired_values(a, b, metric), level=level)


def _paired_values(a: Group, b: Group, metric: MetricName, allow: Sequence[str] = ()) -> list:
    sides = paired_draws(a, b)
    refuse_mixed_protocols([*sides[0], *sides[1]], allow=allow)
    return [values_of(side, metric) for side in sides]


def paired_draws(a: Group, b: Group) -> Pair:
    """Put two groups into the same order of draws: by their seeds, else in the order given.

    If only one of the groups is recovered, the seeds of the samples are matched, not those of the
    instructions. A single record is compared with every draw of the other group if it has no draws (dense or
    L2, not recovered), or if all records have the same calibration and differ only in the draw of their
    instructions. Seeds are not matched if one group needs no samples while those of the other differ.

    Raises:  ValueError: several records of a group have the same draw.
    """
    samples, drawless = {draw_of(record)[0] for record in (*a, *b)}, {*DATA_FREE} - {"random"}
    no_samples = [group for group in (a, b) if all(r.experiment.criterion in drawless for r in group)]
    no_draws = any(not record.experiment.recovery for group in no_samples for record in group)
    if 1 in (len(a), len(b)) and (len(samples) == 1 or no_draws):
        return a, b
    trained = all(record.experiment.recovery for record in (*a, *b))  # else one group has no instructions
    by_draw = [{draw_of(record)[: 1 + trained]: record for record in group} for group in (a, b)]
    common = [draw for draw in by_draw[0] if draw in by_draw[1]]
    if common and not (no_samples and len(samples) > 1):
        if len(by_draw[0]) < len(a) or len(by_draw[1]) < len(b):
            raise ValueError("several records have the same draw, so they can't be paired; compare fewer")
        return tuple([draws[draw] for draw in common] for draws in by_draw)
    n = min(len(a), len(b))
    return a[:n], b[:n]


def describe(numbers: Mapping[str, Interval], *groups: Group) -> str:
    """Describe what a claim's numbers were computed from: "element1, 20.0% cut; wiki 64, c4 64; 3 draws".

    Args:    numbers: as from `named_parts`; after each text comes its number of windows or questions.
             groups: the compared groups; the dense model is not mentioned.
    """
    cut = [record for group in groups for record in group if record.experiment.stage != "dense"]
    methods = _listed(record.experiment.method for record in cut)
    sizes = _listed(f"{record.plan['sparsity']:.1%}" for record in cut)
    texts = {name: name.rpartition(", ")[2] for name in numbers}  # without the pair that was compared
    items = ", ".join(dict.fromkeys(f"{texts[name]} {number.n:,}" for name, number in numbers.items()))
    draws = min(number.draws for number in numbers.values())
    return f"{methods}, {sizes} cut; {items}; {draws} draw{'s' * (draws > 1)}"


def _listed(words: Iterable[str]) -> str:
    names = list(dict.fromkeys(words))
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def kept_frame(named: Named, paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """Compare each pruning method with the dense model, next to the same comparison in the paper.

    ours = perplexity / dense perplexity, bits per byte / dense bits per byte, and for accuracies and
    probabilities (a - chance) / (dense - chance), see `kept`; all paired, over draws, answers as the mean of
    the tasks

    Args:    named: name of a method -> its records; "dense" -> those of the dense model.
             paper: published numbers of other models, with a dense model named "dense": columns name, stage,
             metric, value.
    Returns: a row for each name, stage and number: columns name, stage, metric (one of `records.KINDS`),
             dataset ("mean": of all tasks), value (as measured), ours, low, high (95 % interval of ours),
             paper (NaN if there is none), difference (ours - paper), draws, n (windows or questions).
    Raises:  ValueError: the dense model was not measured on the same data, or by another protocol.
    """
    published, rows, dense = relative_to_dense(paper), [], named.get("dense", ())
    for name, records in named.items():
        for stage in dict.fromkeys(record.experiment.stage for record in records if name != "dense"):
            for index, metric in enumerate(metrics_of(records, tasks=False)):
                group, dense_group = group_of(records, metric, stage), group_of(dense, metric)
                if not group:
                    continue
                if not dense_group:
                    raise ValueError(f"the dense model has no {metric}; measure it like {name}")
                relative = kept if metric.kind in SHARES else ratio
                share, value = relative(group, dense_group[:1], metric), interval(group, metric).mean
                printed = published.get((name, stage, paper_metric(metric, index)), math.nan)
                numbers = (value, share.mean, share.low, share.high, printed, share.mean - printed)
                rows.append((name, stage, metric.kind, metric.dataset, *numbers, len(group), share.n))
    columns = "name stage metric dataset value ours low high paper difference draws n"
    return pd.DataFrame(rows, columns=columns.split())


def contrasts(
    named: Named, pairs: Sequence[tuple[Any, Any]], *, stage: str = "pruned", level: float = 0.95
) -> pd.DataFrame:
    """Compare pruning methods in pairs: on the same windows and questions and, per draw, the same samples.

    difference = log perplexity (a) - log perplexity (b) in nats per token; for answers, that of the means

    Args:    level: the joint confidence level of all pairs for one metric (Bonferroni).
    Returns: a row for each text, and one for each mean of the tasks: columns a, b, metric, dataset,
             difference, low, high, draws, n, better ("a", "b", or "": the sample can't decide).
    """
    rows, pair_level = [], corrected(level, len(pairs))
    for a, b in pairs:
        for metric in metrics_of(named[a], tasks=False):
            sides = group_of(named[a], metric, stage), group_of(named[b], metric, stage)
            if all(sides):
                gap = difference(*sides, metric, level=pair_level)
                better = {0: "", 1: "a", -1: "b"}[gap.sign if metric.kind in SHARES else -gap.sign]
                numbers = (gap.mean, gap.low, gap.high, gap.draws, gap.n, better)
                rows.append((a, b, metric.kind, metric.dataset, *numbers))
    columns = "a b metric dataset difference low high draws n better"
    return pd.DataFrame(rows, columns=columns.split())


UNITS = {  # kind -> in words, unit, digits, scale
    "perplexity": ("perplexity on {}", "nats per token", 3, 1),
    "accuracy": ("accuracy, {}", "points", 1, 100),
    "p_right": ("probability of the right answer, {}", "points", 1, 100),
    "bits_per_byte": ("bits per byte of the right answer, {}", "bits", 3, 1),
}


def to_markdown(compared: pd.DataFrame) -> str:
    """Write a frame of `contrasts` as a Markdown list, which calls a side better only if it clearly is."""
    lines = []
    for row in compared.itertuples():
        words, unit, digits, scale = UNITS[row.metric]
        middle, low, high = (f"{x * scale:+.{digits}f}" for x in (row.difference, row.low, row.high))
        metric, shown = words.format(row.dataset), f"{middle} [{low}, {high}] {unit}"
        best, rest = (row.a, row.b) if row.better == "a" else (row.b, row.a)
        clear = f"**{best} is better than {rest}** in {metric} ({row.a} - {row.b}: {shown})."
        unclear = f"{row.a} and {row.b} do not differ clearly in {metric} ({shown})."
        lines.append(f"- {clear if row.better else unclear}")
    return "\n".join(lines) or "- There is nothing to compare."
