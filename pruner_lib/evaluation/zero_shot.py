"""What is left of common sense: seven multiple-choice tasks by lm-eval (paper, section 4.1 and Table 1).

Prompts, metrics and standard errors are lm-eval's own; its other tasks can be asked too. `tasks` finds the
questions, `shared_context` makes scoring quick.
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

from pruner_lib.evaluation import tasks as asking
from pruner_lib.evaluation.meters import in_fitting_batches
from pruner_lib.evaluation.tasks import SEVEN_TASKS, TASKS, right_answer
from pruner_lib.files import text_hash
from pruner_lib.method.checks import require
from pruner_lib.method.decoder import check_reads
from pruner_lib.method.offload import evaluating

RESAMPLES = 1000  # of the bootstrap that lm-eval takes for metrics that are no mean


@dataclass(frozen=True)
class TaskScore:
    """One accuracy with what makes it comparable, as lm-eval computes it, and each question's scores.

    The scores of a question stand in the order of the split, for paired statistics. Where the right answers
    alone were scored, `correct`, `p_right` and `values` are empty, and `value` and `stderr` are nan. What a
    task does not have is empty too: only a choice with one right answer has `p_right`.
    """

    task: str
    metric: str  # of the seven the one that the paper reports, of others the task's first
    value: float  # of that metric: of a choice the share of right answers, in [0, 1]
    stderr: float  # over questions; nan for one question, and where lm-eval has none
    n: int  # questions answered
    correct: tuple[int, ...]  # 1 or 0 a question, by `metric`
    p_right: tuple[float, ...]  # softmax of the choices' summed log-likelihoods, at the right one
    bits_per_byte: tuple[float, ...]  # -log2 p(right answer | question) / its UTF-8 bytes, blank included
    values: dict[str, float]  # every metric of the task with its standard error, by lm-eval's names
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
    """Ask a model the paper's seven multiple-choice tasks, or any other of lm-eval, as lm-eval does.

    Args:    tasks: names of lm-eval's tasks and groups, or paths of task files (.yaml); of the seven the
             questions lie here, of others where their definitions say.    limit: so many questions of each
             split, None for all.    num_fewshot: solved examples before each question; None: as many as a
             task's definition says, of the seven none.    apply_chat_template: ask as a user in a chat.
             seed: of the random sample that `limit` takes; a larger limit extends the sample. None takes the
             first questions, which are no sample: splits are ordered.    batch_size: rows a forward pass;
             where memory runs out, all questions are put again with half of it, with a warning.
             add_bos: True puts the BOS token first, as Gemma and Llama 3 need; False doesn't, as the paper;
             None leaves it to the tokenizer, as lm-eval's command line does.    shared_context: score all
             choices of a question in one row, twice as fast and equal to 1e-4 nats in float32; where the
             model can't do that, and with False, each choice has a row, as in lm-eval.
             right_answers_only: bits per byte of the right answers and nothing else, in less time.
    Returns: task -> TaskScore, in the order of `tasks`. The tokenizer stays as it was.
    Raises:  ValueError: an unknown task; a limit below 1; a tokenizer without what is asked of it; no data in
             data directory, asset or hub; logits that are NaN or infinite; too little memory for one row.
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
    if apply_chat_template and (fault := _fault_of_template(tokenizer)):
        kind = type(tokenizer).__name__
        raise ValueError(f"apply_chat_template=True, but {kind} {fault}; set one or ask without")
    protocol = {"lm_eval": version("lm_eval"), "limit": limit, "add_bos": add_bos}
    protocol |= {} if None in (limit, seed) else {"seed": seed}
    protocol |= {"chat_template": text_hash(str(tokenizer.chat_template))} if apply_chat_template else {}
    check_reads(model, 0, getattr(tokenizer, "vocab_size", 0) - 1)
    how = {"add_bos_token": add_bos, "shared_context": shared_context}
    with asking.quiet(), evaluating(model):
        loaded = {name: task for one in tasks for name, task in asking.load_tasks(one).items()}
        asked = {name: asking.prepare(name, loaded[name], limit, seed, num_fewshot) for name in loaded}
        if right_answers_only:
            for name, task in asked.items():
                if right_answer(task, next(iter(task.eval_docs))) is None:
                    said = f"a question of {name} is no choice with one right answer; ask with False"
                    raise ValueError(f"right_answers_only=True, but {said}")
            how["wanted"] = lambda one: one.idx == right_answer(asked[one.task_name], one.doc)
        ask = partial(_ask, model, tokenizer, asked, apply_chat_template, how)
        answers = in_fitting_batches(ask, batch_size, "zero-shot")
    return {name: _score(name, asked[name], answers, protocol, right_answers_only) for name in asked}


def _fault_of_template(tokenizer: Any) -> str:
    """Say what is wrong with a tokenizer's chat template: it has none, or it shows no question; else ""."""
    if not getattr(tokenizer, "chat_template", None):
        return "has no chat template"
    try:
        shown = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    except Exception as error:  # what a template raises is its own
        return f"has a chat template that can't be used ({error})"
    return "" if "Why?" in shown else "has a chat template that leaves out what the user says"


def _ask(
    model: nn.Module, tokenizer: Any, asked: dict[str, Any], is_chat: bool, how: dict[str, Any], size: int
) -> dict[str, Any]:
    """Let lm-eval put the drawn questions: its own results."""
    from lm_eval.evaluator import evaluate

    from pruner_lib.evaluation.shared_context import ChoicesLM

    for task in asked.values():
        task.set_fewshot_seed(asking.FEWSHOT_SEED)
    subject = ChoicesLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=size, **how)
    chat = {"apply_chat_template": is_chat, "fewshot_as_multiturn": is_chat}
    try:
        with model.get_output_embeddings().register_forward_hook(_check_logits):
            return evaluate(subject, {"tasks": asked}, bootstrap_iters=RESAMPLES, **chat)
    except (AssertionError, AttributeError, LookupError, TypeError, ZeroDivisionError) as error:
        said = f"lm-eval can't ask or score {', '.join(asked)} ({error!r})"
        raise ValueError(f"{said}; mend the definition, or ask one task alone to see which it is") from error


def _check_logits(_head: nn.Module, _inputs: tuple, logits: Tensor) -> None:
    if not logits.sum(dtype=torch.float32).isfinite():
        said = "the model gives NaN or infinite logits, so its answers say nothing"
        raise ValueError(f"{said}; check its weights, or evaluate in float32")


def _score(
    name: str, task: Any, answers: dict[str, Any], protocol: dict[str, Any], right_answers_only: bool
) -> TaskScore:
    samples = answers["samples"][name]  # filter by filter of the answers, each in the order of the split
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    row = {key: value for key, value in answers["results"][name].items() if "," in key}
    row = {key: math.nan if value == "N/A" else float(value) for key, value in row.items()}
    own = f"{TASKS[name].metric},none" if name in TASKS else ""
    key = next(key for key in (own, *row) if key in row)  # "acc,none": a metric and a filter
    metric = key.removesuffix(",none")
    protocol = protocol | {
        "fewshot": task.config.num_fewshot,
        "metric": metric,
        "split": task.config.test_split or task.config.validation_split,
        "questions": text_hash("".join(one["prompt_hash"] + one["target_hash"] for one in samples)),
        "task_version": answers["versions"][name],
    }
    protocol |= {"doc_ids": text_hash(repr(task.numbers))} if "seed" in protocol else {}
    correct = [sample[key.partition(",")[0]] for sample in samples]
    correct = tuple(int(hit) for hit in correct) if all(hit in (0, 1) for hit in correct) else ()
    p_right, bits = _of_right_answers(task, samples)
    value, error = row[key], row.get(key.replace(",", "_stderr,"), math.nan)
    values = {name.removesuffix(",none"): number for name, number in row.items()}
    if right_answers_only:
        value, error, correct, p_right, values = math.nan, math.nan, (), (), {}
    return TaskScore(name, metric, value, error, len(samples), correct, p_right, bits, values, protocol)


def _of_right_answers(task: Any, samples: list[dict[str, Any]]) -> tuple[tuple[float, ...], ...]:
    """Compute p(right answer among the choices) and its bits per byte for each question, where it has one."""
    right = [right_answer(task, sample["doc"]) for sample in samples]
    if None in right:
        return (), ()
    p_right, bits = [], []
    for i, sample in zip(right, samples, strict=True):
        logs = [float(np.ravel(one)[0]) for one in sample["filtered_resps"]]
        bits.append(-logs[i] / math.log(2) / len(sample["arguments"][i][1].encode()))
        if task.OUTPUT_TYPE == "multiple_choice":
            n = len(task.doc_to_choice(sample["doc"]))  # some metrics ask for more
            p_right.append(float(softmax(logs[:n])[i]))
    return tuple(p_right), tuple(bits)
