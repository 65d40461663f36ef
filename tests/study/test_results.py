"""Results lie where everyone looks for them, and a notebook can't claim what it did not write."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from pruner_lib.study import results
from pruner_lib.study.figures import plot_curves
from pruner_lib.study.results import (
    finish,
    manifest_path,
    read_manifest,
    results_dir,
    results_root,
    save_figure,
    save_table,
)

FRAME = pd.DataFrame({"step": [0, 1], "dataset": "wiki", "value": [40.0, 30.0]})


def plot_recovery(frame):
    return plot_curves(frame, x="step", xlabel="steps of recovery", label="perplexity", scale="log")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    return tmp_path / "tiny"


def test_results_lie_where_the_environment_says_else_in_the_project_else_here(tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNER_LIB_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    root = results.project_root()
    assert (root / "pyproject.toml").is_file() and results_root() == root / "results"
    monkeypatch.setattr(results, "project_root", lambda: None)
    assert results_root() == tmp_path / "results"
    monkeypatch.setenv("PRUNER_LIB_RESULTS", "elsewhere")
    assert results_dir("tiny") == tmp_path / "elsewhere" / "tiny"
    assert results_dir("tiny", tmp_path / "given") == tmp_path / "given" / "tiny"
    with pytest.raises(ValueError, match="unknown profile"):
        results_dir("../quick")


def test_figure_is_saved_three_ways_and_twice_the_same(place):
    paths = save_figure(plot_recovery(FRAME).figure, FRAME, "curve", place)
    assert [path.name for path in paths] == ["curve.csv", "curve.svg", "curve.png"]
    before = [path.read_bytes() for path in paths]
    assert b"perplexity" in before[1] and before[2].startswith(b"\x89PNG")
    pd.testing.assert_frame_equal(pd.read_csv(paths[0]), FRAME, check_dtype=False)
    save_figure(plot_recovery(FRAME).figure, FRAME, "curve", place)
    assert [path.read_bytes() for path in paths] == before
    other = FRAME.assign(value=FRAME.value * 2)
    save_figure(plot_recovery(other).figure, other, "curve", place)
    assert all(path.read_bytes() != old for path, old in zip(paths, before, strict=True))


def test_figure_without_numbers_is_refused(place):
    with pytest.raises(ValueError, match="frame is empty"):
        save_figure(plot_recovery(FRAME).figure, FRAME[:0], "curve", place)
    assert not place.exists()


def test_finish_names_what_was_written(place, monkeypatch):
    monkeypatch.setenv(results.RUN_ID, "run-1")
    written = [
        save_table(FRAME, "numbers", place),
        *save_figure(plot_recovery(FRAME).figure, FRAME, "curve", place),
    ]
    said = finish("00_test", "tiny", outputs=written)
    manifest = read_manifest("00_test", "tiny")
    assert manifest["outputs"] == [
        "figures/curve.csv",
        "figures/curve.png",
        "figures/curve.svg",
        "tables/numbers.csv",
    ]
    assert manifest["run_id"] == "run-1" and "tables/numbers.csv" in said and str(place) not in said
    assert str(place) not in json.dumps(manifest)


def test_finish_refuses_what_is_not_there(place):
    (place / "tables").mkdir(parents=True)
    (place / "tables" / "empty.csv").touch()
    for missing in ("missing.csv", "empty.csv"):
        with pytest.raises(ValueError, match=f"says that it wrote .*{missing}"):
            finish("00_test", "tiny", outputs=[place / "tables" / missing])
    assert not manifest_path("00_test", "tiny").exists() and read_manifest("00_test", "tiny") is None


def test_provenance_names_code_packages_and_profile(place):
    line = results.provenance("tiny")
    assert "profile tiny" in line and "torch" in line and "\n" not in line
