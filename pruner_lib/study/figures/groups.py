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

from pruner_lib.study.figures.style import GREY, KINDS, need, new_axes

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
    below is the residual stream, with an arrow up to what reads it and down from what writes it. A side that
    no group runs along, such as the vocabulary, is cut short and dashed.

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
    _draw_arrows(ax, frame, boxes, stream)
    handles = [Patch(color=color, label=label) for label, color in legend.items()]
    ax.legend(handles=handles, frameon=False, ncols=3, loc="lower center", fontsize=9, borderaxespad=0)
    ax.set_xlim(-margin, right + margin)
    ax.set_ylim(stream - 0.6, top)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def _place_boxes(frame: pd.DataFrame) -> dict[str, _Box]:
    """Parameter -> box; the structures of a column stand below each other, their middle at height 0."""
    sizes, shown = _sizes(frame), _shown(frame)
    columns = [
        [list(dict.fromkeys(part.parameter)) for _, part in stage.groupby("structure", sort=False)]
        for _, stage in frame.groupby("stage")
    ]
    stream = [(row.parameter, row.dim) for row in frame[frame.kind == "hidden"].itertuples()]
    hidden = max((sizes[name][dim] for name, dim in stream), default=max(map(max, shown.values())))
    inch = min(
        HIDDEN / hidden,
        *((TALLEST - LABEL * len(names)) / sum(shown[n[0]][0] for n in names) for names in columns),
    )
    boxes, x = {}, 0.0
    for column in columns:
        y = sum(shown[names[0]][0] * inch + LABEL for names in column) / 2
        widths = [_width(names, shown, inch) for names in column]
        room = max(*widths, 0.0, *(_length(_label(names, sizes)) for names in column))
        for names, width in zip(column, widths, strict=True):
            y -= shown[names[0]][0] * inch + LABEL
            left = x + (room - width) / 2
            for name in names:
                rows, across = shown[name]
                own = across * inch or VECTOR
                boxes[name] = _Box(left, y, own, rows * inch, inch, shown[name] != sizes[name])
                left += own + VECTOR / 2
        x += room + GAP
    return boxes


def _sizes(frame: pd.DataFrame) -> dict[str, tuple[int, int]]:
    return {row.parameter: (row.rows, row.columns) for row in frame.itertuples()}


def _shown(frame: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Sizes as they are drawn: a side along which no group was cut is not longer than 5/4 of the stream."""
    dims = {name: set(part.dim) for name, part in frame.groupby("parameter")}
    sizes = _sizes(frame)
    stream = [sizes[row.parameter][row.dim] for row in frame[frame.kind == "hidden"].itertuples()]
    longest = max(stream, default=max(map(max, sizes.values()))) * 5 // 4
    return {
        p: tuple(n if d in dims[p] else min(n, longest) for d, n in enumerate(s)) for p, s in sizes.items()
    }


def _width(names: list[str], shown: dict, inch: float) -> float:
    return sum(shown[name][1] * inch or VECTOR for name in names) + (len(names) - 1) * VECTOR / 2


def _label(names: list[str], sizes: dict) -> str:
    """Name and shape of a structure; a vector is narrow, so its name takes several lines."""
    rows, columns = sizes[names[0]]
    name = names[0].removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    return f"{name}\n{rows} × {columns}" if columns else f"{name}\n{rows}".replace("_", "_\n")


def _length(label: str) -> float:
    return max(map(len, label.split("\n"))) * LETTER


def _draw_boxes(ax: Axes, frame: pd.DataFrame, boxes: dict[str, _Box]) -> None:
    sizes = _sizes(frame)
    for _, part in frame.groupby("structure", sort=False):
        names = list(dict.fromkeys(part.parameter))
        for name in names:
            box = boxes[name]
            shape = (box.x, box.y), box.width, box.height
            line = {"edgecolor": "#424242", "linestyle": (0, (2, 2)) if box.cut_short else "-"}
            ax.add_patch(Rectangle(*shape, facecolor="#F2F2F2", linewidth=0, zorder=1))
            ax.add_patch(Rectangle(*shape, facecolor="none", linewidth=0.8, zorder=4, **line))
        first, last = boxes[names[0]], boxes[names[-1]]
        place = (first.x + last.x + last.width) / 2, first.y + first.height + 0.04
        ax.text(*place, _label(names, sizes), ha="center", va="bottom", fontsize=8)
    for row in frame.sort_values("chosen", kind="stable").itertuples():
        strip = boxes[row.parameter].strip(row.dim, row.start, row.stop)
        look = {"facecolor": "none", "edgecolor": "#BDBDBD", "linewidth": 0.5}
        if row.chosen:
            look = {"facecolor": KINDS[row.kind].color, "alpha": 0.9, "linewidth": 0}
        ax.add_patch(Rectangle(*strip, zorder=3 if row.kind == "hidden" else 2, **look))
    _draw_heads(ax, frame[frame.kind == "attention"], boxes)


def _draw_heads(ax: Axes, frame: pd.DataFrame, boxes: dict[str, _Box]) -> None:
    """Draw a thin line where a head ends: every run of attention is a multiple of its width."""
    head = math.gcd(*(int(end) for end in {*frame.start, *frame.stop}))
    for row in frame.itertuples():
        box = boxes[row.parameter]
        for entry in range(row.start, row.stop + 1, head) if head * box.unit > THINNEST else ():
            (x, y), width, height = box.strip(row.dim, entry, entry)
            ends = ([x, x], [y, y + height]) if row.dim else ([x, x + width], [y + height] * 2)
            ax.plot(*ends, color="#9E9E9E", linewidth=0.5, zorder=3)


def _draw_arrows(ax: Axes, frame: pd.DataFrame, boxes: dict[str, _Box], stream: float) -> None:
    """Arrows from column to column, and between the columns and the residual stream, through the norms."""
    stages = [part for _, part in frame.groupby("stage")]
    spans = [_span(part, boxes) for part in stages]
    entries, exits = _ends_on_stream(stages)
    look = {"arrowstyle": "-|>", "linewidth": 1, "shrinkA": 2, "shrinkB": 2, "mutation_scale": 9}
    for i, ((_, end, _), (start, _, _)) in enumerate(zip(spans, spans[1:], strict=False)):
        if i + 1 not in entries:  # else the way leads over the stream
            ax.annotate(
                "", (start, -LABEL / 2), (end, -LABEL / 2), arrowprops=look | {"color": GREY}, zorder=5
            )
    color = KINDS["hidden"].color
    middles = [(start + end) / 2 for start, end, _ in spans]
    for i, (x, (_, _, low)) in enumerate(zip(middles, spans, strict=True)):
        up, down = ((x, low), (x, stream)), ((x, stream), (x, low))
        for tip, tail in [up] * (i in entries) + [down] * (i in exits):
            ax.annotate("", tip, tail, arrowprops=look | {"color": color, "shrinkA": 0}, zorder=5)
    if touching := [middles[i] for i in entries | exits]:
        left, right = min(touching), max(touching)
        ax.plot([left, right], [stream, stream], color=color, linewidth=3, solid_capstyle="round")
        ax.text(left, stream - 0.07, "residual stream", color=color, va="top", fontsize=9)


def _ends_on_stream(stages: list[pd.DataFrame]) -> tuple[set[int], set[int]]:
    """Give the columns that the residual stream enters, and those that it is written from.

    A norm before a reader is entered in its place, one behind a writer is left in its place. Where a single
    norm stands between a writer and a reader, it is the reader's if the first reader has one, or is the last.
    """
    hidden = [part[part.kind == "hidden"] for part in stages]
    norms = [
        len(own) == len(part) and not own["columns"].any() for own, part in zip(hidden, stages, strict=True)
    ]
    roles = [set(own[own["columns"] > 0].role) for own in hidden]
    readers = [i for i, role in enumerate(roles) if "in" in role]
    before = bool(readers) and norms[max(readers[0] - 1, 0)]
    last = len(stages) - 1
    entries = {i - (norms[max(i - 1, 0)] and (before or i == last)) for i in readers}
    entries |= {last} if norms[last] else set()
    exits = set()
    for i in (i for i, role in enumerate(roles) if "out" in role):
        while i < last and norms[i + 1] and i + 1 not in entries:
            i += 1
        exits.add(i)
    return entries, exits


def _span(part: pd.DataFrame, boxes: dict[str, _Box]) -> tuple[float, float, float]:
    """Left, right and lower end of a column; with its names, where these stand as high as the arrows."""
    here = [boxes[name] for name in set(part.parameter)]
    start, end = min(box.x for box in here), max(box.x + box.width for box in here)
    if part.structure.nunique() > 1:
        sizes = _sizes(part)
        room = max(_length(_label([name], sizes)) for name in sizes)
        start, end = min(start, (start + end - room) / 2), max(end, (start + end + room) / 2)
    return start, end, min(box.y for box in here)


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
        asked = part[part.rule != ""]
        if len(asked) != 1:
            raise ValueError(f"case {case!r} has {len(asked)} edges with a rule; wanted the one it is about")
        _draw_case(ax, 3.0 * number, case, part, asked.iloc[0])
    ax.set_xlim(-0.95, 3.0 * len(cases) - 0.95)
    ax.set_ylim(-1.85, 1.65)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def _draw_case(ax: Axes, x: float, case: str, part: pd.DataFrame, asked: pd.Series) -> None:
    removed, other = (asked.target, asked.source) if asked.rule == "Eq. 2" else (asked.source, asked.target)
    places = _side(part.source, x) | _side(part.target, x + 1.1)
    for row in part.itertuples():
        look = {"arrowstyle": "-|>", "shrinkA": 15, "shrinkB": 15, "mutation_scale": 12}
        look |= {"color": "black", "linewidth": 1.6} if row.rule else {"color": "#BDBDBD", "linewidth": 1}
        ax.annotate("", places[row.target], places[row.source], arrowprops=look, zorder=1)
    strong = KINDS["mlp"].color
    stays = asked.rule == "none"
    looks = {removed: (strong, strong, "white")}  # face, edge, ink
    looks[other] = ("white", "black", "black") if stays else ("#F7C6A3", strong, "black")
    for name, place in places.items():
        face, edge, ink = looks.get(name, ("white", GREY, GREY))
        ax.plot(*place, "o", markersize=32, markerfacecolor=face, markeredgecolor=edge, zorder=2)
        ax.text(*place, name, ha="center", va="center", color=ink, fontsize=9, zorder=3)
    ax.text(x + 0.55, 1.35, case, ha="center", va="bottom", fontsize=10, weight="bold")
    ax.text(x + 0.55, -1.32, _verdict(part, asked, removed, other), ha="center", va="top", fontsize=10)


def _side(column: pd.Series, x: float) -> dict[str, tuple[float, float]]:
    """Neuron -> place; those of one side stand below each other, their middle at height 0."""
    names = list(dict.fromkeys(column))
    step = 1.9 / max(2, len(names) - 1)
    return {name: (x, step * ((len(names) - 1) / 2 - i)) for i, name in enumerate(names)}


def _verdict(part: pd.DataFrame, asked: pd.Series, removed: str, other: str) -> str:
    into = part[part.target == asked.target].source.nunique()
    out_of = part[part.source == asked.source].target.nunique()
    degree = f"Deg⁺({other}) = {out_of}" if asked.rule == "Eq. 2" else f"Deg⁻({other}) = {into}"
    if asked.rule == "none":
        return f"{degree}, no equation:\n{removed} goes, {other} stays"
    return f"{degree}, {asked.rule}:\n{removed} goes, {other} must follow"
