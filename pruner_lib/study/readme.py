"""The tables of the README that come from results: verdicts, numbers, tables and figures.

    python -m pruner_lib.study.readme

It writes what stands between the marks `<!-- NAME -->` and `<!-- end of NAME -->` anew, from the results of
the profile `quick`; the table of the benchmark is written by `python -m tests.benchmarks.goals`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pruner_lib.files import write_text
from pruner_lib.study.coverage import ITEMS
from pruner_lib.study.report import show
from pruner_lib.study.results import project_root

PROFILE = "quick"
TABLES = f"results/{PROFILE}/tables"
VERDICTS = f"{TABLES}/12_verdicts.csv"


def updated(text: str, root: Path) -> str:
    """Give the text of a README with its tables written anew from the results below `root`.

    Raises:  ValueError: a mark is missing.
    """
    tables = {"verdicts": verdict_table(root), "numbers": numbers_table(root), "coverage": coverage_table()}
    return with_tables(text, tables)


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Put tables between their marks in the text of a README.

    Args:    tables: name of the marks -> what stands between them, as Markdown.
    Raises:  ValueError: a mark is missing.
    """
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"the README needs one line {start!r} and one line {end!r} after it")
        before, after = text.partition(start)[0], text.partition(end)[2]
        text = f"{before}{start}\n{table}\n{end}{after}"
    return text


def verdict_table(root: Path) -> str:
    """Write the verdicts as Markdown: claim, rule, paper, ours with its interval, verdict, notebook."""
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


def numbers_table(root: Path) -> str:
    """Write single numbers of one model as Markdown: what they are, the paper's, ours, notebook, file."""
    lines = ["| single numbers | paper | ours (`quick`) | notebook | file |\n|---|---|---|---|---|"]
    for what, notebook, found in NUMBERS:
        place = f"{TABLES}/{notebook[:2]}_result.csv"
        if not (root / place).is_file():
            return "Not there yet: `python tasks.py study` makes them."
        paper, ours = found(pd.read_csv(root / place))
        where = f"[{notebook[:2]}](notebooks/{notebook}.ipynb) | [{Path(place).name}]({place})"
        lines.append(f"| {what} | {paper} | {ours} | {where} |")
    return "\n".join(lines)


def _of_stage(metric: str, *stages: str, form: str = ".2f") -> Callable[[Any], list[str]]:
    def found(frame) -> list[str]:
        rows = frame[frame.metric == metric].set_index("stage").loc[list(stages)]
        return [", ".join(f"{value:{form}}" for value in rows[side]) for side in ("paper", "ours")]

    return found


def _counts(frame) -> tuple[str, str]:
    exact = (frame.exact / 1e9).round(2) == frame.paper
    return f"{len(exact)} rows", f"{exact.sum()} of {len(exact)} exact"


def _times_dense(frame) -> list[str]:
    rows = frame.set_index("method").loc[["l2", "element1", "element2"]]
    sides = "x dense: paper, LLaMA-7B", "x dense: ours"
    return [", ".join(f"{value:.2f}" for value in rows[side]) for side in sides]


NUMBERS = (  # what, notebook, its table -> the paper's number and ours
    (
        "A fifth of the parameters can go without retraining (Table 1, Element¹): perplexity, times dense",
        "00_quickstart",
        _of_stage("perplexity", "pruned"),
    ),
    (
        "A short LoRA training brings part of it back: perplexity, times dense",
        "00_quickstart",
        _of_stage("perplexity", "recovered"),
    ),
    (
        "Mean zero-shot accuracy kept: pruned, recovered",
        "00_quickstart",
        _of_stage("accuracy", "pruned", "recovered", form=".0%"),
    ),
    (
        "Groups are found automatically (Figures 2 and 6): LLaMA-7B's parameters in Table 3, recounted",
        "01_discover_groups",
        _counts,
    ),
    (
        "The Taylor criteria tell what a group is worth (Eq. 3 to 5): perplexity, times dense, without a "
        "quarter of the inner groups by L2, Element¹, Element²",
        "02_estimate_importance",
        _times_dense,
    ),
)


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
