"""Memory that a process takes is seen, and forgotten when asked."""

from __future__ import annotations

import numpy as np

from pruner_lib.evaluation import meters
from pruner_lib.method.memory import trim_heap


def test_peak_sees_what_was_held_for_a_moment_only():
    meters.reset_peak()
    before = meters.resident_mb()
    held = np.ones(64 * 2**17)  # 64 MiB
    assert meters.resident_mb() > before + 50
    del held
    assert meters.peak_mb() > before + 50


def test_peak_counts_anew_after_a_reset_where_the_system_can():
    held = np.ones(64 * 2**17)
    high = meters.peak_mb()
    del held
    meters.reset_peak()
    assert 0 < meters.peak_mb() <= high + 1


def test_giving_back_keeps_what_is_held_and_never_raises_what_is_taken():
    kept = np.arange(1000)
    freed = [np.ones(2**15) for _ in range(256)]  # 64 MiB in pieces that the allocator likes to keep
    del freed
    before = meters.resident_mb()
    trim_heap()
    assert meters.resident_mb() <= before + 1
    assert kept.sum() == 499500
