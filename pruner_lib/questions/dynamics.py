"""Recovery over its steps, over the number of samples, over what is trained (Tables 10, 12, 15; Figure 5).

Every number is relative to another model's on the same windows. How intervals come about is known to
`statistics`; nothing is measured or drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pruner_lib.experiments.records import Record, records_frame
from pruner_lib.questions import evidence
from pruner_lib.questions.contrasts import paper_metric
from pruner_lib.questions.paper import published
from pruner_lib.questions.statistics import Interval, corrected, paired_difference, paired_statistic

if TYPE_CHECKING:
    import pandas as pd

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
    sides = [evidence.values_of(side, metric) for side in (group, other)]
    return Interval(**vars(paired_difference(*sides, level=level))).map(math.exp)


def times_frame(
    groups: Mapping[Any, Sequence[Record]], other: Sequence[Record], name: str, *, level: float = 0.95
) -> pd.DataFrame:
    """Compare every group with the same other one; see `times`.

    Args:    groups: what tells the group from the others -> its records, one a draw.    name: of that column.
    Returns: a row a group and text: columns `name`, what the recovery took (`effort`, mean over draws),
             dataset, value (perplexity), times, low, high (the interval), draws, n (windows).
    """
    import pandas as pd

    rows = []
    for key, group in groups.items():
        took = {what: float(np.mean([effort(one)[what] for one in group])) for what in effort(group[0])}
        for metric in evidence.metric_names([*group, *other], "perplexity"):
            found, value = times(group, other, metric, level=level), evidence.interval(group, metric).mean
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
    sides = [evidence.values_of([steps[int(step)]], metric) for step in at]
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
    import pandas as pd

    columns = ["samples", "seconds", "ours", "low", "high", "paper", "difference", "n"]
    if not all(evidence.metric_names([dense, one], "accuracy") for one in stops):
        return pd.DataFrame(columns=columns)
    table_15, table_10 = published("Table 15"), published("Table 10")
    means = table_10[table_10.metric == "accuracy/mean"].set_index("row").value
    curve, whole = _curve(table_15, "accuracy/mean"), means["LLaMA-7B"]
    rows, most = [], max(effort(one)["samples"] for one in stops)
    for one in stops:
        found, took = evidence.ratio((one,), (dense,), "accuracy/mean"), effort(one)
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
