"""Memory and seconds are measured, and batches fit: half the size where memory runs out, down to one."""

from __future__ import annotations

import mmap
import warnings

import numpy as np
import pytest
import torch

from pruner_lib.evaluation import meters
from pruner_lib.evaluation.meters import in_fitting_batches, in_turn, quartiles, timed
from pruner_lib.evaluation.perplexity import perplexity_result
from pruner_lib.method.memory import trim_heap
from pruner_lib.models.load import load_model

# Memory


def test_peak_sees_what_was_held_for_a_moment_only():
    meters.reset_peak()
    before = meters.resident_mb()
    held = mmap.mmap(-1, 64 * 2**20)  # not from the heap, which may have room for it already
    for _ in range(64):
        held.write(bytes([1]) * 2**20)
    assert meters.resident_mb() > before + 50
    held.close()
    high = meters.peak_mb()
    assert high > before + 50
    meters.reset_peak()
    assert 0 < meters.peak_mb() <= high + 1


def test_trimming_keeps_what_is_held_and_never_raises_what_is_taken():
    kept = np.arange(1000)
    freed = [np.ones(2**15) for _ in range(256)]  # 64 MiB in pieces that the allocator likes to keep
    del freed
    before = meters.resident_mb()
    trim_heap()
    assert meters.resident_mb() <= before + 1
    assert kept.sum() == 499500


# Seconds


def test_calls_take_turns_and_the_warm_up_is_not_counted():
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = in_turn(calls, 3, "cpu", warmup=2)
    assert order == ["a", "b"] * 5
    in_turn({"c": lambda: order.append("c")}, 1, "cpu", before=lambda: order.append("-"))
    assert order[10:] == ["-", "c"] * 2
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_the_time_of_each_call_is_its_own(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: clock[0])

    def wait(seconds: float) -> None:
        clock[0] += seconds

    calls = {"short": lambda: wait(1.0), "long": lambda: wait(3.0)}
    assert in_turn(calls, 2, "cpu", before=lambda: wait(50.0)) == {"short": [1.0, 1.0], "long": [3.0, 3.0]}
    assert timed(calls["long"], "cpu") == 3.0


def test_quartiles_of_a_few_values():
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((2.0, 3.0, 4.0))


# Batches that fit

CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
SHORTAGES = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cpu": RuntimeError(CPU_ALLOCATOR),
}
IDS = torch.randint(4, 250, (9, 12), generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_half_a_batch_is_tried_where_memory_runs_out(shortage):
    model, _ = load_model("tiny")
    whole = perplexity_result(model, IDS, batch_size=8)
    met = starve(model, 3, SHORTAGES[shortage])
    with pytest.warns(UserWarning, match="perplexity ran out of memory; it continues with batches of [42]"):
        halved = perplexity_result(model, IDS, batch_size=8)
    assert met == [8, 4, 2, 2, 2, 2, 1], "halved until it fits, and not tried larger again"
    assert halved.nll == pytest.approx(whole.nll, rel=1e-5) and halved.n_tokens == whole.n_tokens


def test_without_a_shortage_nothing_is_said_and_batches_stay():
    model, _ = load_model("tiny")
    met = starve(model, 8, SHORTAGES["cuda"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perplexity_result(model, IDS, batch_size=8)
    assert met == [8, 1]


def test_one_window_too_many_says_what_to_do():
    model, _ = load_model("tiny")
    starve(model, 0, SHORTAGES["cuda"])
    wanted = "ran out of memory with a batch of one; use shorter texts, a smaller"
    with pytest.warns(UserWarning, match="batches of 1"), pytest.raises(ValueError, match=wanted):
        perplexity_result(model, IDS, batch_size=2)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("CUDA out of memory. Tried to")])
def test_other_errors_pass(error):
    model, _ = load_model("tiny")
    met = starve(model, 0, error)
    with pytest.raises(type(error), match=str(error)):
        perplexity_result(model, IDS, batch_size=8)
    assert met == [8]


def test_the_real_allocators_refusal_is_recognised():
    def run(size: int) -> int:
        return len(torch.empty(2**58 if size > 1 else 1, dtype=torch.uint8))

    with pytest.warns(UserWarning, match="a test ran out of memory; it continues with batches of 1"):
        assert in_fitting_batches(run, 2, "a test") == 1


@pytest.mark.slow
def test_what_failed_is_let_go_before_the_next_try():
    freed: list[str] = []

    class Held:
        def __del__(self):
            freed.append("one")

    def run(size: int) -> int:
        held = Held()
        if size > 1:
            raise torch.OutOfMemoryError(f"{id(held)}: CUDA out of memory. Tried")
        return len(freed)

    with pytest.warns(UserWarning):
        assert in_fitting_batches(run, 4, "a test") == 2, "both failed tries had been freed"
