"""Figures 2 and 6 of the paper, drawn from what discovery found (section 3.1, appendix A).

One function a figure, from a tidy frame (of `slices`) onto axes. Nothing is discovered here, and no
architecture has a line of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from pruner_lib.study.figures.drawing import need, new_axes
from pruner_lib.study.figures.style import GREY, KINDS

COLUMNS = (
    *("stage", "structure", "parameter", "rows", "columns", "kind", "role", "dim"),
    *("group", "n_groups", "chosen", "start", "stop"),
)
# all lengths of a drawing are inches
TALLEST = 4.0  # the tallest column of matrices
HIDDEN = 0.95  # at most so long is the residual stream's side of a matrix
VECTOR = 0.09  # thickness of norms and biases
THINNEST = 0.03  # no slice is drawn thinner
GAP = 0.34  # between columns
LABEL = 0.36  # above a matrix, for its name and shape
LETTER = 0.075  # a letter of a name


@dataclass(frozen=True)
class _Box:
    """Where a parameter is drawn: lower left corner, size, and the length of one entry."""

    x: float
    y: float
    width: float
    height: float
    unit: float
    cut_short: bool

    def strip(self, dim: int, start: int, stop: int) -> tuple[tuple[float, float], float, float]:
        """Corner, width and height of some entries along a dim; dim 0 runs downwards."""
        thick = max((stop - start) * self.unit, THINNEST)
        if dim:
            return (self.x + start * self.unit, self.y), min(thick, self.width), self.height
        return (self.x, self.y + self.height - start * self.unit - thick), self.width, thick


def plot_groups(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the parameters of one decoder layer, to scale, with one group of each kind in its colour.

    Columns follow the order of execution; dim 0 of a parameter runs downwards, dim 1 to the right. The line
    below is the residual stream, with an arrow up to each column of matrices that reads it and down from each
    that writes it. A side that no group runs along, such as the vocabulary, is cut short and dashed.

    Args:    frame: of `slices_frame`.
    """
    need(frame, *COLUMNS)
    boxes = _place_boxes(frame)
    right = max(box.x + box.width for box in boxes.values())
    top = max(box.y + box.height for box in boxes.values()) + 0.5
    stream = min(box.y for box in boxes.values()) - 0.42
    legend = _legend(frame)
    margin = max(0.2, (sum(0.6 + len(label) * LETTER for label in legend) - right) / 2)
    ax = new_axes(ax, right + 2 * margin, top - stream + 0.9)
    _draw_boxes(ax, frame, boxes)
    _draw_heads(ax, frame[frame.kind == "attention"], boxes)
    _draw_stream(ax, frame[(frame.kind == "hidden") & (frame["columns"] > 0)], boxes, stream)
    handles = [Patch(color=color, label=label) for label, color in legend.items()]
    ax.legend(handles=handles, frameon=False, ncols=3, loc="lower center", fontsize=9, borderaxespad=0)
    ax.set(xlim=(-margin, right + margin), ylim=(stream - 0.6, top), aspect="equal")
    ax.axis("off")
    return ax


def _place_boxes(frame: pd.DataFrame) -> dict[str, _Box]:
    """Parameter -> box; the structures of a column stand below each other, their middle at height 0."""
    sizes, shown, labels = _sizes(frame), _shown(frame), _labels(frame)
    structures = frame.groupby("structure", sort=False).parameter.unique()  # a weight, then its bias
    stages = frame.groupby("stage").structure.unique()
    tall = {name: shown[names[0]][0] for name, names in structures.items()}  # rows
    room = [(TALLEST - LABEL * len(stage)) / sum(tall[name] for name in stage) for stage in stages]
    inch = min(HIDDEN / max(_stream(frame)), *room)
    boxes, x = {}, 0.0
    for stage in stages:
        y = sum(tall[name] * inch + LABEL for name in stage) / 2
        widths = [[shown[one][1] * inch or VECTOR for one in structures[name]] for name in stage]
        spans = [sum(own) + (len(own) - 1) * VECTOR / 2 for own in widths]
        widest = max(*spans, *(LETTER * max(map(len, labels[name].split("\n"))) for name in stage))
        for name, own, span in zip(stage, widths, spans, strict=True):
            y -= tall[name] * inch + LABEL
            left = x + (widest - span) / 2
            for one, width in zip(structures[name], own, strict=True):
                boxes[one] = _Box(left, y, width, shown[one][0] * inch, inch, shown[one] != sizes[one])
                left += width + VECTOR / 2
        x += widest + GAP
    return boxes


def _sizes(frame: pd.DataFrame) -> dict[str, tuple[int, int]]:
    return {row.parameter: (row.rows, row.columns) for row in frame.itertuples()}


def _stream(frame: pd.DataFrame) -> list[int]:
    """Lengths of the sides along the residual stream, or where nothing runs along it, of all sides."""
    sizes, rows = _sizes(frame), frame[frame.kind == "hidden"]
    return [sizes[one][dim] for one, dim in zip(rows.parameter, rows.dim, strict=True)] or [
        *sum(sizes.values(), ())
    ]


def _shown(frame: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Sizes as they are drawn: a side along which no group was cut is not longer than 5/4 of the stream."""
    dims, longest = frame.groupby("parameter").dim.unique(), max(_stream(frame)) * 5 // 4
    return {
        name: tuple(n if dim in dims[name] else min(n, longest) for dim, n in enumerate(size))
        for name, size in _sizes(frame).items()
    }


def _labels(frame: pd.DataFrame) -> dict[str, str]:
    """Structure -> name and shape; a vector is narrow, so its name takes several lines."""
    labels = {}
    for row in frame.drop_duplicates("structure").itertuples():
        name = row.structure.rpartition(".")[2]
        vector = f"{name}\n{row.rows}".replace("_", "_\n")
        labels[row.structure] = f"{name}\n{row.rows} × {row.columns}" if row.columns else vector
    return labels


def _draw_boxes(ax: Axes, frame: pd.DataFrame, boxes: dict[str, _Box]) -> None:
    """Draw every parameter with its name above it, and the slices of the groups in it."""
    labels = _labels(frame)
    for structure, part in frame.groupby("structure", sort=False):
        own = [boxes[name] for name in part.parameter.unique()]
        for box in own:
            shape = (box.x, box.y), box.width, box.height
            line = {"edgecolor": "#424242", "linestyle": (0, (2, 2)) if box.cut_short else "-"}
            ax.add_patch(Rectangle(*shape, facecolor="#F2F2F2", linewidth=0, zorder=1))
            ax.add_patch(Rectangle(*shape, facecolor="none", linewidth=0.8, zorder=4, **line))
        place = (own[0].x + own[-1].x + own[-1].width) / 2, own[0].y + own[0].height + 0.04
        ax.text(*place, labels[structure], ha="center", va="bottom", fontsize=8)
    for row in frame[frame.chosen].itertuples():
        strip = boxes[row.parameter].strip(row.dim, row.start, row.stop)
        look = {"facecolor": KINDS[row.kind].color, "alpha": 0.9, "linewidth": 0}
        ax.add_patch(Rectangle(*strip, zorder=3 if row.kind == "hidden" else 2, **look))


def _draw_heads(ax: Axes, frame: pd.DataFrame, boxes: dict[str, _Box]) -> None:
    """Draw a thin line where a head ends: every run of attention is a multiple of its width."""
    head = math.gcd(*(int(end) for end in {*frame.start, *frame.stop}))
    for row in frame.itertuples():
        box = boxes[row.parameter]
        for entry in range(row.start, row.stop + 1, head) if head * box.unit > THINNEST else ():
            (x, y), width, height = box.strip(row.dim, entry, entry)
            ends = ([x, x], [y, y + height]) if row.dim else ([x, x + width], [y + height] * 2)
            ax.plot(*ends, color="#9E9E9E", linewidth=0.5, zorder=3)


def _draw_stream(ax: Axes, matrices: pd.DataFrame, boxes: dict[str, _Box], height: float) -> None:
    """Draw the residual stream, and an arrow for each column of matrices that reads or writes it."""
    color, middles = KINDS["hidden"].color, []
    look = {
        "arrowstyle": "-|>",
        "linewidth": 1,
        "shrinkA": 0,
        "shrinkB": 2,
        "mutation_scale": 9,
        "color": color,
    }
    for (_, role), part in matrices.groupby(["stage", "role"]):
        here = [boxes[name] for name in part.parameter.unique()]
        x, low = here[0].x + here[0].width / 2, min(box.y for box in here)
        tip, tail = (low, height) if role == "in" else (height, low)
        ax.annotate("", (x, tip), (x, tail), arrowprops=look, zorder=5)
        middles.append(x)
    if middles:
        left, right = min(middles), max(middles)
        ax.plot([left, right], [height, height], color=color, linewidth=3, solid_capstyle="round")
        ax.text(left, height - 0.07, "residual stream", color=color, va="top", fontsize=9)


def _legend(frame: pd.DataFrame) -> dict[str, str]:
    """What is said of each kind -> its colour."""
    chosen = frame[frame.chosen].drop_duplicates("kind").set_index("kind")
    return {
        f"{style.label}: group {chosen.group[kind]} of 0 to {chosen.n_groups[kind] - 1}": style.color
        for kind, style in KINDS.items()
        if kind in chosen.index
    }


def plot_dependencies(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what becomes of a neuron when its neighbour goes: one small graph a case (the paper's Figure 6).

    Args:    frame: an edge a row: columns `case` (a title), `source`, `target`, and `rule`: "Eq. 1" (the
             target follows the source), "Eq. 2" (the source follows the target), "none" (the source goes, the
             target stays), or "" for the other edges around it.
    Raises:  ValueError: a case has not exactly one edge with a rule.
    """
    need(frame, "case", "source", "target", "rule")
    cases = list(frame.groupby("case", sort=False))
    ax = new_axes(ax, 3.0 * len(cases), 3.5)
    for number, (case, part) in enumerate(cases):
        if (part.rule != "").sum() != 1:
            raise ValueError(f"case {case!r} needs exactly one edge with a rule, the one it is about")
        _draw_case(ax, 3.0 * number, case, part)
    ax.set(xlim=(-0.95, 3.0 * len(cases) - 0.95), ylim=(-1.85, 1.65), aspect="equal")
    ax.axis("off")
    return ax


def _draw_case(ax: Axes, x: float, case: str, part: pd.DataFrame) -> None:
    """Draw one case with its left end at `x`: the neurons, their edges, the title and what follows."""
    edge = part[part.rule != ""].iloc[0]
    backward, stays = edge.rule == "Eq. 2", edge.rule == "none"
    gone, other = (edge.target, edge.source) if backward else (edge.source, edge.target)
    places = {}
    for left, column in ((x, part.source), (x + 1.1, part.target)):
        names = column.unique()
        step = 1.9 / max(2, len(names) - 1)
        places |= {name: (left, step * ((len(names) - 1) / 2 - i)) for i, name in enumerate(names)}
    for row in part.itertuples():
        look = {"arrowstyle": "-|>", "shrinkA": 15, "shrinkB": 15, "mutation_scale": 12}
        look |= {"color": "black", "linewidth": 1.6} if row.rule else {"color": "#BDBDBD", "linewidth": 1}
        ax.annotate("", places[row.target], places[row.source], arrowprops=look, zorder=1)
    strong = KINDS["mlp"].color
    looks = {gone: (strong, strong, "white")}  # face, edge, ink
    looks[other] = ("white", "black", "black") if stays else ("#F7C6A3", strong, "black")
    for name, place in places.items():
        face, rim, ink = looks.get(name, ("white", GREY, GREY))
        ax.plot(*place, "o", markersize=32, markerfacecolor=face, markeredgecolor=rim, zorder=2)
        ax.text(*place, name, ha="center", va="center", color=ink, fontsize=9, zorder=3)
    sign, ends = (
        ("⁺", part[part.source == other].target) if backward else ("⁻", part[part.target == other].source)
    )
    rule = (
        f"no equation:\n{gone} goes, {other} stays"
        if stays
        else f"{edge.rule}:\n{gone} goes, {other} must follow"
    )
    ax.text(x + 0.55, 1.35, case, ha="center", va="bottom", fontsize=10, weight="bold")
    ax.text(
        x + 0.55, -1.32, f"Deg{sign}({other}) = {ends.nunique()}, {rule}", ha="center", va="top", fontsize=10
    )
