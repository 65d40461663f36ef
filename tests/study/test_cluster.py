"""Experiments on a Dask cluster give the records of a study alone, also where a worker dies on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
import torch
from forked import wait_until

from pruner_lib.study import Recovery, Study, cluster, load_profile
from pruner_lib.study.records import record_path
from pruner_lib.study.reproduce import CIRCUMSTANCES

TINY = load_profile("tiny")
SIZES = {"samples": 8, "steps": 6, "batch_size": 2, "micro_batch_size": 2, "warmup_steps": 1}
TRAINING = Recovery(corpus="tiny", evaluate_at=(2, 4), **SIZES)  # with a checkpoint at each
WANTED = [TINY.dense(), TINY.experiment(criterion="l2"), TINY.experiment()]
WANTED += [TINY.experiment(recovery=TRAINING)]


def lasting(study, experiment) -> str:
    """Read the file of a record without times, memory, machine and the revision, which others may change."""
    data = json.loads(record_path(study.folder, experiment.key).read_text())
    for name in CIRCUMSTANCES:
        del data[name]
    for row in data["history"]:
        row.pop("seconds", None)
    return json.dumps(data)


# what a worker runs first: after a checkpoint of the training, the first one waits until it is killed
HOLD = """
import os, pathlib, time
from pruner_lib.recovery import trainer

note_contents, note = trainer.note_contents, pathlib.Path({note!r})

def wait_to_be_killed(folder):
    note_contents(folder)
    if not note.exists():
        note.write_text(str(os.getpid()))
        time.sleep(3600)

trainer.note_contents = wait_to_be_killed
"""


def kill_who_waits(note):
    """Kill the worker that says there that it waits."""
    wait_until(lambda: note.is_file() and note.read_text(), 500)
    os.kill(int(note.read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_worker_costs_no_record_and_changes_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    alone, spread, note = Study("tiny", tmp_path / "alone"), Study("tiny"), tmp_path / "killed.txt"
    alone.run_all(WANTED)
    monkeypatch.setattr(cluster, "_gpus", lambda: ["4", "GPU-7"])  # names of GPUs, which nothing here uses
    with cluster.serving(2) as address:
        monkeypatch.setenv(cluster.SCHEDULER, address)
        client = spread.client
        workers = client.run(os.getpid)
        assert len(workers) == 2
        assert sorted(client.run(os.getenv, cluster.GPUS).values()) == ["4", "GPU-7"]
        client.run(exec, HOLD.format(note=str(note)), {})
        killer = threading.Thread(target=kill_who_waits, args=(note,), daemon=True)
        killer.start()
        spread.run_all(WANTED)
        killer.join()
        client.close()
    assert int(note.read_text()) in workers.values()
    assert [lasting(spread, one) for one in WANTED] == [lasting(alone, one) for one in WANTED]
    assert not any(psutil.pid_exists(number) for number in workers.values())


def test_cluster_that_can_not_be_had_is_said_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    monkeypatch.setenv(cluster.SCHEDULER, "tcp://127.0.0.1:9")
    study = Study("tiny", tmp_path)  # asks for no cluster yet
    with pytest.raises(ValueError, match="no Dask scheduler answers at 'tcp://127.0.0.1:9'.*dask scheduler"):
        study.run_all([TINY.dense()])
    for workers, address, message in ((2, "tcp://a:1", "give one of them"), (-1, "", "should be at least 1")):
        with pytest.raises(ValueError, match=message), cluster.serving(workers, address):
            pytest.fail("served")
    with cluster.serving() as address:
        assert address == ""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="not installed: run `pip install dask distributed`"):
        cluster.connect("tcp://127.0.0.1:9")


def test_each_worker_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ValueError, match="--workers is 3.*at most 2, one per GPU"),
        cluster.serving(3),
    ):
        pytest.fail("served")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cluster._gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    assert cluster._gpus() == ["4", "GPU-7"]
    heard = signal.getsignal(signal.SIGINT)
    for named, own in (("4,GPU-7", "GPU-7"), ("", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        cluster.dask_setup(SimpleNamespace(name=1))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    signal.signal(signal.SIGINT, heard)


@pytest.mark.parametrize("gpus", [0, 1])
def test_experiment_takes_a_gpu_only_where_workers_offer_some(gpus):
    asked = []

    class Client(ThreadPoolExecutor):
        def scheduler_info(self):
            return {"workers": {"a": {"resources": {"GPU": gpus}}, "b": {"resources": {}}}}

        def submit(self, function, *call, **how):
            asked.append(how)
            return super().submit(function, *call)

    with Client(2) as client:
        assert list(cluster.results_of(client, max, [(1, 2), (5, 3)])) == [2, 5]
    assert asked == [{"resources": {"GPU": 1}} if gpus else {}] * 2


def test_error_of_an_experiment_is_raised_and_the_rest_is_cancelled():
    made, gate = [], threading.Event()
    calls = [(made.append, 1), (divmod, 1, 0), (gate.wait, 60), (made.append, 2), (made.append, 3)]
    with ThreadPoolExecutor(1) as client:
        results = cluster.results_of(client, lambda call, *given: call(*given), calls)
        with pytest.raises(ZeroDivisionError):
            list(results)
        gate.set()
    assert made == [1]
