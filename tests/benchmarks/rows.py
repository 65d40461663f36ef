"""Rows of the benchmark: which machine, which code, what is measured already.

A row belongs to the settings of its case, to a machine and to the code that was measured (a hash of the
modules that the part names, comments, docstrings and imports left out). A case whose rows exist for all
three is not measured again. Rows of other machines stay beside ours.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
import transformers

from pruner_lib.files import write_csv


@dataclass(frozen=True)
class Part:
    """One question of the benchmark."""

    name: str  # stem of its CSV
    question: str
    function: str  # `module:name` of what measures a case
    code: tuple[str, ...]  # modules whose change makes a row out of date
    cases: Callable[[Any], list[dict[str, Any]]]  # options -> settings of each case, in the order of running
    derive: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame  # adds the columns that compare rows


def cpu_name() -> str:
    """Read the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(device: str) -> dict[str, Any]:
    """Describe where the numbers come from; `machine` is a short name made of all the rest."""
    found = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"machine": hashlib.sha256(repr(found).encode()).hexdigest()[:8]} | found


def read_rows(path: Path) -> pd.DataFrame:
    """Read the rows of a part; sizes such as 7 stay text."""
    return pd.read_csv(path, dtype={"size": str})


def newest_rows(path: Path) -> pd.DataFrame:
    """Read the rows of the machine that measured last."""
    frame = read_rows(path)
    return frame[frame.machine == frame.machine.iloc[-1]]


def usual_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Give the rows of scoring whose activations were kept or not as the library chose."""
    return frame[frame.checkpointing.isna() | (frame.checkpointing == "")]


def code_version(modules: Iterable[str]) -> str:
    """Hash what modules of this project do: their syntax trees without docstrings and imports."""
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for name in modules:
        path = root / f"{name.replace('.', '/')}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                node.body = node.body[1:]
        tree.body = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:8]


class Table:
    """The CSV of one part: read once, written whole after every case."""

    def __init__(self, part: Part, folder: Path, machine: str):
        self.part, self.path = part, folder / f"{part.name}.csv"
        self.mark = {"machine": machine, "code": code_version(part.code)}
        # settings are compared as text: what a CSV gives back has lost its types
        self.frame = read_rows(self.path) if self.path.is_file() else pd.DataFrame()

    def has(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether a case is measured, on this machine and with this code."""
        return bool(self._matches({**settings, **self.mark}).any())

    def put(self, settings: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        """Write the rows of a case in place of those that this machine had for it."""
        kept = self.frame[~self._matches({**settings, "machine": self.mark["machine"]})]
        new = pd.DataFrame([{**settings, **row, **self.mark} for row in rows])
        frame = pd.concat([kept, new], ignore_index=True) if len(kept) else new
        self.frame = self.part.derive(frame)
        write_csv(self.path, self.frame)

    def _matches(self, wanted: Mapping[str, Any]) -> pd.Series:
        found = pd.Series(True, index=self.frame.index)
        for name, value in wanted.items():
            column = self.frame[name] if name in self.frame else pd.Series(None, index=self.frame.index)
            found &= column.map(_text) == _text(value)
        return found


def _text(value: Any) -> str:
    """Write a setting the same way before it went through a CSV and after."""
    if value is None or value != value or value == "":
        return ""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return f"{value:.12g}" if number else str(value)
