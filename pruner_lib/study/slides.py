"""Slides of a notebook: its cells tagged `slide`, by nbconvert.

    python -m pruner_lib.study.slides 04 --profile quick

A notebook that has run in the profile is shown with its outputs, another one without. Showing slides needs a
network: reveal.js and MathJax come from elsewhere. Which cells belong to a lecture: `notebooks/README.md`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

from pruner_lib.files import write_text
from pruner_lib.study.notebooks import find_notebooks
from pruner_lib.study.report import read_notebook, without_bars
from pruner_lib.study.results import results_dir


def slides_page(notebook: nbformat.NotebookNode) -> str:
    """Make slides of the cells tagged `slide`: a heading begins one, other prose one below it.

    Raises:  ValueError: no cell has the tag.
    """
    notebook.cells = [cell for cell in notebook.cells if "slide" in cell.metadata.get("tags", ())]
    if not notebook.cells:
        raise ValueError("no cell has the tag `slide`; notebooks/README.md lists the notebooks that do")
    for cell in notebook.cells:
        heading = re.search("^##? ", cell.source, re.MULTILINE)
        prose = "slide" if heading else "subslide"
        cell.metadata["slideshow"] = {"slide_type": prose if cell.cell_type == "markdown" else "-"}
    exporter = SlidesExporter(reveal_scroll=True, sanitize_html=True)
    return exporter.from_notebook_node(without_bars(notebook))[0]


def write_slides(name: str, profile: str) -> Path:
    """Write the slides of a notebook beside its page in the results of a profile, and give their path."""
    path, *others = find_notebooks([name])
    if others:
        raise ValueError(f"{name!r} begins the names of {1 + len(others)} notebooks; name one, as 04")
    folder = results_dir(profile) / "notebooks"
    executed = folder / path.name
    page = slides_page(read_notebook(executed if executed.is_file() else path))
    return write_text(folder / f"{path.stem}.slides.html", page)


def main() -> int:
    """Write slides, and give the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m pruner_lib.study.slides", description=__doc__)
    parser.add_argument("name", help="a notebook or the beginning of its name, as 04")
    parser.add_argument("--profile", default="quick")
    options = parser.parse_args()
    try:
        print(write_slides(options.name, options.profile))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
