"""Compare ways of pruning by their records: before and after, side by side, and beside what is published.

A way of pruning is a name with its group of records: one for each draw of the calibration, before and after
recovery, texts and tasks alike. Two models that answered the same questions, or read the same windows of
text, are compared item by item (`statistics`): what both find hard cancels. Nothing is measured here.
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
SHARES = ("accuracy", "p_right")  # kinds that count above chance, and of which more is better


def draw_of(record: Record) -> tuple[int, int]:
    """Number the draw of a record: the seed of its samples or random scores, and that of its instructions.

    The first documents of a corpus (a calibration without a seed) are draw -1.
    """
    made = record.experiment
    seed = made.seed if made.criterion in DATA_FREE else made.calibration.seed
    return -1 if seed is None else seed, made.recovery.seed if made.recovery else 0


def metrics_of(records: Group, *, tasks: bool = True) -> list[MetricName]:
    """List what was measured: texts, then of each kind of answers the mean and, if wanted, each task."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    ordered = [name for name in names if name.kind == "perplexity"]
    for kind in dict.fromkeys(name.kind for name in names if name.kind != "perplexity"):
        ordered += [MetricName(kind, "mean")] + [name for name in names if name.kind == kind] * tasks
    return ordered


def metric_names(group: Group, kind: str) -> list[MetricName]:
    """List the metrics of a kind (one of `records.KINDS`) that all records of a group hold."""
    names = [name for name in group[0].metrics if name.kind == kind] if group else []
    return [name for name in names if all(name in record.metrics for record in group)]


def group_of(records: Group, metric: MetricName, stage: str = "") -> Group:
    """Pick the draws that hold a metric, in order; those of one stage (or dense), if one is named."""
    of_stage = [one for one in records if not stage or one.experiment.stage in (stage, "dense")]
    is_mean = metric.dataset == "mean"  # of any tasks
    held = [
        one for one in of_stage if (metric_names([one], metric.kind) if is_mean else metric in one.metrics)
    ]
    group = tuple(sorted({one.key: one for one in held}.values(), key=draw_of))
    return group if not is_mean or metric_names(group, metric.kind) else ()


def values_of(group: Group, metric: MetricName) -> np.ndarray | dict[MetricName, np.ndarray]:
    """Give a metric's values: `(draws, windows)` NLL, `(draws, questions)` 0 or 1, probabilities or bits.

    Args:    metric: the mean of the tasks gives a mapping: task -> its answers.
    """
    if metric.dataset == "mean":
        return {task: values_of(group, task) for task in metric_names(group, metric.kind)}
    return np.array([record.metrics[metric].values for record in group])


def interval(group: Group, metric: MetricName) -> Interval:
    """Estimate a metric over a group's draws: an accuracy, or a perplexity (averaged in the logarithm)."""
    mean = mean_interval(values_of(group, metric))
    return mean.exp() if metric.kind == "perplexity" else mean


def ratio(
    a: Group, b: Group, metric: MetricName, *, level: float = 0.95, allow: Sequence[str] = ()
) -> Interval:
    """Estimate perplexity of a / perplexity of b, or accuracy of a / accuracy of b, paired.

    Args:    allow: protocol fields that may differ, as "dtype" where number formats are compared.
    Raises:  ValueError: they were measured by different protocols, or hold other items.
    """
    sides = _paired_values(a, b, metric, allow)
    if metric.kind == "perplexity":
        return paired_difference(*sides, level=level).exp()
    return paired_ratio(*sides, level=level)


def kept(a: Group, b: Group, metric: MetricName) -> Interval:
    """Estimate what a keeps of b's ability to answer, above guessing: (a - chance) / (b - chance), paired.

    Who guesses has kept nothing; by a plain ratio, a coin keeps 0.86 of a model that is right in 42 %.

    Args:    metric: an accuracy or the probability of the right answer, of a task or the mean of the tasks.
    Raises:  as `ratio`.
    """
    return paired_ratio(*(_less_chance(side, metric) for side in _paired_values(a, b, metric)))


def above_chance(a: Group, _: Group, metric: MetricName) -> Interval:
    """Estimate how far a's answers lie above guessing: an accuracy - chance, a measure for `parts`."""
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
    """Compare a with b as a claim wants it: by perplexity on every text, or by the mean of the tasks.

    Args:    kind: one of `records.KINDS`.    stages: of a and b, "pruned" or "recovered"; dense fits either.
             measure: None: `ratio` of perplexities, what is `kept` of accuracies and probabilities, the
             `difference` of bits.
    Returns: text, or "mean" -> the number; without those that one of the two lacks.
    """
    usual = {"perplexity": ratio, "bits_per_byte": difference}.get(kind, kept)
    found = {}
    for metric in metrics_of(a, tasks=False):
        sides = group_of(a, metric, stages[0]), group_of(b, metric, stages[1])
        if metric.kind == kind and all(sides):
            found[metric.dataset] = (measure or usual)(*sides, metric)
    return found


def named_parts(pairs: Mapping[str, Pair], kind: str = "perplexity", **how: Any) -> dict[str, Interval]:
    """Compare several pairs as one claim wants them, see `parts`: "name of the pair, text" -> the number."""
    each = {name: parts(*pair, kind, **how) for name, pair in pairs.items()}
    return {", ".join(filter(None, (name, text))): each[name][text] for name in each for text in each[name]}


def each_task_left_out(pairs: Mapping[str, Pair], kind: str, **how: Any) -> dict[str, dict[str, Interval]]:
    """Compare again without each task in turn, since a mean of few tasks may rest on one of them.

    Args:    as `named_parts`.
    Returns: task -> the numbers that all others give; without those of which nothing would be left.
    """
    if kind == "perplexity":
        return {}
    records = [record for pair in pairs.values() for group in pair for record in group]
    tasks = [name.dataset for name in metrics_of(records) if name.kind == kind and name.dataset != "mean"]
    others = {task: named_parts(without(pairs, task), kind, **how) for task in tasks}
    whole = named_parts(pairs, kind, **how).keys()
    return {task: numbers for task, numbers in others.items() if numbers.keys() == whole}


def without(pairs: Mapping[str, Pair], task: str) -> dict[str, Pair]:
    """Leave a task out of the records of pairs, so that their means are those of the other tasks."""

    def others(record: Record) -> Record:
        metrics = {name: metric for name, metric in record.metrics.items() if name.dataset != task}
        return replace(record, metrics=metrics)

    return {name: tuple([others(one) for one in group] for group in pair) for name, pair in pairs.items()}


def difference(a: Group, b: Group, metric: MetricName, *, level: float = 0.95) -> Interval:
    """Estimate a - b, paired: of perplexities in nats per token (log a - log b), of answers in their unit.

    Raises:  as `ratio`.
    """
    return paired_difference(*_paired_values(a, b, metric), level=level)


def _paired_values(a: Group, b: Group, metric: MetricName, allow: Sequence[str] = ()) -> list:
    sides = paired_draws(a, b)
    refuse_mixed_protocols([*sides[0], *sides[1]], allow=allow)
    return [values_of(side, metric) for side in sides]


def paired_draws(a: Group, b: Group) -> Pair:
    """Bring two groups into the same order of draws: by their seeds, else one after the other.

    Of a recovered group and one that is not, the seeds of the samples count, not those of the instructions.
    One record stands beside every draw of the other group if it knows no draws (dense, L2, not recovered), or
    if all were calibrated alike, so that they differ in the draw of their instructions alone. Where one group
    needs no samples and the other's differ, their seeds number different things.

    Raises:  ValueError: several recoveries of the same samples stand beside several cuts of them.
    """
    samples, drawless = {draw_of(record)[0] for record in (*a, *b)}, {*DATA_FREE} - {"random"}
    needing_none = [group for group in (a, b) if all(one.experiment.criterion in drawless for one in group)]
    knows_no_draws = any(not one.experiment.recovery for group in needing_none for one in group)
    if 1 in (len(a), len(b)) and (len(samples) == 1 or knows_no_draws):
        return a, b
    trained = all(one.experiment.recovery for one in (*a, *b))  # else one group has no instructions
    by_draw = [{draw_of(one)[: 1 + trained]: one for one in group} for group in (a, b)]
    common = [draw for draw in by_draw[0] if draw in by_draw[1]]
    if common and not (needing_none and len(samples) > 1):
        if any(len(found) < len(group) for found, group in zip(by_draw, (a, b), strict=True)):
            raise ValueError("several records have the same draw, so they can't be paired; compare fewer")
        return [by_draw[0][draw] for draw in common], [by_draw[1][draw] for draw in common]
    n = min(len(a), len(b))
    return a[:n], b[:n]


def describe(numbers: Mapping[str, Interval], *groups: Group) -> str:
    """Say what the numbers of a claim were computed from: "element1, 20.0% cut; wiki 64, c4 64; 3 draws".

    Args:    numbers: text, or "mean" (behind the pair that was compared, where there are several:
             "vector / l2, wiki") -> a number of so many windows or questions.
             groups: that were compared; the dense model is not mentioned.
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
    """Compare each way of pruning with the whole model, beside what the paper's keeps of its own.

    ours = perplexity / dense perplexity, bits per byte / dense bits per byte, and of accuracies and
    probabilities (a - chance) / (dense - chance), see `kept`; all paired and over draws, of answers the mean
    of the tasks

    Args:    named: the whole model's records among them, under "dense".
             paper: what is published of other models, relative to its own rows of the name "dense": columns
             name, stage, metric, value.
    Returns: a row for each name, stage and number: columns name, stage, metric (one of `records.KINDS`),
             dataset ("mean": of all tasks), value (as measured), ours, low, high (95 % interval of ours),
             paper (NaN if there is none), difference (ours - paper), draws, n (windows or questions).
    Raises:  ValueError: the dense model was not measured likewise, or by another protocol.
    """
    theirs, rows, dense = relative_to_dense(paper), [], named.get("dense", ())
    for name, records in named.items():
        for stage in dict.fromkeys(record.experiment.stage for record in records if name != "dense"):
            for place, metric in enumerate(metrics_of(records, tasks=False)):
                group, whole = group_of(records, metric, stage), group_of(dense, metric)
                if not group:
                    continue
                if not whole:
                    raise ValueError(f"the dense model lacks {metric}; measure it like {name}")
                relative = kept if metric.kind in SHARES else ratio
                share, value = relative(group, whole[:1], metric), interval(group, metric).mean
                printed = theirs.get((name, stage, paper_metric(metric, place)), math.nan)
                numbers = (value, share.mean, share.low, share.high, printed, share.mean - printed)
                rows.append((name, stage, metric.kind, metric.dataset, *numbers, len(group), share.n))
    columns = "name stage metric dataset value ours low high paper difference draws n"
    return pd.DataFrame(rows, columns=columns.split())


def contrasts(
    named: Named, pairs: Sequence[tuple[Any, Any]], *, stage: str = "pruned", level: float = 0.95
) -> pd.DataFrame:
    """Compare ways of pruning in pairs: the same windows and questions and, draw by draw, the same samples.

    difference = log perplexity (a) - log perplexity (b) in nats per token, of answers that of their means

    Args:    level: at which the intervals of one column of pairs hold together (Bonferroni).
    Returns: a row for each text, and one for each mean of the tasks: columns a, b, metric, dataset,
             difference, low, high, draws, n, better ("a", "b", or "": the sample can't decide).
    """
    rows, each = [], corrected(level, len(pairs))
    for a, b in pairs:
        for metric in metrics_of(named[a], tasks=False):
            one, other = group_of(named[a], metric, stage), group_of(named[b], metric, stage)
            if one and other:
                gap = difference(one, other, metric, level=each)
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
    """Write a frame of `contrasts` as a Markdown list; inside the noise neither side is called better."""
    lines = []
    for row in compared.itertuples():
        words, unit, digits, scale = UNITS[row.metric]
        middle, low, high = (f"{x * scale:+.{digits}f}" for x in (row.difference, row.low, row.high))
        what, shown = words.format(row.dataset), f"{middle} [{low}, {high}] {unit}"
        best, rest = (row.a, row.b) if row.better == "a" else (row.b, row.a)
        clear = f"**{best} is better than {rest}** by {what} ({row.a} - {row.b}: {shown})."
        unclear = f"{row.a} and {row.b} do not differ clearly by {what} ({shown})."
        lines.append(f"- {clear if row.better else unclear}")
    return "\n".join(lines) or "- There is nothing to compare."
