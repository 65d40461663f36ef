"""Write the results that README.md, REPRODUCIBILITY.md and results/README.md show: verdicts, cost, coverage.

    python -m tests.benchmarks.readme

It replaces the text between the marks `<!-- NAME -->` and `<!-- end of NAME -->`. The verdicts are those of
the profile `decide` or, if that was not measured, of `quick`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pruner_lib.files import write_text
from pruner_lib.study.claims import CANT_TELL, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED
from pruner_lib.study.paper import coverage_frame
from pruner_lib.study.records import load_records

PROFILE = "quick"  # the profile whose files the coverage lists
VERDICTS = [f"results/{profile}/tables/12_verdicts.csv" for profile in ("decide", PROFILE)]
ANSWERS = {NOT_REPRODUCED: "not reproduced", CANT_TELL: "open", REPRODUCED: "reproduced"}  # -> marks
NO_NUMBER = "no number"  # if the paper prints none
COLUMNS = ["claim", "holds", "paper", "ours", "verdict", "notebook"]


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Insert tables between their marks in a text.

    Args:    tables: name of the marks -> the text between them, as Markdown.
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
    """Format the verdicts in `root` as Markdown: claims not reproduced as a list, and first in the table."""
    file, shown = _verdicts(root)
    groups = {name: shown[shown.answer == name] for name in ANSWERS}
    lines = [_counts(file, shown), "", _markdown(COLUMNS, pd.concat(groups)[COLUMNS].to_numpy())]
    if rest := shown.id[shown.answer == NOT_MEASURED].tolist():
        lines += ["", f"Not measured in this profile: {', '.join(rest)}."]
    lines += ["", f"File, with the test behind each verdict: [{Path(file).name}]({file})"]
    refuted = _claim_list(groups[NOT_REPRODUCED]) or "No claim was refuted."
    return {"not reproduced": refuted, "verdicts": "\n".join(lines)}


def report_tables(root: Path) -> dict[str, str]:
    """Format the results for REPRODUCIBILITY.md: the claims by their verdict, and the cost."""
    file, shown = _verdicts(root)
    marks = ("counts", *ANSWERS.values(), NOT_MEASURED, "cost")
    claims = [_claim_list(shown[shown.answer == answer]) or "None." for answer in ANSWERS]
    rest = "\n".join(f"- *{claim}*" for claim in shown[COLUMNS[0]][shown.answer == NOT_MEASURED])
    cost = _cost(root / Path(file).parents[1])
    return dict(zip(marks, [_counts(file, shown), *claims, rest or "None.", cost], strict=True))


def _verdicts(root: Path) -> tuple[str, pd.DataFrame]:
    """Read the verdicts in `root`, and format them for tables, with their claim and answer."""
    file = next((name for name in VERDICTS if (root / name).is_file()), None)
    if file is None:
        raise ValueError(f"{root} holds none of {', '.join(VERDICTS)}; run `python tasks.py study` first")
    missing = dict.fromkeys(("ours", "low", "high", "paper"), ["", "nan"])
    rows = pd.read_csv(root / file, keep_default_na=False, na_values=missing)
    ours, low, high, paper = (rows[name].map(_number) for name in missing)
    part = rows.part.map(lambda name: f" ({name})" if name else "")
    needs = rows.needs.map(lambda sample: f"; needs {sample}" if sample else "")
    tasks = rows.without.map(lambda text: ", ".join(item.split(":")[0] for item in text.split("; ")))
    needs += tasks.map(lambda names: f"; another verdict without one of {names}" if names else "")
    cells = [rows.sentence, rows.rule, paper.replace("nan", NO_NUMBER)]
    cells += [ours + " [" + low + ", " + high + "]" + part]
    cells += [rows.verdict.str.removesuffix(" at this sample size") + needs, rows.notebook.map(_notebook)]
    shown = pd.concat(cells, axis=1, keys=COLUMNS)
    return file, shown.assign(id=rows.claim, answer=rows.verdict, tasks=tasks)


def _counts(file: str, shown: pd.DataFrame) -> str:
    counts = ", ".join(f"{(shown.answer == name).sum()} {name}" for name in ANSWERS)
    return f"Of {len(shown)} claims, in the profile `{file.split('/')[1]}`: {counts}."


def _claim_list(rows: pd.DataFrame) -> str:
    lines = []
    for claim, rule, paper, numbers, tasks in rows[[*COLUMNS[:4], "tasks"]].to_numpy():
        published = "" if paper == NO_NUMBER else f"; paper: {paper}"
        other = f" Without one of {tasks}, the verdict would differ." if tasks else ""
        lines.append(f"- *{claim}* Range: {rule}; ours: {numbers}{published}.{other}")
    return "\n".join(lines)


def _cost(folder: Path) -> str:
    """Add up the run times of a profile's records, for each kind of machine."""
    records = [
        (record.machine["device_name"], sum(record.seconds.values()) / 3600, record.peak_memory_mb / 1024)
        for record in load_records(folder)
    ]
    machines = pd.DataFrame(records, columns=["device", "hours", "memory"]).groupby("device")
    table = machines.agg(records=("hours", "size"), hours=("hours", "sum"), memory=("memory", "max"))
    rows = [(name, f"{n:,.0f}", f"{hours:.1f}", f"{gib:.1f}") for name, n, hours, gib in table.itertuples()]
    return _markdown(["machine", "experiments", "hours", "highest memory, GiB"], rows)


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
    names = rows.file.str.rpartition("/")[2].replace("", "none")
    files = "[" + names + "](" + PROFILE + "/" + rows.file + ")"
    notebooks = [_notebook(name, "../notebooks") for name in rows.notebook]
    columns = ["in the paper", "shows", "notebook", "file", "remarks"]
    return _markdown(
        columns,
        list(zip(rows.name, rows.shows, notebooks, files.where(rows.there, names), rows.note, strict=True)),
    )


def main() -> None:
    """Rewrite README.md, REPRODUCIBILITY.md and results/README.md of this project."""
    root = Path(__file__).resolve().parents[2]
    tables = {"README.md": verdict_tables(root), "REPRODUCIBILITY.md": report_tables(root)}
    tables["results/README.md"] = {"coverage": coverage_table(root)}
    for name, parts in tables.items():
        write_text(root / name, with_tables((root / name).read_text(encoding="utf-8"), parts))


if __name__ == "__main__":
    main()
