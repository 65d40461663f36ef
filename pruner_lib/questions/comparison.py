"""Before and after: the records of one model on its way as tables, with what is published beside them.

Two models that answered the same questions, or read the same windows of text, are compared question by
question and window by window (`statistics`): what both find hard cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pruner_lib.experiments.records import Metric, Record, records_frame
from pruner_lib.questions.statistics import paired_difference

if TYPE_CHECKING:
    import pandas as pd

TWO_SIDED_95 = 1.96  # standard errors to either side that hold 95 % of a normal distribution


def with_mean_accuracy(frame: pd.DataFrame) -> pd.DataFrame:
    """Add a row "mean" for each record's accuracies: every task counts alike, as in the paper's "Average".

    stderr = sqrt(sum over tasks of stderr^2) / (number of tasks): the questions of two tasks are independent.

    Args:    frame: as `records_frame` gives it.    Returns: the frame; longer by a row for each such record.
    """
    import pandas as pd

    rows = []
    for _, tasks in frame[frame.metric == "accuracy"].groupby("key", sort=False):
        mean = {"dataset": "mean", "value": tasks.value.mean(), "n": tasks.n.sum()}
        rows.append(tasks.iloc[-1].to_dict() | mean | {"stderr": math.hypot(*tasks.stderr) / len(tasks)})
    return pd.concat([frame, pd.DataFrame(rows)], ignore_index=True) if rows else frame


def way_of(records: Sequence[Record]) -> pd.DataFrame:
    """List what `plotting.plot_before_after` draws of the dense, the pruned and the recovered model.

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
    import pandas as pd

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
    import pandas as pd

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
