"""What README.md, REPRODUCIBILITY.md and results/README.md take from results: verdicts, cost, coverage.

    python -m tests.benchmarks.readme

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
from pruner_lib.study.records import load_records

PROFILE = "quick"  # whose files the coverage names
VERDICTS = [f"results/{profile}/tables/12_verdicts.csv" for profile in ("decide", PROFILE)]
ANSWERS = {NOT_REPRODUCED: "not reproduced", CANT_TELL: "open", REPRODUCED: "reproduced"}  # -> its marks
NO_NUMBER = "no number"  # of the paper
COLUMNS = ["claim", "holds", "paper", "ours", "verdict", "notebook"]


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
    """Write the verdicts below `root` as Markdown: those not reproduced in words, and first in the table."""
    file, shown = _verdicts(root)
    groups = {name: shown[shown.answer == name] for name in ANSWERS}
    lines = [_counts(file, shown), "", _markdown(COLUMNS, pd.concat(groups)[COLUMNS].to_numpy())]
    if rest := shown.id[shown.answer == NOT_MEASURED].tolist():
        lines += ["", f"Not measured in this profile: {', '.join(rest)}."]
    lines += ["", f"File, with the test behind each verdict: [{Path(file).name}]({file})"]
    said = _in_words(groups[NOT_REPRODUCED]) or "No claim was refuted."
    return {"not reproduced": said, "verdicts": "\n".join(lines)}


def report_tables(root: Path) -> dict[str, str]:
    """Write what REPRODUCIBILITY.md takes from the results: the claims by their verdict, and the cost."""
    file, shown = _verdicts(root)
    marks = ("counts", *ANSWERS.values(), NOT_MEASURED, "cost")
    said = [_in_words(shown[shown.answer == one]) or "None." for one in ANSWERS]
    rest = "\n".join(f"- *{claim}*" for claim in shown[COLUMNS[0]][shown.answer == NOT_MEASURED])
    cost = _cost(root / Path(file).parents[1])
    return dict(zip(marks, [_counts(file, shown), *said, rest or "None.", cost], strict=True))


def _verdicts(root: Path) -> tuple[str, pd.DataFrame]:
    """Read the verdicts below `root` as they are shown, beside claim and answer."""
    file = next((name for name in VERDICTS if (root / name).is_file()), None)
    if file is None:
        raise ValueError(f"{root} holds none of {', '.join(VERDICTS)}; run `python tasks.py study` first")
    missing = dict.fromkeys(("ours", "low", "high", "paper"), ["", "nan"])
    rows = pd.read_csv(root / file, keep_default_na=False, na_values=missing)
    ours, low, high, paper = (rows[name].map(_number) for name in missing)
    part = rows.part.map(lambda name: f" ({name})" if name else "")
    needs = rows.needs.map(lambda what: f"; needs {what}" if what else "")
    tasks = rows.without.map(lambda said: ", ".join(one.split(":")[0] for one in said.split("; ")))
    needs += tasks.map(lambda names: f"; another verdict without one of {names}" if names else "")
    cells = [rows.sentence, rows.rule, paper.replace("nan", NO_NUMBER)]
    cells += [ours + " [" + low + ", " + high + "]" + part]
    cells += [rows.verdict.str.removesuffix(" at this sample size") + needs, rows.notebook.map(_notebook)]
    shown = pd.concat(cells, axis=1, keys=COLUMNS)
    return file, shown.assign(id=rows.claim, answer=rows.verdict, tasks=tasks)


def _counts(file: str, shown: pd.DataFrame) -> str:
    counts = ", ".join(f"{(shown.answer == name).sum()} {name}" for name in ANSWERS)
    return f"Of {len(shown)} claims, in the profile `{file.split('/')[1]}`: {counts}."


def _in_words(rows: pd.DataFrame) -> str:
    lines = []
    for claim, rule, paper, numbers, tasks in rows[[*COLUMNS[:4], "tasks"]].to_numpy():
        beside = "" if paper == NO_NUMBER else f"; paper: {paper}"
        other = f" Without one of {tasks} the verdict would be another." if tasks else ""
        lines.append(f"- *{claim}* Range: {rule}; ours: {numbers}{beside}.{other}")
    return "\n".join(lines)


def _cost(folder: Path) -> str:
    """Add up what the records of a profile took, for each kind of machine."""
    records = [
        (one.machine["device_name"], sum(one.seconds.values()) / 3600, one.peak_memory_mb / 1024)
        for one in load_records(folder)
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
    for name, own in tables.items():
        write_text(root / name, with_tables((root / name).read_text(encoding="utf-8"), own))


if __name__ == "__main__":
    main()
