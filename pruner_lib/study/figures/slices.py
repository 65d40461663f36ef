"""Where groups lie in the parameters of a model, as tidy frames: what the drawing of groups is made of.

The order of execution and the columns of a drawing follow from the roles of the members alone, so that fused
projections and models that nobody has seen are listed too. Nothing is discovered here.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.groups import Axes, Axis, Member


def axes_frame(axes: Axes) -> pd.DataFrame:
    """List what was discovered as a tidy frame: one row an axis.

    Returns: columns `axis`, `kind`, `layer`, `n_groups`, `width` (channels a group), `group_parameters`,
        `parameters` (of all groups), `share` (of the model, in [0, 1]), `structures` (in order of execution).
    """
    return pd.DataFrame(
        {
            "axis": axis.name,
            "kind": axis.kind,
            "layer": axis.layer,
            "n_groups": axis.n_groups,
            "width": axis.width,
            "group_parameters": axis.group_parameters,
            "parameters": axis.n_groups * axis.group_parameters,
            "share": axis.n_groups * axis.group_parameters / axes.n_parameters,
            "structures": " ".join(name.rsplit(".", 1)[-1] for name in axis.structures),
        }
        for axis in axes.values()
    ).astype({"layer": "Int64"})


def slices_frame(
    model: nn.Module, axes: Axes, *, layer: int = 0, groups: Mapping[str, int] | None = None
) -> pd.DataFrame:
    """List where one group of each kind lies in the parameters of a decoder layer, as runs of entries.

    Args:
        model: that the axes were discovered in; the meta device is enough.
        layer: which decoder layer; embeddings, final norm and head are listed with it.
        groups: kind -> number of the chosen group; of the others a third of the way along the axis.
    Returns: a row a run: columns `stage` (order of execution), `structure`, `parameter`, `rows`, `columns`
        (0 for a vector), `axis`, `kind`, `role`, `dim`, `group`, `n_groups`, `chosen`, `start`, `stop`. Of
        attention all groups are listed, of the other kinds the chosen one.
    Raises: ValueError: no such layer, kind or group, or a parameter with more than two dims.
    """
    chosen = _chosen(axes, layer, groups or {})
    path = decoder_layers(model)[0]
    shown = [
        (axis, member)
        for axis in chosen
        for member in axis.members
        if member.parameter.startswith(f"{path}.{layer}.") or not member.parameter.startswith(f"{path}.")
    ]
    stages = _stages(shown)
    rows = []
    for axis, member in shown:
        shape = tuple(model.get_parameter(member.parameter).shape)
        for group in range(axis.n_groups) if axis.kind == "attention" else [chosen[axis]]:
            here = {"stage": stages[member.structure], **_place(member, shape), "axis": axis.name}
            here |= {"kind": axis.kind, "role": member.role, "dim": member.dim, "group": group}
            here |= {"n_groups": axis.n_groups, "chosen": group == chosen[axis]}
            rows += [here | {"start": a, "stop": b} for a, b in _runs(member.indices[group])]
    order = {name: i for i, name in enumerate(dict.fromkeys(m.parameter for _, m in _in_order(shown)))}
    frame = pd.DataFrame(rows)
    return frame.iloc[frame.parameter.map(order).argsort(kind="stable")].reset_index(drop=True)


def _place(member: Member, shape: tuple[int, ...]) -> dict:
    if len(shape) > 2:
        raise ValueError(f"{member.parameter} has the shape {shape}; only vectors and matrices are listed")
    rows, columns = (*shape, 0)[:2]
    return {"structure": member.structure, "parameter": member.parameter, "rows": rows, "columns": columns}


def _chosen(axes: Axes, layer: int, groups: Mapping[str, int]) -> dict[Axis, int]:
    """The axes that are drawn -> the group that is highlighted."""
    here = [a for a in axes.values() if a.layer == layer or (a.layer is None and a.kind == "hidden")]
    known = {a.kind: range(a.n_groups) for a in here}
    if layer not in range(axes.n_layers):
        raise ValueError(f"the model has layers 0..{axes.n_layers - 1}, but layer {layer} was named")
    for kind, group in groups.items():
        if group not in known.get(kind, ()):
            there = ", ".join(f"{name} 0..{len(numbers) - 1}" for name, numbers in known.items())
            raise ValueError(f"no group {group} of the kind {kind} here; there are {there}")
    return {a: groups.get(a.kind, a.n_groups // 3) for a in here}


def _in_order(shown: list[tuple[Axis, Member]]) -> list[tuple[Axis, Member]]:
    """Members in order of execution: those on the residual stream, and the others among them."""
    ordered = [(axis, member) for axis, member in shown if axis.kind == "hidden"]
    for axis in dict.fromkeys(axis for axis, _ in shown if axis.kind != "hidden"):
        place = len(ordered)
        for pair in [(a, m) for a, m in shown if a is axis]:
            at = [i for i, (_, m) in enumerate(ordered) if m.structure == pair[1].structure]
            place = (at[-1] if at else place - 1) + 1
            ordered.insert(place, pair)
    return ordered


def _stages(shown: list[tuple[Axis, Member]]) -> dict[str, int]:
    """Structure -> column: neighbours that take and give the same (query, key, value) stand in one column."""
    ends: dict[str, set] = {}
    for axis, member in _in_order(shown):
        ends.setdefault(member.structure, set()).add((axis.name, member.role))
    stages: dict[str, int] = {}
    before, number = None, -1
    for structure, pairs in ends.items():
        number += pairs != before or len(pairs) == 1  # one end only: a norm, the embedding or the head
        stages[structure], before = number, pairs
    return stages


def _runs(entries: Tensor) -> list[tuple[int, int]]:
    """Split entries into runs without a gap: half-open (start, stop)."""
    entries = entries.sort().values
    runs = entries.tensor_split(torch.where(entries.diff() > 1)[0] + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]
