"""Formulas of pages are drawn; what is no formula, or can't be drawn, stays as it is written."""

import re

import nbformat
import pytest
from bs4 import BeautifulSoup

from pruner_lib.study.formulas import draw, draw_formulas, mark_formulas
from pruner_lib.study.report import PageExporter, find_notebooks


def size(drawing: str) -> tuple[float, float, float]:
    """Width, height and depth below the line, in em."""
    width, height = (float(re.search(f'{name}="([\\d.]+)em"', drawing)[1]) for name in ("width", "height"))
    return width, height, -float(re.search(r"vertical-align: (-?[\d.]+)em", drawing)[1])


def test_every_formula_of_the_notebooks_is_drawn():
    cells = [cell for path in find_notebooks() for cell in nbformat.read(path, 4).cells]
    exporter = PageExporter()
    pages = [
        exporter.markdown2html({}, c.source) for c in cells if c.cell_type == "markdown" and "$" in c.source
    ]
    marked = [one for page in pages for one in BeautifulSoup(page, "html.parser").select(".formula")]
    left = [one.text for one in marked if not draw(one.text).startswith("<svg")]
    assert len(marked) > 200 and not left


def test_drawing_stands_on_the_line_and_grows_with_what_it_shows():
    plain, deep, long = (size(draw(latex)) for latex in ("x", "x_i", "x + x + x"))
    assert plain[2] < deep[2] < deep[1] and long[0] > 3 * plain[0]
    assert size(draw(r"\frac{a}{b}"))[1] < size(draw(r"\frac{a}{b}", display=True))[1]


@pytest.mark.parametrize(
    ("latex", "same"),
    [
        (r"\Bigl(\frac12\Bigr)", r"\left(\frac{1}{2}\right)"),
        (r"\lvert x\rvert \le \sqrt D", r"| x| \leq \sqrt{D}"),
        (r"\mathcal L_i", r"\mathcal{L}_i"),
        (r"\lVert x \rVert \ge 1", r"\Vert  x \Vert  \geq 1"),
    ],
)
def test_latex_that_mathtext_spells_otherwise_is_the_same_drawing(latex, same):
    outlines = [draw(one).partition("<path")[2] for one in (latex, same)]
    assert outlines[0] == outlines[1] != "" != draw("x").partition("<path")[2] != outlines[0]


def test_code_money_and_unknown_commands_stay_as_written():
    html = "<p>It costs $5, not $6.</p><p>$7</p><p>$8</p><code>$x$</code><pre>$$y$$</pre>"
    assert mark_formulas(html) == html
    unknown = r'<span class="formula">\nothing &lt;b&gt;</span>'
    assert draw_formulas(unknown) == unknown.replace("\\", "$\\").replace("</", "$</")
    assert "<svg" in draw_formulas(mark_formulas("<p>$a &lt; b$</p>"))
