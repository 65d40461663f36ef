"""Published numbers are found by name, agree with themselves, and have their notebooks."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from pruner_lib.study import paper
from pruner_lib.study.paper import coverage_frame, published, published_tables

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


def test_no_number_stands_twice_and_none_is_missing():
    for table in published_tables():
        numbers = published(table)
        assert not numbers.duplicated(["row", "metric"]).any(), table
        assert numbers.value.notna().all() and (numbers.value > 0).all() and (numbers.source != "").all()


def test_unknown_table_is_an_error_that_lists_those_there_are():
    with pytest.raises(ValueError, match="unknown table 'Table 99'; there are .*Table 1, .*Table 17"):
        published("Table 99")


def test_missing_folder_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "project_root", lambda: tmp_path)
    with pytest.raises(ValueError, match="no published numbers"):
        paper._numbers.__wrapped__()


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
