"""The tables of README.md and results/README.md that come from results: verdicts and coverage.

    python -m pruner_lib.study.readme

It writes what stands between the marks `<!-- NAME -->` and `<!-- end of NAME -->` anew: the verdicts of the
profile `decide` or, while that is not measured, of `quick`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pruner_lib.files import write_text
from pruner_lib.study.claims import CANT_TELL, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED
from pruner_lib.study.paper import coverage_frame
from pruner_lib.study.results import project_root

PROFILE = "quick"  # whose files the coverage names
VERDICTS = [f"results/{profile}/tables/12_verdicts.csv" for profile in ("decide", PROFILE)]
COLUMNS = ["the paper's claim", "holds", "paper", "ours", "verdict", "notebook"]


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


def verdict_tables(root: Path) -> dict[str, str]:
    """Write the verdicts below `root` as Markdown: in words what was not reproduced, and a table of all.

    What was not reproduced comes first; claims that were not measured share a line.
    """
    file = next((name for name in VERDICTS if (root / name).is_file()), "")
    if not file:
        nothing = "Not there yet: `python tasks.py study` makes it."
        return {"not reproduced": "Nothing was measured yet.", "verdicts": nothing}
    numbers = ("ours", "low", "high", "paper")
    missing = dict.fromkeys(numbers, ["", "nan"])
    rows = pd.read_csv(root / file, keep_default_na=False, na_values=missing)
    ours, low, high, paper = (rows[name].map(_number) for name in numbers)
    part = rows.part.map(lambda name: f" ({name})" if name else "")
    needs = rows.needs.map(lambda what: f"; needs {what}" if what else "")
    cells = [rows.sentence, rows.rule, paper.replace("nan", "not printed")]
    cells += [ours + " [" + low + ", " + high + "]" + part]
    cells += [rows.verdict.str.removesuffix(" at this sample size") + needs, rows.notebook.map(_notebook)]
    shown = pd.concat(cells, axis=1, keys=COLUMNS)
    groups = {name: shown[rows.verdict == name] for name in (NOT_REPRODUCED, CANT_TELL, REPRODUCED)}
    counts = ", ".join(f"{len(group)} {name}" for name, group in groups.items())
    lines = [f"Of {len(rows)} claims, in the profile `{file.split('/')[1]}`: {counts}.", ""]
    lines.append(_markdown(COLUMNS, pd.concat(groups).to_numpy()))
    if rest := rows.claim[rows.verdict == NOT_MEASURED].tolist():
        lines += ["", f"Not measured in this profile: {', '.join(rest)}."]
    lines += ["", f"File, with the test behind each verdict: [{Path(file).name}]({file})"]
    said = [
        f"- *{claim}* Wanted: {rule}; ours: {numbers}; the paper: {paper}."
        for claim, rule, paper, numbers, *_ in groups[NOT_REPRODUCED].to_numpy()
    ]
    return {"not reproduced": "\n".join(said) or "No claim was refuted.", "verdicts": "\n".join(lines)}


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < float("inf") else f"{value:.4g}"


def _notebook(name: str, folder: str = "notebooks") -> str:
    return f"[{name[:2]}]({folder}/{name}.ipynb)" if name else "none"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def coverage_table(root: Path) -> str:
    """Map each table and figure of the paper to its notebook and file, as Markdown for results/README.md."""
    rows = coverage_frame(root / "results" / PROFILE)
    files = [f"[{file.partition('/')[2]}]({PROFILE}/{file})" if file else "none" for file in rows.file]
    notebooks = [_notebook(name, "../notebooks") for name in rows.notebook]
    columns = ["in the paper", "shows", "notebook", "file", "remarks"]
    return _markdown(columns, list(zip(rows.name, rows.shows, notebooks, files, rows.note, strict=True)))


def main() -> None:
    """Rewrite README.md and results/README.md of this project."""
    root = project_root() or Path.cwd()
    tables = {"README.md": verdict_tables(root), "results/README.md": {"coverage": coverage_table(root)}}
    for name, own in tables.items():
        write_text(root / name, with_tables((root / name).read_text(encoding="utf-8"), own))


if __name__ == "__main__":
    main()
