"""Measure the cases of a benchmark script that were not measured yet, and collect the rows in one CSV.

A row belongs to the settings of its case, a machine and the code: the library without `study/`, and the
script. A case whose rows exist for all three is not measured again; rows of other machines are kept.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
import transformers

import pruner_lib
from pruner_lib.files import write_csv
from pruner_lib.study.results import results_root
from tests.benchmarks.process import MeasurementFailed, in_fresh_process

Cases = list[dict[str, Any]]  # the settings of each case, in the order in which they run
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"


def run(
    name: str,
    cases: Cases,
    words: Sequence[str] | None = None,
    *,
    derive: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame,
) -> int:
    """Run `tests.benchmarks.<name>:measure`, each case in a separate process.

    Args:    name: of the script and its CSV, `results/bench/<name>.csv`.    words: the command line.
             derive: adds the columns that compare rows.
    Returns: how many cases failed; a failed case does not stop the others.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{name}")
    parser.add_argument("--again", action="store_true", help="measure also what is measured already")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE[,VALUE]", help="as size=0.1,7")
    options = parser.parse_args(words)
    try:
        cases = changed(cases, dict(each.partition("=")[::2] for each in options.set))
    except ValueError as error:
        parser.error(str(error))
    path, mark, failed = results_root() / "bench" / f"{name}.csv", _mark(name), 0
    for number, settings in enumerate(cases, 1):
        label = f"{name} {number}/{len(cases)} " + " ".join(
            f"{k}={v}" for k, v in settings.items() if v != ""
        )
        frame = read_rows(path) if path.is_file() else pd.DataFrame()
        if not options.again and _matching(frame, settings | mark).any():
            print(f"{label}: measured before", flush=True)
            continue
        start = time.monotonic()
        try:
            rows = in_fresh_process(f"tests.benchmarks.{name}:measure", settings)
        except MeasurementFailed as error:
            failed += 1
            print(f"{label}: FAILED: {error}", flush=True)
            continue
        kept = frame[~_matching(frame, settings | {"machine": mark["machine"]})]
        new = pd.DataFrame([settings | row | mark for row in rows])
        write_csv(path, derive(pd.concat([kept, new], ignore_index=True) if len(kept) else new))
        print(f"{label}: {len(rows)} rows in {time.monotonic() - start:.0f} s", flush=True)
    return failed


def changed(cases: Cases, values: Mapping[str, str]) -> Cases:
    """Change settings of all cases; each of several values makes a case.

    Raises:  ValueError: no case has such a setting.
    """
    for name, text in values.items():
        if name not in cases[0]:
            raise ValueError(f"no setting {name!r}; there are {', '.join(cases[0])}")
        kind = type(cases[0][name])
        cases = [case | {name: kind(value)} for value in text.split(",") for case in cases]
    return [case for number, case in enumerate(cases) if case not in cases[:number]]


def _mark(name: str) -> dict[str, str]:
    """Return short names of this machine and this code, and describe the machine in `machines.csv`."""
    here = machine()
    path = results_root() / "bench" / "machines.csv"
    known = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=list(here))
    if here["machine"] not in set(known.machine):
        new = pd.DataFrame([here])
        write_csv(path, pd.concat([known, new], ignore_index=True) if len(known) else new)
    library = Path(pruner_lib.__file__).parent
    code = [path for path in library.rglob("*.py") if path.relative_to(library).parts[0] != "study"]
    return {
        "machine": here["machine"],
        "code": code_hash([*sorted(code), Path(__file__).with_name(f"{name}.py")]),
    }


def code_hash(files: Iterable[Path]) -> str:
    """Hash the syntax trees of files, so that comments and layout do not count."""
    trees = [ast.dump(ast.parse(path.read_text(encoding="utf-8"))) for path in files]
    return hashlib.sha256("".join(trees).encode()).hexdigest()[:8]


def machine() -> dict[str, Any]:
    """Describe this machine; `machine` is a short hash of everything else."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    facts = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "device": torch.cuda.get_device_name() if DEVICE.startswith("cuda") else DEVICE,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"machine": hashlib.sha256(repr(facts).encode()).hexdigest()[:8]} | facts


def read_rows(path: Path) -> pd.DataFrame:
    """Read the rows of a CSV, with sizes such as 7 as text."""
    return pd.read_csv(path, dtype={"size": str})


def _matching(frame: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.Series:
    """Mark the rows with these values, compared as text because a CSV does not keep types."""
    matching = pd.Series(True, index=frame.index)
    for name, value in wanted.items():
        column = frame[name] if name in frame else pd.Series(None, index=frame.index)
        matching &= column.map(_text) == _text(value)
    return matching


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return f"{value:.12g}" if number else str(value)
