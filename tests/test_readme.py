"""The README's tables are those of the results, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pruner_lib.claim_records import Evidence
from pruner_lib.coverage import ITEMS
from pruner_lib.paper_claims import CLAIMS
from pruner_lib.readme import VERDICTS, coverage_table, updated, verdict_table
from pruner_lib.results import save_table
from pruner_lib.verdicts import judge_claims, verdicts_frame
from tests.made_records import draws

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MARKED = (
    "a\n<!-- verdicts -->\nold\n<!-- end of verdicts -->\nb\n<!-- coverage --><!-- end of coverage -->\nc\n"
)


@pytest.fixture
def published(tmp_path):
    """Give a folder with the verdicts as they are in git: a study since may have written others."""
    command = ["git", "-C", str(ROOT), "show", f":{VERDICTS}"]
    told = subprocess.run(command, capture_output=True, text=True)
    if told.returncode == 0:
        (tmp_path / VERDICTS).parent.mkdir(parents=True)
        (tmp_path / VERDICTS).write_text(told.stdout)
    return tmp_path


def test_tables_of_the_readme_are_those_of_the_published_results(published):
    assert updated(README, published) == README, "run python -m pruner_lib.readme, and commit both"


def test_text_around_the_tables_stays_and_old_tables_go(tmp_path):
    new = updated(MARKED, tmp_path)
    assert new.startswith("a\n<!-- verdicts -->\nNot there yet") and "old" not in new
    assert "\nb\n" in new and new.endswith("-->\nc\n") and coverage_table() in new
    assert updated(new, tmp_path) == new
    with pytest.raises(ValueError, match="<!-- coverage -->"):
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


def test_every_table_and_figure_of_the_paper_has_a_row():
    for item in ITEMS:
        assert len(re.findall(rf"^\| {item.name} \|", README, flags=re.MULTILINE)) == 1


def test_links_of_the_readme_to_code_and_notebooks_lead_somewhere():
    targets = {t for t in re.findall(r"\]\(([^)#]+)\)", README) if not t.startswith(("http", "results/"))}
    assert targets and not [target for target in sorted(targets) if not (ROOT / target).exists()]
