"""What is left of common sense: seven multiple-choice tasks by lm-eval (paper, section 4.1 and Table 1).

Prompts, metrics and standard errors are lm-eval's own. Here its task files are pointed at local data, where
there is some, questions are drawn, and the paper's metric is picked; `shared_context` makes scoring quick.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.special import softmax
from torch import nn

from pruner_lib.data.assets import fetch
from pruner_lib.data.corpora import local_questions, read_requests
from pruner_lib.evaluation.meters import in_fitting_batches
from pruner_lib.files import content_hash
from pruner_lib.method.checks import require
from pruner_lib.method.offload import evaluating


@dataclass(frozen=True)
class Task:
    """One task: lm-eval's definition, the paper's metric, and its place in the asset `tasks`."""

    definition: str  # below lm_eval/tasks, without .yaml
    metric: str  # "acc", or "acc_norm": log-likelihoods divided by the lengths of the choices
    folder: str  # in the asset; holds a .arrow file with the hub's columns or a .gz file of scored requests
    chance: float  # share of right answers by guessing; a few questions of ARC have 3 or 5 choices

    @property
    def split(self) -> str:
        return "test" if self.folder.endswith("/test_rc_5shot") else "validation"


TASKS = {
    "boolq": Task("super_glue/boolq/default", "acc", "oe_eval_tasks/boolq/rc_0shot", 0.5),
    "piqa": Task("piqa/piqa", "acc", "hf_datasets/piqa/plain_text/validation", 0.5),
    "hellaswag": Task("hellaswag/hellaswag", "acc_norm", "hf_datasets/hellaswag/none/validation", 0.25),
    "winogrande": Task("winogrande/default", "acc", "hf_datasets/winogrande/winogrande_xl/validation", 0.5),
    "arc_easy": Task("arc/arc_easy", "acc", "oe_eval_tasks/arc_easy/test_rc_5shot", 0.25),
    "arc_challenge": Task("arc/arc_challenge", "acc_norm", "oe_eval_tasks/arc_challenge/test_rc_5shot", 0.25),
    "openbookqa": Task("openbookqa/openbookqa", "acc_norm", "oe_eval_tasks/openbookqa/test_rc_5shot", 0.25),
}
SEVEN_TASKS = tuple(TASKS)
CHANCES = {name: task.chance for name, task in TASKS.items()}
CHANCE = sum(CHANCES.values()) / len(CHANCES)  # of the mean of the seven


@dataclass(frozen=True)
class TaskScore:
    """One accuracy with what makes it comparable, as lm-eval computes it, and each question's scores.

    The scores of a question stand in the order of the split, for paired statistics. Where the right answers
    alone were scored, `correct`, `p_right` and `values` are empty, and `value` and `stderr` are nan.
    """

    task: str
    metric: str  # "acc" or "acc_norm": which of the values the paper reports
    value: float  # share of right answers, in [0, 1]
    stderr: float  # of the mean over questions, nan for one question
    n: int  # questions answered
    correct: tuple[int, ...]  # 1 or 0 a question, by `metric`
    p_right: tuple[float, ...]  # softmax of the choices' summed log-likelihoods, at the right one
    bits_per_byte: tuple[float, ...]  # -log2 p(right answer | question) / its UTF-8 bytes, blank included
    values: dict[str, float]  # every metric of the task with its standard error, by lm-eval's names
    protocol: dict[str, Any]  # versions, metric, split, hash of the questions, limit, fewshot, add_bos


def find_data(task: str) -> Path | None:
    """Find a task's questions: `tasks/<task>.jsonl` in the data directory, the asset, or nowhere (None)."""
    if local := local_questions(task):
        return local
    try:
        files = sorted((fetch("tasks") / TASKS[task].folder).glob("*"))
    except ValueError as error:  # no network; the hub's own cache may still hold the data
        logging.getLogger(__name__).warning("%s: falling back to the Hugging Face hub (%s)", task, error)
        return None
    return next((path for path in files if path.suffix in (".arrow", ".gz")), None)


def write_definition(task: str, data: Path | None, folder: Path) -> Path:
    """Write a task file that is lm-eval's own but for where its data come from.

    Args:    task: one of TASKS.    data: its questions, None for the hub.    folder: where to write.
    Returns: the YAML file; lm-eval's command line takes it too while `folder` and `data` exist.
    """
    import lm_eval.tasks

    spec = TASKS[task]
    base = Path(lm_eval.tasks.__file__).parent / f"{spec.definition}.yaml"
    settings: dict[str, Any] = {"include": str(base), "task": task}
    if data is not None:
        if data.suffix == ".gz":
            lines = [json.dumps(row) + "\n" for row in read_requests(task, data)]
            data = folder / f"{task}.jsonl"
            data.write_text("".join(lines), encoding="utf-8")
        settings |= {
            "dataset_path": "arrow" if data.suffix == ".arrow" else "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {spec.split: str(data)}, "cache_dir": str(folder / "cache")},
        }
        settings |= {f"{split}_split": None for split in ("training", "validation", "test")}
        settings[f"{spec.split}_split"] = spec.split
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def zero_shot(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str] = SEVEN_TASKS,
    limit: int | None = None,
    *,
    seed: int | None = 0,
    batch_size: int = 8,
    add_bos: bool = False,
    shared_context: bool = True,
    right_answers_only: bool = False,
) -> dict[str, TaskScore]:
    """Ask a model multiple-choice questions without examples, by lm-eval's own tasks.

    Args:    tasks: names out of TASKS.    limit: so many questions of each split, None for all.
             seed: of the random sample that `limit` takes; a larger limit extends the sample. None takes the
             first questions, which are no sample: splits are ordered.    batch_size: rows a forward pass;
             where memory runs out, all questions are put again with half of it, with a warning.
             add_bos: put the BOS token first; the paper doesn't.    shared_context: score all choices of a
             question in one row, twice as fast and equal to 1e-4 nats in float32; where the model can't do
             that, and with False, each choice has a row, as in lm-eval.    right_answers_only: bits per byte
             of the right answers and nothing else, in less time.
    Returns: task -> TaskScore, in the order of `tasks`.
    Raises:  ValueError: an unknown task; a limit below 1; no data in data directory, asset or hub; logits
             that are NaN or infinite; too little memory for a single row.
    Source:  paper, section 4.1; the metric of each task as inferred from Table 1. Differs: a newer lm-eval.
    """
    require(nn.Module, model=model)
    require(Callable, tokenizer=tokenizer)
    require([tuple(TASKS)], tasks=tasks)
    require("1.. or None", limit=limit)
    require("0.. or None", seed=seed)
    require("1..", batch_size=batch_size)
    protocol = {"lm_eval": version("lm_eval"), "fewshot": 0, "limit": limit, "add_bos": add_bos}
    if limit is not None and seed is not None:
        protocol |= {"seed": seed}
    way = {"add_bos_token": add_bos, "shared_context": shared_context}
    with quiet(), evaluating(model):
        files = {task: find_data(task) for task in tasks}
        drawn = {t: drawn_questions(t, f, f and content_hash(f), limit, seed) for t, f in files.items()}
        loaded = {task: one for task, (one, _) in drawn.items()}
        ask = partial(_ask, model, tokenizer, loaded, right_answers_only, way)
        answers = in_fitting_batches(ask, batch_size, "zero-shot")
    return {task: _score(task, *drawn[task], answers, protocol, right_answers_only) for task in tasks}


def _ask(
    model: nn.Module, tokenizer: Any, loaded: dict[str, Any], right_answers_only: bool, way: dict[str, bool],
    batch_size: int,
) -> dict[str, Any]:  # fmt: skip
    """Let lm-eval score the choices of all questions: its own results."""
    from lm_eval.evaluator import evaluate

    from pruner_lib.evaluation.shared_context import ChoicesLM

    def is_wanted(request: Any) -> bool:
        return not right_answers_only or request.idx == right_answer(loaded[request.task_name], request.doc)

    settings = way | {"backend": "causal", "batch_size": batch_size, "wanted": is_wanted}
    subject = ChoicesLM(pretrained=model, tokenizer=tokenizer, **settings)
    # the standard error of a mean needs no bootstrap, but lm-eval gives none at 0 iterations
    return evaluate(subject, {"tasks": loaded}, bootstrap_iters=1)


@lru_cache(maxsize=64)
def drawn_questions(
    task: str, data: Path | None, content: str | None, limit: int | None, seed: int | None
) -> tuple[Any, list[int]]:
    """Load a task that holds the drawn questions alone; once a process, for many models answer the same.

    Args:    content: the hash of `data`, by which it is known again.
    Returns: lm-eval's task, and the numbers of its questions in the split.
    """
    scratch = tempfile.TemporaryDirectory(prefix="pruner_lib-")
    loaded = load_task(task, data, Path(scratch.name))
    loaded.scratch = scratch  # its files are there as long as the task is
    rows = loaded.dataset[TASKS[task].split]
    numbers = list(range(len(rows)))[:limit] if limit is None or seed is None else draw(loaded, limit, seed)
    loaded.dataset[TASKS[task].split] = rows.select(numbers)
    return loaded, numbers


def draw(task: Any, limit: int, seed: int) -> list[int]:
    """Draw questions of a split: sorted numbers, `limit` of them or all."""
    return sorted(np.random.default_rng(seed).permutation(len(task.eval_docs))[:limit].tolist())


def right_answer(task: Any, document: dict[str, Any]) -> int:
    """Read the number of the right choice, as lm-eval's metrics do (WinoGrande's contexts differ)."""
    answer = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    return answer if isinstance(answer, int) else task.doc_to_choice(document).index(answer)


def load_task(task: str, data: Path | None, folder: Path) -> Any:
    """Load lm-eval's task over the questions in `data`; see `write_definition`."""
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    try:
        definition = str(write_definition(task, data, folder))
        loaded = TaskManager(include_defaults=False).load(definition)["tasks"][task]
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        if data is not None:
            raise ValueError(f"{data} holds no questions of {task} ({error!r}); mend or delete it") from error
        raise ValueError(
            f"no questions for {task}: no tasks/{task}.jsonl in PRUNER_LIB_DATA, none in asset 'tasks', and "
            f"the hub gave {error!r}; run `python -m pruner_lib.data.assets` with a network"
        ) from error
    loaded.set_config("num_fewshot", 0)
    return loaded


def _score(
    task: str, loaded: Any, numbers: list[int], answers: dict[str, Any], protocol: dict[str, Any],
    right_answers_only: bool,
) -> TaskScore:  # fmt: skip
    metric, split = TASKS[task].metric, TASKS[task].split
    samples = sorted(answers["samples"][task], key=lambda sample: sample["doc_id"])
    prompts = "".join(sample["prompt_hash"] + sample["target_hash"] for sample in samples)
    protocol = protocol | {"metric": metric, "split": split, "questions": _hash(prompts)}
    protocol |= {"task_version": answers["versions"][task]}
    protocol |= {"doc_ids": _hash(repr(numbers))} if "seed" in protocol else {}
    right = [right_answer(loaded, sample["doc"]) for sample in samples]
    logs = [[log for log, _ in sample["filtered_resps"]] for sample in samples]  # question -> choice
    bits = tuple(
        -log[i] / math.log(2) / len(sample["arguments"][i][1].encode())
        for i, log, sample in zip(right, logs, samples, strict=True)
    )
    if not np.isfinite(bits if right_answers_only else np.concatenate(logs)).all():
        raise ValueError(
            f"{task} has log-likelihoods that are not finite: the model gives NaN or infinite logits; check "
            "its weights, or evaluate in float32"
        )
    correct, p_right, values = (), (), {}
    if not right_answers_only:
        row = answers["results"][task]  # "acc,none": lm-eval's name of no filter
        named = {name.removesuffix(",none"): row[name] for name in row if name.endswith(",none")}
        values = {name: math.nan if value == "N/A" else float(value) for name, value in named.items()}
        correct = tuple(int(sample[metric]) for sample in samples)
        p_right = tuple(float(softmax(log)[i]) for i, log in zip(right, logs, strict=True))
    value, error = (values.get(name, math.nan) for name in (metric, f"{metric}_stderr"))
    return TaskScore(task, metric, value, error, len(samples), correct, p_right, bits, values, protocol)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's notes and the data sets' progress bars; the bar over the questions stays."""
    from datasets.utils import logging as bars

    logger = logging.getLogger("lm_eval")
    with ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        if bars.is_progress_bar_enabled():
            stack.callback(bars.enable_progress_bar)
        bars.disable_progress_bar()
        yield
