"""Turn records into evidence: what two ways of pruning differ by, paired and over draws of the calibration.

A group holds the records of one way of pruning, one for each draw. How intervals come about is known to
`statistics`; which groups speak for which claim is known to `verdicts`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

import numpy as np

from pruner_lib.experiments.experiment import DATA_FREE
from pruner_lib.experiments.records import Record, records_frame
from pruner_lib.questions.statistics import Interval, mean_interval, paired_difference, paired_ratio

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
