"""Measure the model of an experiment: every number with the protocol that makes it comparable.

How perplexity and accuracy are computed is known to `evaluation` and `harness`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pruner_lib.experiments.experiment import Evaluation, Experiment, settings_key
from pruner_lib.experiments.records import Metric, metric_from
from pruner_lib.experiments.stages import Bench, begins_with_bos, evaluation_ids, model_hash
from pruner_lib.experiments.storage import read_json, write_json
from pruner_lib.experiments.subjects import Subject


def evaluate(asked: Experiment, subject: Subject, bench: Bench) -> dict[str, Metric]:
    """Measure a model on every text and task of an experiment, but not what was measured before a kill.

    Returns: "perplexity/wiki@128", "accuracy/boolq" -> Metric.
    """
    wanted, path = asked.evaluation, partial_path(asked, bench)
    saved = read_json(path) if path.is_file() else {}
    steps = {f"perplexity/{text}@{wanted.length}": (perplexity_metric, text) for text in wanted.texts}
    steps |= {f"accuracy/{task}": (_accuracy, task) for task in wanted.tasks}
    for name, (measure, dataset) in steps.items():
        if name not in saved:
            start = time.perf_counter()
            metric = asdict(measure(dataset, wanted, subject))
            saved[name] = {"metric": metric, "seconds": time.perf_counter() - start}
            write_json(path, saved)
    bench.seconds["evaluate"] = sum(saved[name]["seconds"] for name in steps)
    return {name: metric_from(saved[name]["metric"]) for name in steps}


def partial_path(asked: Experiment, bench: Bench) -> Path:
    """Tell where the metrics of an unfinished experiment lie."""
    return bench.cache(f"partial-{settings_key([asked.key, model_hash(asked.model)])}.json")


def perplexity_metric(text: str, asked: Evaluation, subject: Subject) -> Metric:
    """Measure the perplexity on one text of an evaluation."""
    from pruner_lib.inputs.data import corpus_hash
    from pruner_lib.measuring.evaluation import perplexity_result

    ids = evaluation_ids(asked, text, subject.tokenizer)  # (windows, length)
    found = perplexity_result(subject.model, ids)
    protocol = {
        "metric": "perplexity",
        "corpus_hash": corpus_hash(ids),
        "window": asked.length,
        "stride": asked.length,
        "bos": "text" if begins_with_bos(asked, subject.tokenizer) else "none",
        "tokenizer_hash": tokenizer_hash(subject.tokenizer),
        "dtype": _dtype(subject.model),
    }
    return Metric(
        found.value, found.stderr, len(ids), protocol, tuple(round(float(nll), 6) for nll in found.nll)
    )


def _accuracy(task: str, asked: Evaluation, subject: Subject) -> Metric:
    from pruner_lib.measuring.harness import zero_shot

    with contextlib.redirect_stderr(io.StringIO()):  # lm-eval draws bars that can't be turned off
        score = zero_shot(subject.model, subject.tokenizer, tasks=(task,), limit=asked.limit)[task]
    protocol = score.protocol | {"dtype": _dtype(subject.model)}
    return Metric(score.value, score.stderr, score.n, protocol, tuple(score.correct))


def tokenizer_hash(tokenizer: Any) -> str:
    """Name a tokenizer by a hash of its vocabulary; two with the same ids for all tokens have the same."""
    text = repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _dtype(model: Any) -> str:
    from pruner_lib.measuring.quantisation import is_quantised

    name = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"int8 linear, else {name}" if is_quantised(model) else name
