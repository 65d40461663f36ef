"""Measure in a fresh process, so that one case does not affect the next."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import get_context
from typing import Any


class MeasurementFailed(RuntimeError):
    """A measuring process ended without a result; the message says why."""


def in_fresh_process(function: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Call a function of this project in a new process.

    Args:    function: `module:name`; takes the settings as keywords, and returns one row or a list of rows.
    Returns: the rows.
    Raises:  MeasurementFailed: the function raised an error, or its process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            rows = pool.submit(_call, function, dict(settings)).result()
        except BrokenProcessPool as error:
            reason = "it was killed, as the system does when memory runs out; try a smaller size"
            raise MeasurementFailed(f"{function} failed: {reason}") from error
        except Exception as error:
            raise MeasurementFailed(f"{function} failed: {type(error).__name__}: {error}") from error
    return rows if isinstance(rows, list) else [rows]


def _call(function: str, settings: dict[str, Any]) -> Any:
    module, name = function.split(":")
    return getattr(import_module(module), name)(**settings)
