"""HTML pages and slides of executed notebooks, by nbconvert; the summary is the front page of a profile.

    python -m pruner_lib.study.report 04 --profile quick         # the slides of a notebook

All pages share `style.css` beside the front page `index.html` and need no network: what nbconvert would load
from the web (MathJax, widgets) is left out, and formulas are converted to MathML. Slides contain the cells
tagged `slide`, with outputs if the notebook has run in the profile, and need a network (reveal.js).
`notebooks/README.md` lists the lectures. Nothing is measured here.
"""

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import pandas as pd
from jinja2 import pass_context
from jinja2.runtime import Context
from nbconvert import HTMLExporter, SlidesExporter
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbformat.v4 import new_markdown_cell, new_notebook

from pruner_lib.files import write_text
from pruner_lib.study.execution import read_notebook
from pruner_lib.study.formulas import draw_formulas, mark_formulas
from pruner_lib.study.records import read_kept
from pruner_lib.study.results import project_root, results_dir

SUMMARY = "12_summary"  # reads what all other notebooks wrote
REMOTE = ("html_head_js", "html_head_js_mathjax", "html_head_js_mermaidjs", "jupyter_widgets")
EMPTY = "{{% block {} %}}{{% endblock %}}".format
TEMPLATE = "{% extends 'lab/index.html.j2' %}" + "".join(map(EMPTY, REMOTE))
OWN_STYLE = """
/* code, wide formulas and figures scroll on narrow screens */
.jp-InputArea-editor, .jp-RenderedImage { overflow-x: auto; }
.jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere; }
.jp-RenderedMarkdown .highlight, .jp-RenderedMarkdown details { margin-bottom: 1em; }
.formula.display { display: block; overflow: auto hidden; padding: 0.2em 0; text-align: center; }
@media (max-width: 600px) { .jp-RenderedImage img { min-width: 520px; } }
"""
STYLE = re.compile("<style[^>]*>(.*?)</style>\\s*", re.DOTALL)
TAGS = ["a", "b", "br", "code", "div", "em", "h1", "h2", "h3", "i", "li", "ol", "p", "pre", "span", "strong"]
TAGS += ["details", "summary", "ul", "style", "table", "thead", "tbody", "tr", "th", "td"]
LOOKS = ["color", "font-weight", "padding", "text-align", "vertical-align", "white-space", "width"]
ATTRIBUTES = ["class", "colspan", "href", "id", "rowspan", "style"]
# any other markup in a name or a text is shown as plain text
SAFE = SanitizeHTML(tags=TAGS, attributes=ATTRIBUTES, styles=LOOKS)
CLEANED = {"sanitize_html": True, "filters": {"clean_html": SAFE.sanitize_html_tags}}
LINK = re.compile(r'href="\.\./(?=(?:notebooks|pruner_lib|results)/)')  # relative to the folder `notebooks`
PAGE = re.compile(r'href="(\d\d_\w+)\.ipynb"')
WIDGET = "application/vnd.jupyter.widget-view+json"  # progress bars, which a static page can't animate
# one state of a printed progress bar, up to its last bracket; each state overwrites the one before
BAR = re.compile(r"\r[^\r\n\]]*\]?")


class PageExporter(HTMLExporter):
    """Export pages in which the formulas of Markdown cells are marked for `draw_formulas`."""

    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        """Render Markdown; overrides nbconvert's method."""
        return mark_formulas(super().markdown2html(context, source))


class SlideExporter(PageExporter, SlidesExporter):
    """Export slides in the same way."""


def find_notebooks(only: Sequence[str] = ()) -> list[Path]:
    """List the notebooks of the project (or the current folder) by file name, with the summary last.

    Args:    only: names or prefixes of names, such as "00" or "01_discover_groups"; empty: all.
    Raises:  ValueError: there are none, or no name starts with one of `only` (the message lists the names).
    """
    folder = (project_root() or Path.cwd()) / "notebooks"
    paths = sorted(folder.glob("[!.]*.ipynb"), key=lambda path: (path.stem == SUMMARY, path))
    if not paths:
        raise ValueError(f"there are no notebooks in {folder}; run this in a clone of the project")
    chosen: set[Path] = set()
    for start in only:
        exact = [path for path in paths if path.stem == start]
        matching = exact or [path for path in paths if start and path.stem.startswith(start)]
        if not matching:
            names = ", ".join(path.stem for path in paths)
            raise ValueError(f"no notebook in {folder} starts with {start!r}; there are {names}")
        chosen.update(matching)
    return [path for path in paths if not only or path in chosen]


def runs_frame(profile: str, changed: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """List the runs: columns notebook, status, seconds, finished, git_revision, outputs (their number)."""
    columns = ("notebook", "status", "seconds", "finished", "git_revision")
    paths = sorted((results_dir(profile, changed=changed) / "notebooks").glob("[!.]*.json"))
    runs = [run for path in paths if (run := read_kept(path))]
    rows = [[run.get(name) for name in columns] + [len(run.get("outputs") or ())] for run in runs]
    return pd.DataFrame(rows, columns=[*columns, "outputs"])


def write_index(profile: str, changed: Mapping[str, Any] | None = None) -> Path:
    """Write the front page of a profile, and the page of each notebook that was executed since the last time.

    Args:    changed: changed parameters of notebooks, whose results have a front page of their own.
    Returns: the path of the front page: links to all notebooks, then the summary if it has run.
    Raises:  ValueError: an unknown profile, or a damaged file among its results.
    """
    folder = results_dir(profile, changed=changed)
    executed = {path.stem: path for path in sorted((folder / "notebooks").glob("[!.]*.ipynb"))}
    for name, path in executed.items():
        page = path.with_suffix(".html")
        if not page.is_file() or page.stat().st_mtime < path.stat().st_mtime:
            write_text(page, notebook_page(read_notebook(path), name, "../style.css", executed)[0])
    rows = [_row(run, run.notebook in executed) for run in runs_frame(profile, changed).itertuples()]
    head = f"<h1>LLM-Pruner, studied: profile {escape(profile)}</h1>"
    table = f"<table>{''.join(rows)}</table>" if rows else "<p>No notebook has run yet.</p>"
    front = new_notebook(cells=[new_markdown_cell(head), new_markdown_cell(table)])
    front.cells += read_notebook(executed[SUMMARY]).cells if SUMMARY in executed else []
    page, style = notebook_page(front, f"LLM-Pruner, studied: {profile}", "style.css", executed)
    write_text(folder / "style.css", style)
    return write_text(folder / "index.html", page)


def notebook_page(
    notebook: nbformat.NotebookNode, title: str, style: str, pages: Collection[str]
) -> tuple[str, str]:
    """Make an HTML page of an executed notebook, without progress bars; markup in names and texts is escaped.

    A link to another notebook leads to its page if there is one, else to the notebook file.

    Args:    style: the path of the style sheet, relative to the page.
             pages: names of the notebooks that have a page.
    Returns: the page, and the style sheet, which is the same for all notebooks.
    """
    exporter = PageExporter(raw_template=TEMPLATE, **CLEANED)
    page, _ = exporter.from_notebook_node(without_bars(notebook), {"metadata": {"name": title}})
    head, end, body = page.partition("</head>")
    link, home = f'<link rel="stylesheet" href="{style}">\n', style.removesuffix("style.css")

    def to_notebook(found: re.Match) -> str:
        folder, extension = ("", "html") if found[1] in pages else ("../../", "ipynb")
        return f'href="{home}{folder}notebooks/{found[1]}.{extension}"'

    body = draw_formulas(PAGE.sub(to_notebook, LINK.sub(f'href="{home}../../', body)))
    return STYLE.sub("", head) + link + end + body, "\n".join([*STYLE.findall(head), OWN_STYLE])


def without_bars(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove progress bars, both widgets and printed ones, from a notebook in place; warnings are kept."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    output.text = BAR.sub("", output.text).lstrip("\n")
            cell.outputs = [output for output in cell.outputs if output.get("text", "shown")]
    notebook.metadata.pop("widgets", None)
    return notebook


def _row(run: tuple, linked: bool) -> str:
    """Format a row of `runs_frame` as HTML: the notebook, linked to its page, and how its last run ended."""
    link = f'<a href="notebooks/{quote(run.notebook)}.html">'
    name = f"{link}{escape(run.notebook)}</a>" if linked else escape(run.notebook)
    seconds = f"{run.seconds:.0f} s" if pd.notna(run.seconds) else ""
    cells = (name, *(escape(str(value)) for value in (run.status, seconds, run.finished)))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def slides_page(notebook: nbformat.NotebookNode) -> str:
    """Make slides of the cells tagged `slide`: a heading starts a slide, other prose a slide below it.

    Raises:  ValueError: no cell has the tag.
    """
    notebook.cells = [cell for cell in notebook.cells if "slide" in cell.metadata.get("tags", ())]
    if not notebook.cells:
        raise ValueError("no cell has the tag `slide`; notebooks/README.md lists the notebooks with slides")
    for cell in notebook.cells:
        kind = "slide" if re.search("^##? ", cell.source, re.MULTILINE) else "subslide"
        cell.metadata["slideshow"] = {"slide_type": kind if cell.cell_type == "markdown" else "-"}
    page, _ = SlideExporter(reveal_scroll=True, **CLEANED).from_notebook_node(without_bars(notebook))
    return draw_formulas(page.replace("</head>", f"<style>{OWN_STYLE}</style></head>", 1))


def write_slides(name: str, profile: str) -> Path:
    """Write the slides of a notebook beside its page in a profile's results, and return their path."""
    path, *others = find_notebooks([name])
    if others:
        raise ValueError(f"{1 + len(others)} notebooks start with {name!r}; name one of them, such as 04")
    folder = results_dir(profile) / "notebooks"
    executed = folder / path.name
    page = slides_page(read_notebook(executed if executed.is_file() else path))
    return write_text(folder / f"{path.stem}.slides.html", page)


def main() -> None:
    """Write the slides of a notebook, and print their path."""
    parser = argparse.ArgumentParser(prog="python -m pruner_lib.study.report", description=__doc__)
    parser.add_argument("name", help="a notebook or a prefix of its name, such as 04")
    parser.add_argument("--profile", default="quick")
    options = parser.parse_args()
    try:
        print(write_slides(options.name, options.profile))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
