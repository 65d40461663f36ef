"""Every exercise has a level, minutes and a solution that asserts its answer; test_notebooks runs them."""

from __future__ import annotations

import ast
import re

import nbformat
import pytest
from in_process import NOTEBOOKS, execute
from solutions import exercises, with_solutions

WIDTH = 88  # columns of a solution


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_level_minutes_and_a_solution_that_checks_itself(path):
    found = exercises(path)
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    asked = text.partition("## Exercises")[2].partition("**Next")[0]
    assert [int(one["number"]) for one in found] == list(range(1, len(found) + 1))
    assert len(found) >= 2 and len(re.findall(r"^\**\d+(?:\. | \()", asked, re.MULTILINE)) == len(found)
    for one in found:
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(one["code"])))
        assert max(map(len, one["code"].splitlines())) <= WIDTH


def test_syllabus_names_every_notebook_and_adds_up_the_minutes_of_its_exercises():
    syllabus = (NOTEBOOKS[0].parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[\d\d\]\((\S+)\) \| .* \| \d+ \| (\d+) \|$", syllabus, re.MULTILINE)
    minutes = {path.name: sum(int(one["minutes"]) for one in exercises(path)) for path in NOTEBOOKS}
    assert {name: int(number) for name, number in rows} == minutes


def test_sections_of_a_notebook_are_numbered_from_one():
    for path in NOTEBOOKS:
        text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type != "code")
        numbers = [int(n) for n in re.findall(r"^## (\d+)\. ", text, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1)), path.stem


def test_a_wrong_answer_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path / "results"))
    [path] = [path for path in NOTEBOOKS if path.stem == "01_discover_groups"]
    with pytest.raises(AssertionError):
        execute(with_solutions(path, tmp_path, **{"(2, 9)}": "(2, 8)}"}), profile="tiny")


def test_what_a_solution_sets_is_undone(tmp_path):
    lines = ["**1 (easy, 1 minutes).** Do.\n", "<details><summary>Solution</summary>\n", "So.\n"]
    lines += ["```python", "# after the set-up", "kept, new = 2, 3", "```\n", "</details>"]
    texts = ["## 1. One", "## Exercises", "\n".join(lines)]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in texts])
    book.cells.insert(0, nbformat.v4.new_code_cell("kept = 1"))
    book.cells.insert(2, nbformat.v4.new_code_cell("assert kept == 1 and 'new' not in globals()"))
    nbformat.write(book, tmp_path / "made.ipynb")
    (tmp_path / "solved").mkdir()
    copy = with_solutions(tmp_path / "made.ipynb", tmp_path / "solved")
    execute(copy)
    text = copy.read_text()
    assert "kept, new = 2, 3" in text
    copy.write_text(text.replace("globals().update(_before)", "pass"))
    with pytest.raises(AssertionError):
        execute(copy)
