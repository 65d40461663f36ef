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
    """Answer the questions in one way; a row of the table, with the answers beside it."""
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
        for part in [*([task] for task in tasks), list(tasks)]:
            label = part[0] if len(part) == 1 else "all seven"
            pair = [
                run(way, model, tokenizer, {t: tasks[t] for t in part}, samples, batch_size) for way in WAYS
            ]
            different = [t for t in part if pair[0]["correct"][t] != pair[1]["correct"][t]]
            assert not different, f"the two ways answer differently: {different}"
            for row in pair:
                del row["correct"]
                ratio = round(pair[0]["seconds"] / row["seconds"], 2)
                rows.append({"task": label, "questions": questions * len(part)} | row | {"ratio": ratio})
                print(*rows[-1].values(), flush=True)
    frame = pd.DataFrame(rows)[["task", "way", "questions", "tokens", "seconds", "ratio"]]
    frame.to_csv(CSV, index=False)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, str, int), sys.argv[1:], strict=False)))
