"""What is measured of a model: its perplexity on a text and its answers to the questions of a task."""

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


def measure_text(text: str, ids: Tensor, evaluation: Evaluation, model: Any, tokenizer: Any) -> Metrics:
    """Measure the perplexity on a text, and record the protocol on which comparisons depend.

    Args:    ids: the windows of the text, `(windows, length)` int64.
    """
    result = perplexity_result(model, ids)
    protocol = {"metric": "perplexity", "corpus_hash": corpus_hash(ids)}
    protocol |= {"window": evaluation.length, "stride": evaluation.length}
    bos = has_bos(tokenizer, evaluation.bos)
    protocol["bos"] = {True: "text", False: "none"}.get(bos, bos)
    protocol |= {"tokenizer_hash": tokenizer_hash(tokenizer), "dtype": _dtype(model)}
    if evaluation.seed is not None:
        protocol |= {"stride": "one window an article", "seed": evaluation.seed}
    metric = Metric(result.value, result.stderr, len(ids), protocol, _rounded(result.nll.tolist()))
    return {MetricName("perplexity", text, evaluation.length): metric}


def measure_task(task: str, evaluation: Evaluation, model: Any, tokenizer: Any) -> Metrics:
    """Measure the answers to a task: accuracy and probabilities, or only bits per byte of the right ones."""
    options = {name: getattr(evaluation, name) for name in ("limit", "seed", "right_answers_only")}
    with contextlib.redirect_stderr(io.StringIO()):  # lm-eval's progress bars can't be turned off
        score = zero_shot(model, tokenizer, (task,), **options)[task]
    protocol = score.protocol | {"dtype": _dtype(model)}
    if evaluation.right_answers_only:
        return {MetricName("bits_per_byte", task): _mean(score.bits_per_byte, protocol, "bits_per_byte")}
    accuracy = Metric(score.value, score.stderr, score.n, protocol, score.correct)
    metrics = {MetricName("accuracy", task): accuracy}
    if evaluation.seed is not None:
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
