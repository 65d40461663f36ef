"""What is kept is relative to the dense model, and nothing is called better inside the noise."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from pruner_lib.study.compare import contrasts, group_of, kept_frame, metrics_of, to_markdown
from pruner_lib.study.paper import Compared
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.records import MEAN, Metric, MetricName, Record
from pruner_lib.study.settings import Evaluation, Recovery

TINY = load_profile("tiny")
ONE = Compared("tiny", 0.3)
TEXT = MetricName("perplexity", "tiny", 16)
BOOLQ, PIQA = MetricName("accuracy", "boolq"), MetricName("accuracy", "piqa")
WINDOWS, QUESTIONS = 40, 200
HARD = np.random.default_rng(0).normal(
    3, 0.5, WINDOWS
)  # what is hard about each window, for all models alike


def text_record(method, draw=0, worse=0.0, **changes):
    nll = HARD + worse + 0.01 * np.random.default_rng([draw, len(method)]).normal(size=WINDOWS)
    metric = Metric(float(np.exp(nll.mean())), 1.0, WINDOWS, {"window": 16}, tuple(nll))
    return Record(ONE.ask(TINY, method, draw, **changes), {}, {TEXT: metric})


def answer_record(method, right, draw=0, **changes):
    evaluation = Evaluation(texts=(), tasks=("boolq", "piqa"), limit=QUESTIONS)
    answers = (np.arange(QUESTIONS) < right * QUESTIONS).astype(float)
    metric = Metric(float(answers.mean()), 0.03, QUESTIONS, {"limit": QUESTIONS}, tuple(answers))
    asked = ONE.ask(TINY, method, draw, evaluation=evaluation, **changes)
    return Record(asked, {}, {BOOLQ: metric, PIQA: metric})


NAMED = {
    "dense": [text_record("dense"), answer_record("dense", 0.8)],
    "element1": [*(text_record("element1", draw, 0.3) for draw in range(3)), answer_record("element1", 0.6)],
    "vector": [*(text_record("vector", draw, 0.301) for draw in range(3)), answer_record("vector", 0.6)],
    "l2": [text_record("l2", 0, 2.0), answer_record("l2", 0.4)],
}


def test_kept_is_a_multiple_of_the_dense_perplexity_and_a_share_of_its_accuracy_above_chance():
    found = kept_frame(NAMED).set_index(["name", "dataset"])
    assert found.ours["element1", "tiny"] == pytest.approx(math.exp(0.3), rel=0.02)
    assert found.draws["element1", "tiny"] == 3 and found.n["element1", "tiny"] == WINDOWS
    shares = {
        "element1": (0.6 - 0.5) / (0.8 - 0.5),
        "l2": (0.4 - 0.5) / (0.8 - 0.5),
    }  # both tasks: 0.5 by chance
    assert {name: found.ours[name, "mean"] for name in shares} == pytest.approx(shares)
    assert found.value["l2", "mean"] == pytest.approx(0.4) and found.n["l2", "mean"] == 2 * QUESTIONS
    assert (found.low < found.ours).all() and (found.ours < found.high).all()
    assert "dense" not in found.index.get_level_values("name")


def test_stages_are_rows_of_their_own():
    recovered = text_record("element1", 0, 0.1, recovery=Recovery(corpus="tiny"))
    found = kept_frame(NAMED | {"element1": [*NAMED["element1"], recovered]}).query("dataset == 'tiny'")
    times = found[found.name == "element1"].set_index("stage").ours
    assert list(times.index) == ["pruned", "recovered"] and times["recovered"] < times["pruned"]


def test_paper_is_relative_to_its_own_dense_model_and_absent_rows_are_empty():
    known = pd.DataFrame(
        [("dense", "dense", 10.0), ("element1", "pruned", 15.0)], columns=["name", "stage", "value"]
    ).assign(metric="perplexity/wikitext2@128")
    found = kept_frame(NAMED, known).set_index(["name", "dataset"])
    assert found.paper["element1", "tiny"] == 1.5
    assert found.difference["element1", "tiny"] == found.ours["element1", "tiny"] - 1.5
    assert math.isnan(found.paper["l2", "tiny"]) and math.isnan(found.paper["element1", "mean"])
    means = pd.DataFrame(
        [("dense", "dense", 0.6325), ("element1", "pruned", 0.5669)], columns=["name", "stage", "value"]
    ).assign(metric="accuracy/mean")
    chance = (3 * 0.5 + 4 * 0.25) / 7
    found = kept_frame(NAMED, means).set_index(["name", "dataset"])
    assert found.paper["element1", "mean"] == pytest.approx((0.5669 - chance) / (0.6325 - chance))


def test_share_of_nothing_is_no_number():
    named = {"dense": [answer_record("dense", 0.5)], "l2": [answer_record("l2", 0.4)]}
    found = kept_frame(named).set_index("dataset")
    assert found.ours.isna().all() and np.isinf(found.low).all() and found.value["mean"] == pytest.approx(0.4)


def test_bits_and_probabilities_have_their_own_measure():
    def record_of(method, kind, value):
        name, values = MetricName(kind, "piqa"), np.linspace(value - 0.1, value + 0.1, QUESTIONS)
        return Record(ONE.ask(TINY, method), {}, {name: Metric(value, 0.01, QUESTIONS, {}, tuple(values))})

    for kind, share, better in (
        ("p_right", (0.6 - 0.5) / (0.7 - 0.5), "a"),
        ("bits_per_byte", 0.6 / 0.7, "b"),
    ):
        named = {"dense": [record_of("dense", kind, 0.7)], "l2": [record_of("l2", kind, 0.6)]}
        row = kept_frame(named).iloc[0]
        assert (row.metric, row.dataset) == (kind, "mean") and row.ours == pytest.approx(share)
        gap = contrasts(named | {"worse": [record_of("random", kind, 0.5)]}, [("l2", "worse")]).iloc[0]
        assert gap.difference == pytest.approx(0.1) and gap.better == better


def test_missing_dense_measurement_is_an_error():
    with pytest.raises(ValueError, match=r"the dense model has no perplexity/tiny@16; measure it like l2"):
        kept_frame({"l2": NAMED["l2"]})


def test_large_differences_are_said_and_small_ones_are_not():
    found = contrasts(NAMED, [("element1", "l2"), ("vector", "element1"), ("l2", "element1")])
    better = found.set_index(["a", "b", "metric"]).better
    assert better["element1", "l2", "perplexity"] == "a" and better["l2", "element1", "perplexity"] == "b"
    assert better["element1", "l2", "accuracy"] == "a" and better["l2", "element1", "accuracy"] == "b"
    assert better["vector", "element1", "perplexity"] == "" == better["vector", "element1", "accuracy"]
    sentences = to_markdown(found)
    assert "**element1 is better than l2** in perplexity on tiny (element1 - l2: -1.699 [" in sentences
    assert "**element1 is better than l2** in accuracy, mean (l2 - element1: -20.0 [" in sentences
    assert "vector and element1 do not differ clearly in accuracy, mean (+0.0 [" in sentences


def test_dense_model_can_be_one_of_a_pair_at_every_stage():
    found = contrasts(NAMED, [("l2", "dense")])
    assert found.metric.tolist() == ["perplexity", "accuracy"] and found.better.tolist() == ["b", "b"]
    recovered = {"l2": [text_record("l2", 0, 0.1, recovery=Recovery(corpus="tiny"))], "dense": NAMED["dense"]}
    assert contrasts(recovered, [("l2", "dense")], stage="recovered").better.tolist() == ["b"]
    assert contrasts(recovered, [("l2", "dense")]).empty  # it was not measured pruned


def test_more_pairs_make_wider_intervals():
    pairs = [("element1", "vector"), ("element1", "l2"), ("vector", "l2")]
    one, many = contrasts(NAMED, pairs[:1]), contrasts(NAMED, pairs)
    assert many.low[0] < one.low[0] and many.high[0] > one.high[0]


def test_metrics_come_in_order_and_groups_hold_only_who_has_them():
    assert metrics_of(NAMED["l2"]) == [TEXT, MEAN, BOOLQ, PIQA]
    assert metrics_of(NAMED["l2"], tasks=False) == [TEXT, MEAN]
    group = group_of(NAMED["vector"][::-1], TEXT)
    assert [record.experiment.calibration.seed for record in group] == [0, 1, 2]
    assert len(group_of(NAMED["vector"], MEAN)) == 1
    assert group_of(NAMED["vector"], MEAN, "recovered") == ()
