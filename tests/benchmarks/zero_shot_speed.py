"""Time lm-eval's own scoring of multiple-choice questions against rows that share their context.

    python tests/benchmarks/zero_shot_speed.py [questions a task] [model] [batch size]

Both ways answer the same random questions, task by task in turns, by lm-eval's own prompts and metrics.
Processor seconds are counted, since other programs may run beside it. Prints and writes
results/bench/zero_shot.csv: task, way, questions, tokens (with padding and the comparison of a first row),
seconds, ratio (of lm-eval's seconds to these).
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from pruner_lib.evaluation.perplexity import evaluating
from pruner_lib.evaluation.shared_context import ChoicesLM
from pruner_lib.evaluation.zero_shot import SEVEN_TASKS, TASKS, draw, find_data, load_task, quiet
from pruner_lib.models.load import load_model

WAYS = {"lm_eval": HFLM, "shared_context": ChoicesLM}
CSV = Path(__file__).parents[2] / "results" / "bench" / "zero_shot.csv"


def run(way: str, model, tokenizer, tasks: dict, samples: dict, batch_size: int) -> dict:
    """Answer the questions in one way: a row of the table, and which answers were right."""
    tokens = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _module, ids, _out: tokens.append(ids[0].numel()))
    settings = {"backend": "causal", "batch_size": batch_size, "add_bos_token": False}
    with contextlib.redirect_stderr(io.StringIO()):
        start = time.process_time()
        found = evaluate(
            WAYS[way](pretrained=model, tokenizer=tokenizer, **settings),
            {"tasks": tasks},
            samples=samples,
            bootstrap_iters=1,
        )
        seconds = time.process_time() - start
    hook.remove()
    correct = {task: [sample[TASKS[task].metric] for sample in found["samples"][task]] for task in tasks}
    return {"way": way, "tokens": sum(tokens), "seconds": round(seconds, 2), "correct": correct}


def main(questions: int = 12, name: str = "smollm2-135m", batch_size: int = 8) -> None:
    model, tokenizer = load_model(name)
    rows = []
    with tempfile.TemporaryDirectory() as folder, quiet(), evaluating(model):
        tasks = {task: load_task(task, find_data(task), Path(folder)) for task in SEVEN_TASKS}
        samples = {task: draw(tasks[task], questions, seed=0) for task in tasks}
        for task in tasks:
            pair = [run(way, model, tokenizer, {task: tasks[task]}, samples, batch_size) for way in WAYS]
            assert pair[0].pop("correct") == pair[1].pop("correct"), f"the two ways answer {task} differently"
            rows += [{"task": task, "questions": questions} | row for row in pair]
            print(rows[-2], rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    total = frame.groupby("way", sort=False)[["questions", "tokens", "seconds"]].sum().reset_index()
    frame = pd.concat([frame, total.assign(task="all seven")], ignore_index=True)
    theirs = frame[frame.way == "lm_eval"].set_index("task").seconds
    frame["ratio"] = (frame.task.map(theirs) / frame.seconds).round(2)
    frame = frame[["task", "way", "questions", "tokens", "seconds", "ratio"]].round(2)
    frame.to_csv(CSV, index=False)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, str, int), sys.argv[1:], strict=False)))
