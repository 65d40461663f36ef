"""The claims of the paper, each a number, the range where it must lie, and the verdict from our records.

The claims were listed before anything was measured. With the 95 % interval of our number:

    reproduced       the whole interval lies in the range
    not reproduced   no part of it does
    can't tell       otherwise: the sample is too small, or chance decides

The paper's own number is computed from its tables (`results/paper/`) by the same formula. Where several
records could speak for a claim, those with the most draws do, then those with the most questions or windows.
Nothing is measured here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pruner_lib.study import compare
from pruner_lib.study.compare import Group, draw_of, groups_of, values_of
from pruner_lib.study.paper import ROWS, STAGES, published
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.records import Record, load_records
from pruner_lib.study.results import results_dir
from pruner_lib.study.settings import DATA_FREE, Calibration, Experiment
from pruner_lib.study.statistics import Interval, paired_difference, paired_statistic

FIFTH = (0.15, 0.25)  # shares of all parameters that count as "20 %"
HALF = (0.45, 0.55)
SAME_SIZE = 0.02  # two models whose sparsities differ by no more are of one size
HOWS = ("ratio", "difference", "to best", "outer layers", "share recovered", "exact")
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
CANT_TELL, NOT_MEASURED = "can't tell at this sample size", "not measured"


@dataclass(frozen=True)
class Which:
    """Which records speak: their stage, their share of parameters cut, and settings other than the usual.

    Args:    stage: "dense", "pruned" or "recovered".    sparsity: lowest and highest share cut.
             settings: (field of `Experiment`, value or tuple of values) pairs.
    """

    stage: str = "pruned"
    sparsity: tuple[float, float] = FIFTH
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Printed:
    """A number of the paper, by its place: `paper.published(table)`, row and metric."""

    table: str
    row: str
    metric: str

    @property
    def value(self) -> float:
        """The number; accuracies as shares. A mean that was not printed is computed from what was."""
        numbers = published(self.table).query("row == @self.row").set_index("metric")
        tasks = numbers.index.str.startswith("accuracy/")
        if self.metric == "accuracy/mean" and self.metric not in numbers.index:
            value = float(np.mean(numbers.value[tasks]))
        elif self.metric in numbers.index:
            value = float(numbers.value[self.metric])
        else:
            raise ValueError(f"{self.table} has no {self.metric} in its row {self.row!r}")
        return value / 100 if self.metric.startswith("accuracy/") else value


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and how it is judged.

    Args:    id: short name.    sentence: the claim in our words.    source: section and table of the paper.
             notebook: the one that measures it.    how: the formula, one of `HOWS`.
             metric: "perplexity" or "accuracy/mean".    one, other: the records that are compared.
             holds: the range of the number in which the claim is true.
             printed: the paper's numbers that the same formula takes; empty if it printed none.
             measured: the formula in words.
    """

    id: str
    sentence: str
    source: str
    notebook: str
    measured: str
    how: str
    metric: str
    one: Which
    other: Which | None
    holds: tuple[float, float]
    printed: tuple[Printed, ...] = ()

    @property
    def paper(self) -> float | None:
        """The paper's number by the claim's formula; None if it printed none."""
        return FORMULAS[self.how](*(found.value for found in self.printed)) if self.printed else None

    @property
    def rule(self) -> str:
        """The range in words."""
        low, high = self.holds
        if np.isfinite(low) and np.isfinite(high):
            return f"from {low:g} to {high:g}"
        return f"above {low:g}" if np.isfinite(low) else f"below {high:g}"


def judge(low: float, high: float, holds: tuple[float, float]) -> str:
    """Give the verdict on a number whose interval is [low, high], by the rule above.

    Raises:  ValueError: `low` is above `high`, or one of them is no number.
    """
    if not low <= high:
        raise ValueError(
            f"the interval runs from {low} to {high}; its low end must not be above its high end"
        )
    if holds[0] <= low and high <= holds[1]:
        return REPRODUCED
    return NOT_REPRODUCED if high < holds[0] or low > holds[1] else CANT_TELL


def _to_best(one: float, *others: float) -> float:
    perplexities = one >= 1  # accuracies are shares
    return one / min(others) if perplexities else one - max(others)


def _share(start: float, there: float, best: float) -> float:
    return float(np.log(start / there) / np.log(start / best))


FORMULAS = {
    "ratio": lambda one, other: one / other,
    "difference": lambda one, other: one - other,
    "to best": _to_best,
    "share recovered": _share,
}


INF = float("inf")
DENSE = Which("dense", (0, 0))
WIKI, MEAN = "perplexity/wikitext2@128", "accuracy/mean"
TUNED, BARE, BASE = "20% w/ tune / ", "20% w/o tune / ", "0% / LLaMA-7B*"
COMPARE, DEPENDENCY, AGGREGATION = "03_compare_methods", "04_dependency", "05_aggregation"
RATIO, SENSITIVITY, GRANULARITY = "06_pruning_ratio", "07_layer_sensitivity", "08_granularity"


def _with(stage: str = "pruned", sparsity: tuple[float, float] = FIFTH, **settings: Any) -> Which:
    return Which(stage, sparsity, tuple(settings.items()))


def _rows(table: str, metric: str, *rows: str) -> tuple[Printed, ...]:
    return tuple(Printed(table, row, metric) for row in rows)


CLAIMS = (
    Claim(
        "keeps accuracy",
        "Without a fifth of the parameters, about 95 % of the accuracy is left after a short recovery.",
        source="section 4.2, Table 1",
        notebook=COMPARE,
        measured="mean accuracy of the recovered model / that of the dense model (element²; else element¹)",
        how="ratio",
        metric=MEAN,
        one=_with("recovered", criterion=("element2", "element1")),
        other=DENSE,
        holds=(0.90, INF),
        printed=(Printed("Table 1", TUNED + "Element^2", MEAN), Printed("Table 1", BASE, MEAN)),
    ),
    Claim(
        "keeps accuracy untuned",
        "Without a fifth of the parameters, most of the accuracy is left even before recovery.",
        source="section 4.2, Table 1",
        notebook=COMPARE,
        measured="mean accuracy of the pruned model / that of the dense model (element²; else element¹)",
        how="ratio",
        metric=MEAN,
        one=_with(criterion=("element2", "element1")),
        other=DENSE,
        holds=(0.85, INF),
        printed=(Printed("Table 1", BARE + "Element^2", MEAN), Printed("Table 1", BASE, MEAN)),
    ),
    Claim(
        "half degrades",
        "Without half of the parameters the model is markedly worse before recovery.",
        source="section 4.3, Figure 4, Table 16",
        notebook=RATIO,
        measured="perplexity of the pruned model / that of the dense model",
        how="ratio",
        metric="perplexity",
        one=_with("pruned", HALF),
        other=DENSE,
        holds=(2, INF),
        printed=(Printed("Table 16", "50% w/o tune / Element^1", WIKI), Printed("Table 1", BASE, WIKI)),
    ),
    Claim(
        "half stays degraded",
        "Without half of the parameters the accuracy does not come back by recovery.",
        source="section 4.3, Table 16",
        notebook=RATIO,
        measured="mean accuracy of the recovered model / that of the dense model",
        how="ratio",
        metric=MEAN,
        one=_with("recovered", HALF),
        other=DENSE,
        holds=(-INF, 0.90),
        printed=(Printed("Table 16", "50% w/ tune / Element^1", MEAN), Printed("Table 1", BASE, MEAN)),
    ),
    Claim(
        "dependency",
        "Where each matrix is ranked alone, the model collapses.",
        source="section 4.3, Table 6",
        notebook=DEPENDENCY,
        measured="perplexity without dependency / with it",
        how="ratio",
        metric="perplexity",
        one=_with(dependency=False),
        other=_with(),
        holds=(10, INF),
        printed=_rows("Table 6", WIKI, "w/o tuning / w/o dependency", "w/o tuning / w/ dependency"),
    ),
    Claim(
        "dependency recovered",
        "Recovery does not mend what was cut without dependency.",
        source="section 4.3, Table 6",
        notebook=DEPENDENCY,
        measured="perplexity without dependency / with it, both after recovery",
        how="ratio",
        metric="perplexity",
        one=_with("recovered", dependency=False),
        other=_with("recovered"),
        holds=(2, INF),
        printed=_rows("Table 6", WIKI, "w/ tuning / w/o dependency", "w/ tuning / w/ dependency"),
    ),
    Claim(
        "sum generates",
        "Adding up the scores of a group is a good balance: no other way gives a clearly lower perplexity.",
        source="section 4.3, Table 7",
        notebook=AGGREGATION,
        measured="perplexity of sum / that of the best of prod, max and last",
        how="to best",
        metric="perplexity",
        one=_with(),
        other=_with(aggregation=("prod", "max", "last")),
        holds=(-INF, 1.10),
        printed=_rows("Table 7", WIKI, "Summation", "Production", "Max", "Last-only"),
    ),
    Claim(
        "sum classifies",
        "Adding up the scores of a group is a good balance: no other way gives a clearly higher accuracy.",
        source="section 4.3, Table 7",
        notebook=AGGREGATION,
        measured="mean accuracy of sum - that of the best of prod, max and last",
        how="to best",
        metric=MEAN,
        one=_with(),
        other=_with(aggregation=("prod", "max", "last")),
        holds=(-0.02, INF),
        printed=_rows("Table 7", MEAN, "Summation", "Production", "Max", "Last-only"),
    ),
    Claim(
        "outer layers",
        "The first and the last layers matter most.",
        source="section 4.2, App. B.1, Figure 3 (no numbers printed)",
        notebook=SENSITIVITY,
        measured="perplexity with one outer layer pruned / with one inner layer pruned (geometric means)",
        how="outer layers",
        metric="perplexity",
        one=_with("pruned", (0, 0.15)),
        other=None,
        holds=(1, INF),
    ),
    Claim(
        "few steps",
        "A few hundred steps of recovery win back most of what can be won.",
        source="section 4.3, Figure 5, Table 15",
        notebook="09_recovery",
        measured="share of the best gain in log-perplexity that is there after two sevenths of the steps",
        how="share recovered",
        metric="perplexity",
        one=_with("recovered"),
        other=_with(),
        holds=(0.5, INF),
        printed=_rows("Table 15", WIKI, "step 0", "step 400", "step 800"),
    ),
    Claim(
        "element beats vector",
        "Scoring weight by weight is better than scoring a whole row at once.",
        source="section 4.2, Table 1",
        notebook=COMPARE,
        measured="perplexity of element¹ / that of vector",
        how="ratio",
        metric="perplexity",
        one=_with(),
        other=_with(criterion="vector"),
        holds=(-INF, 1),
        printed=_rows("Table 1", WIKI, BARE + "Element^1", BARE + "Vector"),
    ),
    Claim(
        "vector beats L2",
        "Scoring a row by its gradient is better than by its length.",
        source="section 4.2, Table 1",
        notebook=COMPARE,
        measured="perplexity of vector / that of L2",
        how="ratio",
        metric="perplexity",
        one=_with(criterion="vector"),
        other=_with(criterion="l2"),
        holds=(-INF, 1),
        printed=_rows("Table 1", WIKI, BARE + "Vector", BARE + "L2"),
    ),
    Claim(
        "random beats L2",
        "Groups chosen at random do less harm than those with the smallest weights.",
        source="Table 1 (the text does not say it)",
        notebook=COMPARE,
        measured="perplexity of random / that of L2",
        how="ratio",
        metric="perplexity",
        one=_with(criterion="random"),
        other=_with(criterion="l2"),
        holds=(-INF, 1),
        printed=_rows("Table 1", WIKI, BARE + "Random", BARE + "L2"),
    ),
    Claim(
        "block beats channel",
        "At the same number of parameters, heads and MLP channels are better to cut than hidden channels.",
        source="section 4.2, Tables 1 and 2",
        notebook=GRANULARITY,
        measured="perplexity of block / that of channel",
        how="ratio",
        metric="perplexity",
        one=_with(),
        other=_with(granularity="channel"),
        holds=(-INF, 1),
        printed=_rows("Table 1", WIKI, BARE + "Element^1", BARE + "Channel"),
    ),
    Claim(
        "width beats depth",
        "At half of the parameters, narrower layers are better than fewer layers.",
        source="section 4.3, Table 8",
        notebook=GRANULARITY,
        measured="mean accuracy of block - that of layer dropping, both after recovery",
        how="difference",
        metric=MEAN,
        one=_with("recovered", HALF),
        other=_with("recovered", HALF, granularity="layer"),
        holds=(0, INF),
        printed=_rows("Table 8", MEAN, "LLM-Pruner", "DistilBert"),
    ),
    Claim(
        "global generates",
        "Ranking all layers together or each by itself gives about the same perplexity.",
        source="Table 14",
        notebook=GRANULARITY,
        measured="perplexity of global / that of local",
        how="ratio",
        metric="perplexity",
        one=_with(scope="global"),
        other=_with(),
        holds=(0.8, 1.25),
        printed=_rows("Table 14", WIKI, "Element^1 - global", "Element^1 - local"),
    ),
    Claim(
        "global classifies",
        "Ranking all layers together or each by itself gives about the same accuracy.",
        source="Table 14",
        notebook=GRANULARITY,
        measured="mean accuracy of global - that of local",
        how="difference",
        metric=MEAN,
        one=_with(scope="global"),
        other=_with(),
        holds=(-0.02, 0.02),
        printed=_rows("Table 14", MEAN, "Element^1 - global", "Element^1 - local"),
    ),
    Claim(
        "counts",
        "LLaMA-7B, cut as the paper says, has the parameters and the MACs of its Table 3.",
        source="section 4.2, Table 3",
        notebook="10_efficiency",
        measured="largest difference of parameters or MACs, in units of the last printed digit",
        how="exact",
        metric="10_table3",
        one=_with(),
        other=None,
        holds=(-INF, 0.5),
    ),
)


SIZE = ("ratio", "target")  # what is compared must be of one size, however that was asked for
PROTECTED = ("protect_first", "protect_last")
FREE = ("model", *SIZE, *PROTECTED, "calibration", "recovery", "evaluation", "seed")
USUAL = {field.name: field.default for field in fields(Experiment) if field.name not in FREE}
PLACES = {"granularity", "scope"}  # where these differ, other layers may be protected on either side


@dataclass(frozen=True)
class Evidence:
    """The records of one profile that may speak.

    Args:    records: of any model.    model: the one that is judged.
             calibration: only its draws count; None: any.
             protected: layers left whole at the beginning and at the end of the model.
             tables: the folder of the profile's tables.    level: of the intervals.
    """

    records: tuple[Record, ...]
    model: str
    calibration: Calibration | None = None
    protected: tuple[int, int] = (0, 0)
    tables: Path | None = None
    level: float = 0.95


def single(which: Which) -> Iterator[Which]:
    """Take the values of a setting that has several one by one."""
    names = [name for name, _ in which.settings]
    values = [value if isinstance(value, tuple) else (value,) for _, value in which.settings]
    for chosen in product(*values):
        yield replace(which, settings=tuple(zip(names, chosen, strict=True)))


def candidates(which: Which, metric: str, found: Evidence, *, on_the_way: bool = False) -> list[Group]:
    """List the groups of draws that answer a description and hold the metric.

    Args:    on_the_way: models amid their recovery, too.
    Raises:  LookupError: there is none.
    """
    groups = groups_of(
        record
        for record in found.records
        if _answers(record, which, found)
        and metric_of(record, metric)
        and (on_the_way or record.experiment.recovery is None or record.experiment.recovery.at is None)
    )
    if not groups:
        raise LookupError(f"no {words(which)} with {'accuracies' if metric != 'perplexity' else metric}")
    return groups


def pairs(one: Which, other: Which, metric: str, found: Evidence) -> list[tuple[Group, Group]]:
    """List the pairs of groups that differ in what is named and in nothing else, best first.

    Raises:  LookupError: there is none.
    """
    named = {name for name, _ in (*one.settings, *other.settings)}
    named |= {"recovery"} if one.stage != other.stage else set()
    others = candidates(other, metric, found)
    fit = [(a, b) for a in candidates(one, metric, found) for b in others if alike(a, b, named)]
    if not fit:
        raise LookupError(f"{words(one)} and {words(other)} were not measured alike")
    middle = sum(one.sparsity) / 2

    def rank(pair: tuple[Group, Group]) -> tuple:
        a, b = pair
        off = abs(sparsity(a) - middle)
        return -max(len(a), len(b)), -n_items(a, metric), -_sequences(a), off, a[0].key, b[0].key

    return sorted(fit, key=rank)


def alike(a: Group, b: Group, named: Iterable[str]) -> bool:
    """Tell whether two groups were measured alike, are of one size, and differ in what is named alone."""
    one, other = a[0].experiment, b[0].experiment
    if one.evaluation != other.evaluation:
        return False
    if "dense" in (one.stage, other.stage):
        return True
    free = {*named, *SIZE, *(PROTECTED if PLACES & set(named) else ())}
    free |= {"calibration"} if {one.criterion, other.criterion} & set(DATA_FREE) else set()
    same_size = abs(sparsity(a) - sparsity(b)) <= SAME_SIZE
    return same_size and settings_of(a[0], free) == settings_of(b[0], free)


def settings_of(record: Record, without: Iterable[str]) -> str:
    """Write the settings of a record down as text, without its draw and without those that are named."""
    settings = record.experiment.canonical().settings()
    settings["seed"] = settings["calibration"]["seed"] = None
    kept = {name: settings[name] for name in settings.keys() - set(without)}
    return json.dumps(kept, sort_keys=True)


def metric_of(record: Record, kind: str) -> str | None:
    """Name the metric of a record that a claim is about: the mean accuracy, or perplexity (short windows)."""
    if kind != "perplexity":
        return kind if record.accuracy else None
    names = [name for name in record.metrics if name.startswith("perplexity/")]
    return min(names, key=lambda name: int(name.partition("@")[2]), default=None)


def sparsity(group: Group) -> float:
    """Give the share of all parameters that is cut, averaged over draws."""
    return float(np.mean([record.plan.get("sparsity", 0.0) for record in group]))


def n_items(group: Group, metric: str) -> int:
    """Count the questions or windows of a group's metric."""
    values = values_of(group[:1], metric_of(group[0], metric))
    tables = values.values() if isinstance(values, dict) else [values]
    return sum(table.shape[1] for table in tables)


def words(which: Which) -> str:
    """Describe the records that are wanted."""
    said = [f"{name} {value}" for name, value in which.settings]
    said += [] if which.stage == "dense" else [f"{which.sparsity[0]:.0%} to {which.sparsity[1]:.0%} cut"]
    return f"{which.stage} model" + f" ({', '.join(said)})" * bool(said)


def _answers(record: Record, which: Which, found: Evidence) -> bool:
    asked = record.experiment
    if asked.model != found.model or asked.stage != which.stage:
        return False
    if not which.sparsity[0] <= record.plan.get("sparsity", 0.0) <= which.sparsity[1]:
        return False
    settings = USUAL | dict(which.settings) | ({"criterion": "none"} if which.stage == "dense" else {})
    wanted = {name: value if isinstance(value, tuple) else (value,) for name, value in settings.items()}
    return _drawn(asked, found.calibration) and all(
        getattr(asked, n) in values for n, values in wanted.items()
    )


def _drawn(asked: Experiment, calibration: Calibration | None) -> bool:
    """Tell whether an experiment's samples are a draw of this calibration, or it looks at none."""
    if calibration is None or asked.criterion in DATA_FREE:
        return True
    return replace(asked.calibration, seed=None) == replace(calibration, seed=None)


def _sequences(group: Group) -> int:
    """Count the sequences that a recovery saw."""
    asked = group[0].experiment.recovery
    if asked is None:
        return 0
    return asked.steps * asked.batch_size if asked.steps else asked.epochs * (asked.samples or 1_000_000)


ON_THE_WAY = 2 / 7  # of the steps of a recovery: 400 of the paper's 1400
LAST_DIGIT = 0.01  # Table 3 prints 5.42 B parameters and 339.60 G operations
Number = tuple[Interval, str, tuple[str, ...]]  # ours, what was compared, keys of the records


def number_of(claim: Claim, found: Evidence) -> Number:
    """Compute the number of a claim with its interval, what was compared, and the keys of the records.

    Raises:  LookupError: what can speak was not measured; the message says what is missing.
    """
    return MEASURES[claim.how](claim, found)


def _compared(claim: Claim, found: Evidence) -> Number:
    """Compare two ways of pruning, or a pruned model with the dense one."""
    missing = None
    for one, other in product(single(claim.one), single(claim.other)):  # of several values the first there is
        try:
            a, b = pairs(one, other, claim.metric, found)[0]
        except LookupError as error:
            missing = missing or error
            continue
        ours = _contrast(claim.how, a, b, claim.metric, found.level)
        return ours, _said(ours, a, b, claim.metric), _keys(*a, *b)
    raise missing


def _compared_with_best(claim: Claim, found: Evidence) -> Number:
    """Compare one way with the best of several others, all measured alike."""
    fits = [pairs(claim.one, other, claim.metric, found) for other in single(claim.other)]
    rivals = [{_keys(*a): (a, b) for a, b in reversed(pair)} for pair in fits]
    common = [_keys(*a) for a, _ in fits[0] if all(_keys(*a) in others for others in rivals)]
    if not common:
        raise LookupError("there is no model that all others can be compared with")
    chosen = [others[common[0]] for others in rivals]
    how = "ratio" if claim.metric == "perplexity" else "difference"
    found_ours = [_contrast(how, a, b, claim.metric, found.level) for a, b in chosen]
    ours = (max if how == "ratio" else min)(found_ours, key=lambda one: one.mean)
    a, best = chosen[found_ours.index(ours)]
    name = ", ".join(str(getattr(best[0].experiment, field)) for field, _ in claim.other.settings)
    note = f"best other: {name}; {_said(ours, a, best, claim.metric)}"
    return ours, note, _keys(*a, *(record for _, b in chosen for record in b))


def _outer_layers(claim: Claim, found: Evidence) -> Number:
    """Compare the layers that the paper protects with the others, each pruned alone."""
    families: dict[str, dict[int, dict[int, Record]]] = {}
    for record in (one for group in candidates(claim.one, claim.metric, found) for one in group):
        cut = [layer for layer, whole in _layers(record).items() if not whole]
        if len(cut) == 1:
            layers = families.setdefault(settings_of(record, PROTECTED), {})
            layers.setdefault(cut[0], {})[draw_of(record)] = record
    layers = max(families.values(), key=len, default={})
    if not layers:
        raise LookupError("no model with a single layer pruned")
    n = len(_layers(next(iter(layers[min(layers)].values()))))
    first, last = (max(1, count) for count in found.protected)
    outer = [layer for layer in layers if layer < first or layer >= n - last]
    inner = [layer for layer in layers if layer not in outer]
    if not outer or not inner:
        raise LookupError(f"{len(outer)} outer and {len(inner)} inner layers of {n} were pruned alone")
    draws = sorted(set.intersection(*(set(one) for one in layers.values())))
    metric = metric_of(layers[outer[0]][draws[0]], claim.metric)
    sides = [
        np.mean([values_of([layers[layer][draw] for draw in draws], metric) for layer in side], axis=0)
        for side in (outer, inner)
    ]  # (draws, windows)
    ours = Interval(**vars(paired_difference(*sides, level=found.level))).map(math.exp)
    note = f"{len(outer)} outer and {len(inner)} inner layers of {n}; {_amount(ours, metric)}"
    return ours, note, _keys(*(layers[layer][draw] for layer in layers for draw in draws))


def _share_recovered(claim: Claim, found: Evidence) -> Number:
    """Tell which share of the best gain was there early, of one recovery measured on its way."""
    groups = candidates(claim.one, claim.metric, found, on_the_way=True)
    before = candidates(claim.other, claim.metric, found)
    courses = [
        course
        for start in before
        for run in {_run(group) for group in groups}
        if (course := _course(start, [group for group in groups if _run(group) == run]))
    ]
    steps = max(courses, key=lambda one: (len(one), max(one)), default={})
    early = min(steps, key=lambda step: abs(step - ON_THE_WAY * max(steps)) if step else math.inf, default=0)
    if len(steps) < 3 or early == max(steps):
        raise LookupError("no recovery that was measured before, on its way and after")
    metric = metric_of(steps[0][0], claim.metric)
    best = min(steps, key=lambda step: compare.interval(steps[step], metric).mean if step else math.inf)
    sides = [values_of(steps[step], metric) for step in (0, early, best)]  # (draws, windows)
    share = paired_statistic(lambda m: (m[0] - m[1]) / (m[0] - m[2]), *sides, level=found.level)
    note = f"step {early} of {max(steps)}, the best is step {best}; {_amount(share, metric)}"
    return share, note, _keys(*(record for group in steps.values() for record in group))


def _run(group: Group) -> str:
    """Name the training that a recovered model comes from, whatever its step."""
    return settings_of(group[0], ["recovery"]) + repr(replace(group[0].experiment.recovery, at=None))


def _course(start: Group, groups: list[Group]) -> dict[int, Group]:
    """Put the steps of one training in order, before it step 0: of the draws that have most of them."""
    by_draw: dict[int, dict[int, Record]] = {draw_of(record): {0: record} for record in start}
    for group in groups:
        if alike(group, start, {"recovery"}):
            for record in group:
                by_draw.get(draw_of(record), {})[_step(record)] = record
    most = max(len(steps) for steps in by_draw.values())
    chosen = [steps for steps in by_draw.values() if len(steps) == most]
    common = sorted(set.intersection(*map(set, chosen)))
    return {step: tuple(steps[step] for steps in chosen) for step in common}


def _step(record: Record) -> int:
    asked = record.experiment.recovery
    return asked.at or asked.steps or (record.history[-1]["step"] if record.history else 0)


def _exact(claim: Claim, found: Evidence) -> Number:
    """Read from a table how far counts are from the printed ones, in units of the last printed digit."""
    path = (found.tables or Path()) / f"{claim.metric}.csv"
    if not path.is_file():
        raise LookupError(f"no table {path.name}")
    table = pd.read_csv(path)
    counts = table[table.metric.isin(["parameters", "macs"]) & table.paper.notna()]
    if counts.empty or counts.ours.isna().any():
        raise LookupError(f"the table {path.name} lacks counts")
    units = float(((counts.ours - counts.paper).abs() / LAST_DIGIT).max())
    return (
        Interval(units, units, units, len(counts), level=found.level),
        f"{len(counts)} counts; no noise",
        (),
    )


MEASURES = {
    "ratio": _compared,
    "difference": _compared,
    "to best": _compared_with_best,
    "outer layers": _outer_layers,
    "share recovered": _share_recovered,
    "exact": _exact,
}


def _contrast(how: str, a: Group, b: Group, metric: str, level: float) -> Interval:
    comparison = compare.ratio if how == "ratio" else compare.difference
    return comparison(a, b, metric_of(a[0], metric), level=level)


def _layers(record: Record) -> dict[int, bool]:
    """Tell of every layer of a record's plan whether it is whole."""
    whole: dict[int, bool] = {}
    for name, (kept, there) in record.plan.get("kept", {}).items():
        if number := re.search(r"\.(\d+)\.", name):
            layer = int(number[1])
            whole[layer] = whole.get(layer, True) and kept == there
    return whole


def _said(ours: Interval, a: Group, b: Group, metric: str) -> str:
    sizes = [f"{sparsity(group):.1%}" for group in (a, b) if group[0].experiment.stage != "dense"]
    cut = sizes[0] if len(set(sizes)) == 1 else " and ".join(sizes)
    return f"{a[0].experiment.method}, {cut} cut; {_amount(ours, metric_of(a[0], metric))}"


def _amount(ours: Interval, metric: str) -> str:
    kind, _, dataset = metric.partition("/")
    items = (
        f"{ours.n} windows of {dataset.partition('@')[0]}" if kind == "perplexity" else f"{ours.n} questions"
    )
    return f"{items}, {ours.draws} draw{'s' * (ours.draws > 1)}"


def _keys(*records: Record) -> tuple[str, ...]:
    return tuple(sorted({record.key for record in records}))


ANSWERS = (REPRODUCED, NOT_REPRODUCED, CANT_TELL, NOT_MEASURED)


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Args:    ours: the number with its interval; None if not measured.    answer: one of `ANSWERS`.
             note: what was compared, or what is missing.    records: keys of the records that speak.
    """

    claim: Claim
    ours: Interval | None
    answer: str
    note: str
    records: tuple[str, ...] = ()


def load_evidence(profile: str, *, model: str = "", level: float = 0.95) -> Evidence:
    """Read all records of a profile.

    Args:    model: the one to judge; empty: the profile's.    level: of the intervals.
    Raises:  ValueError: unknown profile, or a damaged record.
    """
    settings, folder = load_profile(profile), results_dir(profile)
    return Evidence(
        tuple(load_records(folder)),
        model or settings.model,
        settings.calibration,
        (settings.protect_first, settings.protect_last),
        folder / "tables",
        level,
    )


def judge_claims(claims: Iterable[Claim], found: Evidence) -> list[Verdict]:
    """Judge every claim; what was not measured is told, and does not stop the others."""
    return [judge_claim(claim, found) for claim in claims]


def judge_claim(claim: Claim, found: Evidence) -> Verdict:
    """Judge one claim by the records that speak for it."""
    try:
        ours, note, keys = number_of(claim, found)
    except LookupError as missing:
        return Verdict(claim, None, NOT_MEASURED, f"{missing.args[0]}; run {claim.notebook}")
    except ValueError as refused:  # the records were measured by different protocols
        return Verdict(claim, None, NOT_MEASURED, str(refused))
    answer = judge(ours.low, ours.high, claim.holds) if np.isfinite(ours.mean) else CANT_TELL
    return Verdict(claim, ours, answer, note, keys)


def verdicts_frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Lay verdicts out as a table: one row a claim, `paper` beside `ours` with its interval."""
    return pd.DataFrame([_row(one) for one in verdicts])


def factors_frame(found: Evidence) -> pd.DataFrame:
    """Put our perplexities beside the paper's Tables 1 and 16, each relative to its own dense model.

    Returns: columns method, stage, cut ("20%", "50%"), ours, low, high, paper, difference, note; a row for
             every row of the two tables that was measured.
    """
    dense, rows = Printed("Table 1", BASE, WIKI).value, []
    tables = (("20%", "Table 1", FIFTH), ("50%", "Table 16", HALF))
    for (cut, table, size), (tuned, stage), (name, method) in product(tables, STAGES.items(), ROWS.items()):
        row = f"{cut} {tuned} / {name}"
        if row not in set(published(table).row):
            continue
        try:
            ours, note, _ = number_of(_factor(method, stage, size), found)
        except (LookupError, ValueError):  # not measured, or not alike
            continue
        paper = Printed(table, row, WIKI).value / dense
        rows.append((method, stage, cut, ours.mean, ours.low, ours.high, paper, ours.mean - paper, note))
    columns = "method stage cut ours low high paper difference note"
    return pd.DataFrame(rows, columns=columns.split())


def _factor(method: str, stage: str, size: tuple[float, float]) -> Claim:
    """Describe the number of a row of the paper's tables: its perplexity over that of the dense model."""
    setting = ("granularity", method) if method == "channel" else ("criterion", method)
    which = Which(stage, size, (setting,))
    return Claim(method, "", "", "", "", "ratio", "perplexity", which, DENSE, (0, np.inf))


def _row(verdict: Verdict) -> dict:
    claim, ours = verdict.claim, verdict.ours
    mean, low, high = (ours.mean, ours.low, ours.high) if ours else (np.nan,) * 3
    paper = np.nan if claim.paper is None else claim.paper
    return {
        "claim": claim.id,
        "sentence": claim.sentence,
        "measured": claim.measured,
        "rule": claim.rule,
        "holds_from": claim.holds[0],
        "holds_to": claim.holds[1],
        "paper": paper,
        "ours": mean,
        "low": low,
        "high": high,
        "difference": mean - paper,
        "verdict": verdict.answer,
        "note": verdict.note,
        "source": claim.source,
        "notebook": claim.notebook,
        "records": " ".join(verdict.records),
    }
