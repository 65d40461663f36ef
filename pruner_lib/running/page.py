"""Pieces of HTML pages that a phone can show: the frame of a page, tables, figures, executed notebooks.

A page holds its own style and needs no network; only the formulas of notebooks do (MathJax), and stay LaTeX
without it. What stands on which page is known to `index`.
"""

from __future__ import annotations

import math
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MATHJAX = (
    "<script>window.MathJax = {tex: {inlineMath: [['$', '$'], ['\\\\(', '\\\\)']]}};</script>\n"
    '<script async src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"></script>\n'
)
WIDGET = "application/vnd.jupyter.widget-view+json"
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #666; --line: #ddd; --page: #fff; --card: #f7f7f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eee; --soft: #aaa; --line: #444; --page: #191919; --card: #242424; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
       max-width: 62rem; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
h3 { font-size: 1.05rem; margin-bottom: .3rem; }
a { color: inherit; text-decoration-color: #009E73; text-underline-offset: 2px; }
small, .soft { color: var(--soft); }
figure { margin: 1rem 0; } img, svg { max-width: 100%; height: auto; background: #fff; }
figcaption { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; display: block; font-size: .85rem; font-variant-numeric: tabular-nums;
        max-width: 100%; overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; }
.claims { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.claim { background: var(--card); border-left: 6px solid; border-radius: 4px; padding: .6rem .8rem; }
.claim p { margin: .2rem 0; }
.claim dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; margin: .3rem 0; }
.claim dt { color: var(--soft); } .claim dd { margin: 0; font-variant-numeric: tabular-nums; }
.badge { border-radius: 4px; color: #fff; display: inline-block; font-size: .85rem; padding: .05rem .5rem; }
pre { background: var(--card); border-radius: 4px; font-size: .82rem; overflow-x: auto; padding: .6rem; }
details { margin: .5rem 0; } summary { cursor: pointer; }
.failed { border-left: 6px solid #D55E00; padding-left: .8rem; }
.anchor-link, .prompt { display: none; }
"""


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """Make a whole page of its title and body."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n{script}</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def table(frame: pd.DataFrame, *, rows: int = 30) -> str:
    """Show a frame, its first rows at most; it scrolls sideways where the screen is narrow."""
    shown = frame.head(rows)
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame)
    lines = ["".join(_cell(value) for value in row) for row in shown.itertuples(index=False)]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    more = f"<small>{len(frame) - rows} more rows in the file</small>" if len(frame) > rows else ""
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>{more}"


def _cell(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f'<td class="number">{escape(show(value))}</td>' if number else f"<td>{escape(show(value))}</td>"


def show(value: Any) -> str:
    """Write a value of a table: numbers with four digits, nothing for what is missing."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


def link(target: str, text: str = "") -> str:
    """Make a link to a file below the page's folder."""
    return f'<a href="{escape(target, quote=True)}">{escape(text or target)}</a>'


def figure(stem: str, kinds: list[str]) -> str:
    """Show a figure by its PNG, with links to all its files.

    Args:    stem: its path without ending, as "figures/12_verdicts".    kinds: the endings that are there.
    """
    name = escape(stem, quote=True)
    links = " ".join(link(f"{stem}.{kind}", kind.upper()) for kind in kinds)
    picture = next((f"{name}.{kind}" for kind in ("png", "svg") if kind in kinds), "")
    shown = f'<a href="{picture}"><img src="{picture}" alt="{name}" loading="lazy"></a>' if picture else ""
    return f"<figure>{shown}<figcaption>{escape(Path(stem).name)}: {links}</figcaption></figure>"


def notebook_page(path: Path) -> str:
    """Make a page of an executed notebook, without progress bars, which a page can't move.

    Raises:  ValueError: not a readable notebook.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:
        raise ValueError(f"{path} is no notebook: {error}") from error
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if WIDGET not in one.get("data", {})]
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    body = re.sub(r"<style.*?</style>|<script.*?</script>", _kept, body, flags=re.DOTALL)
    colors = HtmlFormatter(style="default").get_style_defs(".highlight")
    light = f"@media (prefers-color-scheme: light) {{ {colors} }}"
    return page(title_of(notebook), body, style=light, script=MATHJAX if "$" in body else "")


def _kept(found: re.Match) -> str:
    """Keep the styles of pandas' tables alone: others are for the whole page, scripts want the network."""
    return found[0] if found[0].startswith("<style") and "#T_" in found[0] else ""


def title_of(notebook: Any) -> str:
    """Give the first heading of a notebook."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^#\s+(.+)$", text, flags=re.MULTILINE)
    return heading[1].strip() if heading else "notebook"
