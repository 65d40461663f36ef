"""The tables of the READMEs are those of the results, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from made_records import draws

from pruner_lib.study.claims import claims, verdicts, write_answer
from pruner_lib.study.compare import ratio
from pruner_lib.study.readme import (
    TABLES,
    VERDICTS,
    coverage_table,
    numbers_table,
    updated,
    verdict_table,
    with_tables,
)
from pruner_lib.study.records import MetricName
from pruner_lib.study.results import Results

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
MARKED = (
    "a\n<!-- verdicts -->\nold\n<!-- end of verdicts -->\nb\n"
    "<!-- numbers --><!-- end of numbers --><!-- benchmark --><!-- end of benchmark -->\nc\n"
)
FILES = (VERDICTS, *(f"{TABLES}/{stem}.csv" for stem in ("00_result", "01_result", "02_result")))


@pytest.fixture
def published(tmp_path):
    """Give a folder with the results as they are in git: a study since may have written others."""
    (tmp_path / TABLES).mkdir(parents=True)
    for name in FILES:
        command = ["git", "-C", str(ROOT), "show", f":{name}"]
        shown = subprocess.run(command, capture_output=True, text=True)
        if shown.returncode == 0:
            (tmp_path / name).write_text(shown.stdout)
    return tmp_path


def test_tables_of_the_readmes_are_those_of_the_published_results(published):
    message = "run python -m pruner_lib.study.readme, and commit README.md and results/README.md"
    assert updated(README, published) == README, message
    assert with_tables(RESULTS, {"coverage": coverage_table(ROOT)}) == RESULTS, message


def test_text_around_the_tables_stays_and_old_tables_go(tmp_path):
    new = updated(MARKED, tmp_path)
    assert new.startswith("a\n<!-- verdicts -->\nNot there yet") and "old" not in new
    assert "\nb\n" in new and new.endswith("-->\nc\n") and updated(new, tmp_path) == new
    beside = with_tables(new, {"benchmark": "none"})
    assert beside == new.replace("<!-- benchmark -->", "<!-- benchmark -->\nnone\n")
    with pytest.raises(ValueError, match="<!-- numbers -->"):
        updated("<!-- verdicts --><!-- end of verdicts -->", tmp_path)


def test_every_claim_has_its_row_with_the_papers_number_and_ours(tmp_path):
    sides, folder = (draws(3.0), draws(3.4, criterion="vector")), tmp_path / "results" / "quick"
    number = ratio(*sides, MetricName("perplexity", "wiki", 128))
    write_answer(folder, "element beats vector", number, records=[*sides[0], *sides[1]])
    Results("quick", tmp_path / "results").save_table(verdicts(folder), "12_verdicts")
    rows = [line for line in verdict_table(tmp_path).splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(claims())
    ours = f"{number.mean:.4g} [{number.low:.4g}, {number.high:.4g}]"
    wanted = f"| 0.8568 | {ours} | reproduced | [03](notebooks/03_compare_methods.ipynb)"
    assert sum(wanted in row for row in rows) == 1
    assert sum("| - | not measured |" in row for row in rows) == len(claims()) - 1


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
        Results("quick", tmp_path / "results").save_table(frame, stem)
    rows = numbers_table(tmp_path).splitlines()[2:]
    assert len(rows) == 5 and "| 1.50 | 7.12 |" in rows[0] and "| 1.25 | 3.50 |" in rows[1]
    assert "| 90%, 95% | 50%, 60% |" in rows[2] and "| 2 rows | 1 of 2 exact |" in rows[3]
    assert (
        "| 46.00, 1.50, 1.60 | 18.00, 2.00, 1.75 |" in rows[4] and "02_estimate_importance.ipynb" in rows[4]
    )


def test_every_table_and_figure_of_the_paper_has_a_row():
    for name in [*(f"Table {n}" for n in range(1, 22)), *(f"Figure {n}" for n in range(1, 7))]:
        assert len(re.findall(rf"^\| {name} \|", RESULTS, flags=re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("text", "folder"), [(README, ROOT), (RESULTS, ROOT / "results")], ids=["front", "results"]
)
def test_links_to_code_and_notebooks_lead_somewhere(text, folder):
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    targets = {link for link in links if not link.startswith(("results/", "quick/"))}
    assert targets and not [target for target in sorted(targets) if not (folder / target).exists()]
