r"""Formulas of a page as MathML, which browsers show without a script or a network.

Formulas are marked while Markdown is rendered, and converted after the page was sanitized.
"""

import re
from html import escape, unescape
from xml.etree.ElementTree import tostring

from latex2mathml.converter import convert_to_element

MATHS = re.compile(r"<(pre|code)\b.*?</\1>|\$\$(.+?)\$\$|\$(?!\s)([^$<]+?)(?<!\s)\$(?!\d)", re.DOTALL)
MARKED = re.compile('<span class="(formula|formula display)">(.*?)</span>', re.DOTALL)


def mark_formulas(html: str) -> str:
    """Put each formula of rendered Markdown into a span of the class `formula`; code is left unchanged."""

    def mark(found: re.Match) -> str:
        if found[1]:
            return found[0]
        return f'<span class="formula{" display" if found[2] else ""}">{found[2] or found[3]}</span>'

    return MATHS.sub(mark, html)


def draw_formulas(html: str) -> str:
    """Convert the marked formulas of a page to MathML; those that can't be parsed show their LaTeX."""

    def draw(found: re.Match) -> str:
        return f'<span class="{found[1]}">{to_mathml(unescape(found[2]), "display" in found[1])}</span>'

    return MARKED.sub(draw, html)


def to_mathml(latex: str, display: bool = False) -> str:
    """Convert a formula (without dollars) to MathML; if it can't be parsed, return it as escaped text."""
    try:
        formula = convert_to_element(latex, display="block" if display else "inline")
    except Exception:  # the parser has many errors, which share no base class
        return escape(f"$${latex}$$" if display else f"${latex}$")
    for part in formula.iter():
        part.text = part.text and unescape(part.text)  # the parser's entities; `tostring` escapes again
    return tostring(formula, encoding="unicode")
