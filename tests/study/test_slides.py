"""Slides hold the tagged cells and no others, and each lecture of the syllabus has some."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from pruner_lib.study.report import slides_page, write_slides

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SYLLABUS = (FOLDER / "README.md").read_text(encoding="utf-8")
SHOWN = re.compile(r"(\d\d): ([\d, ]+(?: (?:to|and) \d)?)(?=[;|]| \|)")  # "00: 1 to 3", "04: 1, 2 and 4"


def lecture_sections() -> dict[str, set[int]]:
    """The sections to show of each notebook, as the table of lectures says."""
    table = SYLLABUS.partition("| lecture |")[2].partition("\n\n")[0]
    found = {}
    for number, words in SHOWN.findall(table):
        ends = [int(one) for one in re.findall(r"\d", words)]
        found[number] = set(range(ends[0], ends[-1] + 1)) if " to " in words else set(ends)
    return found


def test_tagged_are_the_opening_and_the_sections_that_the_syllabus_names():
    wanted = lecture_sections()
    assert [*wanted] == ["00", "01", "02", "04", "07", "08", "09"]
    for path in sorted(FOLDER.glob("*.ipynb")):
        section, tagged, cells = 0, set(), nbformat.read(path, as_version=4).cells
        for cell in cells:
            if cell.cell_type == "markdown" and (found := re.search(r"^## (\d?)", cell.source, re.MULTILINE)):
                section = int(found[1] or 99)
            if "slide" in cell.metadata.get("tags", ()):
                tagged.add(section)
        assert tagged == ({0} | wanted[path.stem[:2]] if path.stem[:2] in wanted else set()), path.stem


def test_slides_hold_the_tagged_cells_with_their_outputs_and_no_others():
    tag = {"metadata": {"tags": ["slide"]}}
    cells = [new_markdown_cell("# 04 Shown?", **tag), new_code_cell("hidden = 1"), new_code_cell("2", **tag)]
    cells += [new_markdown_cell("below it", **tag), new_markdown_cell("## 1. Another", **tag)]
    cells[2].outputs = [new_output("execute_result", data={"text/plain": "twenty-two"})]
    page = slides_page(new_notebook(cells=cells))
    assert "Shown?" in page and "twenty-two" in page and "hidden = 1" not in page
    assert page.count("<section>") == 5, "two slides, of which the first has another below it"
    cells[0].source += "\n\n| a | b |\n|---|---|\n| $x^2$ | <script>live</script> |"
    page = slides_page(new_notebook(cells=cells)).partition("<body")[2]
    shown = BeautifulSoup(page, "html.parser").select_one(".slides")
    assert shown.h1 and shown.thead and shown.td.math and not shown.script, "what is shown as written?"
    with pytest.raises(ValueError, match="no cell has the tag `slide`"):
        slides_page(new_notebook(cells=[new_markdown_cell("# 05")]))


def test_slides_of_a_notebook_that_has_not_run_are_written_without_outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    path = write_slides("07", "tiny")
    assert (
        path.name == "07_layer_sensitivity.slides.html"
        and "Which layers must be left alone" in path.read_text()
    )
    with pytest.raises(ValueError, match="10 notebooks start with '0'"):
        write_slides("0", "tiny")
