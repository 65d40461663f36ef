"""Records made up by hand, whose true effects are known: quick to make, and in the form of measured ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pruner_lib.study.records import Metric, MetricName, Record
from pruner_lib.study.settings import Calibration, Evaluation, Experiment, Recovery

TASKS = ("piqa", "boolq")
EVALUATION = Evaluation(texts=("wiki",), windows=64, length=128, tasks=TASKS, limit=60)
RECOVERY = Recovery(corpus="instructlab", steps=20)
HARD = np.random.default_rng(5)
WINDOWS = HARD.normal(0, 0.5, 64)  # how hard each window is
QUESTIONS = {task: HARD.random(60) for task in TASKS}  # a question is answered by models better than this


def record(nll=3.0, accuracy=0.6, *, draw=None, evaluation=EVALUATION, history=(), plan=None, **settings):
    """Make the record of an experiment on the model "m" with a true NLL a token and a true accuracy.

    Args:    draw: the seed of the calibration; it moves the NLL by its own small amount.
             settings: fields of `Experiment`, and `sparsity`.
    """
    sparsity = settings.pop("sparsity", 0.2)
    criterion = settings.get("criterion", "element1")
    if criterion == "random":
        settings["seed"] = draw or 0
    asked = Experiment(
        **{"model": "m", "evaluation": evaluation, "calibration": Calibration(seed=draw)} | settings
    ).canonical()
    noise = np.random.default_rng([draw or 0, int(1000 * nll)])
    values = (
        nll
        + WINDOWS[: evaluation.windows]
        + noise.normal(0, 0.02)
        + noise.normal(0, 0.02, evaluation.windows)
    )
    protocol = {"window": evaluation.length, "corpus_hash": f"{evaluation.windows} windows"}
    metrics = {
        MetricName("perplexity", text, evaluation.length): Metric(
            float(np.exp(values.mean())), 0.1, len(values), protocol, tuple(values)
        )
        for text in evaluation.texts
    }
    for task in evaluation.tasks:
        correct = tuple((QUESTIONS[task][: evaluation.limit] < accuracy).astype(float))
        metrics[MetricName("accuracy", task)] = Metric(
            float(np.mean(correct)), 0.05, len(correct), {"metric": "acc", "limit": evaluation.limit}, correct
        )
    left = {"parameters_dense": 1000, "parameters": round(1000 * (1 - sparsity)), "sparsity": sparsity}
    return Record(asked, (plan or {}) | left, metrics, tuple(history))


def dense(nll=2.8, accuracy=0.7, **settings):
    """Make the record of the whole model."""
    return record(nll, accuracy, ratio=0, criterion="none", sparsity=0.0, **settings)


def draws(nll=3.0, accuracy=0.6, n=3, **settings):
    """Make the records of n draws."""
    return [record(nll, accuracy, draw=draw, **settings) for draw in range(n)]


def short(**changes):
    """Give the evaluation with some changes."""
    return replace(EVALUATION, **changes)
