"""Calls are timed one after the other, round by round, without the rounds that warm up."""

from __future__ import annotations

import pytest

from pruner_lib.evaluation import meters
from pruner_lib.evaluation.meters import in_turn, quartiles, timed


def test_calls_take_turns_and_the_warm_up_is_not_counted():
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = in_turn(calls, 3, "cpu", warmup=2)
    assert order == ["a", "b"] * 5
    in_turn({"c": lambda: order.append("c")}, 1, "cpu", before=lambda: order.append("-"))
    assert order[10:] == ["-", "c"] * 2
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}


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
