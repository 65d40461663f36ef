"""Formulas of pages become MathML; what is no formula, or can't be parsed, stays text."""

import nbformat
import pytest
from bs4 import BeautifulSoup

from pruner_lib.study.formulas import draw_formulas, mark_formulas, to_mathml
from pruner_lib.study.report import PageExporter, find_notebooks


def test_every_formula_of_the_notebooks_becomes_mathml():
    cells = [cell for path in find_notebooks() for cell in nbformat.read(path, 4).cells]
    exporter = PageExporter()
    pages = [
        exporter.markdown2html({}, c.source) for c in cells if c.cell_type == "markdown" and "$" in c.source
    ]
    marked = [span for page in pages for span in BeautifulSoup(page, "html.parser").select(".formula")]
    left = [span.text for span in marked if not to_mathml(span.text).startswith("<math")]
    assert len(marked) > 200 and not left


@pytest.mark.parametrize(
    ("latex", "parts"),
    [
        (r"\frac{a}{b}", "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>"),
        ("x_i^2", "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>"),
        ("a < b", "<mi>a</mi><mo>&lt;</mo><mi>b</mi>"),
        (r"\text{a & b}", "<mtext>a\u00a0&amp;\u00a0b</mtext>"),
    ],
)
def test_parts_of_a_formula(latex, parts):
    assert parts in to_mathml(latex)


def test_markup_in_a_formula_is_escaped():
    html = draw_formulas(mark_formulas(r"<p>$\text{&lt;img src=x onerror=alert(1)&gt;} x$</p>"))
    page = BeautifulSoup(html, "html.parser")
    assert page.math and not page.img and "<img" in page.mtext.text


def test_code_money_and_unknown_commands_stay_as_written():
    html = "<p>It costs $5, not $6.</p><p>$7</p><p>$8</p><code>$x$</code><pre>$$y$$</pre>"
    assert mark_formulas(html) == html
    broken = r'<span class="formula">\left( &lt;b&gt;</span>'
    assert draw_formulas(broken) == broken.replace("\\", "$\\").replace("</", "$</")
