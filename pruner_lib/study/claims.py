"""The claims of the paper, and the verdict on each from the number that its notebook handed over.

The claims lie in `claims.yaml` and were listed before anything was measured: each has a number and the range
where it must lie. The notebook that asks the question computes the number with its interval and writes it as
an answer; the summary judges the answers of all notebooks. With the 95 % interval of our number:

    reproduced       the whole interval lies in the range
    not reproduced   no part of it does
    can't tell       otherwise: the sample is too small, or chance decides

The paper's own number is computed from its tables (`results/paper/`) by the claim's formula. Nothing is
measured here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from pruner_lib.files import read_json, write_json
from pruner_lib.study.paper import published
from pruner_lib.study.records import MEAN, Record
from pruner_lib.study.statistics import Interval

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
CANT_TELL, NOT_MEASURED = "can't tell at this sample size", "not measured"
CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
FORMULAS: dict[str, Callable[..., float]] = {  # what is made of the paper's numbers
    "ratio": lambda one, other: one / other,
    "difference": lambda one, other: one - other,
    "ratio to lowest": lambda one, *others: one / min(others),
    "difference to highest": lambda one, *others: one - max(others),
    "share recovered": lambda start, there, best: math.log(start / there) / math.log(start / best),
}


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and how it is judged; see `claims.yaml`.

    Args:    holds: the range of the number in which the claim is true.
             removed: lowest and highest share of all parameters gone for which the claim is made.
             formula: one of `FORMULAS`; empty if the paper printed no numbers.
             numbers: the paper's, each a (table, row, metric).
    """

    id: str
    sentence: str
    source: str
    notebook: str
    measured: str
    holds: tuple[float, float]
    removed: tuple[float, float] = (0, 1)
    formula: str = ""
    numbers: tuple[tuple[str, str, str], ...] = ()

    @property
    def paper(self) -> float | None:
        """The paper's number by the claim's formula; None if it printed none."""
        return FORMULAS[self.formula](*(printed(*place) for place in self.numbers)) if self.numbers else None

    @property
    def rule(self) -> str:
        """The range in words."""
        low, high = self.holds
        if math.isfinite(low) and math.isfinite(high):
            return f"from {low:g} to {high:g}"
        return f"above {low:g}" if math.isfinite(low) else f"below {high:g}"


@cache
def claims() -> list[Claim]:
    """Read the claims, in the order of `claims.yaml`."""
    return [_claim(**row) for row in yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf-8"))]


def _claim(holds: list[float | None], paper: dict | None = None, **values: object) -> Claim:
    low, high = holds
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    if paper:
        values |= paper | {"numbers": [tuple(place) for place in paper["numbers"]]}
    return Claim(**values, holds=ends)


def printed(table: str, row: str, metric: str) -> float:
    """Look up a number of the paper; accuracies as shares. A mean that was not printed is computed.

    Raises:  ValueError: the row has no such number.
    """
    numbers = published(table).query("row == @row").set_index("metric").value
    tasks = numbers[numbers.index.str.startswith(f"{MEAN.kind}/")]
    if metric not in numbers and (metric != str(MEAN) or tasks.empty):
        raise ValueError(f"{table} has no {metric} in its row {row!r}")
    value = float(numbers[metric] if metric in numbers else tasks.mean())
    return value / 100 if metric.startswith(f"{MEAN.kind}/") else value


def judge(low: float, high: float, holds: tuple[float, float]) -> str:
    """Give the verdict on a number whose interval is [low, high], by the rule above.

    Raises:  ValueError: `low` is above `high`, or one of them is no number.
    """
    if not low <= high:
        raise ValueError(f"the interval runs from {low} to {high}, but must not end below its beginning")
    if holds[0] <= low and high <= holds[1]:
        return REPRODUCED
    return NOT_REPRODUCED if high < holds[0] or low > holds[1] else CANT_TELL


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Args:    interval: of our number; None if it was not measured.
             note: what was compared, or what is missing.    records: keys of the records that speak.
    """

    claim: Claim
    interval: Interval | None
    note: str
    records: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """The verdict in words: `REPRODUCED`, `NOT_REPRODUCED`, `CANT_TELL` or `NOT_MEASURED`."""
        if self.interval is None:
            return NOT_MEASURED
        return judge(self.interval.low, self.interval.high, self.claim.holds)

    def __str__(self) -> str:
        ours = "" if self.interval is None else f" {self.interval.show(3)}"
        return f"{self.claim.id}: {self.answer}{ours} ({self.note})"


def write_answer(
    folder: Path, claim_id: str, interval: Interval, note: str = "", records: Iterable[Record] = ()
) -> Verdict:
    """Hand over the number of a claim, as `<folder>/claims/<id>.json`; an older answer is replaced.

    Args:    folder: of a profile's results.    note: what was compared.    records: those compared. Where a
             pruned model among them lost a share for which the claim is not made, it counts as not measured.
    Raises:  ValueError: there is no such claim (the message lists those there are).
    """
    by_id = {claim.id: claim for claim in claims()}
    if claim_id not in by_id:
        raise ValueError(f"there is no claim {claim_id!r}; there are {', '.join(by_id)}")
    claim = by_id[claim_id]
    records = {record.key: record for record in records}
    pruned = [record for record in records.values() if record.experiment.stage != "dense"]
    low, high = claim.removed
    if others := [share for one in pruned if not low <= (share := one.plan["sparsity"]) <= high]:
        note = (
            f"{others[0]:.1%} of the parameters were cut, but the claim is made for {low:.0%} to {high:.0%}"
        )
        interval, records = None, {}
    verdict = Verdict(claim, interval, note, tuple(sorted(records)))
    content = {"claim": claim_id, "verdict": verdict.answer, "interval": interval and asdict(interval)}
    write_json(answer_path(folder, claim_id), content | {"note": note, "records": verdict.records})
    return verdict


def answer_path(folder: Path, claim_id: str) -> Path:
    """Give the path of a claim's answer below a profile's results."""
    return folder / "claims" / f"{claim_id.replace(' ', '_')}.json"


def read_answer(folder: Path, claim: Claim) -> Verdict:
    """Read the answer to a claim; where there is none, the note says which notebook to run.

    Raises:  ValueError: the file is no JSON; the message names it and says what to do.
    """
    path = answer_path(folder, claim.id)
    if not path.is_file():
        return Verdict(claim, None, f"no answer; run {claim.notebook}")
    answer = read_json(path)
    numbers = answer["interval"]  # an infinite end is a string in the file
    interval = numbers and Interval(**{name: float(number) for name, number in numbers.items()})
    return Verdict(claim, interval, answer["note"], tuple(answer["records"]))


def verdicts(folder: Path) -> pd.DataFrame:
    """Judge every claim by the answers below a profile's results: a row a claim, `paper` beside `ours`."""
    return pd.DataFrame([_row(read_answer(folder, claim)) for claim in claims()])


def _row(verdict: Verdict) -> dict[str, object]:
    claim, ours = verdict.claim, verdict.interval
    mean, low, high = (ours.mean, ours.low, ours.high) if ours else (np.nan,) * 3
    paper = np.nan if claim.paper is None else claim.paper
    row = {"claim": claim.id, "sentence": claim.sentence, "measured": claim.measured, "rule": claim.rule}
    row |= {"holds_from": claim.holds[0], "holds_to": claim.holds[1]}
    row |= {"paper": paper, "ours": mean, "low": low, "high": high, "difference": mean - paper}
    row |= {"verdict": verdict.answer, "note": verdict.note, "source": claim.source}
    return row | {"notebook": claim.notebook, "records": " ".join(verdict.records)}
