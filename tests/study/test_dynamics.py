"""Recovery over steps and samples: the true effects of made-up records are found, with honest intervals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_records import TASKS, dense, record, short

from pruner_lib.study.questions import (
    accuracy_frame,
    amount,
    beside_steps,
    effort,
    modules_frame,
    paper_amount,
    reach,
    step_of,
    times,
    times_frame,
)
from pruner_lib.study.settings import Recovery

WIKI = "perplexity/wiki@128"
RUN = Recovery(corpus="instructlab", steps=20, batch_size=8, micro_batch_size=4, keep_at=(5, 10))
CURVE = {0: 3.5, 5: 3.3, 10: 3.15, 20: 3.1}


def history(step):
    return [{"step": s, "tokens": 1000 * s, "seconds": 6.0 * s, "loss": None} for s in range(step + 1)]


def after(step, nll, run=RUN, accuracy=0.6, **settings):
    """The record of a recovery after some steps."""
    at = replace(run, at=step if step in run.keep_at else None)
    return record(
        nll, accuracy, recovery=at if step else None, history=history(step) if step else (), **settings
    )


STEPS = {step: after(step, nll) for step, nll in CURVE.items()}


def test_effort_counts_what_was_trained():
    assert effort(STEPS[10]) == {"step": 10, "samples": 80, "tokens": 10_000, "seconds": 60.0}
    assert effort(STEPS[0]) == {"step": 0, "samples": 0, "tokens": 0, "seconds": 0.0}
    assert [step_of(one) for one in STEPS.values()] == [0, 5, 10, 20]


def test_times_finds_the_true_factor_and_draws_widen_it():
    alone = times((STEPS[10],), (STEPS[0],), WIKI)
    assert alone.mean == pytest.approx(STEPS[10].perplexity["wiki"] / STEPS[0].perplexity["wiki"])
    assert alone.low < alone.mean < alone.high and alone.high / alone.low < 1.05  # pairing makes it sharp
    assert alone.mean == pytest.approx(math.exp(-0.35), rel=0.1)
    runs = [after(20, 3.1 + luck, replace(RUN, seed=n)) for n, luck in enumerate((-0.05, 0, 0.05))]
    drawn = times(runs, (STEPS[0],), WIKI)
    assert drawn.draws == 3 and drawn.high / drawn.low > alone.high / alone.low
    assert drawn.low < math.exp(-0.4) < drawn.high
    with pytest.raises(ValueError, match="corpus_hash"):
        times((STEPS[10],), (after(0, 3.5, evaluation=short(windows=32)),), WIKI)


def test_frame_has_a_row_a_group_and_text():
    frame = times_frame({step: [one] for step, one in STEPS.items()}, [STEPS[0]], "step")
    assert frame.step.tolist() == [0, 5, 10, 20] and set(frame.dataset) == {"wiki"}
    assert frame.times.tolist() == pytest.approx(np.exp(np.array(list(CURVE.values())) - 3.5), rel=0.06)
    assert frame.times[0] == frame.low[0] == frame.high[0] == 1.0
    assert frame.samples.tolist() == [0, 40, 80, 160] and frame.seconds.tolist() == [0, 30, 60, 120]


def test_paper_stands_beside_at_the_same_share_of_the_steps():
    frame = beside_steps(times_frame({step: [one] for step, one in STEPS.items()}, [STEPS[0]], "step"))
    at_350, at_700 = 18.10 + (17.69 - 18.10) * 0.75, (17.69 + 17.64) / 2
    wanted = [1, at_350 / 19.09, at_700 / 19.09, 17.88 / 19.09]
    assert frame.paper.tolist() == pytest.approx(wanted)
    assert frame.difference.tolist() == pytest.approx((frame.times - frame.paper).tolist())
    long = frame.assign(step=[0, 200, 1400, 1600])
    paper = beside_steps(long).paper
    assert paper[1] == pytest.approx(18.10 / 19.09) and paper[2] == pytest.approx(17.88 / 19.09)
    assert math.isnan(paper[3])  # beyond the paper's table
    second = beside_steps(frame.assign(dataset=["other", "wiki", "wiki", "wiki"]))
    assert second.paper[3] == pytest.approx(30.85 / 34.21)  # the second text stands beside PTB


def test_share_of_the_gain_is_found_between_two_steps():
    at = np.array([0.0, 5, 10, 20])
    losses = np.array([[4.0, 4.0, 4.0], [3.0, 4.0, 5.0], [2.0, 3.0, 6.0], [2.5, 2.0, 7.0]])
    assert reach(at, losses, 0.5).tolist() == pytest.approx([5.0, 10.0, 1e12])  # the last only rises
    assert reach(at, losses, 0.75)[0] == pytest.approx(7.5) and reach(at, losses, 1.0)[0] == 10


def test_amount_finds_the_true_step_and_says_how_sure_the_windows_are():
    found = amount(STEPS, WIKI, 0.9)
    means = np.array([[math.log(STEPS[step].perplexity["wiki"])] for step in CURVE])
    assert found.mean == pytest.approx(reach(np.array(list(CURVE), dtype=float), means, 0.9)[0])
    assert found.low < found.mean < found.high and found.low > 5 and found.high < 20
    few = {step: after(step, nll, evaluation=short(windows=8)) for step, nll in CURVE.items()}
    unsure = amount(few, WIKI, 0.9)
    assert unsure.high - unsure.low > 1.5 * (found.high - found.low)
    risen = {0: after(0, 3.5), 5: after(5, 3.6), 20: after(20, 3.7)}
    assert math.isinf(amount(risen, WIKI, 0.9).mean)
    with pytest.raises(ValueError, match="wanted one at 0 and two more"):
        amount({0: STEPS[0], 5: STEPS[5]}, WIKI, 0.9)


def test_paper_has_nine_tenths_of_its_gain_within_a_few_hundred_steps():
    assert paper_amount(0.9) == pytest.approx(
        200 + 200 * (0.9 * math.log(19.09 / 17.64) - math.log(19.09 / 18.10)) / math.log(18.10 / 17.69)
    )
    assert paper_amount(0.9, "ptb") < 400 < paper_amount(1.0) == 800


def test_modules_are_compared_with_all_of_them_draw_by_draw():
    words = {"all-linear": 0.0, "without-mlp": 0.03, "without-attention": 0.01}
    luck = (-0.2, 0.0, 0.2)  # of the instructions, the same for all
    groups = {
        word: [after(20, 3.1 + worse + luck[n], replace(RUN, seed=n, target_modules=word)) for n in range(3)]
        for word, worse in words.items()
    }
    frame = modules_frame(groups).set_index("modules")
    assert list(frame.index) == ["without-mlp", "without-attention"]
    assert frame.times["without-mlp"] == pytest.approx(math.exp(0.03), abs=0.04)
    assert frame.high["without-mlp"] - frame.low["without-mlp"] < 0.3  # the luck of the draws cancels
    assert frame.paper.tolist() == pytest.approx([17.64 / 17.36, 17.62 / 17.36])


def test_accuracy_on_the_way_is_a_share_of_the_dense_one():
    stops = [after(0, 3.5, accuracy=0.4), after(10, 3.15, accuracy=0.5), after(20, 3.1, accuracy=0.6)]
    frame = accuracy_frame(dense(accuracy=0.8), stops)
    assert frame.samples.tolist() == [0, 80, 160, 2.59e6]
    assert frame.ours[:3].is_monotonic_increasing and (frame.low <= frame.ours)[:3].all()
    assert frame.paper.tolist() == pytest.approx(
        [56.69 / 63.25, (59.68 + 59.31) / 2 / 63.25, 59.23 / 63.25, 62.36 / 63.25]
    )
    assert math.isnan(frame.ours[3]) and frame.n[0] == 60 * len(TASKS)
    untested = after(10, 3.0, evaluation=short(tasks=()))
    assert accuracy_frame(dense(), [untested]).empty
