"""Every claim is complete, its rule is fixed, the paper fulfils its own claims, and answers are judged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_records import RECOVERY, draws
from scipy import stats

from pruner_lib.study.claims import (
    CANT_TELL,
    FORMULAS,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Verdict,
    answer_path,
    claims,
    p_values,
    printed,
    read_answer,
    verdicts,
    write_answer,
)
from pruner_lib.study.compare import describe, ratio
from pruner_lib.study.records import MetricName
from pruner_lib.study.statistics import Interval

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CLAIMS = claims()
CLAIM = {claim.id: claim for claim in CLAIMS}
WIKI = MetricName("perplexity", "wiki", 128)
INF = math.inf


def verdict(*numbers, holds=(-INF, 1), draws=1):
    """Judge intervals by a made-up claim."""
    claim = Claim("made up", "It holds.", "nowhere", "00_none", "a number", holds, draws=draws)
    return Verdict(claim, {str(i): number for i, number in enumerate(numbers)}, "")


def at(mean, reach, n=64, draws=5, from_draws=1.0):
    """Make an interval around a number."""
    return Interval(mean, mean - reach, mean + reach, n, draws, from_draws=from_draws)


def test_verdict_follows_the_rule_on_either_side_and_between():
    assert verdict(at(0.8, 0.1)).judged() == REPRODUCED == verdict(at(0.8, 0)).judged()
    assert verdict(at(1.2, 0.1)).judged() == NOT_REPRODUCED == verdict(at(1.2, 0)).judged()
    assert verdict(at(0.8, 0.3)).judged() == CANT_TELL == verdict(at(1.2, 0.3)).judged()
    zone = {"holds": (-0.02, 0.02)}
    assert verdict(at(0, 0.01), **zone).judged() == REPRODUCED
    assert (
        verdict(at(0.04, 0.01), **zone).judged()
        == NOT_REPRODUCED
        == verdict(at(-0.04, 0.01), **zone).judged()
    )
    assert verdict(at(0, 0.05), **zone).judged() == CANT_TELL == verdict(at(0.02, 0.01), **zone).judged()
    assert verdict().judged() == NOT_MEASURED and verdict(Interval(0.5, -INF, INF, 1)).judged() == CANT_TELL


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize(("border", "holds"), [(1, (-INF, 1)), (1, (1, INF)), (0, (0, INF)), (0, (-INF, 0))])
def test_no_difference_at_all_is_neither_above_nor_below(border, holds, scale):
    assert p_values(at(border, 0), holds, scale) == (1, 1)
    inside = border + (0.1 if math.isinf(holds[1]) else -0.1)
    assert p_values(at(inside, 0), holds, scale) == (0, 1)
    assert p_values(at(border, 0), (border - 0.2, border), scale) == (0, 1), "a closed range has its ends"


@pytest.mark.parametrize("draws", [1, 3, 20])
def test_p_is_that_of_the_interval(draws):
    degrees = (draws if draws > 1 else 64) - 1
    for mean in (0.6, 0.9, 0.999, 1.2, 3.0):
        error = 0.1
        number = at(mean, stats.t.ppf(0.975, degrees) * error, draws=draws)
        outside, inside = p_values(number, (-INF, 1))
        wanted = 2 * stats.t.sf(abs(mean - 1) / error, degrees)  # Student's t test of "it is 1"
        assert (outside, inside) == pytest.approx((wanted, 1) if mean < 1 else (1, wanted))
    touching = Interval(0.8, 0.6, 1.0, 64, draws)
    assert p_values(touching, (-INF, 1)) == pytest.approx((0.05, 1)), "its end at the border: p is 5 %"
    with pytest.raises(ValueError, match="from nan to nan"):
        p_values(Interval(math.nan, math.nan, math.nan, 5), (-INF, 1))


def test_all_parts_must_hold_and_one_that_fails_is_enough():
    sure, open_, false = at(0.5, 0.1), at(0.98, 0.1), at(1.5, 0.1)
    assert verdict(sure, sure).judged() == REPRODUCED and verdict(sure, open_).judged() == CANT_TELL
    assert verdict(sure, sure, false).judged() == NOT_REPRODUCED
    assert verdict(sure, open_, false).deciding == ("2", false) and verdict(sure, open_).deciding[1] == open_
    barely = Interval(1.2, 1.01, 1.39, 64, 5)
    assert verdict(barely).judged() == NOT_REPRODUCED, "by itself"
    assert verdict(barely, *[sure] * 9).judged() == CANT_TELL, "but one of ten tests fails so by chance"


def test_claim_on_draws_stays_open_without_them():
    assert verdict(at(0.5, 0.1, draws=1), draws=3).judged() == CANT_TELL
    assert verdict(at(0.5, 0.1, draws=3), draws=3).judged() == REPRODUCED
    assert verdict(at(0.5, 0.1, draws=1), draws=3).needs(0.05) == "3 draws, there is 1"


def test_open_claim_says_what_would_decide_it():
    n = int(verdict(at(0.9, 0.2, n=100, draws=1)).needs(0.05).split()[1])
    assert 350 < n < 450, "half the margin that is needed: four times as many"
    few = verdict(at(0.9, 0.2, draws=3)).needs(0.05)
    assert few.endswith("draws") and 3 < int(few.split()[1]) < 12, "few draws gain from each one more"
    assert int(verdict(at(0.9, 0.2, draws=3)).needs(0.001).split()[1]) > int(few.split()[1])
    assert verdict(at(1.0, 0.2)).needs(0.05) == "more than 500 draws: the number is close to the border"
    half = verdict(at(0.9, 0.12, draws=3, from_draws=0.5)).needs(0.05)  # what the items leave is 0.085
    assert int(half.split()[1]) > int(verdict(at(0.9, 0.12, draws=3)).needs(0.05).split()[1])
    never = verdict(at(0.9, 0.2, draws=3, from_draws=0.5)).needs(0.05)  # and here 0.14, beyond the border
    assert never == "more windows or questions; 300 draws alone would not be enough"
    assert verdict(Interval(0.5, -INF, INF, 9)).needs(0.05) == "a larger sample: the interval is unbounded"
    assert verdict(at(0.5, 0.2)).needs(0.05) == "" == verdict(at(1.5, 0.2)).needs(0.05)


def test_ratios_are_judged_by_their_logarithms():
    wide = Interval(60_000, 10_000, 360_000, 64, 3)  # six times to either side
    outside, inside = p_values(wide, (10, INF), "log")
    assert outside == pytest.approx(2 * stats.t.sf(stats.t.ppf(0.975, 2) * math.log(6000) / math.log(6), 2))
    assert outside < 0.01 < 0.02 < p_values(wide, (10, INF))[0] and inside == 1
    assert p_values(Interval(0.0, 0.0, 0.5, 64), (-INF, 1), "log")[0] < 0.05, "nothing is left: below one"
    ratios = {claim.id for claim in CLAIMS if claim.scale == "log"}
    assert {"dependency", "outer layers", "faster", "modules"} <= ratios
    assert not {"keeps abilities", "counts", "few steps", "sum answers"} & ratios


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_paper_fulfils_its_own_claim_and_another_paper_would_not(claim):
    assert (claim.paper is None) == (not claim.numbers)
    if claim.numbers:
        exact = at(claim.paper, 0, draws=99)
        assert Verdict(claim, {"": exact}, "").judged() == REPRODUCED
    low, high = claim.holds
    other = at(low - 0.1 if math.isfinite(low) else high + 0.1, 0, draws=99)
    assert Verdict(claim, {"": other}, "").judged() == NOT_REPRODUCED


def test_numbers_of_the_paper_are_those_of_its_text():
    chance = (3 * 0.5 + 4 * 0.25) / 7
    paper = {name: claim.paper for name, claim in CLAIM.items()}
    assert paper["keeps abilities"] == pytest.approx((0.6007 - chance) / (0.6325 - chance))
    assert paper["perplexity untuned"] == pytest.approx(19.09 / 12.62)
    assert paper["dependency"] == pytest.approx(68378.42 / 19.09)
    assert paper["dependency accuracy"] == pytest.approx(0.3832 - chance)
    assert paper["sum generates"] == pytest.approx(66.13 / 62.59)
    assert paper["gradients at half"] == pytest.approx(141.06 / 3887.9)
    assert paper["recovery helps channel most"] == pytest.approx((22.02 / 74.63) / (17.58 / 19.09))
    assert paper["few steps"] == pytest.approx(math.log(19.09 / 17.69) / math.log(19.09 / 17.64))


def test_claims_have_names_of_their_own_and_say_all_that_is_needed():
    assert len(CLAIM) == len(CLAIMS) >= 25
    for claim in CLAIMS:
        assert claim.sentence.endswith(".") and claim.source and claim.measured and claim.draws >= 1
        assert (NOTEBOOKS / f"{claim.notebook}.ipynb").is_file()
        assert claim.holds[0] < claim.holds[1] and any(map(math.isfinite, claim.holds)) and claim.rule
        assert claim.formula in FORMULAS if claim.numbers else not claim.formula
        assert 0 <= claim.removed[0] < claim.removed[1] <= 1


def test_rule_is_given_in_words():
    assert CLAIM["keeps abilities"].rule == "above 0.75"
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
    numbers = {"wiki": ratio(a, b, WIKI)}
    return write_answer(folder, claim, numbers, describe(numbers, a, b), [*a, *b]).judged()


def test_true_effects_are_reproduced_false_ones_are_not_and_small_ones_stay_open(tmp_path):
    vector, usual = "element beats vector", draws(3.0)
    assert answered(tmp_path, vector, usual, draws(3.4, criterion="vector")) == REPRODUCED
    assert answered(tmp_path, vector, draws(3.4), draws(3.0, criterion="vector")) == NOT_REPRODUCED
    assert answered(tmp_path, vector, usual, draws(3.001, criterion="vector")) == CANT_TELL
    assert answered(tmp_path, "dependency", draws(9.0, dependency=False), usual) == REPRODUCED
    assert answered(tmp_path, "dependency", draws(4.0, dependency=False), usual) == NOT_REPRODUCED
    assert answered(tmp_path, "global generates", draws(3.05, scope="global"), usual) == REPRODUCED
    assert answered(tmp_path, "global generates", draws(4.0, scope="global"), usual) == NOT_REPRODUCED


@pytest.mark.slow
def test_table_has_a_row_for_every_claim_and_the_last_answer_counts(tmp_path):
    nothing = verdicts(tmp_path)
    assert list(nothing.claim) == list(CLAIM) and set(nothing.verdict) == {NOT_MEASURED}
    assert (nothing.note == "no answer; run " + nothing.notebook).all() and nothing.ours.isna().all()
    usual, vector = draws(3.0), draws(3.4, criterion="vector")
    for worse in (2.0, 3.4):
        answered(tmp_path, "element beats vector", usual, draws(worse, criterion="vector"))
    row = verdicts(tmp_path).set_index("claim").loc["element beats vector"]
    wanted = ratio(usual, vector, WIKI)
    assert (row.ours, row.low, row.high) == (wanted.mean, wanted.low, wanted.high)
    assert row.verdict == REPRODUCED and row.difference == row.ours - row.paper
    assert row.note == "element1 and vector, 20.0% cut; wiki 64; 3 draws" and row.part == "wiki"
    assert set(row.records.split()) == {one.key for one in (*usual, *vector)}
    assert (verdicts(tmp_path).verdict == NOT_MEASURED).sum() == len(CLAIMS) - 1


def test_many_verdicts_are_judged_together(tmp_path):
    barely = Interval(0.9, 0.82, 0.98, 64, 20)
    write_answer(tmp_path, "element beats vector", barely)
    assert verdicts(tmp_path).set_index("claim").loc["element beats vector"].verdict == REPRODUCED
    for claim in ("vector beats L2", "random beats L2", "block beats channel"):
        write_answer(tmp_path, claim, at(0.99, 0.2))
    table = verdicts(tmp_path).set_index("claim")
    assert table.loc["element beats vector"].verdict == CANT_TELL, "one of four is as low by chance"
    assert table.loc["element beats vector"].p == pytest.approx(0.018, abs=1e-4)
    write_answer(tmp_path, "vector beats L2", at(0.1, 0.01))
    found = verdicts(tmp_path).set_index("claim").verdict
    assert found["vector beats L2"] == REPRODUCED and found["random beats L2"] == CANT_TELL
    assert found["element beats vector"] == CANT_TELL, "0.018 is above a third of 5 % too"
    write_answer(tmp_path, "random beats L2", at(0.1, 0.01))
    assert verdicts(tmp_path).set_index("claim").verdict["element beats vector"] == REPRODUCED, "Holm"


@pytest.mark.slow
def test_models_of_another_size_do_not_answer(tmp_path):
    large = {"sparsity": 0.5, "ratio": 0.5}
    usual, vector = draws(3.0, **large), draws(3.4, criterion="vector", **large)
    assert answered(tmp_path, "element beats vector", usual, vector) == NOT_MEASURED
    row = verdicts(tmp_path).set_index("claim").loc["element beats vector"]
    assert row.note == "50.0% of the parameters were removed; the claim is for 15% to 25%"
    assert math.isnan(row.ours) and row.records == ""
    assert answered(tmp_path, "half degrades", usual, draws(2.0)) == REPRODUCED
    recovered = draws(3.0, recovery=RECOVERY, **large)
    assert answered(tmp_path, "dependency recovered", recovered, usual) == NOT_MEASURED


@pytest.mark.slow
def test_numbers_come_back_from_the_file_with_their_names(tmp_path):
    unsure, sure = Interval(math.nan, -INF, INF, 5, 3), at(0.9, 0.05)
    found = write_answer(tmp_path, "keeps abilities", {"one": sure, "other": unsure}, "of 5 questions")
    assert found.judged() == CANT_TELL and "[undetermined] (other: of 5 questions)" in str(found)
    again = read_answer(tmp_path, CLAIM["keeps abilities"])
    assert again.parts["one"] == sure and math.isnan(again.parts["other"].mean)
    row = verdicts(tmp_path).set_index("claim").loc["keeps abilities"]
    assert row.verdict == CANT_TELL and row.part == "other" and np.isinf([row.low, row.high]).all()
    content = json.loads(answer_path(tmp_path, "keeps abilities").read_text())
    assert content["numbers"]["other"]["low"] == "-inf"
    assert "verdict" not in content, "claims are judged together"


def test_unknown_claim_is_an_error(tmp_path):
    with pytest.raises(KeyError, match="dependence"):
        write_answer(tmp_path, "dependence", Interval(1, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace("0.9", "0.7")])
def test_damaged_or_edited_answer_is_set_aside_and_counts_as_none(tmp_path, damage):
    write_answer(tmp_path, "keeps abilities", at(0.9, 0.05))
    path = answer_path(tmp_path, "keeps abilities")
    assert verdicts(tmp_path).set_index("claim").verdict["keeps abilities"] != NOT_MEASURED
    path.write_text(damage(path.read_text()))
    with pytest.warns(UserWarning, match=f"{path.name} is damaged .*renamed to {path.name}.damaged, will be"):
        assert verdicts(tmp_path).set_index("claim").verdict["keeps abilities"] == NOT_MEASURED
    assert not path.exists() and path.with_name(f"{path.name}.damaged").exists()


@pytest.mark.slow
def test_claim_without_the_draws_that_it_needs_is_not_counted_among_the_tests(tmp_path):
    barely = Interval(0.8, 0.63, 0.97, 64, 20)  # p is some 3 %: of two tests each would need 2.5 %
    write_answer(tmp_path, "vector beats L2", barely)
    for own, wanted in ((1, REPRODUCED), (3, CANT_TELL)):
        write_answer(tmp_path, "element beats vector", Interval(0.9, 0.5, 1.3, 64, own))
        found = verdicts(tmp_path).set_index("claim").verdict
        assert (found["vector beats L2"], found["element beats vector"]) == (wanted, CANT_TELL)
