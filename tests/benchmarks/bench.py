"""The benchmark: memory and time of what the library does, each case in a fresh process.

    python -m tests.benchmarks.bench --only scoring,discovery --sizes 0.1,1

Four parts (scoring, discovery, latency, evaluation) write `results/bench/<part>.csv`, the machines they ran
on `machines.csv`, and one figure with a panel for each. It may be stopped at any moment: what is measured on
this machine, with this code, is not measured again. How things are measured is in the modules of the parts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import pyplot as plt

from pruner_lib.files import write_csv
from pruner_lib.study.results import results_root, save_image
from tests.benchmarks import discovery, scoring, speed
from tests.benchmarks.discovery import rival_python
from tests.benchmarks.goals import plot_bench
from tests.benchmarks.process import MeasurementFailed, in_fresh_process
from tests.benchmarks.rows import Part, Table, machine, newest_rows

PARTS = {part.name: part for part in (scoring.PART, discovery.PART, speed.LATENCY, speed.EVALUATION)}


def run_bench(options: argparse.Namespace, folder: Path | None = None) -> int:
    """Measure what is not measured yet, and draw the figure.

    Args:    options: as `parse` gives them.    folder: where results go; None: `results/bench`.
    Returns: how many cases failed.
    """
    folder = folder or results_root() / "bench"
    here = machine(options.device)
    _note_machine(folder, here)
    failed = 0
    for name in options.only or PARTS:
        failed += _run_part(PARTS[name], options, folder, here["machine"])
    _draw(folder)
    return failed


def _run_part(part: Part, options: argparse.Namespace, folder: Path, mark: str) -> int:
    """Measure the cases of one part; one that fails does not stop those that follow."""
    say(f"{part.name}: {part.question}")
    table, cases, failed = Table(part, folder, mark), part.cases(options), 0
    for number, settings in enumerate(cases, 1):
        label = f"  {number}/{len(cases)} " + " ".join(f"{k}={v}" for k, v in settings.items() if v != "")
        if not options.again and table.has(settings):
            say(f"{label}: measured before")
            continue
        start = time.monotonic()
        try:
            python = _python_for(settings)
            rows = in_fresh_process(part.function, settings, python=python, limit_s=options.limit_s)
        except (MeasurementFailed, ValueError) as error:
            failed += 1
            say(f"{label}: FAILED after {time.monotonic() - start:.0f} s\n    {error}")
            continue
        table.put(settings, rows)
        say(f"{label}: {_shown(rows)} ({time.monotonic() - start:.0f} s)")
    return failed


def _python_for(settings: dict[str, Any]) -> str | Path:
    if settings.get("tool") != discovery.RIVAL:
        return sys.executable
    return rival_python()


def _shown(rows: Sequence[dict[str, Any]]) -> str:
    """Say in a few words what a case gave."""
    names = ("peak_mb", "seconds", "speedup", "of_ideal", "share")
    parts = [" ".join(f"{n} {row[n]:,.4g}" for n in names if n in row) for row in rows]
    return parts[0] if len(parts) == 1 else f"{len(rows)} rows"


def _note_machine(folder: Path, here: dict[str, Any]) -> None:
    """Keep the description of each machine that rows refer to."""
    path = folder / "machines.csv"
    known = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=list(here))
    if here["machine"] not in set(known.machine):
        new = pd.DataFrame([here])
        write_csv(path, pd.concat([known, new], ignore_index=True) if len(known) else new)


def _draw(folder: Path) -> None:
    """Draw the figure from the CSVs that are there, each part from the machine that measured it last."""
    frames: dict[str, pd.DataFrame] = {}
    for name in PARTS:
        path = folder / f"{name}.csv"
        if path.is_file():
            frames[name] = newest_rows(path)
    if frames:
        figure = plot_bench(frames)
        for path in save_image(figure, "bench", folder):
            say(f"wrote {path.name}")
        plt.close(figure)


def say(line: str) -> None:
    """Show a line at once, also where the output goes to a file."""
    print(line, flush=True)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="inv bench", description="Measure memory and time of the library.")
    add = parser.add_argument
    add("--only", type=_names, help=f"parts, with commas between them: {','.join(PARTS)}")
    add("--sizes", type=_listed, help="of scoring and discovery, such as 0.1,7,70 or 8x1024")
    add("--again", action="store_true", help="measure also what is measured already")
    add("--device", default=device, help=f"where models run (here {device})")
    add("--limit-s", type=float, default=5400.0, help="a case that takes longer is ended, seconds")
    add("--repeats", type=int, default=3, help="of scoring and discovery, fewer where one takes long")
    add("--samples", type=int, default=10, help="calibration samples of scoring")
    add("--tokens", type=int, default=64, help="tokens of a calibration sample")
    add("--dtype", default="bfloat16", help="of the weights in scoring")
    add("--kinds", default="all", help="axes that are scored: all, or attention+mlp")
    add("--micro-batch", type=int, default=0, help="of scoring; 0 leaves it to the library")
    add(
        "--checkpointing",
        choices=("yes", "no"),
        default="",
        help="of scoring; left to the library if not given",
    )
    add("--no-rival", dest="rival", action="store_false", help="discovery without torch-pruning")
    add("--rival-gib", type=float, default=14.0, help="largest weights that torch-pruning is given, GiB")
    add("--model", default="smollm2-135m", help="of latency and evaluation")
    add("--rounds", type=int, default=7, help="of latency and evaluation")
    add("--prefill", type=int, default=512, help="tokens of the prompt that latency reads")
    add("--new-tokens", type=int, default=32, help="tokens that latency writes")
    add("--eval-tokens", type=int, default=4096, help="tokens whose perplexity is measured")
    return parser.parse_args(words)


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _names(text: str) -> list[str]:
    names = _listed(text)
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    sys.exit(1 if run_bench(parse()) else 0)
