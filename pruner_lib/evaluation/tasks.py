"""Which questions are asked: the paper's seven tasks over local data, any other as lm-eval defines it.

Prompts and metrics are lm-eval's own, over local data where there are some; here questions are drawn.
`zero_shot` asks them.
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
NOT_HERE = {"UNSAFE_CODE": "runs code that the model writes", "MULTIMODAL": "shows pictures or sounds"}
FEWSHOT_SEED = 1234  # by which lm-eval's command line draws examples


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


def load_tasks(name: str | Path) -> dict[str, Any]:
    """Load lm-eval's tasks by one of its names or the path of a YAML file; a group or a tag is several.

    Raises:  ValueError: there is no such task, its data can't be had, or it is none for text alone.
    """
    if name in TASKS:
        data = find_data(name)
        return {name: load_task(name, data, data and content_hash(data))}
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        name = str(Path(name).resolve())
    elif name not in all_tasks().all_tasks:
        others = "another name that `lm-eval ls tasks` lists, or the path of a task file (.yaml)"
        raise ValueError(f"unknown: {str(name)!r} is no task; wanted some of {', '.join(TASKS)}, {others}")
    try:
        loaded = all_tasks().load(name)["tasks"]
    except Exception as error:  # of a file, of code that it names, of the hub
        reason = " ".join(str(error.__cause__ or error).split())
        said = f"task {name!r} can't be loaded ({type(error).__name__}: {reason})"
        raise ValueError(f"{said}; mend its file, or let it fetch its data with a network") from error
    for task, one in loaded.items():
        for kind, what in NOT_HERE.items():
            if getattr(one, kind, False):
                raise ValueError(f"task {task} {what}, which isn't done here; use lm-eval's command line")
    return loaded


@cache
def all_tasks() -> Any:
    """Index the tasks that lm-eval knows by name: takes seconds, so once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@lru_cache(maxsize=64)
def load_task(task: str, data: Path | None, content: str | None) -> Any:
    """Load one of the seven as lm-eval defines it; once a process, for many models answer the same questions.

    Args:    data: the file of its questions, None for the hub.    content: the hash of `data`, by which it is
             known again.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    spec, settings = TASKS[task], {"task": task}
    folder = (Path(str(files("lm_eval"))) / "tasks" / spec.definition).parent
    known = TaskManager(include_path=folder, include_defaults=False)  # of all folders: seconds
    try:
        if data is not None:
            is_arrow = data.suffix == ".arrow"
            rows = Dataset.from_file(str(data)) if is_arrow else Dataset.from_list(read_questions(task, data))
            settings |= {"custom_dataset": lambda **_: {spec.split: rows}}
            settings |= {f"{split}_split": None for split in ("training", "validation", "test")}
            settings[f"{spec.split}_split"] = spec.split
        return known.load({"group": "here", "task": [settings]})["tasks"][task]
    except (OSError, ValueError, TypeError, LookupError, DatasetsError) as error:
        if data is not None:
            raise ValueError(f"{data} holds no questions of {task} ({error!r}); mend or delete it") from error
        said = f"no tasks/{task}.jsonl in PRUNER_LIB_DATA, none in asset 'tasks', and the hub gave {error!r}"
        advice = "run `python -m pruner_lib.data.assets` with a network"
        raise ValueError(f"no questions for {task}: {said}; {advice}") from error


def prepare(name: str, task: Any, limit: int | None, seed: int | None, num_fewshot: int | None) -> Any:
    """Copy a task for one call, so that the copy asks some of its questions, each after solved examples.

    Args:    limit, seed: see `draw`.    num_fewshot: how many examples, drawn as by lm-eval's command line;
             None: as many as the task's definition says, of the seven none.
    Returns: the copy; its `numbers` are those of the questions. Examples still come from all.
    Raises:  ValueError: the definition forbids examples, there are too few, or a question does not fit it.
    """
    defined = task.config.num_fewshot
    if num_fewshot and defined == 0:
        said = f"the definition of {name} says 0: ask without num_fewshot"
        raise ValueError(f"num_fewshot came as {num_fewshot}, but {said}")
    count = (defined or 0) if num_fewshot is None else num_fewshot
    if count and count >= (there := len(task.fewshot_docs())):  # one may be the question itself
        raise ValueError(f"num_fewshot came as {count}, but {name} has {there} examples; take fewer")
    asked = copy.copy(task)
    asked._config = copy.copy(task.config)
    asked.set_config("num_fewshot", count)
    asked.numbers, docs = draw(task, limit, seed), task.eval_docs
    drawn = docs.select(asked.numbers) if hasattr(docs, "select") else [docs[i] for i in asked.numbers]
    for number, document in zip(asked.numbers, drawn, strict=True):
        try:
            task.doc_to_text(document), right_answer(task, document)
        except Exception as error:  # of its templates, or of code that it names
            said = f"question {number} of {name} does not fit the task's definition ({error!r})"
            raise ValueError(f"{said}; mend the data or the definition") from error
    asked.has_test_docs, asked.test_docs = (lambda: True), (lambda: drawn)
    return asked


def draw(task: Any, limit: int | None, seed: int | None) -> list[int]:
    """Draw questions of a split: sorted numbers, `limit` of them or all; without a seed the first."""
    n = len(task.eval_docs)
    if limit is None or seed is None:
        return list(range(n))[:limit]
    return sorted(np.random.default_rng(seed).permutation(n)[:limit].tolist())


def right_answer(task: Any, document: dict[str, Any]) -> int | None:
    """Read the number of the one right choice as lm-eval's metrics do (WinoGrande's contexts differ).

    Returns: None where a question is no choice, has several right answers or is scored by code of its own.
    Raises:  ValueError: none of the choices is right; lm-eval would count every answer as wrong.
    """
    if task.config.process_results is not None or task.OUTPUT_TYPE not in CHOOSING:
        return None
    if task.OUTPUT_TYPE == "loglikelihood":  # one text alone
        return 0
    answer = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    choices = task.doc_to_choice(document)
    if isinstance(answer, list):
        return None
    number = answer if isinstance(answer, int) else [*choices, answer].index(answer)
    if not 0 <= number < len(choices):
        raise ValueError(f"its right answer, {answer!r}, is none of its choices, {choices}")
    return number


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
