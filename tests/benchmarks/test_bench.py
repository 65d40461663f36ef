"""The benchmark on tiny shapes: its rows, what is reused, what a failure leaves, its page and its figure."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from legible import assert_legible

from tests.benchmarks import discovery, evaluation, figure, rows, scoring, speed
from tests.benchmarks.process import MeasurementFailed, in_fresh_process
from tests.benchmarks.shapes import random_model

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results" / "bench"
SMALL = {
    scoring: {"size": "tiny", "samples": "2", "tokens": "8", "device": "cpu", "repeats": "2"},
    discovery: {"size": "tiny,2x64", "tool": "ours", "repeats": "2"},
    speed: {"model": "tiny", "prefill": "24", "new_tokens": "3", "device": "cpu", "rounds": "3"},
    evaluation: {"model": "tiny", "window": "128", "windows": "2", "device": "cpu", "rounds": "3"},
}


@cache
def measured(script) -> pd.DataFrame:
    """Measure the cases of a script on tiny shapes, in this process."""
    found = []
    for case in rows.changed(script.cases(), SMALL[script]):
        row = script.measure(**case)
        found += [case | {"machine": "here"} | each for each in (row if isinstance(row, list) else [row])]
    return getattr(script, "derive", lambda frame: frame)(pd.DataFrame(found))


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL, ids=lambda script: script.__name__.rpartition(".")[2])
def test_new_rows_have_the_columns_of_the_committed_ones(script):
    name = script.__name__.rpartition(".")[2]
    dropped = {"kinds", "micro_batch", "checkpointing"}  # settings that no row ever varied
    committed = set(rows.read_rows(COMMITTED / f"{name}.csv")) - dropped - {"code"}
    assert set(measured(script)) == committed


@pytest.mark.slow
def test_scoring_compares_each_way_with_the_plain_pass():
    frame = measured(scoring)
    assert list(frame.way) == ["plain", "vector", "element1", "all criteria"]
    assert (frame.time_to_plain[frame.way == "plain"] == 1).all() and (frame.n_times == 2).all()
    assert (frame.peak_mb >= frame.loaded_mb).all() and (frame.loaded_mb > frame.weights_mb).all()


def test_times_are_compared_round_by_round():
    """Twice as slow as the plain pass, but in the round when the machine was slow for both."""
    assert scoring.median_ratio([2.0, 20.0, 2.2], [1.0, 20.0, 1.1]) == 2.0


def test_a_model_too_large_for_the_memory_is_refused_with_figures(monkeypatch):
    monkeypatch.setattr(scoring, "free_mb", lambda device: 2000.0)
    with pytest.raises(ValueError, match=r"size 1 needs 2,\d+ MiB .* 2,000 are free on cpu"):
        scoring.measure(**rows.changed(scoring.cases(), {"size": "1", "device": "cpu"})[0])


def test_the_plain_pass_computes_all_gradients_and_keeps_them_only_where_they_fit(monkeypatch):
    case = rows.changed(scoring.cases(), SMALL[scoring])[0]
    assert scoring.measure(**case)["gradients"] == "kept"
    monkeypatch.setattr(scoring, "free_mb", lambda device: scoring.BESIDE_MB + 0.01)
    monkeypatch.setattr(scoring, "refuse_too_large", lambda *given: None)
    assert scoring.measure(**case)["gradients"] == "freed"
    model, seen = random_model("tiny"), []
    ids, parameters = model.dummy_inputs["input_ids"], list(model.parameters())
    monkeypatch.setattr(
        model, "zero_grad", lambda set_to_none: seen.append(sum(p.grad is not None for p in parameters))
    )
    for freed in (True, False):
        scoring.plain_pass(model, ids, freed)
    assert seen == [0, len(parameters)]


@pytest.mark.slow
def test_speed_has_the_dense_model_and_six_pruned_ones_in_each_phase():
    frame = measured(speed)
    assert len(frame) == 2 * 7 and set(frame.phase) == {"prefill", "decoding"}
    dense = frame[frame.removed == 0]
    assert (dense.speedup == 1).all() and (dense.ideal == 1).all()
    for row in frame[frame.removed > 0].itertuples():
        assert row.multiple_of == 64 or row.blocks_left == pytest.approx(1 - row.removed, abs=0.02)
        assert all(int(width) % row.multiple_of == 0 for width in row.mlp_widths.split())
        assert row.ideal == pytest.approx(1 / row.blocks_left, abs=1e-3)


def test_values_of_settings_multiply_the_cases_and_keep_their_types():
    cases = [{"size": size, "repeats": 3} for size in ("7", "70")]
    assert rows.changed(cases, {"size": "0.1"}) == [{"size": "0.1", "repeats": 3}]
    assert [case["repeats"] for case in rows.changed(cases, {"repeats": "1,2"})] == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="no setting 'sizes'; there are size, repeats"):
        rows.changed(cases, {"sizes": "7"})


@pytest.fixture
def calls(monkeypatch, tmp_path) -> list[dict]:
    """Let discovery measure nothing, into a folder of results of its own; give what was called."""
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    called: list[dict] = []

    def measure(function, settings):
        called.append(settings)
        if settings["size"] == "70":
            raise MeasurementFailed("out of luck")
        return [{"parameters": 5, "seconds": 1.0}]

    monkeypatch.setattr(rows, "in_fresh_process", measure)
    return called


def run_sizes(sizes: str, *words: str) -> int:
    return rows.run(
        "discovery",
        discovery.cases(),
        [*words, "--set", f"size={sizes}", "tool=ours"],
        derive=discovery.derive,
    )


def test_only_what_is_not_measured_on_this_machine_with_this_code_is_measured(calls, tmp_path, monkeypatch):
    path = tmp_path / "bench" / "discovery.csv"
    assert run_sizes("7") == 0 and run_sizes("7,0.1") == 0
    assert [call["size"] for call in calls] == ["7", "0.1"]
    assert list(rows.read_rows(path)["size"]) == ["7", "0.1"]
    run_sizes("7", "--again")
    assert len(calls) == 3 and sorted(rows.read_rows(path)["size"]) == ["0.1", "7"], "in place of the old row"
    monkeypatch.setattr(rows, "code_hash", lambda files: "other")
    run_sizes("7")
    assert len(calls) == 4 and len(rows.read_rows(path)) == 2
    here = rows.machine()
    monkeypatch.setattr(rows, "machine", lambda: here | {"machine": "other", "cores": 64})
    run_sizes("7")
    frame = rows.read_rows(path)
    assert len(calls) == 5 and sorted(frame.machine) == sorted([here["machine"]] * 2 + ["other"])
    assert len(pd.read_csv(tmp_path / "bench" / "machines.csv")) == 2


def test_a_case_that_fails_is_reported_and_does_not_stop_the_others(calls, tmp_path, capsys):
    assert run_sizes("70,7") == 1
    assert "FAILED: out of luck" in capsys.readouterr().out
    assert list(rows.read_rows(tmp_path / "bench" / "discovery.csv")["size"]) == ["7"]


def test_the_code_of_a_row_is_the_whole_library_without_the_study(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    hashed: list[Path] = []
    monkeypatch.setattr(rows, "code_hash", lambda files: hashed.extend(files) or "x")
    rows._mark("scoring")
    names = {path.relative_to(ROOT).as_posix() for path in hashed}
    library = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pruner_lib").rglob("*.py")}
    assert names == {n for n in library if "/study/" not in n} | {"tests/benchmarks/scoring.py"}


def test_code_is_hashed_without_comments_and_layout(tmp_path):
    path, hashes = tmp_path / "some.py", []
    for text in ("x = 1  # why\n", "x = (1)\n", "x = 2\n"):
        path.write_text(text)
        hashes.append(rows.code_hash([path]))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_each_call_has_its_process_and_a_failure_says_why():
    first, second = (in_fresh_process("os:getpid", {})[0] for _ in range(2))
    assert len({os.getpid(), first, second}) == 3
    assert in_fresh_process("builtins:list", {}) == [], "a list is rows, and what is no list is one row"
    with pytest.raises(MeasurementFailed, match="os:stat failed: FileNotFoundError: .*nowhere"):
        in_fresh_process("os:stat", {"path": "nowhere"})
    with pytest.raises(MeasurementFailed, match="when memory runs out"):
        in_fresh_process("os:abort", {})


def cells(page: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]


def test_each_goal_has_a_row_and_one_number_that_misses_it_counts():
    frames = figure.load_rows(COMMITTED)
    assert [row[1] for row in cells(figure.goals_page(frames))] == [
        "at most 1.35", "at most 1.35", "at most 1.3", "at most 3", "0.85 to 1.15", "at most 0.333",
        "at least 0.85", "at least 0.85", "at least 0.95", "at least 2", "at least 1.3", "at most 2",
        "at least 1.5",
    ]  # fmt: skip
    met = [row[3] for row in cells(figure.goals_page(frames))]
    assert met == [*["yes"] * 7, "no", *["yes"] * 5]  # decoding
    late, slow = frames["speed"].copy(), frames["scoring"].copy()
    late.loc[late.phase == "decoding", "of_ideal"] = 1.0
    slow.loc[(slow["size"] == "7") & (slow.way == "vector"), "time_to_plain"] = 1.31
    met = [row[3] for row in cells(figure.goals_page(frames | {"speed": late, "scoring": slow}))]
    assert met == ["yes", "yes", "no", *["yes"] * 10]
    assert len(cells(figure.goals_page({"evaluation": frames["evaluation"]}))) == 1


def test_the_page_is_that_of_the_committed_rows():
    page = figure.goals_page(figure.load_rows(COMMITTED))
    assert (COMMITTED / "README.md").read_text() == page, (
        "run python -m tests.benchmarks.figure and commit it"
    )


@pytest.mark.slow
def test_the_figure_can_be_read():
    drawn = figure.plot_bench(figure.load_rows(COMMITTED))
    assert len(drawn.axes) == 6
    assert_legible(drawn)
