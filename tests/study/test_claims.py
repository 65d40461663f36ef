"""Every claim is complete, its rule is fixed, and the paper's own numbers follow its own claims."""

from __future__ import annotations

import math

import pytest

from pruner_lib.study.claims import (
    CANT_TELL,
    CLAIMS,
    FORMULAS,
    HOWS,
    NOT_REPRODUCED,
    REPRODUCED,
    Printed,
    judge,
)

CLAIM = {claim.id: claim for claim in CLAIMS}


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


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_paper_fulfils_its_own_claim(claim):
    assert (claim.paper is None) == (not claim.printed)
    if claim.printed:
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
    assert CLAIM["sum classifies"].paper == pytest.approx(
        (40.70 + 63.49 + 34.80 - 41.92 - 64.75 - 35.20) / 300
    )
    assert CLAIM["few steps"].paper == pytest.approx(math.log(19.09 / 17.69) / math.log(19.09 / 17.64))


def test_claims_have_names_of_their_own_and_say_all_that_is_needed():
    assert len(CLAIM) == len(CLAIMS) >= 15
    for claim in CLAIMS:
        assert claim.how in HOWS and claim.sentence.endswith(".") and claim.source and claim.measured
        assert claim.holds[0] < claim.holds[1] and any(map(math.isfinite, claim.holds)) and claim.rule
        assert claim.notebook[:2].isdigit()
        assert claim.how in FORMULAS or not claim.printed


def test_rule_is_told_in_words():
    assert CLAIM["keeps accuracy"].rule == "above 0.9"
    assert CLAIM["random beats L2"].rule == "below 1"
    assert CLAIM["global generates"].rule == "from 0.8 to 1.25"


def test_number_that_was_not_printed_is_an_error_and_a_mean_is_computed():
    assert Printed("Table 7", "Max", "accuracy/mean").value == pytest.approx((39.60 + 63.71 + 34.60) / 300)
    with pytest.raises(ValueError, match="Table 7 has no perplexity/c4@128 in its row 'Max'"):
        _ = Printed("Table 7", "Max", "perplexity/c4@128").value
