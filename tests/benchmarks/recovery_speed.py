"""Measure the training speed of recovery, in tokens per second, with less and less padding.

    python -m tests.benchmarks.recovery_speed [rounds]

The same instructions, model and loss (without dropout) are trained in three ways, alternately in one process:
`drawn`: micro-batches of four in the order of drawing, padded to the longest; `sorted`: sorted by length
within a step; `pairs`: sorted, two examples at a time, as `recover` does on a CPU.
Writes results/bench/recovery.csv: medians over the rounds. CPU seconds on one thread are counted, so that
other work on the machine has no influence.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from pruner_lib.data.windows import instructions
from pruner_lib.files import write_csv
from pruner_lib.models.load import load_model
from pruner_lib.recovery import recover as recovery
from pruner_lib.recovery import trainer
from pruner_lib.recovery.instructions import Row, batches, encode

WAYS = {"drawn": (False, 4), "sorted": (True, 4), "pairs": (True, 2)}  # sorted?, examples at a time
SETTINGS = {"steps": 1, "warmup_steps": 0, "micro_batch_size": 4, "dropout": 0.0, "cutoff": 256}
MODEL, SAMPLES = "smollm2-135m", 400


def drawn(encoded: list[Row], **settings) -> list[list[Row]]:
    """Shuffle the sorted examples of each step, as if they were in the order of drawing."""
    rng = np.random.default_rng(0)
    steps = batches(encoded, **settings)
    return [[step[i] for i in rng.permutation(len(step))] for step in steps]


def padding(way: str, encoded: list[Row], batch_size: int) -> float:
    """Return the ratio of computed to real tokens, on average over 50 steps."""
    in_order, at_once = WAYS[way]
    steps = (batches if in_order else drawn)(encoded, steps=50, batch_size=batch_size, seed=0)
    lengths = np.array([len(row["input_ids"]) for step in steps for row in step])
    return at_once * lengths.reshape(-1, at_once).max(1).sum() / lengths.sum()


def measure(way: str, model, tokenizer, examples, batch_size: int) -> dict[str, float]:
    """Train one step."""
    in_order, at_once = WAYS[way]
    with (
        patch.object(recovery, "batches", batches if in_order else drawn),
        patch.object(trainer, "ROWS_ON_CPU", at_once),
        patch.object(time, "perf_counter", time.process_time),
        tempfile.TemporaryDirectory() as folder,
    ):
        sizes = SETTINGS | {"batch_size": batch_size}
        done = recovery.recover(model, tokenizer, examples, output_dir=folder, **sizes)
        done.model.unload()
        (step,) = done.history
    return {"batch_size": batch_size, "way": way, "tokens_per_s": step["tokens"] / step["seconds"], **step}


def main(rounds: int) -> None:
    """Measure all ways in both orders, round after round."""
    torch.set_num_threads(1)
    model, tokenizer = load_model(MODEL)
    examples = instructions("instructlab", samples=SAMPLES, seed=0)
    encoded = encode(examples, tokenizer, cutoff=SETTINGS["cutoff"])
    rows = []
    for number in range(rounds):
        for batch_size in (16, 8):
            ways = list(WAYS) if number % 2 == 0 else list(WAYS)[::-1]
            for way in ways:
                rows.append(measure(way, model, tokenizer, examples, batch_size))
                print(rows[-1], flush=True)
    columns = ["loss", "tokens", "tokens_per_s"]
    table = pd.DataFrame(rows).groupby(["batch_size", "way"], sort=False)[columns].median().reset_index()
    base = table[table.way == "drawn"].set_index("batch_size").tokens_per_s
    table["ratio"] = table.tokens_per_s / table.batch_size.map(base)
    table["padding"] = [padding(row.way, encoded, row.batch_size) for row in table.itertuples()]
    table = table.assign(rounds=rounds, model=MODEL)
    print(table.to_string())
    write_csv(Path(__file__).parents[2] / "results" / "bench" / "recovery.csv", table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
