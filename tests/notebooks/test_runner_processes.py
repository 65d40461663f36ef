"""Runners beside each other, and signals to any process of a study: nothing is lost, and nothing stays."""

from __future__ import annotations

import os
import signal

import forked
import psutil
import pytest
from forked import wait_until
from made_notebooks import FINISH, WRITE, make_project, notebook

from pruner_lib.study import results
from pruner_lib.study.records import read_kept
from pruner_lib.study.results import manifest_path, results_dir


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return make_project(tmp_path, monkeypatch)


SHARED = """
from pruner_lib.study import Study
measure = Study._measure
def noted(self, one, criteria):
    print(one.key, file=open(results.folder.parent / "measured.txt", "a"))
    return measure(self, one, criteria)
Study._measure = noted
study = Study(profile)
study.run_all([study.profile.experiment(criterion=one) for one in ("l1", "l2", "random")])
"""


@pytest.mark.slow
@pytest.mark.notebook
def test_two_runners_at_once_share_the_experiments_and_both_end_well(folder):
    """Each experiment writes a line where it is measured; two runners are started together."""
    notebook(folder, "00_shared", WRITE, SHARED, FINISH)
    studies = [start_study(folder, f"{number}.txt") for number in range(2)]
    try:
        for study in studies:
            study.join(500)
    finally:
        for study in studies:
            study.kill()
    said = [path.read_text() for path in sorted(folder.parent.glob("?.txt"))]
    assert [study.exitcode for study in studies] == [0, 0], said
    keys = (results_dir("tiny").parent / "measured.txt").read_text().split()
    assert len(keys) == len(set(keys)) == 3, "an experiment ran twice"
    records = sorted((results_dir("tiny") / "records").glob("*.json"))
    assert [path.stem for path in records] == sorted(keys)
    assert read_kept(manifest_path("00_shared", "tiny"))["status"] == "done"


NOTES = """
import os, subprocess, time
child = subprocess.Popen(['sleep', '600'])
open({note!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}} {{child.pid}}')
time.sleep(600)
"""


def start_study(folder, said="said.txt"):
    """Start a runner; what it says goes to a file in the project."""
    return forked.start(be_the_runner, results.__file__, said=folder.parent / said)


def be_the_runner(file):
    results.__file__ = file  # by which it finds the project, where the process is not forked
    forked.as_program("pruner_lib.study.notebooks", "--profile=tiny")


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("who", "number"),
    [
        ("runner", signal.SIGTERM),
        ("runner", signal.SIGINT),
        ("kernel", signal.SIGTERM),
        ("kernel", signal.SIGINT),
        ("runner", signal.SIGKILL),
    ],
)
def test_signal_to_any_process_ends_the_study_and_all_its_processes(folder, tmp_path, who, number):
    """The kernel starts a process; after the signal both are gone, and so is the runner."""
    note = tmp_path / "kernel.txt"
    notebook(folder, "00_long", NOTES.format(note=str(note)), FINISH)
    notebook(folder, "01_next", WRITE, FINISH)
    study = start_study(folder)
    try:
        wait_until(lambda: note.is_file() and len(note.read_text().split()) == 3)
        processes = dict(zip(("runner", "kernel", "child"), map(int, note.read_text().split()), strict=True))
        assert processes["runner"] == study.pid
        os.kill(processes[who], number)
        study.join(120)
        said, killed = (tmp_path / "said.txt").read_text(), number == signal.SIGKILL
        assert study.exitcode == (-number if killed else 128 + number)
        assert ("run the same command again" in said) != killed
        wait_until(lambda: not any(psutil.pid_exists(number) for number in processes.values()))
        assert not (results_dir("tiny") / "tables").exists(), "the next notebook ran"
    finally:
        study.kill()
