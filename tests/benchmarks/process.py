"""Measure in a fresh process: what one case leaves behind can't be counted in the next.

    python -m tests.benchmarks.process MODULE FUNCTION INPUT.json OUTPUT.json

calls `MODULE.FUNCTION(**input)` and writes what it returns. What is measured is not known here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

TAIL = 2000  # characters of a failed process's messages that are shown
KILLED = "it was killed, as the system does where memory runs out; try a smaller size"


class MeasurementFailed(RuntimeError):
    """A measuring process ended without a result; the message holds the end of what it said."""


def in_fresh_process(
    function: str,
    settings: Mapping[str, Any],
    *,
    python: str | Path = sys.executable,
    limit_s: float | None = None,
) -> list[dict[str, Any]]:
    """Call a function of this library in a process of its own.

    Args:    function: `module:name`; takes the settings as keywords, returns one row or a list of rows.
             settings: plain data.    python: the interpreter, which must find torch and transformers.
             limit_s: a process that takes longer is ended.
    Returns: the rows.
    Raises:  MeasurementFailed: the process failed, was killed or took too long.
    """
    module, name = function.split(":")
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory(prefix="pruner_lib-bench-") as scratch:
        given, made = Path(scratch) / "given.json", Path(scratch) / "made.json"
        given.write_text(json.dumps(dict(settings)))
        command = [str(python), "-m", __name__, module, name, str(given), str(made)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as error:
            raise MeasurementFailed(f"{function} was ended after {limit_s:g} s") from error
        if done.returncode or not made.is_file():
            reason = KILLED if done.returncode in (-9, 137) else f"exit code {done.returncode}"
            raise MeasurementFailed(f"{function} failed ({reason}): {done.stderr[-TAIL:].strip()}")
        return json.loads(made.read_text())


def main(words: list[str]) -> None:
    """Carry out one call; the arguments are those that `in_fresh_process` gives."""
    module, name, given, made = words
    rows = getattr(import_module(module), name)(**json.loads(Path(given).read_text()))
    Path(made).write_text(json.dumps(rows if isinstance(rows, list) else [rows]))


if __name__ == "__main__":
    main(sys.argv[1:])
