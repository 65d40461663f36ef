"""One page for all results of a profile: verdicts, figures, tables, executed notebooks, times, versions.

    python -m pruner_lib.study.report quick

It reads `results/<profile>/` and writes `index.html` there, and an HTML page beside each executed notebook. A
page can be read on a phone, holds its own style and needs no network; only the formulas of notebooks do
(MathJax), and stay LaTeX without it. The page links to the figures. Nothing is measured here.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from pruner_lib.files import write_text
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.results import now, read_json, results_dir

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


VERDICTS = "tables/12_verdicts.csv"
BADGES = {
    "reproduced": "#007A58",
    "not reproduced": "#B84A00",
    "can't tell": "#666666",
    "not measured": "#8A8A8A",
}


def runs_of(profile: str) -> list[dict[str, Any]]:
    """Read what came of each notebook of a profile, in the order of their names: its manifest."""
    folder = results_dir(profile) / "notebooks"
    return [read_json(path) for path in sorted(folder.glob("[!.]*.json"))]


def runs_frame(profile: str) -> pd.DataFrame:
    """Lay out what has run: columns notebook, status, seconds, finished, git_revision, outputs (how many)."""
    columns = ("notebook", "status", "seconds", "finished", "git_revision")
    rows = [[run.get(name) for name in columns] + [len(run.get("outputs") or ())] for run in runs_of(profile)]
    return pd.DataFrame(rows, columns=[*columns, "outputs"])


def write_index(profile: str) -> Path:
    """Write the page of a profile, and those of its executed notebooks that have changed; give its path.

    Raises:  ValueError: unknown profile, or a damaged file among its results.
    """
    folder, runs = results_dir(profile), runs_of(profile)
    for path in sorted((folder / "notebooks").glob("[!.]*.ipynb")):
        shown = path.with_suffix(".html")
        if not shown.is_file() or shown.stat().st_mtime < path.stat().st_mtime:
            write_text(shown, notebook_page(path))
    parts = [
        _head(profile, runs),
        _verdicts(folder),
        *(_section(run, folder) for run in runs),
        _versions(runs),
    ]
    body = "\n".join(part for part in parts if part)
    return write_text(folder / "index.html", page(f"LLM-Pruner, studied: {profile}", body))


def _head(profile: str, runs: Sequence[dict[str, Any]]) -> str:
    settings = load_profile(profile)
    seconds = sum(run.get("seconds") or 0 for run in runs)
    failed = [run["notebook"] for run in runs if run.get("status") == "failed"]
    text = (
        f"<h1>LLM-Pruner, studied: profile {escape(profile)}</h1>\n"
        f"<p>Model {escape(settings.model)}. {len(runs)} notebooks, {_minutes(seconds)} in their last runs. "
        f"Made {now()}.</p>"
    )
    if failed:
        text += f'<p class="failed">Failed: {escape(", ".join(failed))}</p>'
    jumps = " · ".join(link(f"#{run['notebook']}", run["notebook"][:2]) for run in runs)
    return f"{text}\n<p>Jump to notebook {jumps}</p>" if runs else f"{text}\n<p>No notebook has run yet.</p>"


def _verdicts(folder: Path) -> str:
    """Show every claim as a card, with the count of each verdict above."""
    if not (folder / VERDICTS).is_file():
        return "<h2>Verdicts</h2><p>Not there yet: run 12_summary.</p>"
    frame = pd.read_csv(folder / VERDICTS)
    numbers = {name: int(frame.verdict.str.startswith(name).sum()) for name in BADGES}
    counts = " ".join(_badge(name, f"{number} {name}") for name, number in numbers.items())
    cards = "\n".join(_card(row, folder) for row in frame.itertuples())
    return f'<h2>Verdicts</h2>\n<p>{counts}</p>\n<div class="claims">{cards}</div>\n<p>{link(VERDICTS)}</p>'


def _card(row: Any, folder: Path) -> str:
    name = next(name for name in BADGES if row.verdict.startswith(name))
    known = row.ours == row.ours
    numbers = {
        "ours": f"{show(row.ours)} [{show(row.low)}, {show(row.high)}]" if known else "",
        "paper": show(row.paper) or "no number printed",
        "holds": row.rule,
    }
    lines = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in numbers.items() if value)
    shown = f"notebooks/{row.notebook}.html"
    source = link(shown, row.notebook) if (folder / shown).is_file() else escape(row.notebook)
    badge = _badge(name, row.verdict)
    small = [escape(row.measured), escape(str(row.note)), f"{escape(row.source)}, {source}"]
    return (
        f'<div class="claim" style="border-color:{BADGES[name]}">{badge}<p>{escape(row.sentence)}</p>'
        f"<dl>{lines}</dl>{''.join(f'<p><small>{text}</small></p>' for text in small)}</div>"
    )


def _badge(name: str, text: str) -> str:
    return f'<span class="badge" style="background:{BADGES[name]}">{escape(text)}</span>'


def _section(run: dict[str, Any], folder: Path) -> str:
    """Show one notebook: whether it is done, its pages, figures and tables."""
    name, outputs = run["notebook"], run.get("outputs") or ()
    executed = folder / "notebooks" / f"{name}.ipynb"
    there = executed.is_file()
    title = title_of(nbformat.read(executed, as_version=4)) if there else name
    links = [link(f"notebooks/{name}.{kind}", kind) for kind in ("html", "ipynb")] if there else []
    said = [
        escape(run.get("status", "")),
        _minutes(run.get("seconds")),
        escape(run.get("finished", "")),
        *links,
    ]
    parts = [f'<h2 id="{escape(name)}">{escape(title)}</h2>', f"<p>{' · '.join(filter(None, said))}</p>"]
    if run.get("parameters"):
        given = ", ".join(f"{key} = {value}" for key, value in run["parameters"].items())
        parts.append(f"<p><small>{escape(given)}</small></p>")
    if run.get("error"):
        parts.append(f'<pre class="failed">{escape(run["error"][-2000:])}</pre>')
    files = [file for file in outputs if (folder / file).is_file()]
    stems = {file: file.rpartition(".")[0] for file in files if file.startswith("figures/")}
    for stem in dict.fromkeys(stems.values()):
        parts.append(figure(stem, [file.rpartition(".")[2] for file in stems if stems[file] == stem]))
    for file in files:
        if file in stems:
            continue
        if file.endswith(".csv"):
            shown = table(pd.read_csv(folder / file))
            parts.append(f"<details><summary>{escape(file)}</summary>{shown}<p>{link(file)}</p></details>")
        else:
            parts.append(f"<p>{link(file)}</p>")
    return "\n".join(parts)


def _versions(runs: Sequence[dict[str, Any]]) -> str:
    """Tell by which code each notebook was made."""
    rows = [
        {"notebook": run["notebook"], "revision": run.get("git_revision"), "seconds": run.get("seconds")}
        | (run.get("versions") or {})
        for run in runs
    ]
    return f"<h2>Times and versions</h2>\n{table(pd.DataFrame(rows))}" if rows else ""


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def main(words: Sequence[str] | None = None) -> int:
    """Write the pages of the profiles that are named; give the exit code."""
    words = sys.argv[1:] if words is None else words
    try:
        for profile in words or ["quick"]:
            print(write_index(profile))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
