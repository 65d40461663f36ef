"""A measurement runs in a process of its own, and its failure is told with its reason."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.benchmarks.process import MeasurementFailed, in_fresh_process


def probe(what: str, **settings) -> dict | list[dict]:
    """Runs in the fresh process."""
    if what == "fail":
        raise ValueError("no such thing here")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "slow":
        time.sleep(60)
    row = {"process": os.getpid(), **settings}
    return [row, row] if what == "two" else row


def run(what: str, **settings) -> list[dict]:
    return in_fresh_process(
        "tests.test_bench_process:probe", {"what": what, **settings}, limit_s=20 if what != "slow" else 3
    )


def test_each_call_has_its_process_and_gives_rows():
    first, second = run("one", size="0.1", repeats=3), run("two")
    assert first[0]["size"] == "0.1" and first[0]["repeats"] == 3 and len(second) == 2
    assert len({os.getpid(), first[0]["process"], second[0]["process"]}) == 3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fail", "exit code 1.*no such thing here"),
        ("killed", "where memory runs out; try a smaller size"),
        ("slow", "ended after 3 s"),
    ],
)
def test_a_failure_says_why(what, message):
    with pytest.raises(MeasurementFailed, match=f"(?s){message}"):
        run(what)
