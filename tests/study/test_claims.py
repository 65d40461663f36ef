"""Every claim is complete, its rule is fixed, the paper fulfils its own claims, and answers are judged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import yaml
from made_records import RECOVERY, dense, draws

from pruner_lib.study.claims import (
    CANT_TELL,
    CLAIMS_FILE,
    FORMULAS,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    answer_path,
    claims,
    judge,
    printed,
    verdicts,
    write_answer,
)
from pruner_lib.study.compare import describe, ratio
from pruner_lib.study.records import MetricName
from pruner_lib.study.statistics import Interval

CLAIMS = claims()
CLAIM = {claim.id: claim for claim in CLAIMS}
WIKI = MetricName("perplexity", "wiki", 128)
PAPER = {  # as the first edition of the study had them
    "keeps accuracy": 0.9497233201581029,
    "keeps accuracy untuned": 0.8983399209486167,
    "half degrades": 8.909667194928685,
    "half stays degraded": 0.769802371541502,
    "dependency": 3581.897328444212,
    "dependency recovered": 756.9658703071673,
    "sum generates": 1.056558555679821,
    "sum classifies": -0.009599999999999942,
    "outer layers": None,
    "few steps": 0.9641694214215881,
    "element beats vector": 0.8568222621184919,
    "vector beats L2": 0.03825483765732045,
    "random beats L2": 0.047234765886574756,
    "block beats channel": 0.25579525659922286,
    "width beats depth": 0.04239999999999999,
    "global generates": 1.0916710319539025,
    "global classifies": -0.0019999999999998908,
    "counts": None,
}


def test_verdict_follows_the_rule_on_either_side_and_between():
    above = (0.9, math.inf)
    assert judge(0.91, 0.97, above) == REPRODUCED == judge(0.9, 0.9, above)
    assert judge(0.80, 0.89, above) == NOT_REPRODUCED
    assert judge(0.85, 0.95, above) == CANT_TELL == judge(-math.inf, math.inf, above)
    both = (-0.02, 0.02)
    assert judge(-0.01, 0.01, both) == REPRODUCED
    assert judge(0.03, 0.05, both) == NOT_REPRODUCED == judge(-0.05, -0.03, both)
    assert judge(-0.05, 0.05, both) == CANT_TELL == judge(0.01, 0.03, both)
    with pytest.raises(ValueError, match="from 2 to 1"):
        judge(2, 1, both)
    with pytest.raises(ValueError, match="nan"):
        judge(math.nan, 1, both)


def test_papers_numbers_are_recomputed_from_its_tables():
    assert {claim.id: claim.paper for claim in CLAIMS} == pytest.approx(PAPER, nan_ok=True)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_paper_fulfils_its_own_claim(claim):
    assert (claim.paper is None) == (not claim.numbers)
    if claim.numbers:
        assert judge(claim.paper, claim.paper, claim.holds) == REPRODUCED
        assert judge(*sorted([claim.paper, _other_side(claim)]), claim.holds) == CANT_TELL


def _other_side(claim):
    """Give a number just outside of the claim's range."""
    low, high = claim.holds
    return low - 0.1 if math.isfinite(low) else high + 0.1


def test_numbers_of_the_paper_are_those_of_its_text():
    assert CLAIM["keeps accuracy"].paper == pytest.approx(0.9497, abs=1e-4)  # "94.97%"
    assert CLAIM["keeps accuracy untuned"].paper == pytest.approx(0.898, abs=1e-3)  # "89.8%"
    assert CLAIM["dependency"].paper == pytest.approx(68378.42 / 19.09)
    assert CLAIM["sum generates"].paper == pytest.approx(66.13 / 62.59)
    others = 41.92 + 64.75 + 35.20
    assert CLAIM["sum classifies"].paper == pytest.approx((40.70 + 63.49 + 34.80 - others) / 300)
    assert CLAIM["few steps"].paper == pytest.approx(math.log(19.09 / 17.69) / math.log(19.09 / 17.64))


def test_claims_have_names_of_their_own_and_say_all_that_is_needed():
    assert list(CLAIM) == list(PAPER) and len(CLAIM) == len(CLAIMS)
    for claim in CLAIMS:
        assert (
            claim.sentence.endswith(".") and claim.source and claim.measured and claim.notebook[:2].isdigit()
        )
        assert claim.holds[0] < claim.holds[1] and any(map(math.isfinite, claim.holds)) and claim.rule
        assert claim.formula in FORMULAS if claim.numbers else not claim.formula
        assert 0 <= claim.removed[0] < claim.removed[1] <= 1
    for row in yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf-8")):
        assert set(row) <= {"id", "sentence", "source", "notebook", "measured", "removed", "holds", "paper"}


def test_rule_is_given_in_words():
    assert CLAIM["keeps accuracy"].rule == "above 0.9"
    assert CLAIM["random beats L2"].rule == "below 1"
    assert CLAIM["global generates"].rule == "from 0.8 to 1.25"


def test_number_that_was_not_printed_is_an_error_and_a_mean_is_computed():
    assert printed("Table 7", "Max", "accuracy/mean") == pytest.approx((39.60 + 63.71 + 34.60) / 300)
    assert printed("Table 1", "0% / LLaMA-7B*", "accuracy/mean") == 0.6325
    with pytest.raises(ValueError, match="Table 7 has no perplexity/c4@128 in its row 'Max'"):
        printed("Table 7", "Max", "perplexity/c4@128")
    with pytest.raises(ValueError, match="Table 3 has no accuracy/mean in its row 'Block 20%'"):
        printed("Table 3", "Block 20%", "accuracy/mean")


def answered(folder, claim, a, b):
    number = ratio(a, b, WIKI)
    return write_answer(folder, claim, number, describe(number, WIKI, a, b), [*a, *b]).answer


def test_true_effects_are_reproduced_false_ones_are_not_and_small_ones_stay_open(tmp_path):
    vector, usual = "element beats vector", draws(3.0)
    assert answered(tmp_path, vector, usual, draws(3.4, criterion="vector")) == REPRODUCED
    assert answered(tmp_path, vector, draws(3.4), draws(3.0, criterion="vector")) == NOT_REPRODUCED
    assert answered(tmp_path, vector, usual, draws(3.001, criterion="vector")) == CANT_TELL
    assert answered(tmp_path, "dependency", draws(9.0, dependency=False), usual) == REPRODUCED
    assert answered(tmp_path, "dependency", draws(4.0, dependency=False), usual) == NOT_REPRODUCED
    assert answered(tmp_path, "global generates", draws(3.05, scope="global"), usual) == REPRODUCED
    assert answered(tmp_path, "global generates", draws(4.0, scope="global"), usual) == NOT_REPRODUCED


def test_table_has_a_row_for_every_claim_and_the_last_answer_counts(tmp_path):
    nothing = verdicts(tmp_path)
    assert list(nothing.claim) == list(CLAIM) and set(nothing.verdict) == {NOT_MEASURED}
    assert (nothing.note == "no answer; run " + nothing.notebook).all() and nothing.ours.isna().all()
    assert nothing.paper.notna().sum() == 16
    usual, vector = draws(3.0), draws(3.4, criterion="vector")
    for worse in (2.0, 3.4):
        answered(tmp_path, "element beats vector", usual, draws(worse, criterion="vector"))
    row = verdicts(tmp_path).set_index("claim").loc["element beats vector"]
    wanted = ratio(usual, vector, WIKI)
    assert (row.ours, row.low, row.high) == (wanted.mean, wanted.low, wanted.high)
    assert row.verdict == REPRODUCED and row.difference == row.ours - row.paper
    assert row.note == "element1, 20.0% cut; 64 windows of wiki, 3 draws"
    assert set(row.records.split()) == {one.key for one in (*usual, *vector)}
    assert (verdicts(tmp_path).verdict == NOT_MEASURED).sum() == len(CLAIMS) - 1


def test_models_of_another_size_do_not_answer(tmp_path):
    large = {"sparsity": 0.5, "ratio": 0.5}
    usual, vector = draws(3.0, **large), draws(3.4, criterion="vector", **large)
    assert answered(tmp_path, "element beats vector", usual, vector) == NOT_MEASURED
    row = verdicts(tmp_path).set_index("claim").loc["element beats vector"]
    assert row.note == "50.0% of the parameters were cut, but the claim is made for 15% to 25%"
    assert math.isnan(row.ours) and row.records == ""
    assert answered(tmp_path, "half degrades", usual, [dense(2.0)]) == REPRODUCED
    recovered = draws(3.0, recovery=RECOVERY, **large)
    assert answered(tmp_path, "dependency recovered", recovered, usual) == NOT_MEASURED


def test_number_without_bounds_is_undecided_and_comes_back_from_the_file(tmp_path):
    unsure = Interval(math.nan, -math.inf, math.inf, 5)
    verdict = write_answer(tmp_path, "keeps accuracy", unsure, "of 5 questions")
    assert verdict.answer == CANT_TELL and "[undetermined] (of 5 questions)" in str(verdict)
    row = verdicts(tmp_path).set_index("claim").loc["keeps accuracy"]
    assert row.verdict == CANT_TELL and math.isnan(row.ours) and np.isinf([row.low, row.high]).all()
    content = json.loads(answer_path(tmp_path, "keeps accuracy").read_text())
    assert content["interval"]["low"] == "-inf" and content["verdict"] == CANT_TELL
    with pytest.raises(ValueError, match="from nan to nan"):
        write_answer(tmp_path, "keeps accuracy", Interval(math.nan, math.nan, math.nan, 5))


def test_unknown_claim_and_damaged_answer_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no claim 'dependence'; there are keeps accuracy, .*counts"):
        write_answer(tmp_path, "dependence", Interval(1, 1, 1, 1))
    path = answer_path(tmp_path, "dependency")
    path.parent.mkdir()
    path.write_text('{"claim": ')
    with pytest.raises(ValueError, match=r"dependency.json is not valid JSON"):
        verdicts(tmp_path)
