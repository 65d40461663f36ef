"""Measure zero-shot accuracy on seven multiple-choice tasks with lm-eval (paper, section 4.1 and Table 1).

Prompts, metrics and standard errors are lm-eval's own; its other tasks work too. `tasks` loads the questions,
`shared_context` makes scoring fast.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pruner_lib.evaluation import tasks as lm_tasks
from pruner_lib.evaluation.meters import in_fitting_batches
from pruner_lib.evaluation.tasks import SEVEN_TASKS, TASKS, right_answer
from pruner_lib.files import text_hash
from pruner_lib.method.checks import require
from pruner_lib.method.decoder import check_reads
from pruner_lib.method.offload import evaluating

RESAMPLES = 1000  # of lm-eval's bootstrap, for metrics that are not a mean


@dataclass(frozen=True)
class TaskScore:
    """The metric of a task as lm-eval computes it, the scores of each question, and the protocol.

    Scores of questions are in the order of the split, for paired statistics. If only the right answers were
    scored, `correct`, `p_right` and `values` are empty, and `value` and `stderr` are nan. Scores that a task
    does not have are empty, too: only multiple choice with one right answer has `p_right`.
    """

    task: str
    metric: str  # for the seven the one that the paper reports, otherwise the task's first
    value: float  # of the metric; accuracy is in [0, 1]
    stderr: float  # over questions; nan for one question or if lm-eval has none
    n: int  # number of questions
    correct: tuple[int, ...]  # 1 or 0 per question, by `metric`
    p_right: tuple[float, ...]  # softmax over the choices' summed log-likelihoods, at the right one
    bits_per_byte: tuple[float, ...]  # -log2 p(right answer | question) / its UTF-8 bytes, with leading space
    values: dict[str, float]  # every metric of the task and its standard error, by lm-eval's names
    protocol: dict[str, Any]  # versions, metric, split, hash of the questions, limit, fewshot, add_bos


def zero_shot(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str | Path] = SEVEN_TASKS,
    limit: int | None = None,
    *,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    seed: int | None = 0,
    batch_size: int = 8,
    add_bos: bool | None = False,
    shared_context: bool = True,
    right_answers_only: bool = False,
) -> dict[str, TaskScore]:
    """Evaluate a model as lm-eval does, on the paper's seven multiple-choice tasks or any other task.

    Args:    tasks: names of lm-eval tasks and groups, or paths of task files (.yaml). Questions of the seven
             are included; others are downloaded as their definitions say.    limit: questions per task, None
             for all.    num_fewshot: examples before each question; None: the number in the
             task's definition, 0 for the seven.    apply_chat_template: ask as the user of a chat.
             seed: of the random sample that `limit` takes; a larger limit extends the sample. None takes the
             first questions, which is no random sample, since splits are ordered.    batch_size: rows per
             forward pass; if memory runs out, everything is evaluated again with half of it, with a warning.
             add_bos: True puts the BOS token first, as Gemma and Llama 3 need; False doesn't, as the paper;
             None leaves it to the tokenizer, as lm-eval's command line does.    shared_context: score all
             choices of a question in one row, which is twice as fast and equal to 1e-4 nats in float32; with
             False, or if the model does not support it, each choice has its own row, as in lm-eval.
             right_answers_only: compute only the bits per byte of the right answers, in less time.
    Returns: task -> TaskScore, in the order of `tasks`. The tokenizer is not changed.
    Raises:  ValueError: a task is unknown, `limit` is below 1, a BOS token, a chat template or data is
             missing, logits are not finite, or memory is too small for one row.
    Source:  paper, section 4.1; the metric of each task as inferred from Table 1. Differs: a newer lm-eval.
    """
    if missing := [name for name in ("lm_eval", "datasets") if find_spec(name) is None]:
        raise ValueError(f"zero_shot needs {' and '.join(missing)}: `pip install pruner-lib[eval]`")
    require(nn.Module, model=model)
    require(PreTrainedTokenizerBase, tokenizer=tokenizer)
    require("1.. or None", limit=limit)
    require("0.. or None", seed=seed, num_fewshot=num_fewshot)
    require("1..", batch_size=batch_size)
    tasks = [tasks] if isinstance(tasks, (str, Path)) else tasks
    require([os.PathLike], tasks=tasks)
    require((True, False, None), add_bos=add_bos)
    require(bool, shared_context=shared_context, right_answers_only=right_answers_only)
    require(bool, apply_chat_template=apply_chat_template)
    if apply_chat_template and (fault := _template_fault(tokenizer)):
        kind = type(tokenizer).__name__
        raise ValueError(f"apply_chat_template=True, but {kind} {fault}; set another template or use False")
    protocol = {"lm_eval": version("lm_eval"), "limit": limit, "add_bos": add_bos}
    protocol |= {} if None in (limit, seed) else {"seed": seed}
    protocol |= {"chat_template": text_hash(str(tokenizer.chat_template))} if apply_chat_template else {}
    check_reads(model, 0, getattr(tokenizer, "vocab_size", 0) - 1)
    options = {"add_bos_token": add_bos, "shared_context": shared_context}
    with lm_tasks.quiet(), evaluating(model):
        loaded = {name: task for entry in tasks for name, task in lm_tasks.load_tasks(entry).items()}
        drawn = {name: lm_tasks.prepare(name, loaded[name], limit, seed, num_fewshot) for name in loaded}
        if right_answers_only:
            for name, task in drawn.items():
                if right_answer(task, next(iter(task.eval_docs))) is None:
                    fault = f"{name} has questions without a single right answer; use False"
                    raise ValueError(f"right_answers_only=True, but {fault}")
            options["wanted"] = lambda item: item.idx == right_answer(drawn[item.task_name], item.doc)
        run = partial(_evaluate, model, tokenizer, drawn, apply_chat_template, options)
        answers = in_fitting_batches(run, batch_size, "zero-shot")
    return {name: _score(name, drawn[name], answers, protocol, right_answers_only) for name in drawn}


def _template_fault(tokenizer: Any) -> str:
    """Describe what is wrong with a tokenizer's chat template; "" if it shows the user's message."""
    if not getattr(tokenizer, "chat_template", None):
        return "has no chat template"
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    except Exception as error:  # a template may raise anything
        return f"has a chat template that can't be used ({error})"
    return "" if "Why?" in text else "has a chat template that omits the user's message"


def _evaluate(
    model: nn.Module, tokenizer: Any, tasks: dict[str, Any], is_chat: bool, options: dict[str, Any], size: int
) -> dict[str, Any]:
    """Evaluate a model on the drawn questions and return lm-eval's results."""
    from lm_eval.evaluator import evaluate

    from pruner_lib.evaluation.shared_context import ChoicesLM

    for task in tasks.values():
        task.set_fewshot_seed(lm_tasks.FEWSHOT_SEED)
    subject = ChoicesLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=size, **options)
    chat = {"apply_chat_template": is_chat, "fewshot_as_multiturn": is_chat}
    try:
        with model.get_output_embeddings().register_forward_hook(_check_logits):
            return evaluate(subject, {"tasks": tasks}, bootstrap_iters=RESAMPLES, **chat)
    except (AssertionError, AttributeError, LookupError, TypeError, ZeroDivisionError) as error:
        message = f"lm-eval can't ask or score {', '.join(tasks)} ({error!r})"
        raise ValueError(f"{message}; fix the definition, or evaluate tasks singly to find it") from error


def _check_logits(_head: nn.Module, _inputs: tuple, logits: Tensor) -> None:
    if not logits.sum(dtype=torch.float32).isfinite():
        message = "the model gives NaN or infinite logits, so its answers are meaningless"
        raise ValueError(f"{message}; check its weights, or evaluate in float32")


def _score(
    name: str, task: Any, answers: dict[str, Any], protocol: dict[str, Any], right_answers_only: bool
) -> TaskScore:
    samples = answers["samples"][name]  # for each filter of the answers, in the order of the split
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    row = {key: value for key, value in answers["results"][name].items() if "," in key}
    row = {key: math.nan if value == "N/A" else float(value) for key, value in row.items()}
    paper_metric = f"{TASKS[name].metric},none" if name in TASKS else ""
    key = next(key for key in (paper_metric, *row) if key in row)  # "acc,none": a metric and a filter
    metric = key.removesuffix(",none")
    protocol = protocol | {
        "fewshot": task.config.num_fewshot,
        "metric": metric,
        "split": task.config.test_split or task.config.validation_split,
        "questions": text_hash("".join(sample["prompt_hash"] + sample["target_hash"] for sample in samples)),
        "task_version": answers["versions"][name],
    }
    protocol |= {"doc_ids": text_hash(repr(task.numbers))} if "seed" in protocol else {}
    correct = [sample[key.partition(",")[0]] for sample in samples]
    correct = tuple(int(hit) for hit in correct) if all(hit in (0, 1) for hit in correct) else ()
    p_right, bits = _score_right_answers(task, samples)
    value, error = row[key], row.get(key.replace(",", "_stderr,"), math.nan)
    values = {name.removesuffix(",none"): number for name, number in row.items()}
    if right_answers_only:
        value, error, correct, p_right, values = math.nan, math.nan, (), (), {}
    return TaskScore(name, metric, value, error, len(samples), correct, p_right, bits, values, protocol)


def _score_right_answers(task: Any, samples: list[dict[str, Any]]) -> tuple[tuple[float, ...], ...]:
    """Compute p(right answer among the choices) and its bits per byte for each question, if it has one."""
    right = [right_answer(task, sample["doc"]) for sample in samples]
    if None in right:
        return (), ()
    p_right, bits = [], []
    for i, sample in zip(right, samples, strict=True):
        logs = [float(np.ravel(response)[0]) for response in sample["filtered_resps"]]
        bits.append(-logs[i] / math.log(2) / len(sample["arguments"][i][1].encode()))
        if task.OUTPUT_TYPE == "multiple_choice":
            n = len(task.doc_to_choice(sample["doc"]))  # some metrics add requests
            p_right.append(float(softmax(logs[:n])[i]))
    return tuple(p_right), tuple(bits)
