r"""Formulas of a page, drawn as vectors by matplotlib's mathtext, so that no page needs a network.

Mathtext knows most of LaTeX's maths, not all: what it spells otherwise is rewritten first, and a formula
that it can't read stays as it is written.
"""

import re
from html import escape, unescape

from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath

MATHS = re.compile(r"<(pre|code)\b.*?</\1>|\$\$(.+?)\$\$|\$(?!\s)([^$<]+?)(?<!\s)\$(?!\d)", re.DOTALL)
MARKED = re.compile('<span class="(formula|formula display)">(.*?)</span>', re.DOTALL)
REWRITTEN = [  # LaTeX, as mathtext spells it
    (r"\\[bB]igg?l(?![A-Za-z])", r"\\left"),
    (r"\\[bB]igg?r(?![A-Za-z])", r"\\right"),
    (r"\\!", ""),
    (r"\\[lr]vert(?![A-Za-z])", "|"),
    (r"\\[lr]Vert(?![A-Za-z])", r"\\Vert "),
    (r"\\([lg]e)(?![A-Za-z])", r"\\\1q"),
    (r"\\tag\{(\w+)\}", r"\\qquad (\1)"),
    (r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}"),
    (r"\\(sqrt|mathcal)\s*(\w)", r"\\\1{\2}"),
    (r"\\underbrace\{([^{}]*)\}_\{((?:[^{}]|\{[^{}]*\})*)\}", r"\\underset{\2}{\1}"),
]
FONT = FontProperties(math_fontfamily="stix", size=12)
EM = 10.5  # points of a drawing that are one em of the text around it
LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


def mark_formulas(html: str) -> str:
    """Put each formula of rendered Markdown into a span of the class `formula`; code stays as it is."""

    def marked(found: re.Match) -> str:
        if found[1]:
            return found[0]
        return f'<span class="formula{" display" if found[2] else ""}">{found[2] or found[3]}</span>'

    return MATHS.sub(marked, html)


def draw_formulas(html: str) -> str:
    """Draw the marked formulas of a page as SVG; those that mathtext can't read show their LaTeX."""

    def drawn(found: re.Match) -> str:
        return f'<span class="{found[1]}">{draw(unescape(found[2]), "display" in found[1])}</span>'

    return MARKED.sub(drawn, html)


def draw(latex: str, display: bool = False) -> str:
    """Draw a formula as SVG, as large as the text and on its line; escaped LaTeX if it can't be read.

    Args:    latex: without dollars.    display: fractions are as large as the text.
    """
    source = " ".join(latex.split())
    for pattern, spelled in [*REWRITTEN, *([(r"\\frac(?=\{)", r"\\dfrac")] if display else [])]:
        source = re.sub(pattern, spelled, source)
    try:
        width, height, depth, *_ = MathTextParser("path").parse(f"${source}$", dpi=72, prop=FONT)
        path = TextPath((0, 0), f"${source}$", prop=FONT)
    except ValueError:
        return escape(f"$${latex}$$" if display else f"${latex}$")
    outline = []
    for ends, code in path.iter_segments(simplify=False):
        outline += [LETTERS[code], *(f"{end:.2f}" for end in ends if code != Path.CLOSEPOLY)]
    box = f"0 {depth - height:.1f} {width:.1f} {height:.1f}"  # above the line is negative in SVG
    size = f'width="{width / EM:.3f}em" height="{height / EM:.3f}em" viewBox="{box}"'
    look = f'fill="currentColor" style="vertical-align: {-depth / EM:.3f}em"'
    name = f'role="img" aria-label="{escape(latex)}"'
    return f'<svg {name} {size} {look}><path transform="scale(1 -1)" d="{" ".join(outline)}"/></svg>'
