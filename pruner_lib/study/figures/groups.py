"""Figure 2 of the paper, drawn from discovered axes (section 3.1): where groups lie in the parameters.

`slices_frame` lists the slices in a tidy frame, and `plot_groups` draws it. The order of execution and the
columns are derived from the members' roles only, so fused projections and new models are drawn too.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import axes as canvas
from matplotlib.patches import Patch, Rectangle
from torch import Tensor, nn

from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.groups import Axes, Axis, Member
from pruner_lib.study.figures.drawing import STYLE, new_axes

COLUMNS = "stage structure parameter rows columns axis kind role dim group n_groups chosen start stop"
# all lengths are in inches
TALLEST = 3.4  # height of the tallest column of matrices
HIDDEN = 0.5  # maximum length of the residual stream's side of a matrix
VECTOR = 0.09  # thickness of norms and biases
THINNEST = 0.03  # minimum thickness of a slice
GAP = 0.1  # between columns
LABEL = 0.5  # space above a matrix for its name and shape
LETTER = 0.075  # width of a letter of a name
ARROW = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 2, "mutation_scale": 9}


def slices_frame(
    model: nn.Module, axes: Axes, *, layer: int = 0, groups: Mapping[str, int] | None = None
) -> pd.DataFrame:
    """List where one group of each kind lies in the parameters of a decoder layer, as runs of entries.

    Args:
        model: the model of the axes; it may be on the meta device.
        layer: which decoder layer; embeddings, final norm and head are listed with it.
        groups: kind -> number of the chosen group; by default, one a third of the way along the axis.
    Returns: one row per run: columns `stage` (order of execution), `structure`, `parameter`, `rows`,
        `columns` (0 for a vector), `axis`, `kind`, `role`, `dim`, `group`, `n_groups`, `chosen`, `start`,
        `stop`. For attention all groups are listed, for the other kinds only the chosen one.
    Raises: ValueError: no such layer, or a parameter with more than two dims.
    """
    if layer not in range(axes.n_layers):
        raise ValueError(f"layer is {layer!r}; give one of the model's layers 0..{axes.n_layers - 1}")
    listed = [a for a in axes.values() if a.layer == layer or (a.layer is None and a.kind == "hidden")]
    chosen = {a: (groups or {}).get(a.kind, a.n_groups // 3) for a in listed}
    path = decoder_layers(model)[0]
    prefix, any_layer = f"{path}.{layer}.", f"{path}."
    members = [(axis, member) for axis in chosen for member in axis.members]
    shown = [(a, m) for a, m in members if m.parameter.startswith(prefix) or any_layer not in m.parameter]
    ordered = _in_order(shown)
    stages = _stages(ordered)
    rows = []
    for axis, member in shown:
        height, width, *more = (*model.get_parameter(member.parameter).shape, 0)
        if len(more) > 1:
            raise ValueError(f"{member.parameter} has {len(more) + 1} dims, but only 1 or 2 can be drawn")
        parameter = (stages[member.structure], member.structure, member.parameter, height, width, axis.name)
        for group in range(axis.n_groups) if axis.kind == "attention" else [chosen[axis]]:
            slices = (axis.kind, member.role, member.dim, group, axis.n_groups, group == chosen[axis])
            rows += [(*parameter, *slices, *run) for run in _runs(member.indices[group])]
    order = {name: i for i, name in enumerate(dict.fromkeys(m.parameter for _, m in ordered))}
    frame = pd.DataFrame(rows, columns=COLUMNS.split())
    return frame.iloc[frame.parameter.map(order).argsort(kind="stable")].reset_index(drop=True)


def _in_order(shown: list[tuple[Axis, Member]]) -> list[tuple[Axis, Member]]:
    """Sort members by execution: insert the others among those on the residual stream, which are in order."""
    ordered = [(axis, member) for axis, member in shown if axis.kind == "hidden"]
    for axis in dict.fromkeys(axis for axis, _ in shown if axis.kind != "hidden"):
        index = len(ordered)
        for pair in [(a, m) for a, m in shown if a is axis]:
            same = [i for i, (_, m) in enumerate(ordered) if m.structure == pair[1].structure]
            index = (same[-1] if same else index - 1) + 1
            ordered.insert(index, pair)
    return ordered


def _stages(ordered: list[tuple[Axis, Member]]) -> pd.Series:
    """Map structure -> column; neighbours with the same inputs and outputs (query, key, value) share one."""
    ends: dict[str, set] = {}
    for axis, member in ordered:
        ends.setdefault(member.structure, set()).add((axis.name, member.role))
    ends = pd.Series(ends)  # norms, the embedding and the head have one end only
    return ((ends != ends.shift()) | (ends.map(len) == 1)).cumsum() - 1


def _runs(entries: Tensor) -> list[tuple[int, int]]:
    """Split entries into runs of consecutive numbers: half-open (start, stop)."""
    entries = entries.sort().values
    runs = entries.tensor_split(torch.where(entries.diff() > 1)[0] + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


def plot_groups(frame: pd.DataFrame, *, ax: canvas.Axes | None = None) -> canvas.Axes:
    """Draw the parameters of one decoder layer to scale, with one coloured group of each kind.

    Columns follow the order of execution; dim 0 of a parameter runs downwards, dim 1 to the right. The line
    below is the residual stream, with an arrow up to each column of matrices that reads it and down from each
    that writes it. Sides without groups, such as the vocabulary, are shortened, and their matrices dashed.

    Args:    frame: of `slices_frame`.
    """
    boxes = _boxes(frame)
    right, top = (boxes.x + boxes.width).max(), (boxes.y + boxes.height).max() + 0.5
    stream = boxes.y.min() - 0.42
    ax = new_axes(ax, right + 0.4, top - stream + 1.3)
    for _, part in boxes.groupby("structure", sort=False):
        first, last = part.iloc[0], part.iloc[-1]
        middle = (first.x + last.x + last.width) / 2
        ax.text(middle, first.y + first.height + 0.04, first.label, ha="center", fontsize=8)
    for box in boxes.itertuples():
        line = {"facecolor": "#F2F2F2", "edgecolor": "#424242", "linewidth": 0.8}
        line["linestyle"] = (0, (2, 2)) if box.cut_short else "-"
        ax.add_patch(Rectangle((box.x, box.y), box.width, box.height, **line))
    chosen = frame[frame.chosen]
    for row in chosen.itertuples():
        style = {"facecolor": STYLE[row.kind].color, "alpha": 0.9, "linewidth": 0}
        strip = _strip(boxes.loc[row.parameter], row.dim, row.start, row.stop)
        ax.add_patch(Rectangle(*strip, zorder=3 if row.kind == "hidden" else 2, **style))
    _draw_heads(ax, frame[frame.kind == "attention"], boxes)
    _draw_stream(ax, frame[(frame.kind == "hidden") & (frame["columns"] > 0)], boxes, stream)
    groups = chosen.drop_duplicates("kind").set_index("kind")
    numbers = {kind: f"group {row.group} of 0 to {row.n_groups - 1}" for kind, row in groups.iterrows()}
    keys = [Patch(color=STYLE[kind].color, label=f"{STYLE[kind].label}: {n}") for kind, n in numbers.items()]
    ax.legend(handles=keys, frameon=False, loc="lower center", fontsize=9, borderaxespad=0)
    ax.set(xlim=(-0.2, right + 0.2), ylim=(stream - 1.1, top), aspect="equal")
    ax.axis("off")
    return ax


def _boxes(frame: pd.DataFrame) -> pd.DataFrame:
    """Lay out the parameters: name -> structure, label, lower left corner, size, and the length of one entry.

    The structures of a column are placed below each other, centred at height 0; a weight is left of its bias.
    Long names are broken at their underscores to keep the figure narrow.
    """
    boxes = frame.drop_duplicates("parameter").set_index("parameter")
    sides = pd.Series(np.where(frame.dim, frame["columns"], frame.rows), frame.index)
    longest = sides[frame.kind == "hidden"].max() if (frame.kind == "hidden").any() else sides.max()
    size = boxes[["rows", "columns"]].astype(float)
    for dim, side in enumerate(size):
        has_groups = boxes.index.isin(frame.parameter[frame.dim == dim])
        size[side] = size[side].where(has_groups, size[side].clip(upper=longest * 5 // 4))
    boxes["cut_short"] = (size < boxes[["rows", "columns"]]).any(axis=1)
    first = boxes.drop_duplicates("structure")
    tall = size.rows[first.index].groupby(first.stage).sum().max()
    boxes["unit"] = min(HIDDEN / longest, TALLEST / tall)
    boxes["height"] = size.rows * boxes.unit
    boxes["width"] = (size["columns"] * boxes.unit).replace(0, VECTOR)
    boxes["label"] = [_label(box) for box in boxes.itertuples()]
    columns = (boxes.height[first.index] + LABEL).groupby(first.stage)
    bottom = columns.transform("sum") / 2 - columns.cumsum()
    boxes["y"] = boxes.structure.map(bottom.set_axis(first.structure))
    span = boxes.groupby("structure").width.transform("sum")
    letters = LETTER * boxes.label.map(lambda label: max(map(len, label.split("\n"))))
    room = np.maximum(span, letters).groupby(boxes.stage).max() + GAP
    before = boxes.groupby("structure").width.cumsum() - boxes.width
    boxes["x"] = boxes.stage.map(room.cumsum() - (room + GAP) / 2) - span / 2 + before
    return boxes


def _label(box: Any) -> str:
    name = box.structure.rpartition(".")[2]
    name = name.replace("_", "_\n") if len(name) > 7 else name
    return f"{name}\n{box.rows} × {box.columns}" if box.columns else f"{name}\n{box.rows}"


def _strip(box: Any, dim: int, start: int, stop: int) -> tuple[tuple[float, float], float, float]:
    """Compute corner, width and height of a run of entries along a dim of a box; dim 0 runs downwards."""
    thick = max((stop - start) * box.unit, THINNEST)
    if dim:
        return (box.x + start * box.unit, box.y), min(thick, box.width), box.height
    return (box.x, box.y + box.height - start * box.unit - thick), box.width, thick


def _draw_heads(ax: canvas.Axes, frame: pd.DataFrame, boxes: pd.DataFrame) -> None:
    """Draw a thin line at the end of each head; every attention run is a whole number of heads."""
    head = math.gcd(*(int(end) for end in {*frame.start, *frame.stop}))
    for row in frame.itertuples():
        box = boxes.loc[row.parameter]
        for entry in range(row.start, row.stop + 1, head) if head * box.unit > THINNEST else ():
            (x, y), width, height = _strip(box, row.dim, entry, entry)
            ends = ([x, x], [y, y + height]) if row.dim else ([x, x + width], [y + height] * 2)
            ax.plot(*ends, color="#9E9E9E", linewidth=0.5, zorder=3)


def _draw_stream(ax: canvas.Axes, matrices: pd.DataFrame, boxes: pd.DataFrame, height: float) -> None:
    """Draw the residual stream, and an arrow for each column of matrices that reads or writes it."""
    color, middles = STYLE["hidden"].color, []
    for (_, role), part in matrices.groupby(["stage", "role"]):
        column = boxes.loc[part.parameter]
        middles.append(column.x.iloc[0] + column.width.iloc[0] / 2)
        ends = [(middles[-1], column.y.min()), (middles[-1], height)]
        tip, tail = ends if role == "in" else ends[::-1]
        ax.annotate("", tip, tail, arrowprops=ARROW | {"color": color}, zorder=5)
    if middles:
        left = min(middles)
        ax.plot([left, max(middles)], [height] * 2, color=color, linewidth=3, solid_capstyle="round")
        ax.text(left, height - 0.07, "residual stream", color=color, va="top", fontsize=9)
