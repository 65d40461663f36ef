"""The number of a claim, computed from the records that speak for it, with its interval."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from pruner_lib.conclusions.claim_records import (
    PROTECTED,
    Evidence,
    alike,
    candidates,
    metric_of,
    pairs,
    settings_of,
    single,
)
from pruner_lib.conclusions.claim_records import sparsity as sparsity_of
from pruner_lib.conclusions.claims import Claim
from pruner_lib.experiments.records import Record
from pruner_lib.questions import evidence
from pruner_lib.questions.evidence import Group, draw_of, values_of
from pruner_lib.questions.statistics import Interval, paired_difference, paired_statistic

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


def _to_best(claim: Claim, found: Evidence) -> Number:
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
    best = min(steps, key=lambda step: evidence.interval(steps[step], metric).mean if step else math.inf)
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
    import pandas as pd

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
    "to best": _to_best,
    "outer layers": _outer_layers,
    "share recovered": _share_recovered,
    "exact": _exact,
}


def _contrast(how: str, a: Group, b: Group, metric: str, level: float) -> Interval:
    compare = evidence.ratio if how == "ratio" else evidence.difference
    return compare(a, b, metric_of(a[0], metric), level=level)


def _layers(record: Record) -> dict[int, bool]:
    """Tell of every layer of a record's plan whether it is whole."""
    whole: dict[int, bool] = {}
    for name, (kept, there) in record.plan.get("kept", {}).items():
        if number := re.search(r"\.(\d+)\.", name):
            layer = int(number[1])
            whole[layer] = whole.get(layer, True) and kept == there
    return whole


def _said(ours: Interval, a: Group, b: Group, metric: str) -> str:
    sizes = [f"{sparsity_of(group):.1%}" for group in (a, b) if group[0].experiment.stage != "dense"]
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
