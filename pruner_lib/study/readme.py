"""The tables of README.md and results/README.md that come from results: verdicts and coverage.

    python -m pruner_lib.study.readme

It writes what stands between the marks `<!-- NAME -->` and `<!-- end of NAME -->` anew: the verdicts of the
profile `decide` or, while that is not measured, of `quick`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pruner_lib.files import write_text
from pruner_lib.study.claims import CANT_TELL, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED
from pruner_lib.study.paper import coverage_frame
from pruner_lib.study.results import project_root

PROFILE = "quick"  # whose files the coverage names
VERDICTS = [f"results/{profile}/tables/12_verdicts.csv" for profile in ("decide", PROFILE)]
ORDER = (NOT_REPRODUCED, CANT_TELL, REPRODUCED)


def updated(text: str, root: Path) -> str:
    """Write the verdicts in the README anew from the results below `root`.

    Raises:  ValueError: a mark is missing.
    """
    return with_tables(text, {"not reproduced": not_reproduced(root), "verdicts": verdict_table(root)})


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Put tables between their marks in a text.

    Args:    tables: name of the marks -> what stands between them, as Markdown.
    Raises:  ValueError: a mark is missing.
    """
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"the text needs one line {start!r} and one line {end!r} after it")
        before, after = text.partition(start)[0], text.partition(end)[2]
        text = f"{before}{start}\n{table}\n{end}{after}"
    return text


def _verdicts(root: Path) -> tuple[str, pd.DataFrame]:
    """Read the verdicts there are: the file's name below `root` ("" if there is none), and its table."""
    file = next((name for name in VERDICTS if (root / name).is_file()), "")
    if not file:
        return file, pd.DataFrame()
    return file, pd.read_csv(root / file, keep_default_na=False, na_values=["", "nan"])


def not_reproduced(root: Path) -> str:
    """Say in words what was not reproduced, with the numbers, as Markdown."""
    file, table = _verdicts(root)
    if not file:
        return "Nothing was measured yet."
    rows = table[table.verdict == NOT_REPRODUCED]
    lines = [
        f"- *{row.sentence}* Wanted: {row.rule}; ours: {_ours(row)}; the paper: {_paper(row)}."
        for row in rows.itertuples()
    ]
    return "\n".join(lines) or "No claim was refuted."


def verdict_table(root: Path) -> str:
    """Write the verdicts as Markdown, what was not reproduced first; claims not measured share a line."""
    file, table = _verdicts(root)
    if not file:
        return "Not there yet: `python tasks.py study` makes it."
    groups = {verdict: table[table.verdict == verdict] for verdict in ORDER}
    counts = ", ".join(f"{len(rows)} {verdict}" for verdict, rows in groups.items())
    lines = [f"Of {len(table)} claims, in the profile `{file.split('/')[1]}`: {counts}.", ""]
    lines += [
        "| the paper's claim | holds | paper | ours | verdict | notebook |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_verdict(row) for rows in groups.values() for row in rows.itertuples()]
    if rest := table.claim[table.verdict == NOT_MEASURED].tolist():
        lines += ["", f"Not measured in this profile: {', '.join(rest)}."]
    return "\n".join([*lines, "", f"File, with the test behind each verdict: [{Path(file).name}]({file})"])


def _verdict(row: Any) -> str:
    needs = f"; needs {row.needs}" if isinstance(row.needs, str) else ""
    verdict = f"{row.verdict.removesuffix(' at this sample size')}{needs}"
    cells = (row.sentence, row.rule, _paper(row), _ours(row), verdict, _notebook(row.notebook))
    return f"| {' | '.join(cells)} |"


def _ours(row: Any) -> str:
    part = f" ({row.part})" if isinstance(row.part, str) else ""
    return f"{_number(row.ours)} [{_number(row.low)}, {_number(row.high)}]{part}"


def _paper(row: Any) -> str:
    return _number(row.paper) if row.paper == row.paper else "not printed"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < float("inf") else f"{value:.4g}"


def _notebook(name: str, folder: str = "notebooks") -> str:
    return f"[{name[:2]}]({folder}/{name}.ipynb)"


def coverage_table(root: Path) -> str:
    """Map each table and figure of the paper to its notebook and file, as Markdown for results/README.md."""
    lines = ["| in the paper | shows | notebook | file | remarks |\n|---|---|---|---|---|"]
    for item in coverage_frame(root / "results" / PROFILE).itertuples():
        notebook = _notebook(item.notebook, "../notebooks") if item.notebook else "none"
        file = f"[{item.file.partition('/')[2]}]({PROFILE}/{item.file})" if item.file else "none"
        lines.append(f"| {item.name} | {item.shows} | {notebook} | {file} | {item.note} |")
    return "\n".join(lines)


def main() -> int:
    """Rewrite README.md and results/README.md of this project; give the exit code."""
    root = project_root() or Path.cwd()
    front, results = root / "README.md", root / "results" / "README.md"
    try:
        write_text(front, updated(front.read_text(encoding="utf-8"), root))
        tables = {"coverage": coverage_table(root)}
        write_text(results, with_tables(results.read_text(encoding="utf-8"), tables))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
