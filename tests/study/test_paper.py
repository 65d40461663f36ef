"""Published numbers are found by name, agree with themselves, and have their notebooks."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from pruner_lib.study import paper
from pruner_lib.study.paper import (
    WHOLE,
    coverage_frame,
    published,
    published_stages,
    published_tables,
    published_whole,
)

ROOT = Path(__file__).resolve().parents[2]
COVERAGE = coverage_frame(ROOT / "results" / "quick")


def value(table, row, metric):
    found = published(table).query("row == @row and metric == @metric")
    assert len(found) == 1
    return found.value.item()


def test_numbers_of_table_1_are_found_by_row_and_metric():
    assert value("Table 1", "20% w/o tune / Element^1", "perplexity/wikitext2@128") == 19.09
    assert value("Table 1", "20% w/ tune / Element^1", "accuracy/mean") == 59.23
    assert value("Table 3", "Block 20%", "macs") == 339.60


def test_every_printed_mean_is_the_mean_of_the_printed_accuracies():
    checked = 0
    for table in ("Table 1", "Table 2", "Table 4", "Table 5", "Table 16", "Table 17"):
        for row, part in published(table).groupby("row"):
            accuracies = part[part.metric.str.startswith("accuracy/")].set_index("metric").value
            if "accuracy/mean" not in accuracies or "official" in row:
                continue
            mean = accuracies.drop("accuracy/mean").mean()
            assert mean == pytest.approx(accuracies["accuracy/mean"], abs=0.011), (table, row)
            checked += 1
    assert checked > 50


def test_whole_models_have_published_numbers_and_unknown_ones_none():
    for model, places in WHOLE.items():
        assert set(zip(*published_whole(model)[["table", "row"]].T.values, strict=True)) == set(places)
    assert published_whole("smollm2-135m").set_index("table").loc["SmolLM2 card"].value.tolist() == [
        40.9,
        37.3,
        66.3,
    ]
    assert published_whole("tiny").empty


def test_no_number_stands_twice_and_none_is_missing():
    for table in published_tables():
        numbers = published(table)
        assert not numbers.duplicated(["row", "metric"]).any(), table
        assert numbers.value.notna().all() and (numbers.value > 0).all() and (numbers.source != "").all()


def test_stages_of_the_paper_s_model_is_that_of_its_table():
    stages = published_stages().pivot(index="stage", columns="metric", values="value")
    assert stages.perplexity.to_dict() == {"dense": 12.62, "pruned": 19.09, "recovered": 17.58}
    assert stages.accuracy["pruned"] == pytest.approx(0.5669)
    assert published_stages("Table 4", text="ptb").query("metric == 'perplexity'").value.tolist() == [
        61.37,
        92.88,
        78.25,
    ]
    with pytest.raises(ValueError, match="Table 1 has no row 'w/ tune / L2'; it has 0% / LLaMA-7B"):
        published_stages("Table 1", "L2")


def test_unknown_table_is_an_error_that_lists_those_there_are():
    with pytest.raises(ValueError, match="unknown table 'Table 99'; there are .*Table 1, .*Table 17"):
        published("Table 99")


def test_damaged_file_is_refused_and_a_missing_folder_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "project_root", lambda: tmp_path)
    with pytest.raises(ValueError, match="no published numbers"):
        published("Table 1")
    place = tmp_path / "results" / "paper"
    place.mkdir(parents=True)
    (place / "own.csv").write_text("table,row,value\nTable 1,x,3\n")
    with pytest.raises(ValueError, match=r"own.csv has the columns table, row, value; wanted"):
        published("Table 1")


def test_all_21_tables_and_6_figures_are_named_once():
    names = [f"Table {n}" for n in range(1, 22)] + [f"Figure {n}" for n in range(1, 7)]
    assert COVERAGE.name.tolist() == names
    for item in COVERAGE.itertuples():
        assert bool(item.notebook) == bool(item.file) and (item.file or item.note), item.name


@pytest.mark.parametrize(
    ("notebook", "file"), sorted({*zip(COVERAGE.notebook, COVERAGE.file, strict=True)} - {("", "")})
)
def test_notebook_of_an_item_writes_its_file(notebook, file):
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert f'"{Path(file).stem}"' in code, f"{notebook} writes no {file}"


def test_coverage_says_which_files_are_there(tmp_path):
    assert not coverage_frame(tmp_path).there.any()
    path = tmp_path / "tables" / "03_result.csv"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    there = coverage_frame(tmp_path).set_index("name").there
    assert there["Table 1"] and not there["Table 6"] and not there["Figure 1"]
