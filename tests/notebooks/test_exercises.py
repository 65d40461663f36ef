"""Every exercise has a level, minutes and a solution; its code runs where it says and asserts its answer."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from in_process import NOTEBOOKS, execute
from nbformat.v4 import new_code_cell

EXERCISE = re.compile(
    r"^\*\*(?P<number>\d) \((?:easy|medium|hard), (?P<minutes>[1-9]\d*) minutes\)\.\*\* [^\n]+\n\n"
    r"<details><summary>Solution</summary>\n\n(?P<words>[^\n]+)\n\n"
    r"```python\n# after (?:the set-up|section (?P<section>\d))\n(?P<code>.*?)```\n\n</details>$",
    re.MULTILINE | re.DOTALL,
)
WIDTH = 88  # columns of a solution


def exercises(path: Path) -> list[re.Match]:
    """The exercises of a notebook, in their order."""
    cells = nbformat.read(path, as_version=4).cells
    return [found for cell in cells for found in EXERCISE.finditer(cell.source)]


def with_solutions(path: Path, folder: Path, **changes: str) -> Path:
    """A copy of a notebook in which the solutions stand as cells where they say, and what they set is undone.

    Args:    changes: a solution's text -> what is written in its place.
    """
    cells, wanted, section = [], {}, 0
    for one in exercises(path):
        wanted.setdefault(int(one["section"] or 0), []).append(one["code"])
    for cell in nbformat.read(path, as_version=4).cells:
        if re.search(r"^## ", cell.source, re.MULTILINE) and cell.cell_type == "markdown":
            for code in wanted.pop(section, ()):
                for old, new in changes.items():
                    code = code.replace(old, new)
                shown = ("_before = dict(globals())", code, "globals().update(_before)")
                cells += map(new_code_cell, shown)
            if not wanted:
                break
            section += 1
        cells.append(cell)
    assert not wanted, f"no section {sorted(wanted)} ends in {path.stem}"
    copy = folder / path.name
    nbformat.write(nbformat.v4.new_notebook(cells=cells), copy)
    return copy


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


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solutions_run_where_they_say_and_their_answers_are_right(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path / "results"))
    execute(with_solutions(path, tmp_path), profile="tiny")


@pytest.mark.slow
def test_a_wrong_answer_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path / "results"))
    [path] = [path for path in NOTEBOOKS if path.stem == "10_efficiency"]
    with pytest.raises(AssertionError):
        execute(with_solutions(path, tmp_path, **{"== 16_450": "== 16_449"}), profile="tiny")
