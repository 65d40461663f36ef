"""Time lm-eval's own scoring of multiple-choice questions against rows that share their context.

    python tests/benchmarks/zero_shot_speed.py [questions per task] [model] [batch size]

Both answer the same random questions alternately, all tasks in one call and each task alone, with lm-eval's
prompts and metrics. CPU seconds are counted, since other programs may run at the same time. Prints and writes
results/bench/zero_shot.csv: task, way, questions, tokens (with padding and the comparison of one row),
seconds, ratio (of lm-eval's seconds to these). With few questions, that comparison has more weight.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path

import pandas as pd
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from pruner_lib.evaluation.shared_context import ChoicesLM
from pruner_lib.evaluation.tasks import SEVEN_TASKS, TASKS, load_tasks, prepare, quiet
from pruner_lib.method.offload import evaluating
from pruner_lib.models.load import load_model

WAYS = {"lm_eval": HFLM, "shared_context": ChoicesLM}
COLUMNS = ["task", "way", "questions", "tokens", "seconds", "ratio"]
CSV = Path(__file__).parents[2] / "results" / "bench" / "zero_shot.csv"


def run(way: str, model, tokenizer, tasks: dict, batch_size: int) -> dict:
    """Answer the questions in one way; return a row of the table, and which answers were right."""
    tokens = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _module, ids, _out: tokens.append(ids[0].numel()))
    settings = {"backend": "causal", "batch_size": batch_size, "add_bos_token": False}
    with contextlib.redirect_stderr(io.StringIO()):
        start = time.process_time()
        found = evaluate(
            WAYS[way](pretrained=model, tokenizer=tokenizer, **settings),
            {"tasks": tasks},
            bootstrap_iters=1,
        )
        seconds = time.process_time() - start
    hook.remove()
    correct = {task: [sample[TASKS[task].metric] for sample in found["samples"][task]] for task in tasks}
    return {"way": way, "tokens": sum(tokens), "seconds": round(seconds, 2), "correct": correct}


def main(questions: int = 12, name: str = "smollm2-135m", batch_size: int = 8) -> None:
    model, tokenizer = load_model(name)
    rows = []
    with quiet(), evaluating(model):
        tasks = {task: prepare(task, load_tasks(task)[task], questions, 0, None) for task in SEVEN_TASKS}
        for part in (tasks, *({task: tasks[task]} for task in tasks)):
            name = next(iter(part)) if len(part) == 1 else "all seven"
            pair = [run(way, model, tokenizer, part, batch_size) for way in WAYS]
            assert pair[0].pop("correct") == pair[1].pop("correct"), f"the ways answer differently: {name}"
            for row in pair:
                ratio = round(pair[0]["seconds"] / row["seconds"], 2)
                rows.append({"task": name, "questions": questions * len(part)} | row | {"ratio": ratio})
                print(*rows[-1].values(), flush=True)
            pd.DataFrame(rows)[COLUMNS].to_csv(CSV, index=False)


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, str, int), sys.argv[1:], strict=False)))
