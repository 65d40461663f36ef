"""The look of all figures: one table that gives each method, choice, stage, text and cost its style.

A name has one colour, marker and label in all notebooks. How marks, axes and legends are drawn: `drawing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

GREY = "#757575"


@dataclass(frozen=True)
class MethodStyle:
    """How a method, or what else has a name, looks: colour, marker, label, line style."""

    color: str
    marker: str
    label: str
    line: str = "-"


# Colours of Okabe and Ito, with wine, indigo and teal of Tol: colour-blind readers can tell them apart.
METHODS = {  # how groups are scored
    "dense": MethodStyle(GREY, "o", "dense model", "--"),
    "random": MethodStyle("#E69F00", "X", "random"),
    "l1": MethodStyle("#56B4E9", "v", "L1"),
    "l2": MethodStyle("#0072B2", "^", "L2"),
    "vector": MethodStyle("#CC79A7", "s", "vector"),
    "element1": MethodStyle("#D55E00", "o", "element¹"),
    "element2": MethodStyle("#009E73", "D", "element²"),
    "mixed": MethodStyle("#000000", "P", "mixed"),
    "channel": MethodStyle("#882255", "p", "channel", ":"),
}
STAGES = {  # of a model on its way
    "dense": METHODS["dense"],
    "pruned": MethodStyle("#D55E00", "o", "pruned"),
    "recovered": MethodStyle("#009E73", "*", "recovered"),
}
KINDS = {  # of groups, as Figure 2 of the paper names them
    "mlp": MethodStyle("#D55E00", "o", "Type A, MLP"),
    "attention": MethodStyle("#0072B2", "s", "Type B, attention"),
    "hidden": MethodStyle("#009E73", "D", "Type C, hidden channel"),
}
STYLE = {
    **METHODS,
    **STAGES,
    **KINDS,
    # what is cut; "block" looks like the criterion that it is cut by
    "block": MethodStyle("#D55E00", "o", "block, local"),
    "global": MethodStyle("#332288", "d", "block, global", "--"),
    "layer": MethodStyle("#44AA99", "*", "whole layers", "-."),
    # how structures are ranked, and how their scores become one
    "groups": MethodStyle("#D55E00", "o", "groups"),
    "matrices alone": MethodStyle("#0072B2", "X", "matrices alone"),
    "alone, at zero": MethodStyle("#56B4E9", "v", "alone, at zero"),
    "sum": MethodStyle("#D55E00", "o", "sum"),
    "prod": MethodStyle("#0072B2", "^", "prod"),
    "max": MethodStyle("#009E73", "D", "max"),
    "last": MethodStyle("#CC79A7", "s", "last"),
    "prod, by group": MethodStyle("#56B4E9", "^", "prod, by group"),
    "max, by group": MethodStyle("#000000", "D", "max, by group"),
    "last matrix alone": MethodStyle("#0072B2", "s", "last matrix alone"),
    # costs
    "parameters": MethodStyle("#000000", "o", "parameters"),
    "macs": MethodStyle("#0072B2", "s", "multiply-accumulates"),
    "memory": MethodStyle("#009E73", "D", "memory"),
    "latency": MethodStyle("#D55E00", "^", "latency"),
    # texts
    "wiki": MethodStyle("#0072B2", "o", "wiki"),
    "wikitext2": MethodStyle("#0072B2", "o", "wikitext2"),
    "c4": MethodStyle("#E69F00", "s", "c4", "--"),
    "ptb": MethodStyle("#009E73", "D", "ptb", ":"),
    # the `better` one of a pair, a straight line, what was trained on, how weights are stored
    "": MethodStyle(GREY, "o", "undecided"),
    "a": MethodStyle("#0072B2", "o", "first is better"),
    "b": MethodStyle("#E69F00", "o", "second is better"),
    "true": MethodStyle("#0072B2", "o", "true"),
    "first order": MethodStyle("#E69F00", "", "first order", ":"),
    "few": MethodStyle("#CC79A7", "s", "few samples"),
    "many": MethodStyle("#0072B2", "o", "many samples"),
    "seen": MethodStyle("#0072B2", "o", "trained on"),
    "held out": MethodStyle("#0072B2", "s", "held out", "--"),
    "floating point": MethodStyle(GREY, "o", "floating point"),
    "8 bits": MethodStyle(GREY, "s", "8 bits"),
}
PLAIN = MethodStyle("#0072B2", "o", "")  # of what has no name
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#882255", "#000000")
MARKERS, LINES = "osD^vPX", ("-", "--", ":", "-.")


def styles_of(names: Iterable[object]) -> dict[object, MethodStyle]:
    """Give each name its style of `STYLE`, and each that has none the next colour that the others leave."""
    names = list(dict.fromkeys(names))
    known = {name: STYLE[name] for name in names if name in STYLE}
    free = [color for color in COLORS if color not in {style.color for style in known.values()}] or COLORS
    new = {
        name: MethodStyle(free[i % len(free)], MARKERS[i % len(MARKERS)], str(name), LINES[i % len(LINES)])
        for i, name in enumerate(name for name in names if name not in known)
    }
    return {name: known.get(name) or new[name] for name in names}
