"""Which records speak for a claim: those of the two ways of pruning that it names, alike in everything else.

Where several could speak, those with the most draws do, then those with the most questions or windows, with
the longest recovery, and nearest to the size that the claim is about. What follows from them is known to
`claim_numbers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path

import numpy as np

from pruner_lib.conclusions.claims import SAME_SIZE, Which
from pruner_lib.experiments.experiment import DATA_FREE, Calibration, Experiment
from pruner_lib.experiments.records import Record
from pruner_lib.questions.evidence import Group, groups_of, values_of

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
