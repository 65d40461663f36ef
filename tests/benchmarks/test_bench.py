"""The benchmark on tiny shapes: columns, what is reused, what a failure leaves, and the figure."""

from __future__ import annotations

import json
from importlib import import_module

import pandas as pd
import pytest
import torch
from legible import assert_legible
from made_bench import made_up

from tests.benchmarks import bench, rows
from tests.benchmarks.goals import plot_bench
from tests.benchmarks.process import MeasurementFailed
from tests.benchmarks.rows import code_version, machine

SMALL = (
    "--sizes=tiny,2x64 --model=tiny --rounds=3 --repeats=2 --samples=2 --tokens=8 --prefill=24 "
    "--new-tokens=3 --eval-tokens=256 --no-rival --device=cpu"
)
COLUMNS = {
    "scoring": "size way samples tokens device dtype kinds gradients parameters weights_mb loaded_mb peak_mb "
    "predicted_mb predicted_to_peak first_s seconds plain_s peak_to_weights time_to_plain n_times "
    "machine code",
    "discovery": "size tool layers width parameters weights_mb tool_version n_groups first_s seconds peak_mb "
    "share_of_rival machine code",
    "latency": "model phase removed multiple_of mlp_widths parameters blocks_left ideal ideal_all tokens "
    "seconds seconds_q1 seconds_q3 tokens_per_s speedup of_ideal machine code",
    "evaluation": "model window windows dtype batch bare_tokens_per_s tokens_per_s share machine code",
}


@pytest.fixture
def called(monkeypatch) -> list[tuple[str, str]]:
    """Let cases run in this process; give what was measured."""
    calls: list[tuple[str, str]] = []

    def here(function, settings, **_ignored):
        module, name = function.split(":")
        part = name.removeprefix("measure_") if "_" in name else module.rpartition(".")[2]
        calls.append((part, json.dumps(settings)))
        rows = getattr(import_module(module), name)(**json.loads(json.dumps(settings)))
        return json.loads(json.dumps(rows if isinstance(rows, list) else [rows]))

    monkeypatch.setattr(bench, "in_fresh_process", here)
    return calls


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the results of a whole run on tiny shapes, and what was measured in it."""
    with pytest.MonkeyPatch.context() as patch:
        calls = called.__wrapped__(patch)
        folder = tmp_path_factory.mktemp("bench")
        assert bench.run_bench(bench.parse(SMALL.split()), folder) == 0
        yield folder, list(calls)


def table(folder, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv", dtype={"size": str})


@pytest.mark.parametrize("name", COLUMNS)
def test_every_part_writes_its_columns(finished, name):
    frame = table(finished[0], name)
    assert set(COLUMNS[name].split()) <= set(frame)
    known = pd.read_csv(finished[0] / "machines.csv")
    assert set(frame.machine) == set(known.machine) and {"cpu", "cores", "memory_gib", "torch"} <= set(known)


def test_scoring_compares_each_way_with_the_plain_pass(finished):
    frame = table(finished[0], "scoring")
    assert list(frame["size"]) == ["tiny"] * 4 + ["2x64"] * 4
    assert list(frame.way[:4]) == ["plain", "vector", "element1", "all criteria"]
    assert (frame.time_to_plain[frame.way == "plain"] == 1).all()
    assert (frame.time_to_plain > 0).all() and (frame.plain_s > 0).all() and (frame.n_times == 2).all()
    assert (frame.peak_mb >= frame.loaded_mb).all() and (frame.loaded_mb > frame.weights_mb).all()


def test_times_are_compared_round_by_round():
    """Twice as slow as the plain pass, but in the round when the machine was slow for both."""
    from tests.benchmarks.scoring import _compared

    found = _compared([2.0, 20.0, 2.2], [1.0, 20.0, 1.1])
    assert found == {"seconds": 2.2, "plain_s": 1.1, "time_to_plain": 2.0, "n_times": 3}


def test_latency_has_the_dense_model_and_six_pruned_ones_in_each_phase(finished):
    frame = table(finished[0], "latency")
    assert len(frame) == 2 * 7 and set(frame.phase) == {"prefill", "decoding"}
    dense = frame[frame.removed == 0]
    assert (dense.speedup == 1).all() and (dense.ideal == 1).all()
    for row in frame[frame.removed > 0].itertuples():
        assert row.multiple_of == 64 or row.blocks_left == pytest.approx(1 - row.removed, abs=0.02)
        assert all(int(width) % row.multiple_of == 0 for width in str(row.mlp_widths).split())
        assert row.ideal == pytest.approx(1 / row.blocks_left, abs=1e-3)


def test_a_second_run_measures_nothing_again_unless_asked(finished, called, tmp_path):
    folder, first = finished
    assert len(first) == 8 + 2 + 1 + 4 - (256 < 1024) * 2
    before = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    assert bench.run_bench(bench.parse(SMALL.split()), folder) == 0
    assert called == [] and before == {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    again = [*SMALL.split(), "--only=discovery", "--again"]
    assert bench.run_bench(bench.parse(again), folder) == 0
    assert [part for part, _ in called] == ["discovery"] * 2
    assert len(table(folder, "discovery")) == 2, "new rows stand in the place of the old ones"


def test_another_size_joins_and_other_code_is_measured_anew(called, tmp_path, monkeypatch):
    words = [*SMALL.split(), "--only=discovery"]
    bench.run_bench(bench.parse([*words, "--sizes=tiny"]), tmp_path)
    bench.run_bench(bench.parse([*words, "--sizes=tiny,2x64"]), tmp_path)
    assert len(called) == 2 and list(table(tmp_path, "discovery")["size"]) == ["tiny", "2x64"]
    monkeypatch.setattr(rows, "code_version", lambda modules: "other")
    bench.run_bench(bench.parse([*words, "--sizes=tiny"]), tmp_path)
    assert len(called) == 3 and sorted(table(tmp_path, "discovery")["size"]) == ["2x64", "tiny"]


def test_rows_of_another_machine_stay(called, tmp_path, monkeypatch):
    words = bench.parse([*SMALL.split(), "--only=discovery", "--sizes=tiny"])
    bench.run_bench(words, tmp_path)
    here = machine("cpu")
    monkeypatch.setattr(bench, "machine", lambda device: here | {"machine": "other", "cores": 64})
    bench.run_bench(words, tmp_path)
    assert list(table(tmp_path, "discovery").machine) == [here["machine"], "other"]
    assert len(pd.read_csv(tmp_path / "machines.csv")) == 2 and len(called) == 2


def test_a_case_that_fails_is_told_and_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def failing(function, settings, **_ignored):
        if settings["size"] == "tiny":
            raise MeasurementFailed("out of luck")
        return [{"layers": 2, "width": 64, "parameters": 5, "seconds": 1.0}]

    monkeypatch.setattr(bench, "in_fresh_process", failing)
    words = bench.parse([*SMALL.split(), "--only=discovery"])
    assert bench.run_bench(words, tmp_path) == 1
    assert "FAILED" in (said := capsys.readouterr().out) and "out of luck" in said
    assert list(table(tmp_path, "discovery")["size"]) == ["2x64"]


def test_a_model_too_large_for_the_memory_is_refused_with_figures(monkeypatch):
    from tests.benchmarks import scoring

    monkeypatch.setattr(scoring, "free_mb", lambda device: 2000.0)
    settings = scoring.cases(bench.parse(["--sizes=1", "--device=cpu"]))[0]
    with pytest.raises(ValueError, match=r"size 1 needs 2,\d+ MiB .* 2,000 are free on cpu"):
        scoring.measure(**settings)


def test_gradients_of_the_plain_pass_are_freed_where_they_would_not_fit(monkeypatch):
    from tests.benchmarks import scoring

    settings = scoring.cases(bench.parse([*SMALL.split()]))[0]
    assert scoring.measure(**settings)["gradients"] == "kept"
    monkeypatch.setattr(scoring, "free_mb", lambda device: scoring.BESIDE_MB + 0.1)
    monkeypatch.setattr(scoring, "_refuse_too_large", lambda *given: None)
    assert scoring.measure(**settings)["gradients"] == "freed"


def test_the_plain_pass_computes_all_gradients_and_leaves_none(monkeypatch):
    from tests.benchmarks.scoring import _plain
    from tests.benchmarks.shapes import random_model

    model, ids = random_model("tiny"), torch.zeros(1, 4, dtype=torch.int64)
    seen: list[int] = []
    for freed in (False, True):
        monkeypatch.setattr(
            model,
            "zero_grad",
            lambda set_to_none: seen.append(sum(p.grad is not None for p in model.parameters())),
        )
        for p in model.parameters():
            p.grad = None
        _plain(model, ids, freed)
    assert seen == [len(list(model.parameters())), 0]


def test_code_is_hashed_without_its_words(tmp_path, monkeypatch):
    path = tmp_path / "topic" / "some.py"
    path.parent.mkdir()
    monkeypatch.setattr(rows, "__file__", str(tmp_path / "tests" / "benchmarks" / "rows.py"))
    versions = []
    for text in ('"""Doc."""\nx = 1  # why\n', '"""Other."""\nimport os\nx = 1\n', "x = 2\n"):
        path.write_text(text)
        versions.append(code_version(["topic.some"]))
    assert versions[0] == versions[1] != versions[2]


def test_the_figure_has_a_panel_for_each_question_and_can_be_read(finished):
    folder = finished[0]
    assert (folder / "bench.svg").is_file() and (folder / "bench.png").stat().st_size > 10_000
    alike = table(folder, "discovery").assign(seconds=[0.3617, 0.3671])  # a name beside a tick
    measured = {name: table(folder, name) for name in COLUMNS}
    for frames in (made_up(), measured, measured | {"discovery": alike}):
        figure = plot_bench(frames)
        assert len([ax for ax in figure.axes if ax.get_visible()]) == 6
        assert_legible(figure)
    assert len(plot_bench({"evaluation": frames["evaluation"]}).axes) == 1
