"""Pages hold what the notebooks hold, load nothing from elsewhere, and link only to files that exist."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from pruner_lib.study.records import write_kept
from pruner_lib.study.report import (
    OWN_STYLE,
    SUMMARY,
    WIDGET,
    notebook_page,
    runs_frame,
    slides_page,
    write_index,
)
from pruner_lib.study.results import manifest_path, results_dir

LOADED = re.compile(
    r"""<(?:script|img|iframe)[^>]*\bsrc=["']?(?!data:)[^>]*>"""
    r"""|<link\b(?! rel="stylesheet" href="[./]*style.css">)[^>]*>|@import|url\(["']?http"""
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    (tmp_path / "tiny" / "notebooks").mkdir(parents=True)
    return results_dir("tiny")


def executed(heading: str = "# 07 A question?"):
    """An executed notebook with a formula, printed markup, a table and a progress bar."""
    book = new_notebook(metadata={"widgets": {WIDGET: {"state": {}}}})
    book.cells = [new_markdown_cell(f"{heading}\n\nIt costs $x^2$ dollars."), new_code_cell("bar")]
    table = {"text/html": "<style>#T_1 td {color: red}</style><table id='T_1'></table>"}
    book.cells[1].outputs = [
        new_output("stream", text="<script>printed</script>"),
        new_output("display_data", data=table),
        new_output("display_data", data={WIDGET: {"model_id": "1"}, "text/plain": "0%| | 0/3"}),
    ]
    return book


def done(name: str, status: str = "done", heading: str = "# 07 A question?", **more):
    """Leave behind what a notebook leaves: an executed copy and its manifest."""
    path = manifest_path(name, "tiny")
    nbformat.write(executed(heading), path.with_suffix(".ipynb"))
    write_kept(path, {"notebook": name, "status": status, "seconds": 95.0, "finished": "today"} | more)


def test_page_shows_text_code_and_outputs_without_bars_and_without_the_network():
    text, style = notebook_page(executed(), "a <title>", "../style.css", [])
    assert style.endswith(OWN_STYLE), "of two rules the later one holds"
    assert 'href="../style.css"' in text and len(text) < 20_000 < len(style) and not LOADED.search(style)
    assert "A question?" in text and "#T_1 td" in text and "0/3" not in text
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in text and "$x^2$" not in text
    assert "&lt;script&gt;printed" in text and "<script>printed" not in text
    assert "<title>a &lt;title&gt;</title>" in text and not LOADED.search(text)
    assert LOADED.search('<script src="https://cdn/mathjax.js">') and LOADED.search('<link href="x.css">')


def test_printed_bars_are_left_out_and_warnings_are_not():
    """A bar comes in several outputs, of which the last is a bare end of line, or before a warning."""
    said = (
        "\r 0% of prompts",
        "\r100% of prompts",
        "\n",
        "\r5% of prompts\r9%| [00:01<00:02]y.py:3: UserWarning: 5 left\n",
    )
    for page_of in (lambda book: notebook_page(book, "07", "style.css", [])[0], slides_page):
        book = executed()
        book.cells[1].metadata["tags"] = ["slide"]
        book.cells[1].outputs += [new_output("stream", name="stderr", text=text) for text in said]
        page = page_of(book)
        assert "of prompts" not in page and "UserWarning: 5 left" in page and "&lt;script&gt;printed" in page
        streams = [one.name for one in book.cells[-1].outputs if one.output_type == "stream"]
        assert streams == ["stdout", "stderr"], "a bare end of line was left"


def test_names_and_texts_in_outputs_are_never_live_tags():
    evil = '<img src=x onerror=alert(1)><svg onload=alert(2)><a href="javascript:alert(3)">x</a>'
    styled = pd.DataFrame({evil: [evil]}, index=[evil]).style.set_caption(evil).format(str)
    data = {
        "text/html": styled.to_html() + '<p style="color: red">',
        "text/markdown": f"**{evil}** [x](javascript:alert(4))\n\n{evil}",
    }
    data |= {"image/svg+xml": evil, "application/javascript": "alert(5)", "text/plain": evil}
    book = new_notebook(cells=[new_code_cell(evil)])
    book.cells[0].outputs = [new_output("display_data", data={kind: one}) for kind, one in data.items()]
    book.cells[0].outputs += [new_output("stream", text=evil), new_output("error", traceback=[evil])]
    found = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    reader.feed(notebook_page(book, evil, "style.css", [])[0])
    tags, names = {tag for tag, _ in found}, {name for _, attributes in found for name in attributes}
    assert not tags & {"svg", "script"} and not any(name.startswith("on") for name in names)
    links = [one.get("href") or one.get("src") or "" for _, one in found]
    assert not any(link.startswith(("javascript:", "x")) for link in links)
    assert {"table", "th", "td"} <= tags and {"class", "style"} <= names


@pytest.mark.parametrize(("style", "home"), [("../style.css", "../"), ("style.css", "")])
def test_links_of_a_notebook_lead_from_its_page_to_pages_and_files_and_solutions_stay_folded(style, home):
    text = "[a](01_discover_groups.ipynb) [b](../pruner_lib/files.py) [c](https://arxiv.org/abs/2305.11627)"
    text += " [not run](02_estimate_importance.ipynb)"
    folded = "<details><summary>Solution</summary>\n\n```python\nx = 1\n```\n\n</details>"
    book, pages = new_notebook(cells=[new_markdown_cell(f"{text}\n\n{folded}")]), ["01_discover_groups"]
    page, _ = notebook_page(book, "x", style, pages)
    links = re.findall(r'href="([^"#]+)"', page.partition("<body")[2])
    wanted = [f"{home}notebooks/01_discover_groups.html", f"{home}../../pruner_lib/files.py"]
    source = f"{home}../../notebooks/02_estimate_importance.ipynb"
    assert links == [*wanted, "https://arxiv.org/abs/2305.11627", source]
    assert "<details><summary>Solution</summary>" in page and "&lt;details" not in page


def test_front_page_is_the_summary_with_links_to_all_notebooks(place):
    done("03_compare_methods")
    done("04_dependency", status="failed", outputs=["x"])
    done(SUMMARY, heading="# 12 What is left?")
    text = write_index("tiny").read_text()
    targets = set(re.findall(r'href="(notebooks/[^"]+)"', text))
    assert targets == {f"notebooks/{name}.html" for name in ("03_compare_methods", "04_dependency", SUMMARY)}
    assert all((place / target).is_file() for target in targets) and (place / "style.css").is_file()
    assert text.index("04_dependency") < text.index("What is left?") and "95 s" in text
    assert not LOADED.search(text)
    assert list(runs_frame("tiny").status) == ["done", "failed", "done"]
    assert list(runs_frame("tiny").outputs) == [0, 1, 0]


def test_names_are_text_and_not_markup(place):
    done("03_<b>&", finished="<script>alert(1)</script>")
    text = write_index("tiny").read_text()
    assert "03_&lt;b&gt;&amp;" in text and "<b>" not in text and "<script>alert" not in text
    assert 'href="notebooks/03_%3Cb%3E%26.html"' in text


def test_front_page_without_the_summary_or_anything_else(place):
    assert "No notebook has run yet" in write_index("tiny").read_text() and runs_frame("tiny").empty
    done("03_compare_methods", seconds=None)
    text = write_index("tiny").read_text()
    assert "03_compare_methods" in text and "nan" not in text.split("<body")[1]
    with pytest.raises(ValueError, match="unknown profile"):
        write_index("tyni")


def test_page_is_made_again_only_when_its_notebook_has_changed(place):
    done("03_compare_methods")
    write_index("tiny")
    page = manifest_path("03_compare_methods", "tiny").with_suffix(".html")
    os.utime(page, (2e9, 2e9))
    write_index("tiny")
    assert page.stat().st_mtime == 2e9
    os.utime(page, (1, 1))
    write_index("tiny")
    assert page.stat().st_mtime > 1e9


def test_damaged_notebook_is_named(place):
    (place / "notebooks" / "03_x.ipynb").write_text("{")
    with pytest.raises(ValueError, match=r"03_x\.ipynb is not a notebook"):
        write_index("tiny")
