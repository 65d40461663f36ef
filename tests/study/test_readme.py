"""The README's tables are those of the results, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from made_records import draws

from pruner_lib.study.claims import CLAIMS, Evidence, judge_claims, verdicts_frame
from pruner_lib.study.coverage import ITEMS
from pruner_lib.study.readme import (
    TABLES,
    VERDICTS,
    coverage_table,
    numbers_table,
    updated,
    verdict_table,
    with_tables,
)
from pruner_lib.study.results import save_table
from tests.benchmarks.goals import FOLDER, GOALS, goals_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MARKED = (
    "a\n<!-- verdicts -->\nold\n<!-- end of verdicts -->\nb\n"
    "<!-- numbers --><!-- end of numbers --><!-- coverage --><!-- end of coverage -->"
    "<!-- benchmark --><!-- end of benchmark -->\nc\n"
)
FILES = (
    VERDICTS,
    *(f"{TABLES}/{stem}.csv" for stem in ("00_result", "01_result", "02_result")),
    *sorted({f"{FOLDER}/{goal.part}.csv" for goal in GOALS}),
)


@pytest.fixture
def published(tmp_path):
    """Give a folder with the results as they are in git: a study since may have written others."""
    for folder in (TABLES, FOLDER):
        (tmp_path / folder).mkdir(parents=True)
    for name in FILES:
        command = ["git", "-C", str(ROOT), "show", f":{name}"]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode == 0:
            (tmp_path / name).write_text(told.stdout)
    return tmp_path


def test_tables_of_the_readme_are_those_of_the_published_results(published):
    new = with_tables(updated(README, published), {"benchmark": goals_table(published)})
    assert new == README, (
        "run python -m pruner_lib.study.readme and python -m tests.benchmarks.goals, and commit both"
    )


def test_text_around_the_tables_stays_and_old_tables_go(tmp_path):
    new = updated(MARKED, tmp_path)
    assert new.startswith("a\n<!-- verdicts -->\nNot there yet") and "old" not in new
    assert "\nb\n" in new and new.endswith("-->\nc\n") and coverage_table() in new
    assert updated(new, tmp_path) == new
    beside = with_tables(new, {"benchmark": "none"})
    assert beside == new.replace("<!-- benchmark -->", "<!-- benchmark -->\nnone\n")
    with pytest.raises(ValueError, match="<!-- numbers -->"):
        updated("<!-- verdicts --><!-- end of verdicts -->", tmp_path)


def test_every_claim_has_its_row_with_the_papers_number_and_ours(tmp_path):
    found = Evidence((*draws(3.0), *draws(3.4, criterion="vector")), "m")
    save_table(verdicts_frame(judge_claims(CLAIMS, found)), "12_verdicts", tmp_path / "results" / "quick")
    rows = [line for line in verdict_table(tmp_path).splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(CLAIMS)
    assert any(
        "0.8568" in row and "| reproduced | [03](notebooks/03_compare_methods.ipynb)" in row for row in rows
    )
    assert sum("| - | not measured |" in row for row in rows) == len(CLAIMS) - 1


def test_single_numbers_are_those_of_their_tables(tmp_path):
    assert numbers_table(tmp_path).startswith("Not there yet")
    tables = {
        "00_result": pd.DataFrame(
            [("accuracy", "pruned", 0.5, 0.9), ("accuracy", "recovered", 0.6, 0.95)]
            + [("perplexity", "pruned", 7.125, 1.5), ("perplexity", "recovered", 3.5, 1.25)],
            columns=["metric", "stage", "ours", "paper"],
        ),
        "01_result": pd.DataFrame({"exact": [5_422_977_024, 5_000_000_000], "paper": [5.42, 5.42]}),
        "02_result": pd.DataFrame(
            {"method": ["l2", "element1", "element2"], "x dense: ours": [18.0, 2.0, 1.75]}
        ).assign(**{"x dense: paper, LLaMA-7B": [46.0, 1.5, 1.6]}),
    }
    for stem, frame in tables.items():
        save_table(frame, stem, tmp_path / "results" / "quick")
    rows = numbers_table(tmp_path).splitlines()[2:]
    assert len(rows) == 5 and "| 1.50 | 7.12 |" in rows[0] and "| 1.25 | 3.50 |" in rows[1]
    assert "| 90%, 95% | 50%, 60% |" in rows[2] and "| 2 rows | 1 of 2 exact |" in rows[3]
    assert (
        "| 46.00, 1.50, 1.60 | 18.00, 2.00, 1.75 |" in rows[4] and "02_estimate_importance.ipynb" in rows[4]
    )


def test_every_table_and_figure_of_the_paper_has_a_row():
    for item in ITEMS:
        assert len(re.findall(rf"^\| {item.name} \|", README, flags=re.MULTILINE)) == 1


def test_links_of_the_readme_to_code_and_notebooks_lead_somewhere():
    targets = {t for t in re.findall(r"\]\(([^)#]+)\)", README) if not t.startswith(("http", "results/"))}
    assert targets and not [target for target in sorted(targets) if not (ROOT / target).exists()]
