"""The runner believes what a notebook wrote, not what it looks like."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from pruner_lib.study import notebooks as runner
from pruner_lib.study import report
from pruner_lib.study.cluster import SCHEDULER
from pruner_lib.study.notebooks import main, run_study, was_done
from pruner_lib.study.records import read_kept
from pruner_lib.study.report import find_notebooks
from pruner_lib.study.results import manifest_path, results_dir

PARAMETERS = 'profile = "tiny"\nratio: float = 0.25  # share\nnames = ["a"]'
WRITE = """
from pathlib import Path
from pruner_lib.study.results import Results
results = Results(profile)
path = results.place / "tables" / "NAME.csv"
path.parent.mkdir(parents=True, exist_ok=True)
killed_before = path.is_file()
path.write_text(f"{type(ratio).__name__},{ratio},{names}")
"""
FINISH = "results.outputs.append(path)\nresults.finish('NAME')"
DIE_ONCE = "import os, signal\nif not killed_before:\n    os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty project, whose notebooks lie in this folder."""
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(report, "project_root", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


def notebook(folder, name, *cells, parameters=PARAMETERS):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    if parameters:
        book.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    book.cells += [nbformat.v4.new_code_cell(cell.replace("NAME", name)) for cell in cells]
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


@pytest.mark.slow
@pytest.mark.notebook
def test_study_done_before_runs_side_by_side_the_summary_last_and_alone_and_values_keep_their_types(
    folder, monkeypatch, capsys
):
    paths = [notebook(folder, name, WRITE, FINISH) for name in ("00_one", "13_two", "12_summary")]
    given = {"ratio": 0.5, "names": ["x", "y"]}
    with monkeypatch.context() as patch:
        patch.setattr(runner, "was_done", lambda *_: True)
        runs = run_study("tiny", parameters=given)
    lines = capsys.readouterr().out.splitlines()
    order = [f"start {x.split()[1]}" if x[0] == "[" else f"end {x.split()[0]}" for x in lines]
    side_by_side = ["start 00_one", "start 13_two", "end 00_one", "end 13_two"]
    assert order == [*side_by_side, "start 12_summary", "end 12_summary"]
    for path, run in zip(paths, runs, strict=True):
        assert run.done and run.outputs == (f"tables/{path.stem}.csv",), run.error
        assert run.changed == given and run.place == "tiny/changed/ratio=0.5,names=x+y"
        place = results_dir("tiny", changed=given)
        assert (place / run.outputs[0]).read_text() == "float,0.5,['x', 'y']"
        manifest = json.loads(manifest_path(path.stem, "tiny", given).read_text())
        assert manifest["status"] == "done" and manifest["seconds"] == run.seconds
        assert manifest["parameters"] == given | {"profile": "tiny"}
        assert was_done(path, "tiny", given)
        assert not was_done(path, "tiny", given | {"ratio": 0.25}), "another study"
        executed = (place / "notebooks" / path.name).read_text()
        assert str(folder.parent) not in executed
    assert not (results_dir("tiny") / "tables").exists() and not manifest_path("00_one", "tiny").exists()


@pytest.mark.slow
@pytest.mark.notebook
def test_study_goes_on_after_failures_and_a_killed_kernel_and_is_done_by_the_same_command(folder, capsys):
    notebook(folder, "00_bad", "raise RuntimeError('on purpose')")
    notebook(folder, "01_silent", WRITE)
    notebook(folder, "02_lossy", WRITE, FINISH, "path.unlink()")
    notebook(folder, "03_killed", WRITE, FINISH, DIE_ONCE)
    assert main(["--profile", "tiny", "--set", "ratio=0.75"]) == 1
    shown = capsys.readouterr()
    assert "0 of 4 notebooks done" in shown.out and "4 FAILED" in shown.out and "last time" not in shown.out
    reasons = shown.err.split(" failed:\n")[1:]
    wanted = ("on purpose", "without results.finish", "tables/02_lossy.csv", "")
    assert all(words in reason for words, reason in zip(wanted, reasons, strict=True))
    assert str(folder.parent) not in shown.err
    place = results_dir("tiny", changed={"ratio": 0.75})
    assert json.loads((place / "notebooks" / "03_killed.json").read_text())["status"] == "failed"
    assert main(["--profile", "tiny", "--only", "03", "--set", "ratio=0.75"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 1 notebooks done" in shown and "last time" in shown
    assert "files in tiny/changed/ratio=0.75" in shown
    assert (place / "tables/03_killed.csv").read_text().startswith("float,0.75")
    page = place / "index.html"
    assert str(page) in shown and 'href="notebooks/03_killed.html"' in page.read_text()


@pytest.mark.slow
@pytest.mark.notebook
def test_failed_try_replaces_neither_the_good_notebook_nor_its_files_on_the_page(folder):
    path = notebook(folder, "00_once", WRITE, "assert not killed_before, 'on purpose'", FINISH)
    assert main(["--profile", "tiny"]) == 0
    place, good = results_dir("tiny"), read_kept(manifest_path("00_once", "tiny"))
    before = (place / "notebooks" / path.name).read_text()
    assert main(["--profile", "tiny"]) == 1
    after = read_kept(manifest_path("00_once", "tiny"))
    assert after["status"] == "failed" and "on purpose" in after["error"]
    assert after["outputs"] == good["outputs"] == ["tables/00_once.csv"]
    assert after["git_revision"] == good["git_revision"] and after["versions"] == good["versions"]
    assert (place / "notebooks" / path.name).read_text() == before
    assert "AssertionError" in (place / "notebooks/failed" / path.name).read_text()
    page = (place / "index.html").read_text()
    assert 'href="notebooks/00_once.html"' in page and "failed" in page
    assert "AssertionError" not in (place / "notebooks/00_once.html").read_text()
    assert not was_done(path, "tiny", {})


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
    notebook(folder, "01_shared", WRITE, SHARED, FINISH)
    studies = [start_study(folder) for _ in range(2)]
    try:
        ends = [(study.communicate(timeout=500)[1], study.returncode) for study in studies]
    finally:
        for study in studies:
            study.kill()
    assert [code for _, code in ends] == [0, 0], ends
    keys = (results_dir("tiny").parent / "measured.txt").read_text().split()
    assert len(keys) == len(set(keys)) == 3, "an experiment ran twice"
    records = sorted((results_dir("tiny") / "records").glob("*.json"))
    assert [path.stem for path in records] == sorted(keys)
    for name in ("00_shared", "01_shared"):
        assert read_kept(manifest_path(name, "tiny"))["status"] == "done"


RUN = """
import runpy, sys
from pathlib import Path
from pruner_lib.study import results
results.project_root = lambda: Path({root!r})
sys.argv[1:] = ["--profile=tiny"]
runpy.run_module("pruner_lib.study.notebooks", run_name="__main__")
"""
NOTES = """
import os, subprocess, time
child = subprocess.Popen(['sleep', '600'])
open({note!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}} {{child.pid}}')
time.sleep(600)
"""


def start_study(folder):
    code = RUN.format(root=str(folder.parent))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


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
        said = study.communicate(timeout=120)[1]
        killed = number == signal.SIGKILL
        assert study.returncode == (-number if killed else 128 + number)
        assert ("run the same command again" in said) != killed
        wait_until(lambda: not any(psutil.pid_exists(number) for number in processes.values()))
        assert not (results_dir("tiny") / "tables").exists(), "the next notebook ran"
    finally:
        study.kill()


def wait_until(condition, seconds: float = 120.0):
    """Wait for a condition; a test that fails here has seen it false for the whole time."""
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("what was waited for has not happened")


def test_misspelt_parameter_is_an_error_before_anything_runs(folder):
    notebook(folder, "00_good", WRITE, FINISH)
    with pytest.raises(ValueError, match="has a parameter ration; there are names, profile, ratio"):
        run_study("tiny", parameters={"ration": 0.5})
    assert not results_dir("tiny").exists()


def test_notebook_without_the_parameters_tag_is_an_error(folder):
    notebook(folder, "00_bare", "profile = 'tiny'", parameters=None)
    with pytest.raises(ValueError, match="tagged 'parameters'"):
        run_study("tiny")


def test_bad_input_on_the_command_line_ends_with_exit_code_2(folder, capsys):
    notebook(folder, "00_good", WRITE, FINISH)
    assert main(["--profile", "tyni"]) == 2
    assert "there are decide, paper, quick, tiny" in capsys.readouterr().err
    assert main(["--only", "07", "--profile", "tiny"]) == 2
    assert "there are 00_good" in capsys.readouterr().err
    assert main(["--only", "", "--profile", "tiny"]) == 2
    assert "begins with ''; there are 00_good" in capsys.readouterr().err
    for setting in ("ratio", "ratio=[1,", "ratio={a: 1}", "ratio=[[1]]", "ratio=!!python/name:os.system"):
        with pytest.raises(SystemExit):
            main(["--set", setting])
        assert f"{setting!r} is no setting; write name=value" in capsys.readouterr().err
    assert not results_dir("tiny").exists()


def test_notebooks_come_in_the_order_of_their_names_and_can_be_chosen(folder):
    for name in ("02_c", "00_a", "01_b", "00_a_more"):
        notebook(folder, name)
    assert [path.stem for path in find_notebooks()] == ["00_a", "00_a_more", "01_b", "02_c"]
    assert [path.stem for path in find_notebooks(["01", "02"])] == ["01_b", "02_c"]
    assert [path.stem for path in find_notebooks(["00_a"])] == ["00_a"]
    with pytest.raises(ValueError, match="begins with '9'; there are 00_a"):
        find_notebooks(["9"])


@pytest.mark.slow
@pytest.mark.notebook
def test_manifest_of_another_run_neither_helps_nor_harms(folder):
    """Two studies on the same results write the same manifests."""
    other = "from pruner_lib.study.results import manifest_path\nother = manifest_path('NAME', 'tiny')\n"
    other += "other.parent.mkdir(exist_ok=True)\nother.write_text('{}')"
    notebook(folder, "00_first", WRITE, FINISH, other)
    notebook(folder, "01_silent", WRITE, other)
    first, silent = run_study("tiny")
    assert first.done and first.outputs == ("tables/00_first.csv",), first.error
    assert not silent.done and "without results.finish" in silent.error
    assert json.loads(manifest_path("00_first", "tiny").read_text())["status"] == "done"


@pytest.mark.slow
@pytest.mark.notebook
def test_full_disk_ends_the_study_in_one_sentence(folder, capsys):
    notebook(folder, "00_full", "import errno, os\nraise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))")
    notebook(folder, "01_next", WRITE, FINISH)
    assert main(["--profile", "tiny"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: 00_full stopped: OSError: [Errno 28] No space left on device\n"
    assert "01_next" not in shown.out and not (results_dir("tiny") / "tables").exists()


@pytest.mark.parametrize(
    ("words", "address"),
    [(["--workers", "2"], "here, 2"), (["--scheduler", "tcp://a:1"], "tcp://a:1"), ([], "")],
)
def test_address_of_the_cluster_reaches_the_notebooks(folder, monkeypatch, words, address):
    given = {}
    served = contextlib.contextmanager(
        lambda workers, named: iter([f"here, {workers}" if workers else named])
    )
    monkeypatch.setattr(runner, "serving", served)
    monkeypatch.setattr(runner, "run_study", lambda *_, environment: given.update(environment) or [])
    monkeypatch.delenv(SCHEDULER, raising=False)
    notebook(folder, "00_good")
    assert main(["--profile", "tiny", *words]) == 0
    assert given[SCHEDULER] == address and given["PATH"] == os.environ["PATH"]


def test_results_that_can_not_be_written_are_found_out_before_a_notebook_runs(folder, capsys):
    notebook(folder, "00_good", WRITE, FINISH)
    results_dir("tiny").parent.mkdir()
    results_dir("tiny").write_text("a file in place of the folder; nobody but root is stopped by its rights")
    assert main(["--profile", "tiny"]) == 2
    shown = capsys.readouterr()
    assert "00_good" not in shown.out and shown.err.count("\n") == 1
    assert "could not write" in shown.err and "set PRUNER_LIB_RESULTS to another folder" in shown.err
