"""The page of a profile shows all that is there, says what failed, and links only to files that exist."""

from __future__ import annotations

import os
import re

import nbformat
import pandas as pd
import pytest
from made_records import draws

from pruner_lib.files import read_json, write_json
from pruner_lib.study.claims import CLAIMS, Evidence, judge_claims, verdicts_frame
from pruner_lib.study.report import main, runs_frame, runs_of, write_index
from pruner_lib.study.results import finish, manifest_path, results_dir, save_table


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    return results_dir("tiny")


def done(place, name, heading="# 03 A question?"):
    """Leave behind what a notebook leaves: an executed copy, a table, a figure, its manifest."""
    table = save_table(pd.DataFrame({"ours": [1.5], "paper": [1.4]}), f"{name[:2]}_result", place)
    (place / "figures").mkdir(exist_ok=True)
    figures = [place / "figures" / f"{name[:2]}_it.{kind}" for kind in ("csv", "png", "svg")]
    for path in figures:
        path.write_text("x")
    finish(name, "tiny", [table, figures])
    manifest = manifest_path(name, "tiny")
    more = {"seconds": 95.0, "parameters": {"profile": "tiny", "ratio": 0.5}}
    write_json(manifest, read_json(manifest) | more)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(heading)])
    nbformat.write(book, manifest.with_suffix(".ipynb"))


def test_page_links_to_everything_and_only_to_what_is_there(place):
    done(place, "03_compare_methods")
    done(place, "04_dependency", "# 04 Another <question>")
    text = write_index("tiny").read_text()
    targets = {target for target in re.findall(r'(?:href|src)="([^"#]+)"', text)}
    assert {f"notebooks/03_compare_methods.{kind}" for kind in ("html", "ipynb")} <= targets
    assert {"tables/03_result.csv", "figures/03_it.png", "figures/04_it.svg"} <= targets
    assert all((place / target).is_file() for target in targets)
    assert "04 Another &lt;question&gt;" in text and "1.6 min" in text and "ratio = 0.5" in text
    assert "3.2 min in their last runs" in text and "http" not in text


def test_verdicts_stand_first_with_their_counts(place):
    frame = verdicts_frame(
        judge_claims(CLAIMS, Evidence((*draws(3.0), *draws(3.4, criterion="vector")), "m"))
    )
    assert "run 12_summary" in write_index("tiny").read_text()
    save_table(frame, "12_verdicts", place)
    done(place, "03_compare_methods")
    text = write_index("tiny").read_text()
    assert "1 reproduced" in text and f"{len(CLAIMS) - 1} not measured" in text
    assert text.count('<div class="claim"') == len(CLAIMS)
    assert text.index("Verdicts") < text.index("03 A question?")
    assert "notebooks/03_compare_methods.html" in text and "no number printed" in text


def test_failure_is_told_at_the_top_and_with_its_message(place):
    done(place, "03_compare_methods")
    failed = {
        "notebook": "04_dependency",
        "profile": "tiny",
        "status": "failed",
        "seconds": 3.0,
        "error": "a <boom>",
    }
    write_json(manifest_path("04_dependency", "tiny"), failed)
    text = write_index("tiny").read_text()
    assert "Failed: 04_dependency" in text and "a &lt;boom&gt;" in text
    assert list(runs_frame("tiny").status) == ["done", "failed"]
    assert [run["notebook"] for run in runs_of("tiny")] == ["03_compare_methods", "04_dependency"]


def test_executed_notebook_is_made_a_page_again_only_when_it_has_changed(place):
    done(place, "03_compare_methods")
    write_index("tiny")
    shown = manifest_path("03_compare_methods", "tiny").with_suffix(".html")
    os.utime(shown, (2e9, 2e9))
    write_index("tiny")
    assert shown.stat().st_mtime == 2e9
    os.utime(shown, (1, 1))
    write_index("tiny")
    assert shown.stat().st_mtime > 1e9


def test_profile_without_results_has_a_page_and_a_wrong_name_is_told(place, capsys):
    assert main(["tiny"]) == 0
    assert "No notebook has run yet" in (place / "index.html").read_text()
    assert runs_frame("tiny").empty and list(runs_frame("tiny"))[:2] == ["notebook", "status"]
    assert main(["tyni"]) == 2 and "unknown profile" in capsys.readouterr().err
