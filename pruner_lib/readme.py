"""The two tables of the README that come from results: the verdicts, and every table and figure of the paper.

    python -m pruner_lib.readme

It writes what stands between the marks `<!-- NAME -->` and `<!-- end of NAME -->` anew, from the results of
the profile `quick`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pruner_lib.coverage import ITEMS
from pruner_lib.page import show
from pruner_lib.results import project_root
from pruner_lib.storage import write_text

PROFILE = "quick"
VERDICTS = f"results/{PROFILE}/tables/12_verdicts.csv"


def updated(text: str, root: Path) -> str:
    """Give the text of a README with its tables written anew from the results below `root`.

    Raises:  ValueError: a mark is missing.
    """
    for name, table in (("verdicts", verdict_table(root)), ("coverage", coverage_table())):
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"the README needs one line {start!r} and one line {end!r} after it")
        before, after = text.partition(start)[0], text.partition(end)[2]
        text = f"{before}{start}\n{table}\n{end}{after}"
    return text


def verdict_table(root: Path) -> str:
    """Write the verdicts as Markdown: claim, rule, paper, ours with its interval, verdict, notebook."""
    import pandas as pd

    if not (root / VERDICTS).is_file():
        return "Not there yet: `python tasks.py study` makes it."
    head = "| the paper's claim | holds | paper | ours | verdict | notebook |\n|---|---|---|---|---|---|"
    rows = [_verdict(row) for row in pd.read_csv(root / VERDICTS).itertuples()]
    return "\n".join([head, *rows, "", f"File: [{Path(VERDICTS).name}]({VERDICTS})"])


def _verdict(row: Any) -> str:
    ours = f"{show(row.ours)} [{show(row.low)}, {show(row.high)}]" if row.ours == row.ours else "-"
    notebook = f"[{row.notebook[:2]}](notebooks/{row.notebook}.ipynb)"
    paper = show(row.paper) or "not printed"
    claim = f"{row.sentence.rstrip('.')}: {row.measured}"
    return f"| {claim} | {row.rule} | {paper} | {ours} | {row.verdict} | {notebook} |"


def coverage_table() -> str:
    """Write as Markdown where every table and figure of the paper is made again."""
    lines = ["| in the paper | shows | notebook | file | remarks |\n|---|---|---|---|---|"]
    for item in ITEMS:
        name = f"[{item.notebook[:2]}](notebooks/{item.notebook}.ipynb)" if item.notebook else "none"
        file = f"[{item.file.partition('/')[2]}](results/{PROFILE}/{item.file})" if item.file else "none"
        lines.append(f"| {item.name} | {item.shows} | {name} | {file} | {item.note} |")
    return "\n".join(lines)


def main() -> int:
    """Rewrite the README of this project; give the exit code."""
    root = project_root() or Path.cwd()
    path = root / "README.md"
    try:
        write_text(path, updated(path.read_text(encoding="utf-8"), root))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
