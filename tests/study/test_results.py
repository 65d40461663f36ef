"""Results lie where everyone looks for them, and a notebook can't claim what it did not write."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from pruner_lib.study import results
from pruner_lib.study.figures import plot_curves
from pruner_lib.study.records import read_kept
from pruner_lib.study.results import (
    Results,
    manifest_path,
    results_dir,
    results_root,
)

FRAME = pd.DataFrame({"step": [0, 1], "dataset": "wiki", "value": [40.0, 30.0]})


def plot_recovery(frame):
    return plot_curves(frame, x="step", xlabel="steps of recovery", label="perplexity", scale="log")


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    return Results("tiny")


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


def test_figure_is_saved_three_ways_and_twice_the_same(own):
    paths = own.save_figure(plot_recovery(FRAME).figure, FRAME, "curve")
    assert [path.name for path in paths] == ["curve.csv", "curve.svg", "curve.png"]
    before = [path.read_bytes() for path in paths]
    assert b"perplexity" in before[1] and before[2].startswith(b"\x89PNG")
    pd.testing.assert_frame_equal(pd.read_csv(paths[0]), FRAME, check_dtype=False)
    own.save_figure(plot_recovery(FRAME).figure, FRAME, "curve")
    assert [path.read_bytes() for path in paths] == before
    other = FRAME.assign(value=FRAME.value * 2)
    own.save_figure(plot_recovery(other).figure, other, "curve")
    assert all(path.read_bytes() != old for path, old in zip(paths, before, strict=True))


def test_figure_without_numbers_is_refused(own):
    with pytest.raises(ValueError, match="'curve' has no numbers"):
        own.save_figure(plot_recovery(FRAME).figure, FRAME[:0], "curve")
    assert not own.folder.exists()


def test_finish_names_what_was_written_in_the_manifest_or_to_the_runner(own, monkeypatch):
    own.save_table(FRAME, "numbers")
    own.save_figure(plot_recovery(FRAME).figure, FRAME, "curve")
    said, manifest = own.finish("00_test"), read_kept(manifest_path("00_test", "tiny"))
    assert manifest["outputs"] == [
        "figures/curve.csv",
        "figures/curve.png",
        "figures/curve.svg",
        "tables/numbers.csv",
    ]
    assert "tables/numbers.csv" in said and str(own.folder) not in said + json.dumps(manifest)
    monkeypatch.setenv(results.RECEIPTS, str(own.folder))
    own.finish("01_test")
    assert read_kept(own.folder / "01_test.json")["outputs"] == manifest["outputs"]
    assert read_kept(manifest_path("01_test", "tiny")) is None, "the runner writes it"


def test_finish_refuses_what_is_not_there(own):
    (own.folder / "tables").mkdir(parents=True)
    (own.folder / "tables" / "empty.csv").touch()
    for missing in ("missing.csv", "empty.csv"):
        own.outputs = [own.folder / "tables" / missing]
        with pytest.raises(ValueError, match=f"missing or empty now: .*{missing}"):
            own.finish("00_test")
    assert (
        not manifest_path("00_test", "tiny").exists() and read_kept(manifest_path("00_test", "tiny")) is None
    )


def test_provenance_names_code_packages_and_profile(own):
    line = own.provenance()
    assert "profile tiny" in line and "torch" in line and "\n" not in line
