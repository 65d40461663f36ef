"""Where groups lie in the parameters of a model, as a tidy frame: what the drawing of groups is made of.

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

COLUMNS = "stage structure parameter rows columns axis kind role dim group n_groups chosen start stop"


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
    Raises: ValueError: no such layer, or a parameter with more than two dims.
    """
    if layer not in range(axes.n_layers):
        raise ValueError(f"the model has layers 0..{axes.n_layers - 1}, but layer {layer} was named")
    here = [a for a in axes.values() if a.layer == layer or (a.layer is None and a.kind == "hidden")]
    chosen = {a: (groups or {}).get(a.kind, a.n_groups // 3) for a in here}
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
        height, width, *more = (*model.get_parameter(member.parameter).shape, 0)
        if len(more) > 1:
            raise ValueError(
                f"{member.parameter} has {len(more) + 1} dims; only vectors and matrices are listed"
            )
        place = (stages[member.structure], member.structure, member.parameter, height, width, axis.name)
        for group in range(axis.n_groups) if axis.kind == "attention" else [chosen[axis]]:
            own = (axis.kind, member.role, member.dim, group, axis.n_groups, group == chosen[axis])
            rows += [(*place, *own, *run) for run in _runs(member.indices[group])]
    order = {name: i for i, name in enumerate(dict.fromkeys(m.parameter for _, m in _in_order(shown)))}
    frame = pd.DataFrame(rows, columns=COLUMNS.split())
    return frame.iloc[frame.parameter.map(order).argsort(kind="stable")].reset_index(drop=True)


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
