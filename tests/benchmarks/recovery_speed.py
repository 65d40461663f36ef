"""How fast recovery trains, in tokens a second, with less and less padding: `python recovery_speed.py [rounds]`.

The same instructions, model and loss (without dropout) in three ways, in turns and in one process:
`drawn`: micro-batches of four as the examples are drawn, padded to their longest;
`sorted`: sorted by length inside a step; `pairs`: sorted, and computed two at once, which is what `recover` does.
Writes results/bench/recovery.csv: medians over the rounds, and the ratio to `drawn`, of rounds as a whole.
"""

from __future__ import annotations

import sys
import tempfile
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

WAYS = {"drawn": (False, 4), "sorted": (True, 4), "pairs": (True, 2)}  # sorted, examples at once
SETTINGS = {"steps": 2, "warmup_steps": 1, "micro_batch_size": 4, "dropout": 0.0, "cutoff": 256}
MODEL, SAMPLES = "smollm2-135m", 1000


def drawn(encoded: list[Row], **settings) -> list[list[Row]]:
    """Shuffle the sorted examples of each step, as if they had been left in the order of drawing."""
    rng = np.random.default_rng(0)
    steps = batches(encoded, **settings)
    return [[step[i] for i in rng.permutation(len(step))] for step in steps]


def padding(data: list[list[Row]], at_once: int) -> float:
    """Return computed tokens over real ones."""
    lengths = np.array([[len(row["input_ids"]) for row in step] for step in data])
    parts = lengths.reshape(-1, at_once)
    return parts.max(1).sum() * at_once / lengths.sum()


def measure(way: str, model, tokenizer, examples, batch_size: int) -> dict[str, float]:
    """Train the second of two steps; the first warms up."""
    in_order, at_once = WAYS[way]
    with (
        patch.object(recovery, "batches", batches if in_order else drawn),
        patch.object(trainer, "ROWS_ON_CPU", at_once),
        tempfile.TemporaryDirectory() as folder,
    ):
        done = recovery.recover(
            model, tokenizer, examples, output_dir=folder, batch_size=batch_size, **SETTINGS
        )
    done.model.unload()
    first, last = done.history
    speed = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    return {"way": way, "batch_size": batch_size, "loss": last["loss"], "tokens_per_s": speed}


def main(rounds: int) -> None:
    """Measure all ways in both orders, round after round."""
    model, tokenizer = load_model(MODEL)
    examples = instructions("instructlab", samples=SAMPLES, seed=0)
    encoded = encode(examples, tokenizer, cutoff=256)
    sizes = {"steps": 50, "seed": 0}
    rows = []
    for number in range(rounds):
        for batch_size in (8, 16):
            for way in list(WAYS)[:: 1 if number % 2 == 0 else -1]:
                rows.append({"round": number, **measure(way, model, tokenizer, examples, batch_size)})
                print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    base = frame[frame.way == "drawn"].set_index(["round", "batch_size"]).tokens_per_s
    frame["ratio"] = frame.tokens_per_s / base.loc[list(zip(frame["round"], frame.batch_size))].to_numpy()
    table = frame.groupby(["batch_size", "way"], sort=False)[["loss", "tokens_per_s", "ratio"]].median()
    table = table.reset_index().assign(rounds=rounds, threads=torch.get_num_threads(), model=MODEL)
    table["padding"] = [
        padding(
            (batches if WAYS[row.way][0] else drawn)(encoded, batch_size=row.batch_size, **sizes),
            WAYS[row.way][1],
        )
        for row in table.itertuples()
    ]
    write_csv(Path(__file__).parents[2] / "results" / "bench" / "recovery.csv", table)
    print(table.to_string())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
