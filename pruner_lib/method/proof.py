"""The proof of a cut before it is made: the cut model runs, and its groups are those that were to stay.

Both are read off a copy without weights. Shapes that fit are not enough: where a model splits its heads into
blocks of its own (codegen), kept heads can change places and the model still runs.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import nn

from pruner_lib.method.groups import Axes, Plan
from pruner_lib.method.trace import trace


def check_cut(
    cut: nn.Module, plan: Plan, axes: Axes | None = None, keep: dict | None = None, stays: dict | None = None
) -> None:
    """Refuse a plan after which the model would not run, or would mix groups.

    The r-th kept group of each structure must be one component of the cut model, and different groups
    different ones.

    Args:
        cut: a copy without weights that has the widths, or the layers, of the plan.
        axes: of the whole model.    keep: axis name -> structure -> kept groups.    Both None: only run it.
        stays: parameter -> dim -> sorted entries that stay, `(n,)` or `(slices, n)`.
    """
    names = list(plan.cut)
    what = f"what the plan cuts ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    try:
        rec = trace(cut)
    except ValueError as error:
        raise ValueError(f"{what} would leave a model that does not run; nothing was cut: {error}") from error
    if not keep:
        return
    entries = rec.entries(rec.components(query_heads=plan.query_heads))
    for name, per_structure in keep.items():
        tables = []
        for member in axes[name].members:
            left = stays[member.parameter][member.dim]
            left = left if member.expert is None else left[member.expert]
            places = torch.searchsorted(left, member.indices[per_structure[member.structure]])
            tables.append(entries[member.parameter, member.dim, "parameter"][places.numpy()])
        found = np.concatenate(tables, 1)  # (n_kept, entries of a group): components
        if (found != found[:, :1]).any() or len(np.unique(found[:, 0])) < len(found):
            raise ValueError(
                f"{what} would mix the groups of {name}: {type(cut).__name__} divides them into blocks "
                "of its own; nothing was cut. Keep equally many groups of each block, or leave the axis whole"
            )
    other = Counter(rec.factors) - axes.numbers if "hidden" not in {axes[name].kind for name in keep} else ()
    if other:
        raise ValueError(
            f"after a cut of {what} {type(cut).__name__} would compute with {min(other):.6g}, a number that "
            "follows the width and is in the dense model another; nothing was cut. Leave the axis whole"
        )
