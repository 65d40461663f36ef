"""The runner believes what a notebook wrote, not what it looks like."""

from __future__ import annotations

import json

import nbformat
import pytest

from pruner_lib.study.notebooks import check_parameters, find_notebooks, main, run_notebook, run_study
from pruner_lib.study.results import manifest_path, results_dir

WRITE = """
from pathlib import Path
from pruner_lib.study.results import finish, results_dir
path = results_dir(profile) / "tables" / "made.csv"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(f"{type(ratio).__name__},{ratio},{names}")
"""
FINISH = "finish(NAME, profile, outputs=[path])"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path / "results"))
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


def notebook(
    folder, name, *cells, parameters='profile = "tiny"\nratio: float = 0.25  # share\nnames = ["a"]'
):
    book = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {
                "name": "python3",
                "display_name": "Python 3",
                "language": "python",
            }
        }
    )
    if parameters:
        book.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    book.cells += [nbformat.v4.new_code_cell(cell.replace("NAME", repr(name))) for cell in cells]
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


def test_notebook_that_finishes_is_done_and_numbers_keep_their_type(folder):
    path = notebook(folder, "00_good", WRITE, FINISH)
    run = run_notebook(path, "tiny", {"ratio": 0.5, "names": ("x", "y")}, show=False)
    assert run.done, run.error
    assert run.outputs == ("tables/made.csv",)
    assert (results_dir("tiny") / "tables" / "made.csv").read_text() == "float,0.5,['x', 'y']"
    manifest = json.loads(manifest_path("00_good", "tiny").read_text())
    assert manifest["status"] == "done" and manifest["seconds"] == run.seconds
    assert manifest["parameters"] == {"ratio": 0.5, "names": ["x", "y"], "profile": "tiny"}
    executed = (results_dir("tiny") / "notebooks" / "00_good.ipynb").read_text()
    assert str(folder.parent) not in executed


def test_killed_kernel_is_a_failure_even_over_an_older_success(folder):
    path = notebook(folder, "00_mortal", WRITE, FINISH)
    assert run_notebook(path, "tiny", show=False).done
    notebook(folder, "00_mortal", WRITE, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", FINISH)
    run = run_notebook(path, "tiny", show=False)
    assert not run.done and str(folder.parent) not in run.error
    assert json.loads(manifest_path("00_mortal", "tiny").read_text())["status"] == "failed"


def test_notebook_that_never_says_it_is_done_is_a_failure(folder):
    run = run_notebook(notebook(folder, "00_silent", WRITE), "tiny", show=False)
    assert not run.done and "finish" in run.error


def test_notebook_whose_output_vanishes_is_a_failure(folder):
    run = run_notebook(notebook(folder, "00_lossy", WRITE, FINISH, "path.unlink()"), "tiny", show=False)
    assert not run.done and "tables/made.csv" in run.error


def test_study_goes_on_after_a_failure_and_ends_nonzero(folder, monkeypatch, capsys):
    notebook(folder, "00_bad", "raise RuntimeError('on purpose')")
    notebook(folder, "01_good", WRITE, FINISH)
    monkeypatch.setattr("pruner_lib.study.notebooks.notebooks_dir", lambda: folder)
    assert main(["study", "--profile", "tiny", "--set", "ratio=0.75"]) == 1
    said = capsys.readouterr()
    assert "1 of 2 notebooks done" in said.out and "1 FAILED" in said.out and "on purpose" in said.err
    assert (results_dir("tiny") / "tables" / "made.csv").read_text().startswith("float,0.75")
    assert main(["study", "--profile", "tiny", "--only", "01"]) == 0
    assert "1 of 1 notebooks done" in capsys.readouterr().out


def test_study_writes_one_page_of_all_results_and_tells_the_last_time(folder, monkeypatch, capsys):
    notebook(folder, "00_good", WRITE, FINISH)
    notebook(folder, "12_last", WRITE, FINISH)
    monkeypatch.setattr("pruner_lib.study.notebooks.notebooks_dir", lambda: folder)
    assert main(["study", "--profile", "tiny", "--only", "12,00"]) == 0
    said = capsys.readouterr().out
    page = results_dir("tiny") / "index.html"
    assert str(page) in said and said.index("[1/2] 00_good") < said.index("[2/2] 12_last")
    assert "last time" not in said
    assert 'href="notebooks/00_good.html"' in page.read_text() and "12_last" in page.read_text()
    monkeypatch.setattr(
        "pruner_lib.study.notebooks.write_index", lambda _: (_ for _ in ()).throw(ValueError("no page"))
    )
    assert main(["study", "--profile", "tiny", "--only", "00"]) == 0
    said = capsys.readouterr().out
    assert "last time" in said and "could not be written: no page" in said


def test_misspelt_parameter_is_an_error_before_anything_runs(folder):
    path = notebook(folder, "00_good", WRITE, FINISH)
    with pytest.raises(ValueError, match="no parameter ration; it has names, profile, ratio|ration"):
        run_notebook(path, "tiny", {"ration": 0.5})
    with pytest.raises(ValueError, match="ration"):
        run_study("tiny", parameters={"ration": 0.5}, place=folder)
    assert not results_dir("tiny").exists()
    check_parameters(path, {"ratio": 0.5})


def test_notebook_without_the_parameters_tag_is_an_error(folder):
    path = notebook(folder, "00_bare", "profile = 'tiny'", parameters=None)
    with pytest.raises(ValueError, match="tagged 'parameters'"):
        run_notebook(path, "tiny")


def test_bad_input_from_the_command_line_is_told_with_exit_code_2(folder, monkeypatch, capsys):
    notebook(folder, "00_good", WRITE, FINISH)
    monkeypatch.setattr("pruner_lib.study.notebooks.notebooks_dir", lambda: folder)
    assert main(["study", "--profile", "tyni"]) == 2
    assert "there are full, paper, quick, tiny" in capsys.readouterr().err
    assert main(["notebook", "07", "--profile", "tiny"]) == 2
    assert "there are 00_good" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", "--set", "ratio"])


def test_notebooks_come_in_the_order_of_their_names_and_can_be_chosen(folder):
    for name in ("02_c", "00_a", "01_b", "00_a_more"):
        notebook(folder, name)
    assert [path.stem for path in find_notebooks(place=folder)] == ["00_a", "00_a_more", "01_b", "02_c"]
    assert [path.stem for path in find_notebooks(["01", "02"], folder)] == ["01_b", "02_c"]
    assert [path.stem for path in find_notebooks(["00_a"], folder)] == ["00_a"]
    with pytest.raises(ValueError, match="begins so; there are 00_a"):
        find_notebooks(["9"], folder)


def test_notebooks_that_were_all_done_run_side_by_side_and_the_last_after_them(folder, capsys):
    for name in ("00_one", "01_two", "02_last"):
        notebook(folder, name, WRITE, FINISH)
    first = run_study("tiny", place=folder, show=False)
    told = capsys.readouterr().out.splitlines()
    assert all(run.done for run in first) and "[1/3] 00_one" in told[0] and told[1].startswith("    done")
    assert run_study("tiny", parameters={"ratio": 0.25}, place=folder, show=False)
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith("    done"), "another parameter: it is not the same study"
    again = run_study("tiny", parameters={"ratio": 0.25}, place=folder, show=False)
    told = capsys.readouterr().out.splitlines()
    assert [run.notebook for run in again] == ["00_one", "01_two", "02_last"] and all(r.done for r in again)
    assert "[1/3]" in told[0] and "[2/3]" in told[1] and "[3/3] 02_last" in told[4]
