"""Small notebooks in a project of their own, for the runner."""

from __future__ import annotations

from pathlib import Path

import nbformat

from pruner_lib.study import results

PARAMETERS = 'profile = "tiny"\nratio: float = 0.25  # share\nnames = ["a"]'
WRITE = """
from pathlib import Path
from pruner_lib.study.results import Results
results = Results(profile)
path = results.place / "tables" / "NAME.csv"
path.parent.mkdir(parents=True, exist_ok=True)
tried_before = path.is_file()
path.write_text(f"{type(ratio).__name__},{ratio},{names}")
"""
FINISH = "results.outputs.append(path)\nresults.finish('NAME')"


def make_project(place: Path, patch) -> Path:
    """An empty project, from here on the one that is run; give the folder of its notebooks."""
    patch.setenv("PRUNER_LIB_RESULTS", str(place / "results"))
    patch.setattr(results, "__file__", str(place / "pruner_lib/study/results.py"))  # by which it is found
    (place / "pyproject.toml").touch()
    (place / "notebooks").mkdir()
    return place / "notebooks"


def notebook(folder: Path, name: str, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    """Write a notebook of these cells; NAME in them is its name."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    if parameters:
        book.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    book.cells += [nbformat.v4.new_code_cell(cell.replace("NAME", name)) for cell in cells]
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path
