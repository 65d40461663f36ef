"""What is measured of a model: its perplexity on a text, its answers to the questions of a task."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pruner_lib.data.windows import corpus_hash, has_bos
from pruner_lib.evaluation.int8 import is_quantised
from pruner_lib.evaluation.perplexity import perplexity_result
from pruner_lib.evaluation.zero_shot import zero_shot
from pruner_lib.study.records import Metric, MetricName, Metrics
from pruner_lib.study.results import tokenizer_hash
from pruner_lib.study.settings import Evaluation


def measure_text(text: str, ids: Tensor, how: Evaluation, model: Any, tokenizer: Any) -> Metrics:
    """Measure the perplexity on a text, with the protocol that makes it comparable.

    Args:    ids: the windows of the text, `(windows, length)` int64.
    """
    result = perplexity_result(model, ids)
    protocol = {"metric": "perplexity", "corpus_hash": corpus_hash(ids)}
    protocol |= {"window": how.length, "stride": how.length}
    bos = has_bos(tokenizer, how.bos)
    protocol["bos"] = {True: "text", False: "none"}.get(bos, bos)
    protocol |= {"tokenizer_hash": tokenizer_hash(tokenizer), "dtype": _dtype(model)}
    if how.seed is not None:
        protocol |= {"stride": "one window an article", "seed": how.seed}
    metric = Metric(result.value, result.stderr, len(ids), protocol, _rounded(result.nll.tolist()))
    return {MetricName("perplexity", text, how.length): metric}


def measure_task(task: str, how: Evaluation, model: Any, tokenizer: Any) -> Metrics:
    """Measure answers: accuracy and probabilities or, of the right ones alone, bits per byte."""
    with contextlib.redirect_stderr(io.StringIO()):  # lm-eval draws bars that can't be turned off
        asked = {"limit": how.limit, "seed": how.seed, "right_answers_only": how.right_answers_only}
        score = zero_shot(model, tokenizer, (task,), **asked)[task]
    protocol = score.protocol | {"dtype": _dtype(model)}
    if how.right_answers_only:
        return {MetricName("bits_per_byte", task): _mean(score.bits_per_byte, protocol, "bits_per_byte")}
    accuracy = Metric(score.value, score.stderr, score.n, protocol, score.correct)
    metrics = {MetricName("accuracy", task): accuracy}
    if how.seed is not None:
        metrics[MetricName("p_right", task)] = _mean(score.p_right, protocol, "p_right")
    return metrics


def _mean(values: Sequence[float], protocol: dict[str, Any], metric: str) -> Metric:
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Metric(float(np.mean(values)), error, len(values), protocol | {"metric": metric}, _rounded(values))


def _dtype(model: Any) -> str:
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"int8 linear, else {dtype}" if is_quantised(model) else dtype


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
