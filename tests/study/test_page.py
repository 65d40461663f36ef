"""Pages hold what they are given, safely, and need no network."""

from __future__ import annotations

import re

import nbformat
import pandas as pd
import pytest

from pruner_lib.study.report import WIDGET, figure, link, notebook_page, page, show, table, title_of


def test_page_is_whole_and_fits_a_phone():
    text = page("A & B", "<p>body</p>")
    assert text.startswith("<!DOCTYPE html>") and "<title>A &amp; B</title>" in text and "<p>body</p>" in text
    assert 'name="viewport" content="width=device-width' in text
    assert "http" not in text and "<script" not in text


def test_table_shows_its_first_rows_and_says_how_many_more_there_are():
    frame = pd.DataFrame({"name": ["<b>x</b>", "y", "z"], "value": [1234567.0, 0.123456, float("nan")]})
    shown = table(frame, rows=2)
    assert "&lt;b&gt;x" in shown and "<b>" not in shown and ">z<" not in shown
    assert "1 more rows" in shown and "more rows" not in table(frame)
    assert '<td class="number">1,234,567</td>' in shown and "0.1235" in shown


def test_values_are_written_short_and_missing_ones_not_at_all():
    assert [show(x) for x in (None, float("nan"), 0.5, 12345.6, 7, "a", True)] == [
        "", "", "0.5", "12,346", "7", "a", "True",
    ]  # fmt: skip
    assert show(float("inf")) == "inf"


def test_figure_is_shown_by_its_png_and_links_to_all_its_files():
    shown = figure("figures/12_verdicts", ["csv", "png", "svg"])
    assert '<img src="figures/12_verdicts.png"' in shown
    assert re.findall(r'href="([^"]+)"', shown) == [
        f"figures/12_verdicts.{kind}" for kind in ("png", "csv", "png", "svg")
    ]
    assert "<img" not in figure("figures/none", ["csv"])
    assert link('a"b', "<") == '<a href="a&quot;b">&lt;</a>'


@pytest.fixture
def executed(tmp_path):
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_markdown_cell("# 07 Title <i>\n\nIt costs $x^2$ dollars."),
        nbformat.v4.new_code_cell("print('<script>no</script>')"),
        nbformat.v4.new_code_cell("bar"),
    ]
    new = nbformat.v4.new_output
    table_style = "<style>#T_1 td {color: red}</style><table id='T_1'></table>"
    page_style = "<style>body {color: red}</style><script>alert(1)</script>ok"
    book.cells[1].outputs = [
        new("stream", text="<script>said</script>"),
        new("display_data", data={"text/html": table_style}),
        new("display_data", data={"text/html": page_style}),
    ]
    bar = {WIDGET: {"model_id": "1"}, "text/plain": "0%| | 0/3"}
    book.cells[2].outputs = [new("display_data", data=bar)]
    path = tmp_path / "07.ipynb"
    nbformat.write(book, path)
    return path


def test_notebook_becomes_a_page_with_text_code_and_outputs_but_no_bars(executed):
    text = notebook_page(executed)
    assert "It costs" in text and "&lt;script&gt;said" in text and "0/3" not in text
    assert "#T_1 td" in text and "body {color: red}" not in text and "alert(1)" not in text and ">ok" in text
    scripts = re.findall(r"<script.*?</script>", text, flags=re.DOTALL)
    assert len(scripts) == 2 and all("MathJax" in one or "mathjax" in one for one in scripts)
    assert title_of(nbformat.read(executed, as_version=4)) == "07 Title <i>"
    assert "<title>07 Title &lt;i&gt;</title>" in text


def test_notebook_without_formulas_asks_the_network_for_nothing(executed):
    book = nbformat.read(executed, as_version=4)
    book.cells[0].source = "No heading."
    nbformat.write(book, executed)
    text = notebook_page(executed)
    assert "<script" not in text and "http" not in text and title_of(book) == "notebook"


def test_what_is_no_notebook_is_refused(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.ipynb is no notebook"):
        notebook_page(path)
