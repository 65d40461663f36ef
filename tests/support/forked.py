"""A process of its own for a test: forked, where that can be done, since imports take seconds anew."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def start(function: Callable, *given: Any, said: Path | str = os.devnull) -> BaseProcess:
    """Call a function in a new process; what it prints goes to a file, line by line."""
    open(said, "w").close()  # it is there from now on
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    process = context.Process(target=_call, args=(said, function, *given))
    process.start()
    return process


def as_program(module: str, *words: str) -> None:
    """Do what `python -m module words` does."""
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__")


def _call(said: Path | str, function: Callable, *given: Any) -> None:
    sys.stdout = sys.stderr = open(said, "w", buffering=1)  # noqa: SIM115, until this process ends
    function(*given)


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for a condition; a test that fails here has seen it false for the whole time."""
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("what was waited for has not happened")
