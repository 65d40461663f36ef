"""Judge the claims of the paper by the records of a profile: our number, its interval, the verdict.

Nothing is measured here. Which claims there are and what each rule is, is known to `claims` and to
`paper_claims`; which records speak for a claim and how its number follows from them, to `claim_numbers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.conclusions.claim_numbers import number_of
from pruner_lib.conclusions.claim_records import Evidence
from pruner_lib.conclusions.claims import (
    CANT_TELL,
    FIFTH,
    HALF,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Printed,
    Which,
    judge,
)
from pruner_lib.conclusions.paper_claims import BASE, DENSE, WIKI
from pruner_lib.experiments.profiles import load_profile
from pruner_lib.experiments.records import load_records
from pruner_lib.experiments.results import results_dir
from pruner_lib.questions.methods import ROWS, STAGES
from pruner_lib.questions.paper import published
from pruner_lib.questions.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

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
    import pandas as pd

    return pd.DataFrame([_row(one) for one in verdicts])


def factors_frame(found: Evidence) -> pd.DataFrame:
    """Put our perplexities beside the paper's Tables 1 and 16, each relative to its own dense model.

    Returns: columns method, stage, cut ("20%", "50%"), ours, low, high, paper, difference, note; a row for
             every row of the two tables that was measured.
    """
    import pandas as pd

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
