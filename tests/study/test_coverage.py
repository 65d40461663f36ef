"""One window an article: then an interval over windows holds the truth as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from pruner_lib.study.statistics import paired_difference

ALIKE = 0.4  # intraclass correlation: share of the variance of windows that lies between articles
STUDIES = 400


def coverage(articles: int, windows: int, draws: int) -> float:
    """Give the share of made-up studies whose 95 % interval of a difference of 0.1 nats holds it.

    Args:    windows: of each article, one after the other.    draws: of the calibration, each with an effect.
    """
    generator, held = np.random.default_rng(articles * 100 + windows), 0
    for _ in range(STUDIES):
        article = generator.normal(0, ALIKE**0.5, (articles, 1))
        window = generator.normal(0, (1 - ALIKE) ** 0.5, (articles, windows))
        gap = 0.1 + 0.3 * (article + window).ravel()  # (windows): how much worse a is than b on each
        effect = generator.normal(0, 0.02, (draws, 1)) if draws > 1 else 0.0
        b = generator.normal(3, 1, articles * windows)
        interval = paired_difference(b + gap + effect, np.broadcast_to(b, (draws, len(b))))
        held += interval.low <= 0.1 <= interval.high
    return held / STUDIES


@pytest.mark.slow
def test_interval_over_articles_holds_the_truth_and_over_their_windows_does_not():
    assert 0.93 <= coverage(articles=64, windows=1, draws=20) <= 0.97
    assert coverage(articles=16, windows=4, draws=20) < 0.9, (
        "four windows of an article are not four articles"
    )
