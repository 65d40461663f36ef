"""Batches that fit: where memory runs out, the same work is tried again in batches of half the size.

Knows what running out of memory looks like on a GPU and on a CPU; what is run is not known here.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
WORDS = ("out of memory", "not enough memory", "can't allocate memory", "cublas_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out: by its class, or by an allocator's words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


def in_fitting_batches(run: Callable[[int], Result], batch_size: int, what: str) -> tuple[Result, int]:
    """Run something in batches of a size; where memory runs out, again and again in batches of half the size.

    Args:    run: is given the batch size; keeps nothing from a call that failed.
             batch_size: to begin with.    what: names the work in the notes.
    Returns: what `run` gave, and the batch size that fitted. A smaller one than asked for is warned about.
    Raises:  ValueError: memory runs out with a batch of one.    Any other error of `run` as it is.
    """
    while True:
        try:
            return run(batch_size), batch_size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0][:200]
            if batch_size == 1:
                raise ValueError(
                    f"{what} ran out of memory with a batch of one ({message}); use shorter texts, a "
                    "narrower dtype, a model spread by device_map='auto', or a machine with more memory"
                ) from error
        batch_size //= 2  # out of the handler: what failed is let go with its error
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"{what} ran out of memory; it goes on with batches of {batch_size} ({message})", stacklevel=3
        )
