"""The tables of README.md and results/README.md that come from results: verdicts, single numbers, coverage.

    python -m pruner_lib.study.readme

It writes what stands between the marks `<!-- NAME -->` and `<!-- end of NAME -->` anew, from the results of
the profile `quick`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pruner_lib.files import write_text
from pruner_lib.study.paper import coverage_frame
from pruner_lib.study.results import project_root

PROFILE = "quick"
TABLES = f"results/{PROFILE}/tables"
VERDICTS = f"{TABLES}/12_verdicts.csv"
NOT_YET = "Not there yet: `python tasks.py study` makes it."
NUMBERS = (  # notebook, and a single number of its result table
    (
        "00_quickstart",
        "A fifth of the parameters can go without retraining (Table 1, Element¹): perplexity, times dense",
    ),
    ("00_quickstart", "A short LoRA training brings part of it back: perplexity, times dense"),
    ("00_quickstart", "Mean zero-shot accuracy kept: pruned, recovered"),
    (
        "01_discover_groups",
        "Groups are found automatically (Figures 2 and 6): LLaMA-7B's parameters in Table 3, recounted",
    ),
    (
        "02_estimate_importance",
        "The Taylor criteria say what a group is worth (Eq. 3 to 5): perplexity, times dense, without a "
        "quarter of the inner groups by L2, Element¹, Element²",
    ),
)


def updated(text: str, root: Path) -> str:
    """Write the tables of the README anew from the results below `root`.

    Raises:  ValueError: a mark is missing.
    """
    return with_tables(text, {"verdicts": verdict_table(root), "numbers": numbers_table(root)})


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


def verdict_table(root: Path) -> str:
    """Write the verdicts as Markdown: claim, rule, paper, ours with its interval, verdict, notebook."""
    if not (root / VERDICTS).is_file():
        return NOT_YET
    head = "| the paper's claim | holds | paper | ours | verdict | notebook |\n|---|---|---|---|---|---|"
    rows = [_verdict(row) for row in pd.read_csv(root / VERDICTS).itertuples()]
    return "\n".join([head, *rows, "", f"File: [{Path(VERDICTS).name}]({VERDICTS})"])


def _verdict(row: Any) -> str:
    ours = f"{_number(row.ours)} [{_number(row.low)}, {_number(row.high)}]" if row.ours == row.ours else "-"
    paper = _number(row.paper) if row.paper == row.paper else "not printed"
    claim = f"{row.sentence.rstrip('.')}: {row.measured}"
    return f"| {claim} | {row.rule} | {paper} | {ours} | {row.verdict} | {_notebook(row.notebook)} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < float("inf") else f"{value:.4g}"


def _notebook(name: str, folder: str = "notebooks") -> str:
    return f"[{name[:2]}]({folder}/{name}.ipynb)"


def numbers_table(root: Path) -> str:
    """Write single numbers of one model as Markdown: what they are, the paper's, ours, notebook, file."""
    paths = {notebook: f"{TABLES}/{notebook[:2]}_result.csv" for notebook, _ in NUMBERS}
    if not all((root / path).is_file() for path in paths.values()):
        return NOT_YET
    numbers = _single_numbers(*(pd.read_csv(root / path) for path in paths.values()))
    lines = [f"| single numbers | paper | ours (`{PROFILE}`) | notebook | file |\n|---|---|---|---|---|"]
    for (notebook, what), (paper, ours) in zip(NUMBERS, numbers, strict=True):
        file = f"[{Path(paths[notebook]).name}]({paths[notebook]})"
        lines.append(f"| {what} | {paper} | {ours} | {_notebook(notebook)} | {file} |")
    return "\n".join(lines)


def _single_numbers(stages: pd.DataFrame, counts: pd.DataFrame, methods: pd.DataFrame) -> list[Sequence[str]]:
    """Give the paper's number and ours for each of `NUMBERS`, from the result tables of 00, 01 and 02."""
    stages = stages.set_index(["metric", "stage"])[["paper", "ours"]]
    times = stages.loc["perplexity"].map("{:.2f}".format)
    kept = stages.loc["accuracy"].loc[["pruned", "recovered"]].map("{:.0%}".format)
    exact = (counts.exact / 1e9).round(2) == counts.paper
    methods = methods.set_index("method").loc[["l2", "element1", "element2"]]
    methods = methods[["x dense: paper, LLaMA-7B", "x dense: ours"]].map("{:.2f}".format)
    counted = (f"{len(exact)} rows", f"{exact.sum()} of {len(exact)} exact")
    joined = [frame.agg(", ".join).tolist() for frame in (kept, methods)]
    return [times.loc["pruned"].tolist(), times.loc["recovered"].tolist(), joined[0], counted, joined[1]]


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
