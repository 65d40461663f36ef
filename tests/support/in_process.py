"""Run a notebook in this process, as papermill would, without the price of a kernel and of its imports."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot as plt
from traitlets.config import Config

NO_HISTORY = Config(HistoryManager={"enabled": False})  # nothing of a test goes into the user's own
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


def execute(path: Path, **parameters: Any) -> None:
    """Run the cells of a notebook with some parameters, and render what each cell shows.

    What ends with a kernel is put back afterwards: variables, filters of warnings, settings of matplotlib.

    Raises:  whatever a cell raises, or an object that can't be shown.
    """
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), plt.rc_context():
        patch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # IPython's shell takes its place
        shell = InteractiveShell.instance(config=NO_HISTORY)
        shell.reset(new_session=False)
        shell.run_line_magic("colors", "nocolor")
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code":
                continue
            run = shell.run_cell(cell.source)
            run.raise_error()
            if hasattr(run.result, "_repr_html_"):
                run.result._repr_html_()  # a kernel would only print that it failed
            if "parameters" in cell.metadata.get("tags", ()):
                shell.push(parameters)
        plt.close("all")
