"""The exercises of the notebooks, and copies of notebooks in which their solutions run."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

EXERCISE = re.compile(
    r"^\*\*(?P<number>\d) \((?:easy|medium|hard), (?P<minutes>[1-9]\d*) minutes\)\.\*\* [^\n]+\n\n"
    r"<details><summary>Solution</summary>\n\n(?P<words>[^\n]+)\n\n"
    r"```python\n# after (?:the set-up|section (?P<section>\d))\n(?P<code>.*?)```\n\n</details>$",
    re.MULTILINE | re.DOTALL,
)
KEEP = "_before = dict(globals())"
UNDO = "globals().update(_before)\nfor _name in set(globals()) - set(_before):\n    del globals()[_name]"


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
        if cell.cell_type == "markdown" and re.search(r"^## ", cell.source, re.MULTILINE):
            for code in wanted.pop(section, ()):
                for old, new in changes.items():
                    code = code.replace(old, new)
                cells += map(new_code_cell, (KEEP, code, UNDO))
            section += 1
        cells.append(cell)
    assert not wanted, f"no section {sorted(wanted)} ends in {path.stem}"
    copy = folder / path.name
    nbformat.write(nbformat.v4.new_notebook(cells=cells), copy)
    return copy
