"""A whole profile is judged: every claim gets a row, and what was not measured says what to run."""

from __future__ import annotations

import math

import pytest
from made_records import RECOVERY, dense, draws, record

from pruner_lib.study.claims import (
    CANT_TELL,
    CLAIMS,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    Evidence,
    factors_frame,
    judge_claim,
    judge_claims,
    load_evidence,
    verdicts_frame,
)
from pruner_lib.study.records import write_record
from pruner_lib.study.results import results_dir

CLAIM = {claim.id: claim for claim in CLAIMS}


def answer(claim, *records):
    return judge_claim(CLAIM[claim], Evidence(tuple(records), "m")).answer


def test_true_effects_are_reproduced_false_ones_are_not_and_small_ones_stay_open():
    assert answer("element beats vector", *draws(3.0), *draws(3.4, criterion="vector")) == REPRODUCED
    assert answer("element beats vector", *draws(3.4), *draws(3.0, criterion="vector")) == NOT_REPRODUCED
    assert answer("element beats vector", *draws(3.0), *draws(3.001, criterion="vector")) == CANT_TELL
    assert answer("element beats vector", *draws(3.0)) == NOT_MEASURED


def test_collapse_and_equality_are_judged_by_their_own_ranges():
    assert answer("dependency", *draws(3.0), *draws(9.0, dependency=False)) == REPRODUCED
    assert answer("dependency", *draws(3.0), *draws(4.0, dependency=False)) == NOT_REPRODUCED
    assert answer("global generates", *draws(3.0), *draws(3.05, scope="global")) == REPRODUCED
    assert answer("global generates", *draws(3.0), *draws(4.0, scope="global")) == NOT_REPRODUCED


def test_table_has_a_row_for_every_claim_even_where_nothing_was_measured():
    nothing = verdicts_frame(judge_claims(CLAIMS, Evidence((), "m")))
    assert list(nothing.claim) == [claim.id for claim in CLAIMS] and set(nothing.verdict) == {NOT_MEASURED}
    assert all(
        note.endswith(f"; run {name}") for note, name in zip(nothing.note, nothing.notebook, strict=True)
    )
    assert nothing.paper.notna().sum() >= 15 and nothing.ours.isna().all()
    some = verdicts_frame(judge_claims(CLAIMS, Evidence((dense(), *draws(), record(criterion="l2")), "m")))
    measured = some[some.verdict != NOT_MEASURED].set_index("claim")
    assert "keeps accuracy untuned" in measured.index and len(measured) < len(some)
    row = measured.loc["keeps accuracy untuned"]
    assert row.low <= row.ours <= row.high and row.difference == pytest.approx(row.ours - row.paper)
    assert set(row.records.split()) == {dense().key, *(one.key for one in draws())}


def test_records_of_different_protocols_are_told_and_do_not_stop_the_others():
    vector = draws(3.4, criterion="vector")
    for one in vector:
        one.metrics["perplexity/wiki@128"].protocol["dtype"] = "float16"
    records = (*draws(3.0), *vector, *draws(4.0, criterion="l2"))
    by_claim = {v.claim.id: v for v in judge_claims(CLAIMS, Evidence(records, "m"))}
    refused = by_claim["element beats vector"]
    assert refused.answer == NOT_MEASURED and "dtype is" in refused.note
    random = [*records, *draws(3.2, criterion="random")]
    assert answer("random beats L2", *random) == REPRODUCED


def test_evidence_is_read_from_the_results_of_a_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    assert load_evidence("quick").records == () and load_evidence("quick").model == "smollm2-135m"
    write_record(record(), results_dir("quick"))
    found = load_evidence("quick", model="m", level=0.9)
    assert [one.key for one in found.records] == [record().key] and found.protected == (4, 2)
    assert found.model == "m" and found.level == 0.9 and found.calibration.samples == 10
    with pytest.raises(ValueError, match="unknown profile"):
        load_evidence("quikc")


def test_rows_of_the_papers_tables_stand_beside_ours():
    half = draws(4.8, sparsity=0.5, ratio=0.5)
    records = [
        dense(2.8),
        *draws(3.0),
        *draws(2.9, recovery=RECOVERY),
        *draws(3.5, granularity="channel"),
        *half,
    ]
    found = factors_frame(Evidence(tuple(records), "m")).set_index(["cut", "method", "stage"])
    assert len(found) == 4
    row = found.loc["20%", "element1", "pruned"]
    assert row.low < math.exp(0.2) < row.high and row.paper == pytest.approx(19.09 / 12.62)
    assert found.loc["50%", "element1", "pruned"].paper == pytest.approx(112.44 / 12.62)
    assert found.loc["20%", "channel", "pruned"].paper == pytest.approx(74.63 / 12.62)
    assert factors_frame(Evidence((dense(),), "m")).empty
