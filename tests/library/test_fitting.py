"""Batches that fit: half the size where memory runs out, down to one, then an error that says what to do."""

from __future__ import annotations

import warnings

import pytest
import torch

from pruner_lib.evaluation.meters import in_fitting_batches
from pruner_lib.evaluation.perplexity import perplexity_result
from pruner_lib.models.load import load_model

CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
RAISED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError(CPU_ALLOCATOR),
]


def ids(windows: int = 9) -> torch.Tensor:
    return torch.randint(4, 250, (windows, 12), generator=torch.Generator().manual_seed(0))


def starve(model, most: int, error: BaseException) -> list[int]:
    """Let the forward pass of a model fail above `most` windows; give the list of the batches it meets."""
    forward, met = model.forward, []

    def limited(*args, **kwargs):
        met.append(len(kwargs["input_ids"]))
        if met[-1] > most:
            raise error
        return forward(*args, **kwargs)

    model.forward = limited
    return met


@pytest.mark.parametrize("error", RAISED, ids=lambda e: f"{type(e).__name__} {str(e)[:8]}")
def test_half_a_batch_is_tried_where_memory_runs_out(error):
    model, _ = load_model("tiny")
    whole = perplexity_result(model, ids(), batch_size=8)
    met = starve(model, 3, error)
    with pytest.warns(UserWarning, match="perplexity ran out of memory; it goes on with batches of [42]"):
        found = perplexity_result(model, ids(), batch_size=8)
    assert met == [8, 4, 2, 2, 2, 2, 1], "halved until it fits, and not tried larger again"
    assert found.nll == pytest.approx(whole.nll, rel=1e-5) and found.n_tokens == whole.n_tokens


def test_without_a_shortage_nothing_is_said_and_batches_stay():
    model, _ = load_model("tiny")
    met = starve(model, 8, RAISED[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perplexity_result(model, ids(), batch_size=8)
    assert met == [8, 1]


def test_one_window_too_many_says_what_to_do():
    model, _ = load_model("tiny")
    starve(model, 0, RAISED[0])
    with (
        pytest.warns(UserWarning, match="batches of 1"),
        pytest.raises(
            ValueError, match="ran out of memory with a batch of one; use shorter texts, a narrower"
        ),
    ):
        perplexity_result(model, ids(), batch_size=2)


def test_other_errors_pass():
    model, _ = load_model("tiny")
    met = starve(model, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        perplexity_result(model, ids(), batch_size=8)
    assert met == [8]


def test_the_real_allocators_refusal_is_recognised():
    def run(size: int) -> int:
        return len(torch.empty(2**58 if size > 1 else 1, dtype=torch.uint8))

    with pytest.warns(UserWarning, match="a test ran out of memory; it goes on with batches of 1"):
        assert in_fitting_batches(run, 2, "a test") == 1

    def refuse(size: int) -> int:
        raise ValueError("CUDA out of memory. Tried to allocate")

    with pytest.raises(ValueError, match="Tried to allocate"):  # no allocator raises a ValueError
        in_fitting_batches(refuse, 2, "a test")


def test_what_failed_is_let_go_before_the_next_try():
    alive = []

    class Held:
        def __init__(self):
            alive.append(self)

        def __del__(self):
            freed.append(self.__class__)

    freed: list[type] = []

    def run(size: int) -> int:
        held = Held()
        alive.clear()
        if size > 1:
            raise torch.OutOfMemoryError(f"{id(held)}: CUDA out of memory. Tried")
        return len(freed)

    with pytest.warns(UserWarning):
        assert in_fitting_batches(run, 4, "a test") == 2, "both failed tries had been freed"
