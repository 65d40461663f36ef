"""Ways of pruning side by side: what each keeps of the whole model, and which differ by more than chance.

A way of pruning is a name with its records: draws, before and after recovery, texts and tasks alike. What
groups of records differ by is known to `evidence`; nothing is measured or drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pruner_lib.experiments.experiment import Experiment
from pruner_lib.experiments.records import Record
from pruner_lib.experiments.study import run_all
from pruner_lib.questions.evidence import Group, difference, draw_of, interval, metric_names, ratio, values_of
from pruner_lib.questions.statistics import Interval, corrected

if TYPE_CHECKING:
    import pandas as pd

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
    import pandas as pd

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
    import pandas as pd

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
