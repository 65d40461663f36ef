"""One page for all results of a profile: verdicts, figures, tables, executed notebooks, times, versions.

    python -m pruner_lib.running.index quick

It reads `results/<profile>/` and writes `index.html` there, and an HTML page beside each executed notebook.
The page is whole but for the figures, which it links to. Nothing is measured here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruner_lib.experiments.profiles import load_profile
from pruner_lib.experiments.results import now, read_json, results_dir
from pruner_lib.experiments.storage import write_text
from pruner_lib.running import page

if TYPE_CHECKING:
    import pandas as pd

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
    import pandas as pd

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
            write_text(shown, page.notebook_page(path))
    parts = [
        _head(profile, runs),
        _verdicts(folder),
        *(_section(run, folder) for run in runs),
        _versions(runs),
    ]
    body = "\n".join(part for part in parts if part)
    return write_text(folder / "index.html", page.page(f"LLM-Pruner, studied: {profile}", body))


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
    jumps = " · ".join(page.link(f"#{run['notebook']}", run["notebook"][:2]) for run in runs)
    return f"{text}\n<p>Jump to notebook {jumps}</p>" if runs else f"{text}\n<p>No notebook has run yet.</p>"


def _verdicts(folder: Path) -> str:
    """Show every claim as a card, with the count of each verdict above."""
    import pandas as pd

    if not (folder / VERDICTS).is_file():
        return "<h2>Verdicts</h2><p>Not there yet: run 12_summary.</p>"
    frame = pd.read_csv(folder / VERDICTS)
    numbers = {name: int(frame.verdict.str.startswith(name).sum()) for name in BADGES}
    counts = " ".join(_badge(name, f"{number} {name}") for name, number in numbers.items())
    cards = "\n".join(_card(row, folder) for row in frame.itertuples())
    return (
        f'<h2>Verdicts</h2>\n<p>{counts}</p>\n<div class="claims">{cards}</div>\n<p>{page.link(VERDICTS)}</p>'
    )


def _card(row: Any, folder: Path) -> str:
    name = next(name for name in BADGES if row.verdict.startswith(name))
    known = row.ours == row.ours
    numbers = {
        "ours": f"{page.show(row.ours)} [{page.show(row.low)}, {page.show(row.high)}]" if known else "",
        "paper": page.show(row.paper) or "no number printed",
        "holds": row.rule,
    }
    lines = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in numbers.items() if value)
    shown = f"notebooks/{row.notebook}.html"
    source = page.link(shown, row.notebook) if (folder / shown).is_file() else escape(row.notebook)
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
    import nbformat
    import pandas as pd

    name, outputs = run["notebook"], run.get("outputs") or ()
    executed = folder / "notebooks" / f"{name}.ipynb"
    there = executed.is_file()
    title = page.title_of(nbformat.read(executed, as_version=4)) if there else name
    links = [page.link(f"notebooks/{name}.{kind}", kind) for kind in ("html", "ipynb")] if there else []
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
        parts.append(page.figure(stem, [file.rpartition(".")[2] for file in stems if stems[file] == stem]))
    for file in files:
        if file in stems:
            continue
        if file.endswith(".csv"):
            shown = page.table(pd.read_csv(folder / file))
            parts.append(
                f"<details><summary>{escape(file)}</summary>{shown}<p>{page.link(file)}</p></details>"
            )
        else:
            parts.append(f"<p>{page.link(file)}</p>")
    return "\n".join(parts)


def _versions(runs: Sequence[dict[str, Any]]) -> str:
    """Tell by which code each notebook was made."""
    import pandas as pd

    rows = [
        {"notebook": run["notebook"], "revision": run.get("git_revision"), "seconds": run.get("seconds")}
        | (run.get("versions") or {})
        for run in runs
    ]
    return f"<h2>Times and versions</h2>\n{page.table(pd.DataFrame(rows))}" if rows else ""


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
