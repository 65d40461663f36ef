"""Every table and figure of the paper has its place: a notebook that writes the file, or a reason."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from pruner_lib.study.coverage import ITEMS, coverage_frame
from pruner_lib.study.results import results_dir

ROOT = Path(__file__).resolve().parents[2]


def test_all_21_tables_and_6_figures_are_named_once():
    names = [f"Table {n}" for n in range(1, 22)] + [f"Figure {n}" for n in range(1, 7)]
    assert [item.name for item in ITEMS] == names
    for item in ITEMS:
        assert bool(item.notebook) == bool(item.file) and (item.file or item.note), item.name


@pytest.mark.parametrize("item", [item for item in ITEMS if item.file], ids=lambda item: item.name)
def test_notebook_of_an_item_writes_its_file(item):
    notebook = nbformat.read(ROOT / "notebooks" / f"{item.notebook}.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert f'"{Path(item.file).stem}"' in code, f"{item.notebook} writes no {item.file}"


def test_frame_tells_which_files_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    assert not coverage_frame("tiny").there.any()
    path = results_dir("tiny") / "tables" / "03_result.csv"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    frame = coverage_frame("tiny").set_index("name")
    assert frame.there["Table 1"] and not frame.there["Table 6"] and not frame.there["Figure 1"]
