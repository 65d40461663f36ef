"""Figure 2 of the paper, drawn from what discovery found (section 3.1).

From a tidy frame (of `slices`) onto axes. Nothing is discovered here, and no architecture has a line of its
own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from pruner_lib.study.figures.drawing import new_axes
from pruner_lib.study.figures.style import KINDS

# all lengths of a drawing are inches
TALLEST = 3.4  # the tallest column of matrices
HIDDEN = 0.95  # at most so long is the residual stream's side of a matrix
VECTOR = 0.09  # thickness of norms and biases
THINNEST = 0.03  # no slice is drawn thinner
GAP = 0.34  # between columns
LABEL = 0.36  # above a matrix, for its name and shape
LETTER = 0.075  # a letter of a name
ARROW = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 2, "mutation_scale": 9}


def plot_groups(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the parameters of one decoder layer, to scale, with one group of each kind in its colour.

    Columns follow the order of execution; dim 0 of a parameter runs downwards, dim 1 to the right. The line
    below is the residual stream, with an arrow up to each column of matrices that reads it and down from each
    that writes it. A side that no group runs along, such as the vocabulary, is cut short and dashed.

    Args:    frame: of `slices_frame`.
    """
    boxes = _boxes(frame)
    right, top = (boxes.x + boxes.width).max(), (boxes.y + boxes.height).max() + 0.5
    stream = boxes.y.min() - 0.42
    ax = new_axes(ax, right + 0.4, top - stream + 1.3)
    for _, own in boxes.groupby("structure", sort=False):
        middle = (own.x.iloc[0] + own.x.iloc[-1] + own.width.iloc[-1]) / 2
        ax.text(middle, own.y.iloc[0] + own.height.iloc[0] + 0.04, own.label.iloc[0], ha="center", fontsize=8)
    for box in boxes.itertuples():
        line = {"facecolor": "#F2F2F2", "edgecolor": "#424242", "linewidth": 0.8}
        line["linestyle"] = (0, (2, 2)) if box.cut_short else "-"
        ax.add_patch(Rectangle((box.x, box.y), box.width, box.height, **line))
    chosen = frame[frame.chosen]
    for row in chosen.itertuples():
        look = {"facecolor": KINDS[row.kind].color, "alpha": 0.9, "linewidth": 0}
        strip = _strip(boxes.loc[row.parameter], row.dim, row.start, row.stop)
        ax.add_patch(Rectangle(*strip, zorder=3 if row.kind == "hidden" else 2, **look))
    _draw_heads(ax, frame[frame.kind == "attention"], boxes)
    _draw_stream(ax, frame[(frame.kind == "hidden") & (frame["columns"] > 0)], boxes, stream)
    groups = chosen.drop_duplicates("kind").set_index("kind")
    said = {kind: f"group {row.group} of 0 to {row.n_groups - 1}" for kind, row in groups.iterrows()}
    keys = [Patch(color=KINDS[kind].color, label=f"{KINDS[kind].label}: {said[kind]}") for kind in said]
    ax.legend(handles=keys, frameon=False, loc="lower center", fontsize=9, borderaxespad=0)
    ax.set(xlim=(-0.2, right + 0.2), ylim=(stream - 1.1, top), aspect="equal")
    ax.axis("off")
    return ax


def _boxes(frame: pd.DataFrame) -> pd.DataFrame:
    """Place the parameters: name -> structure, label, lower left corner, size, and the length of one entry.

    The structures of a column stand below each other, their middle at height 0; a weight stands left of its
    bias. A vector is narrow, so its name takes several lines.
    """
    boxes = frame.drop_duplicates("parameter").set_index("parameter")
    sides = pd.Series(np.where(frame.dim, frame["columns"], frame.rows), frame.index)
    longest = sides[frame.kind == "hidden"].max() if (frame.kind == "hidden").any() else sides.max()
    size = boxes[["rows", "columns"]].astype(float)
    for dim, side in enumerate(size):
        cut = boxes.index.isin(frame.parameter[frame.dim == dim])
        size[side] = size[side].where(cut, size[side].clip(upper=longest * 5 // 4))
    boxes["cut_short"] = (size < boxes[["rows", "columns"]]).any(axis=1)
    first = boxes.drop_duplicates("structure")
    tall = size.rows[first.index].groupby(first.stage).sum().max()
    boxes["unit"] = min(HIDDEN / longest, TALLEST / tall)
    boxes["height"], boxes["width"] = (
        size.rows * boxes.unit,
        (size["columns"] * boxes.unit).replace(0, VECTOR),
    )
    boxes["label"] = [_label(box) for box in boxes.itertuples()]
    step = boxes.height[first.index] + LABEL
    total, down = (getattr(step.groupby(first.stage), how) for how in ("transform", "cumsum"))
    boxes["y"] = boxes.structure.map((total("sum") / 2 - down()).set_axis(first.structure))
    span = boxes.groupby("structure").width.transform("sum")
    letters = LETTER * boxes.label.map(lambda label: max(map(len, label.split("\n"))))
    room = np.maximum(span, letters).groupby(boxes.stage).max() + GAP
    before = boxes.groupby("structure").width.cumsum() - boxes.width
    boxes["x"] = boxes.stage.map(room.cumsum() - (room + GAP) / 2) - span / 2 + before
    return boxes


def _label(box: Any) -> str:
    name = box.structure.rpartition(".")[2]
    return f"{name}\n{box.rows} × {box.columns}" if box.columns else f"{name}\n{box.rows}".replace("_", "_\n")


def _strip(box: Any, dim: int, start: int, stop: int) -> tuple[tuple[float, float], float, float]:
    """Corner, width and height of some entries along a dim of a box; dim 0 runs downwards."""
    thick = max((stop - start) * box.unit, THINNEST)
    if dim:
        return (box.x + start * box.unit, box.y), min(thick, box.width), box.height
    return (box.x, box.y + box.height - start * box.unit - thick), box.width, thick


def _draw_heads(ax: Axes, frame: pd.DataFrame, boxes: pd.DataFrame) -> None:
    """Draw a thin line where a head ends: every run of attention is a multiple of its width."""
    head = math.gcd(*(int(end) for end in {*frame.start, *frame.stop}))
    for row in frame.itertuples():
        box = boxes.loc[row.parameter]
        for entry in range(row.start, row.stop + 1, head) if head * box.unit > THINNEST else ():
            (x, y), width, height = _strip(box, row.dim, entry, entry)
            ends = ([x, x], [y, y + height]) if row.dim else ([x, x + width], [y + height] * 2)
            ax.plot(*ends, color="#9E9E9E", linewidth=0.5, zorder=3)


def _draw_stream(ax: Axes, matrices: pd.DataFrame, boxes: pd.DataFrame, height: float) -> None:
    """Draw the residual stream, and an arrow for each column of matrices that reads or writes it."""
    color, middles = KINDS["hidden"].color, []
    for (_, role), part in matrices.groupby(["stage", "role"]):
        here = boxes.loc[part.parameter]
        middles.append(here.x.iloc[0] + here.width.iloc[0] / 2)
        ends = [(middles[-1], here.y.min()), (middles[-1], height)]
        tip, tail = ends if role == "in" else ends[::-1]
        ax.annotate("", tip, tail, arrowprops=ARROW | {"color": color}, zorder=5)
    if middles:
        left = min(middles)
        ax.plot([left, max(middles)], [height] * 2, color=color, linewidth=3, solid_capstyle="round")
        ax.text(left, height - 0.07, "residual stream", color=color, va="top", fontsize=9)
