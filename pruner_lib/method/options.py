"""Checks of the arguments of `estimate` and `select`; errors say what was received and what is possible."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pruner_lib.method.checks import require
from pruner_lib.method.decoder import check_reads
from pruner_lib.method.groups import Axes, Axis
from pruner_lib.method.names import GRANULARITIES, SCOPES, TARGETS


def check_axes(axes: object, model: nn.Module | None = None) -> None:
    """Refuse anything but the axes that `discover` returns, for this model if one is passed."""
    require(Mapping, axes=axes)
    if not axes:
        raise ValueError("axes are empty; pass what discover returned, or its axes of some kind")
    require([Axis], axes=[*axes.values()])
    for key, axis in axes.items():
        if key != axis.name:
            raise ValueError(f"the axis at {key!r} is {axis.name}; keep axes under the names from discover")
    if model is None:
        return
    shapes = {name: p.shape for name, p in model.named_parameters()}
    total = sum(shape.numel() for shape in shapes.values())
    advice = "leave `axes` out or run discover again"
    if isinstance(axes, Axes) and axes.n_parameters != total:
        message = f"the axes are from a model of {axes.n_parameters} parameters, but this one has {total}"
        raise ValueError(f"{message}; {advice}")
    for member in (m for axis in axes.values() for m in axis.members):
        size = max(shapes.get(member.parameter, ())[member.dim : member.dim + 1], default=0)
        if member.indices.max() >= size:
            message = f"they divide {member.indices.max() + 1} entries of {member.parameter}, not {size}"
            raise ValueError(f"the axes are from another model: {message}; {advice}")


def check_ids(model: nn.Module, ids: torch.Tensor, name: str = "calibration ids") -> None:
    """Refuse token ids of the wrong type or shape, or that the model can't read (see `check_reads`)."""
    require(nn.Module, model=model)
    is_tensor = isinstance(ids, torch.Tensor)
    is_dense = is_tensor and ids.layout is torch.strided and not ids.is_meta
    if not is_dense or ids.dtype != torch.int64 or ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
        expected = "int64 of shape (samples, tokens) with at least 2 tokens"
        tensor = f"{ids.dtype} {tuple(ids.shape)}, {ids.layout} on {ids.device}" if is_tensor else ""
        raise ValueError(f"this needs {name}: {expected}, got {tensor or type(ids).__name__}")
    smallest, largest = map(int, ids.aminmax())
    check_reads(model, ids.shape[1], largest, smallest)


def check_options(options: Mapping[str, Any], axes: Mapping[str, Axis] | None = None) -> None:
    """Refuse options of `select` that are out of range, exclude each other, or do not fit the axes."""
    o = SimpleNamespace(**options)
    by_name, by_layer = isinstance(o.ratio, Mapping), o.granularity == "layer"
    if by_name and not o.ratio:
        raise ValueError("ratio is {}; pass a number, or names or patterns of axes with their ratios")
    for value in o.ratio.values() if by_name else [o.ratio]:
        require("[0, 1)", ratio=value)
    require(tuple(GRANULARITIES), granularity=o.granularity)
    require(SCOPES, scope=o.scope)
    require(TARGETS, target=o.target)
    require("0..", protect_first=o.protect_first, protect_last=o.protect_last)
    require("1..", multiple_of=o.multiple_of)
    require(bool, dependency=o.dependency, uniform=o.uniform)
    protected = o.protect_first + o.protect_last
    if o.granularity == "channel" and protected:
        reason = "granularity='channel' removes channels from the residual stream of every layer"
        raise ValueError(f"{reason}: protect_first and protect_last must be 0")
    if by_layer and (not o.dependency or by_name or o.ignore):
        raise ValueError("granularity='layer' needs one number as ratio, an empty ignore and dependency=True")
    if not o.dependency and o.scope != "local":
        raise ValueError(f"dependency=False needs scope='local', got {o.scope!r}")
    if by_name and (o.scope != "local" or o.target != "groups"):
        raise ValueError("ratios by axis need scope='local' and target='groups'")
    if axes is None:
        return
    if (protected or by_layer or o.target == "parameters") and not isinstance(axes, Axes):
        options = "protect_first, protect_last, target='parameters' and granularity='layer'"
        raise ValueError(f"{options} need Axes: pass what discover returned, or axes.of_kind(...)")
    if protected and protected >= axes.n_layers:
        raise ValueError(f"protect_first + protect_last = {protected} leaves none of {axes.n_layers} layers")
    check_names(axes, o.ignore)


def check_names(axes: Mapping[str, Axis], patterns: Iterable[str]) -> None:
    """Refuse names and patterns that match no axis, which are most likely misspelt."""
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise ValueError(f"ignore must be a list of names or patterns of axes, got {patterns!r}")
    for pattern in patterns:
        if not isinstance(pattern, str) or not any(fnmatchcase(name, pattern) for name in axes):
            longer = (f"*.{pattern}", f"*.{pattern}.*")
            hint = next((f": use {p!r}" for p in longer if any(fnmatchcase(n, p) for n in axes)), "")
            raise ValueError(f"{pattern!r} matches none of the {len(axes)} axes, such as {[*axes][:4]}{hint}")


def check_scores(scores: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the scores of an axis, or of the layers, in float32; refuse wrong shapes, NaN and infinity."""
    if name not in scores:
        raise ValueError(f"no scores for axis {name}: estimate them, or ignore the axis")
    try:
        table = torch.as_tensor(scores[name]).detach().to("cpu", torch.float32).to_dense()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"scores of {name} must be a tensor, got {scores[name]!r}") from None
    if tuple(table.shape) != shape:
        hint = "; dependency=False needs estimate(..., aggregation='none')" if len(shape) == 2 else ""
        raise ValueError(f"scores of {name} have shape {tuple(table.shape)}, but it needs {shape}{hint}")
    if not table.isfinite().all():
        advice = "check the calibration loss, and the warning of estimate, or ignore the axis"
        raise ValueError(f"scores of {name} are not all finite; {advice}")
    return table


def check_uniform(keep: Mapping[str, torch.Tensor]) -> None:
    """Refuse a plan that leaves layers of different widths."""
    widths: dict[str, set[int]] = {}  # name in a layer -> numbers of groups that layers keep
    for key, kept in keep.items():
        widths.setdefault(".".join(key.partition("/")[0].split(".")[2:]), set()).add(len(kept))
    for name, counts in widths.items():
        if len(counts) > 1:
            needs = "scope='local', one ratio, no protected or ignored layers and an even model"
            numbers = " or ".join(map(str, sorted(counts)))
            raise ValueError(f"uniform=True needs {needs}; here layers would keep {numbers} groups of {name}")
