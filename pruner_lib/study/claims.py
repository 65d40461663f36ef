"""The claims of the paper, and the verdict on each from the numbers of its notebook.

Each claim in `claims.yaml` has a range in which its numbers must lie. The notebook for the claim computes the
numbers with their intervals and writes them as an answer; the summary judges the answers of all notebooks
together. A claim with several numbers (every text, every rival, both ends) is

    reproduced       if all of them lie in the range (each by its own test: intersection-union)
    not reproduced   if one of them lies outside (each test corrected for their number, Bonferroni)
    can't tell       otherwise: the sample is too small, or has too few draws for the claim

Many claims are judged at once, so their tests are corrected together (Holm): the chance that any verdict of a
summary is false is 5 %. A claim with fewer draws than it needs is not tested, and not counted. The paper's
number is computed from its tables by the claim's formula.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t

from pruner_lib.evaluation.tasks import CHANCE
from pruner_lib.study.paper import published
from pruner_lib.study.records import MEAN, Record, read_kept, write_kept
from pruner_lib.study.settings import from_plain
from pruner_lib.study.statistics import Interval

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
CANT_TELL, NOT_MEASURED = "can't tell at this sample size", "not measured"
CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
LEVEL = 0.05  # chance of any false verdict in a summary
Numbers = Interval | Mapping[str, Interval]
FORMULAS: dict[str, Callable[..., float]] = {  # applied to the paper's numbers
    "ratio": lambda a, b: a / b,
    "ratio of ratios": lambda a, b, c, d: (a / b) / (c / d),
    "difference": lambda a, b: a - b,
    "ratio to lowest": lambda a, *others: a / min(others),
    "difference to highest": lambda a, *others: a - max(others),
    "highest to lowest": lambda a, b, c, *others: max(a, b, c) / min(others),
    "above chance": lambda a: a - CHANCE,
    "kept above chance": lambda a, dense: (a - CHANCE) / (dense - CHANCE),
    "share recovered": lambda start, after, best: math.log(start / after) / math.log(start / best),
}


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and how it is judged; see `claims.yaml`."""

    id: str
    sentence: str
    source: str
    notebook: str
    measured: str
    holds: tuple[float, float]  # the range of its numbers in which the claim is true
    removed: tuple[float, float] = (0, 1)  # shares of removed parameters to which the claim applies
    draws: int = 1  # the number that a verdict needs
    scale: str = "linear"  # "log" for ratios
    formula: str = ""  # one of FORMULAS; empty if the paper prints no numbers
    numbers: tuple[tuple[str, str, str], ...] = ()  # the paper's, each as (table, row, metric)

    @property
    def paper(self) -> float | None:
        """The paper's number by the claim's formula; None if the paper prints none."""
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
    rows = yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf-8"))
    return [from_plain(Claim, row, f"claim {row['id']!r}") for row in rows]


def printed(table: str, row: str, metric: str) -> float:
    """Look up a number of the paper, an accuracy in [0, 1]; a mean that is not printed is computed.

    Raises:  ValueError: the row has no such number.
    """
    numbers = published(table).query("row == @row").set_index("metric").value
    tasks = numbers[numbers.index.str.startswith(f"{MEAN.kind}/")]
    if metric not in numbers and (metric != str(MEAN) or tasks.empty):
        raise ValueError(f"{table} has no {metric} in its row {row!r}")
    value = float(numbers[metric] if metric in numbers else tasks.mean())
    return value / 100 if metric.startswith(f"{MEAN.kind}/") else value


def p_values(number: Interval, holds: tuple[float, float], scale: str = "linear") -> tuple[float, float]:
    """Test a number against a range, using its interval.

    A border is `margin` half-widths away from the estimate. With the interval's level 1 - a and Student's t
    of d degrees of freedom (draws - 1; with one draw, items - 1)

        p = 2 (1 - T(margin * T^-1(1 - a/2)))        so that p = a if the interval ends at the border

    Args:    scale: "log" for ratios, whose intervals are those of their logarithms.
    Returns: p of "it lies outside the range" (small: the claim holds), and p of "it lies inside" (small: the
             claim does not hold). One of them is 1.
    Raises:  ValueError: an end is NaN, or the lower end is above the upper one.
    """
    if not number.low <= number.high:
        ends = f"{number.low} to {number.high}"
        raise ValueError(f"the interval runs from {ends}; its lower end must not be above the upper one")
    if math.isnan(number.mean):
        return 1.0, 1.0
    edge, degrees = _student(number)
    margins = {border: _margin(number, border, scale) for border in holds}
    p = {border: 2 * float(t.sf(edge * margin, degrees)) for border, margin in margins.items()}
    low, high = holds
    if low <= number.mean <= high:
        exact = number.low == number.high and all(map(math.isfinite, holds))  # 1 is not below 1
        return 0.0 if exact else max(p[low], p[high]), 1.0
    return 1.0, p[low if number.mean < low else high]


def _margin(number: Interval, border: float, scale: str) -> float:
    """Return the distance of a border from a number, in half-widths of its interval on that side."""
    points = np.array([border, number.mean, number.low if border < number.mean else number.high])
    if scale == "log" and (points > 0).all():
        points = np.log(points)
    border, middle, end = points
    if np.isinf(border) or middle == end:
        return math.inf if border != middle else 0.0
    return float(abs(border - middle) / abs(end - middle))


def _student(number: Interval) -> tuple[float, int]:
    """Return Student's t at the ends of an interval, and its degrees of freedom."""
    degrees = max(1, (number.draws if number.draws > 1 else number.n) - 1)
    return float(t.ppf((1 + number.level) / 2, degrees)), degrees


@dataclass(frozen=True)
class Verdict:
    """Our numbers for a claim, and the verdict that follows from them."""

    claim: Claim
    parts: Mapping[str, Interval]  # our numbers by name; empty if it was not measured
    note: str  # what was compared, or what is missing
    records: tuple[str, ...] = ()  # keys of the records that were used
    without: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)  # task left out -> numbers

    @property
    def is_tested(self) -> bool:
        """Whether there are numbers, with as many draws as the claim needs."""
        return bool(self.parts) and min(part.draws for part in self.parts.values()) >= self.claim.draws

    @property
    def p(self) -> tuple[float, float]:
        """P of "the claim does not hold" (small: reproduced), and p of "it holds" (small: not reproduced)."""
        if not self.is_tested:
            return 1.0, 1.0
        tests = [p_values(part, self.claim.holds, self.claim.scale) for part in self.parts.values()]
        outside, inside = zip(*tests, strict=True)
        return max(outside), min(1.0, len(tests) * min(inside))

    def judged(self, level: float = LEVEL) -> str:
        """Return the verdict: `REPRODUCED`, `NOT_REPRODUCED`, `CANT_TELL` or `NOT_MEASURED`.

        Args:    level: of the test; lower if several claims are judged together.
        """
        if not self.parts:
            return NOT_MEASURED
        outside, inside = self.p
        return REPRODUCED if outside <= level else NOT_REPRODUCED if inside <= level else CANT_TELL

    def leans_on(self, level: float = LEVEL) -> dict[str, str]:
        """Find the tasks without which the verdict would be different: task -> that verdict."""
        others = {task: replace(self, parts=parts).judged(level) for task, parts in self.without.items()}
        return {task: verdict for task, verdict in others.items() if verdict != self.judged(level)}

    @property
    def deciding(self) -> tuple[str, Interval]:
        """The name and number of the part that is the strongest evidence against the claim."""
        tests = {name: p_values(n, self.claim.holds, self.claim.scale) for name, n in self.parts.items()}
        name = max(tests, key=lambda name: (tests[name][0], -tests[name][1]))
        return name, self.parts[name]

    def needs(self, level: float) -> str:
        """Say what would decide an open claim: how many draws (or items, with one draw), or a larger sample.

        This assumes that the spread of draws (items) stays the same. More draws reduce only the part of the
        squared half-width that is due to the draws.
        """
        if self.judged(level) != CANT_TELL:
            return ""
        if not self.is_tested:
            draws = min(part.draws for part in self.parts.values())
            return f"{self.claim.draws} draws, there {'is' if draws == 1 else 'are'} {draws}"
        part = self.deciding[1]
        if math.isinf(part.low) or math.isinf(part.high):
            return "a larger sample: the interval is unbounded"
        drawn = part.draws > 1
        n, unit = (part.draws, "draws") if drawn else (part.n, "windows or questions")
        margin = min(_margin(part, border, self.claim.scale) for border in self.claim.holds)
        share = part.from_draws if drawn else 1.0  # of the squared half-width, that depends on n
        now, _ = _student(part)
        for factor in (1.1**power for power in range(50)):  # up to about a hundred times as many
            more = math.ceil(n * factor) + 1
            edge = _student(replace(part, draws=more) if drawn else replace(part, n=more))[0]
            width = 1 - share + share * (edge / now) ** 2 * n / more  # squared
            if 2 * t.sf(edge * margin / math.sqrt(width), more - 1) <= level:
                return f"about {more:,} {unit}"
        if share < 0.99:
            return f"more windows or questions; {100 * n:,} draws alone would not be enough"
        return f"more than {100 * n:,} {unit}: the number is close to the border"

    def __str__(self) -> str:
        ours = f" {self.deciding[1].show(3)}" if self.parts else ""
        name = f"{self.deciding[0]}: " if len(self.parts) > 1 else ""
        return f"{self.claim.id}: {self.judged()}, by itself{ours} ({name}{self.note})"


def write_answer(
    folder: Path,
    claim_id: str,
    numbers: Numbers,
    note: str = "",
    records: Iterable[Record] = (),
    without: Mapping[str, Mapping[str, Interval]] | None = None,
) -> Verdict:
    """Write the numbers of a claim to `<folder>/claims/<id>.json`; an older answer is replaced.

    Args:    folder: of a profile's results.    numbers: one, or several by name.    note: what was compared.
             records: the compared ones; if the claim does not apply to the share that one of them removed, it
             counts as not measured.    without: task -> the numbers if that task is left out.
    Raises:  KeyError: there is no such claim.    ValueError: a number is NaN.
    """
    claim = {claim.id: claim for claim in claims()}[claim_id]
    parts = {"": numbers} if isinstance(numbers, Interval) else dict(numbers)
    records = {record.key: record for record in records}
    shares = [r.plan["sparsity"] for r in records.values() if r.experiment.stage != "dense"]
    low, high = claim.removed
    if outside := [share for share in shares if not low <= share <= high]:
        parts, records, without = {}, {}, {}
        note = f"{outside[0]:.1%} of the parameters were removed; the claim is for {low:.0%} to {high:.0%}"
    verdict = Verdict(claim, parts, note, tuple(sorted(records)), without or {})
    content = {"claim": claim_id, "note": note, "records": verdict.records}
    write_kept(answer_path(folder, claim_id), content | {"numbers": parts, "without": verdict.without})
    return verdict


def answer_path(folder: Path, claim_id: str) -> Path:
    """Return the path of a claim's answer in a profile's results."""
    return folder / "claims" / f"{claim_id.replace(' ', '_')}.json"


def read_answer(folder: Path, claim: Claim) -> Verdict:
    """Read the answer to a claim; if it is missing, the note says which notebook to run.

    A damaged file counts as missing: it is renamed, with a warning.
    """
    answer = read_kept(answer_path(folder, claim.id))
    if answer is None:
        return Verdict(claim, {}, f"no answer; run {claim.notebook}")
    parts, without = _intervals(answer["numbers"]), answer.get("without", {})
    without = {task: _intervals(numbers) for task, numbers in without.items()}
    return Verdict(claim, parts, answer["note"], tuple(answer["records"]), without)


def _intervals(numbers: Mapping[str, dict[str, float]]) -> dict[str, Interval]:
    return {name: from_plain(Interval, number) for name, number in numbers.items()}


def verdicts(folder: Path) -> pd.DataFrame:
    """Judge every claim by the answers in a profile's results, all together at `LEVEL` (Holm).

    Returns: one row per claim: `ours`, `low` and `high` of the number that decides (`part`), the `paper`'s
             number, the `verdict`, `p` of its test, what an open claim `needs`, and the tasks `without` which
             the verdict would differ.
    Source:  Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    answers = [read_answer(folder, claim) for claim in claims()]
    ranked = sorted((answer for answer in answers if answer.is_tested), key=lambda answer: min(answer.p))
    levels, level = {}, LEVEL / max(1, len(ranked))
    for rank, verdict in enumerate(ranked):
        level = LEVEL / (len(ranked) - rank)
        levels[verdict.claim.id] = level
        if min(verdict.p) > level:  # this claim stays open, and all with a larger p
            break
    return pd.DataFrame([_row(answer, levels.get(answer.claim.id, level)) for answer in answers])


def _row(verdict: Verdict, level: float) -> dict[str, object]:
    claim, paper = verdict.claim, np.nan if verdict.claim.paper is None else verdict.claim.paper
    part, ours = verdict.deciding if verdict.parts else ("", Interval(*[np.nan] * 3, n=0))
    row = {"claim": claim.id, "sentence": claim.sentence, "measured": claim.measured, "rule": claim.rule}
    row |= {"holds_from": claim.holds[0], "holds_to": claim.holds[1], "paper": paper, "part": part}
    row |= {"ours": ours.mean, "low": ours.low, "high": ours.high, "difference": ours.mean - paper}
    row |= {"verdict": verdict.judged(level), "p": min(verdict.p), "needs": verdict.needs(level)}
    row |= {"without": "; ".join(f"{task}: {other}" for task, other in verdict.leans_on(level).items())}
    row |= {"note": verdict.note, "source": claim.source, "notebook": claim.notebook}
    return row | {"records": " ".join(verdict.records)}
