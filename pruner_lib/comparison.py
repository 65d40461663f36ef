"""Before and after: means over tasks and paired differences, each with its standard error.

Two models that answered the same questions, or read the same windows of text, are compared question by
question and window by window: what both find hard cancels, and a difference is known better than the numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.records import Metric, Record, records_frame

if TYPE_CHECKING:
    import pandas as pd


def mean_accuracy(record: Record) -> Metric:
    """Average the accuracies of a record, each task counted alike, as the paper's column "Average".

    stderr = sqrt(sum over tasks of stderr^2) / (number of tasks); tasks are independent of each other.

    Raises:  ValueError: the record holds no accuracy.
    """
    found = [one for name, one in record.metrics.items() if name.startswith("accuracy/")]
    if not found:
        raise ValueError(f"record {record.key} holds no accuracy; add tasks to its evaluation")
    errors = [math.nan if one.stderr is None else one.stderr for one in found]
    n = sum(one.n or 0 for one in found)
    return Metric(float(np.mean([one.value for one in found])), math.hypot(*errors) / len(found), n)


def changes(before: Record, after: Record) -> pd.DataFrame:
    """Compare what two records hold in common, paired.

    Perplexities as a ratio: log(after / before) is the mean over windows of the difference of their NLL.
    Accuracies as a difference; "mean" is that of all tasks.

    Returns: columns metric, dataset, before, after, change (ratio or difference), stderr, n.
    Raises:  ValueError: nothing in common, or measured by different protocols.
    """
    import pandas as pd

    records_frame([before, after])  # refuses different protocols
    names = [name for name in before.metrics if name in after.metrics]
    if not names:
        raise ValueError(f"records {before.key} and {after.key} have no metric in common; measure both alike")
    rows = []
    for name in names:
        kind, _, dataset = name.partition("/")
        one, other = before.metrics[name], after.metrics[name]
        change, error = _paired(kind, one, other)
        rows.append((kind, dataset.partition("@")[0], one.value, other.value, change, error, one.n))
    frame = pd.DataFrame(rows, columns=["metric", "dataset", "before", "after", "change", "stderr", "n"])
    tasks = frame[frame.metric == "accuracy"]
    if len(tasks):
        error = math.hypot(*tasks.stderr) / len(tasks)
        mean = [
            "accuracy",
            "mean",
            tasks.before.mean(),
            tasks.after.mean(),
            tasks.change.mean(),
            error,
            tasks.n.sum(),
        ]
        frame.loc[len(frame)] = mean
    return frame


def _paired(kind: str, before: Metric, after: Metric) -> tuple[float, float]:
    """Give the change of one metric and its standard error."""
    first, second = np.array(before.values), np.array(after.values)  # a window's NLL, or 0 and 1 a question
    difference = second - first
    n = len(difference)
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    middle = float(difference.mean())
    return (math.exp(middle), math.exp(middle) * error) if kind == "perplexity" else (middle, error)
