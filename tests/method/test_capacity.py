"""What can still be had is what the system and its limits leave."""

from __future__ import annotations

import mmap
import os

import numpy as np
import psutil
import torch

from pruner_lib.method import memory
from pruner_lib.method.memory import available_bytes, held_bytes


def test_available_memory_is_what_the_system_says():
    found = available_bytes(torch.device("cpu"))
    assert 0 < found <= psutil.virtual_memory().total
    assert found < psutil.virtual_memory().available * 1.2 + 2**28
    assert available_bytes(torch.device("meta")) is None


def test_held_memory_grows_with_what_is_held():
    model = torch.nn.Linear(4, 4)
    before = held_bytes(model)
    taken = np.frombuffer(mmap.mmap(-1, 2**26))  # 64 MiB of new pages: the heap may have free ones
    taken[:] = 1
    assert held_bytes(model) - before > 0.8 * taken.nbytes
    assert abs(held_bytes(model) - psutil.Process(os.getpid()).memory_info().rss) < 2**25


def test_weights_that_are_not_in_memory_yet_are_counted(monkeypatch):
    model = torch.nn.Linear(2**10, 2**10)
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 1)  # pages of one byte: hardly anything resident
    assert held_bytes(model) > 2**22


def test_limits_of_containers_are_looked_up_along_the_path(tmp_path):
    own = tmp_path / "cgroup"
    for first, folder, names in (
        ("5:memory:/a/b\n6:cpu:/c\n", "memory/a", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
        ("0::/a/b\n", "a", ("memory.max", "memory.current")),
    ):
        own.write_text(first)
        place = tmp_path / folder
        place.mkdir(parents=True)
        (place / "memory.stat").write_text("file 7\ninactive_file 100\nactive_file 9\n")
        (place / names[1]).write_text("600\n")
        (place / names[0]).write_text("1000\n")
        assert list(memory._container_bytes(tmp_path, own)) == [500]
        (place / names[0]).write_text("max\n")
        assert list(memory._container_bytes(tmp_path, own)) == []


def test_the_heap_is_trimmed_when_memory_has_grown(monkeypatch):
    held, calls = [memory.HOLES], []
    monkeypatch.setattr(memory, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(memory, "trim_heap", lambda: calls.append(held[0]))
    trimmer = memory.HeapTrimmer()
    for size, given in ((2, 0), (2.5, 1), (2.5, 1), (3.6, 2)):
        held[0] = int(size * memory.HOLES)
        trimmer.check()
        assert len(calls) == given
