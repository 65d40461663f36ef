"""The tables of the READMEs are those of the results, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_records import draws, record

from pruner_lib.study.claims import claims, read_answer, verdicts, write_answer
from pruner_lib.study.compare import difference, each_task_left_out, ratio
from pruner_lib.study.records import MetricName, read_record, write_record
from pruner_lib.study.results import Results
from pruner_lib.study.statistics import Interval
from tests.benchmarks.readme import (
    VERDICTS,
    coverage_table,
    report_tables,
    verdict_tables,
    with_tables,
)

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPORT = (ROOT / "REPRODUCIBILITY.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
SYLLABUS = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
MARKED = (
    "a\n<!-- verdicts -->\nold\n<!-- end of verdicts -->\nb\n<!-- benchmark --><!-- end of benchmark -->\nc\n"
    "<!-- not reproduced --><!-- end of not reproduced -->"
)


@pytest.fixture
def published(tmp_path):
    """Give a folder with the results as they are in git: a study since may have written others."""
    for name in VERDICTS:
        (tmp_path / name).parent.mkdir(parents=True)
        command = ["git", "-C", str(ROOT), "show", f":{name}"]
        shown = subprocess.run(command, capture_output=True, text=True)
        if shown.returncode == 0:
            (tmp_path / name).write_text(shown.stdout)
    return tmp_path


def test_tables_of_the_readmes_are_those_of_the_published_results(published):
    message = "run python -m tests.benchmarks.readme, and commit README.md and results/README.md"
    assert with_tables(README, verdict_tables(published)) == README, message
    assert with_tables(RESULTS, {"coverage": coverage_table(ROOT)}) == RESULTS, message


@pytest.mark.slow
def test_report_in_the_form_of_the_challenge_is_that_of_the_published_results(published):
    """The records that the cost is added up from are those in git, too."""
    folder = next(name for name in VERDICTS if (published / name).is_file()).removesuffix(
        "tables/12_verdicts.csv"
    )
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", f"{folder}records"], capture_output=True
    )
    command = ["git", "-C", str(ROOT), "checkout-index", "-z", "--stdin", f"--prefix={published}/"]
    subprocess.run(command, input=files.stdout, check=True)
    message = "run python -m tests.benchmarks.readme, and commit REPRODUCIBILITY.md"
    assert with_tables(REPORT, report_tables(published)) == REPORT, message
    sections = ["Scope", "Method", "Results", "What was easy", "What was difficult", "Communication"]
    assert all(f"\n## {section}" in REPORT for section in sections)
    assert len(REPORT.split()) < 1800, "more than a report of a few pages"


def test_front_page_and_report_name_the_tasks_that_carry_a_verdict():
    rows = pd.read_csv(ROOT / "results" / "decide" / "tables" / "12_verdicts.csv", keep_default_na=False)
    carried = rows[rows.without != ""]
    assert len(carried)
    for row in carried.itertuples():
        tasks = ", ".join(one.partition(":")[0] for one in row.without.split("; "))
        [line] = [line for line in README.splitlines() if line.startswith(f"| {row.sentence} |")]
        assert f"another verdict without one of {tasks} |" in line
        [line] = [line for line in REPORT.splitlines() if line.startswith(f"- *{row.sentence}*")]
        assert line.endswith(f"Without one of {tasks}, the verdict would differ.")


@pytest.mark.slow
def test_a_published_mean_without_each_task_follows_from_the_records():
    folder = ROOT / "results" / "decide"
    [claim] = [one for one in claims() if one.id == "width beats depth recovered"]
    answer = read_answer(folder, claim)
    records = [read_record(folder / "records" / f"{key}.json") for key in answer.records]
    a, b = ([r for r in records if r.experiment.criterion == name] for name in ("element1", "alternate"))
    how = {"stages": ("recovered", "recovered"), "measure": difference}
    anew = each_task_left_out({"": (a, b)}, "accuracy", **how)
    assert anew.keys() == answer.without.keys() and len(anew) == 7
    for task, numbers in anew.items():
        ends = [(one.mean, one.low, one.high) for one in (numbers["mean"], answer.without[task]["mean"])]
        assert ends[0] == pytest.approx(ends[1])


def test_cost_adds_up_the_records_of_each_machine(tmp_path):
    folder = tmp_path / "results" / "quick"
    write_answer(folder, "random beats L2", Interval(2.0, 1.9, 2.1, 64, 20))
    Results("quick", tmp_path / "results").save_table(verdicts(folder), "12_verdicts")
    hour = {"load": 1800.0, "evaluate": 1800.0}
    for name, seeds in {"GPU": range(3), "CPU": range(3, 4)}.items():
        for seed in seeds:
            machine = {"device_name": name}
            one = replace(
                record(draw=seed), seconds=hour, machine=machine, peak_memory_mb=1024.0 * (1 + seed)
            )
            write_record(one, folder)
    tables = report_tables(tmp_path)
    assert tables["cost"].splitlines()[2:] == ["| CPU | 1 | 1.0 | 4.0 |", "| GPU | 3 | 3.0 | 3.0 |"]
    assert tables["not reproduced"].startswith("- *Groups chosen at random do less harm")
    assert tables["open"] == tables["reproduced"] == "None." and "- *Recovery" in tables["not measured"]
    assert tables["counts"].startswith(f"Of {len(claims())} claims, in the profile `quick`: 1 not reproduced")


def test_text_around_the_tables_stays_and_old_tables_go():
    tables = {"verdicts": "a table", "not reproduced": "Nothing."}
    new = with_tables(MARKED, tables)
    assert new.startswith("a\n<!-- verdicts -->\na table\n<!--") and "old" not in new
    assert "\nb\n" in new and "-->\nc\n" in new and with_tables(new, tables) == new
    assert "\nNothing.\n" in new
    beside = with_tables(new, {"benchmark": "none"})
    assert beside == new.replace("<!-- benchmark -->", "<!-- benchmark -->\nnone\n")
    with pytest.raises(ValueError, match="<!-- not reproduced -->"):
        with_tables("<!-- verdicts --><!-- end of verdicts -->", tables)


def test_results_without_verdicts_are_refused_with_what_makes_them(tmp_path):
    for tables in (verdict_tables, report_tables):
        with pytest.raises(ValueError, match="holds none of results/decide.*run `python tasks.py study`"):
            tables(tmp_path)


def test_measured_claims_have_rows_and_what_was_not_reproduced_comes_first(tmp_path):
    sides, folder = (draws(3.0), draws(3.4, criterion="vector")), tmp_path / "results" / "quick"
    number = ratio(*sides, MetricName("perplexity", "wiki", 128))
    records = [*sides[0], *sides[1]]
    write_answer(folder, "element beats vector", {"wiki": number}, records=records)
    write_answer(folder, "random beats L2", Interval(2.0, 1.9, 2.1, 64, 20))
    write_answer(folder, "vector beats L2", Interval(0.9, 0.5, 1.3, 64, 20, from_draws=1.0))
    Results("quick", tmp_path / "results").save_table(verdicts(folder), "12_verdicts")
    tables = verdict_tables(tmp_path)
    table = tables["verdicts"]
    assert table.startswith(
        f"Of {len(claims())} claims, in the profile `quick`: 1 not reproduced, 1 can't tell"
    )
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[4] for row in rows] == [
        "not reproduced",
        "can't tell; needs about 218 draws",
        "reproduced",
    ]
    ours = f"{number.mean:.4g} [{number.low:.4g}, {number.high:.4g}] (wiki)"
    assert f"| 0.8568 | {ours} | reproduced | [03](notebooks/03_compare_methods.ipynb)" in rows[2]
    assert "Not measured in this profile: keeps abilities, " in table
    (said,) = tables["not reproduced"].splitlines()
    assert said.startswith("- *Groups chosen at random do less harm than")
    assert "Range: below 1; ours: 2 [1.9, 2.1]; paper: 0.04723." in said
    Results("decide", tmp_path / "results").save_table(verdicts(folder)[:3], "12_verdicts")
    assert "Of 3 claims, in the profile `decide`" in verdict_tables(tmp_path)["verdicts"]


def test_every_table_and_figure_of_the_paper_has_a_row():
    for name in [*(f"Table {n}" for n in range(1, 22)), *(f"Figure {n}" for n in range(1, 7))]:
        assert len(re.findall(rf"^\| {name} \|", RESULTS, flags=re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("text", "folder"),
    [(README, ROOT), (REPORT, ROOT), (RESULTS, ROOT / "results"), (SYLLABUS, ROOT / "notebooks")],
    ids=["front", "report", "results", "syllabus"],
)
def test_links_to_code_and_notebooks_lead_somewhere(text, folder):
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    targets = {link for link in links if not link.startswith(("results/", "quick/"))}
    assert targets and not [target for target in sorted(targets) if not (folder / target).exists()]
