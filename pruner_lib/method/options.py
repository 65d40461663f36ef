"""Checks of what users pass to `estimate` and `select`; each error says what came and what is possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pruner_lib.method.checks import require
from pruner_lib.method.groups import GRANULARITIES, SCOPES, TARGETS, Axes, Axis

OPTIONS = {  # of `select`, and what each may be
    "granularity": tuple(GRANULARITIES),
    "scope": SCOPES,
    "target": TARGETS,
    "protect_first": "0..",
    "protect_last": "0..",
    "multiple_of": "1..",
    "dependency": bool,
    "uniform": bool,
}


def check_axes(axes: object, model: nn.Module | None = None) -> None:
    """Refuse what are no axes, and those of another model."""
    require(Mapping, axes=axes)
    if not axes:
        raise ValueError("axes hold no axis; give what discover returned, or those of a kind that it has")
    total = sum(p.numel() for p in model.parameters()) if model is not None else 0
    if model is not None and isinstance(axes, Axes) and axes.n_parameters != total:
        raise ValueError(
            f"the axes are those of a model of {axes.n_parameters} parameters, but this one has {total}; "
            "leave `axes` out or run discover again"
        )


def check_ids(model: nn.Module, ids: torch.Tensor, what: str = "calibration ids") -> None:
    """Refuse token ids that the model can't have seen.

    Raises: ValueError: wrong type or shape, or ids outside the vocabulary.
    """
    require(nn.Module, model=model)
    is_tensor = isinstance(ids, torch.Tensor)
    if not is_tensor or ids.dtype != torch.int64 or ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
        got = f"{ids.dtype} {tuple(ids.shape)}" if is_tensor else type(ids).__name__
        raise ValueError(
            f"this needs {what}: int64 of shape (samples, tokens) with at least 2 tokens, got {got}"
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"{what} run from {ids.min().item()} to {ids.max().item()}, but the model's vocabulary "
            f"has {vocabulary} entries: were they made with another tokenizer?"
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of `select` that are out of range or exclude each other, whatever the model."""
    ratio = options["ratio"]
    by_name, by_layer = isinstance(ratio, Mapping), options["granularity"] == "layer"
    if by_name and not ratio:
        raise ValueError("ratio is {}; give one number, or names or patterns of axes with their ratios")
    for value in ratio.values() if by_name else [ratio]:
        require("[0, 1)", ratio=value)
    for name, wanted in OPTIONS.items():
        require(wanted, **{name: options[name]})
    protected = options["protect_first"] + options["protect_last"]
    if options["granularity"] == "channel" and protected:
        raise ValueError(
            "channel granularity cuts the residual stream of every layer: protect_first and protect_last "
            "must be 0"
        )
    if by_layer and (not options["dependency"] or by_name or options["ignore"]):
        raise ValueError(
            "granularity='layer' ranks whole layers: it takes one number as ratio, no ignore (use "
            "protect_first and protect_last) and no dependency=False (use granularity='block')"
        )
    if not options["dependency"] and options["scope"] != "local":
        raise ValueError(
            f"dependency=False with scope={options['scope']!r} would give the matrices of a group different "
            "numbers of channels; use scope='local'"
        )
    if by_name and (options["scope"] != "local" or options["target"] != "groups"):
        raise ValueError("ratios by axis need scope='local' and target='groups': each axis loses its own")


def check_fit(axes: Mapping[str, Axis], options: Mapping[str, Any]) -> None:
    """Refuse options of `select` that do not fit the axes."""
    protected, by_layer = (
        options["protect_first"] + options["protect_last"],
        options["granularity"] == "layer",
    )
    if (protected or options["target"] == "parameters" or by_layer) and not isinstance(axes, Axes):
        raise ValueError(
            "protect_first, protect_last, target='parameters' and granularity='layer' need the whole model, "
            "which a plain dict of axes lacks: pass what discover returned, or axes.of_kind(...), and leave "
            "axes whole by ignore=[...]"
        )
    if protected and protected >= axes.n_layers:
        raise ValueError(
            f"protect_first + protect_last = {protected} leaves none of {axes.n_layers} layers to prune"
        )
    check_names(axes, options["ignore"])


def check_names(axes: Mapping[str, Axis], patterns: Iterable[str]) -> None:
    """Refuse names and patterns that fit no axis, which are most likely misspelt."""
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise ValueError(f"ignore must be a list of names or patterns of axes, got {patterns!r}")
    for pattern in patterns:
        if not isinstance(pattern, str) or not any(fnmatchcase(name, pattern) for name in axes):
            raise ValueError(
                f"{pattern!r} fits none of the {len(axes)} axes: {', '.join(list(axes)[:4])} ..."
            )


def check_scores(axis: Axis, scores: Mapping[str, torch.Tensor], dependency: bool) -> torch.Tensor:
    """Give the scores of an axis in float32; refuse those of another shape, and those that are not finite."""
    if axis.name not in scores:
        raise ValueError(
            f"no scores for axis {axis.name}; scores cover {sorted(scores)[:4]}...: "
            "run estimate on the same axes, or leave the axis whole by ignore"
        )
    try:
        table = torch.as_tensor(scores[axis.name]).float()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"scores of {axis.name} must be a tensor, got {scores[axis.name]!r}") from None
    shape = (axis.n_groups,) if dependency else (len(axis.structures), axis.n_groups)
    if tuple(table.shape) != shape:
        hint = "" if dependency else "; dependency=False needs estimate(..., aggregation='none')"
        raise ValueError(f"scores of {axis.name} have shape {tuple(table.shape)}, but it needs {shape}{hint}")
    if not table.isfinite().all():
        raise ValueError(f"scores of {axis.name} are not all finite; check the calibration loss")
    return table


def check_uniform(keep: Mapping[str, torch.Tensor]) -> None:
    """Refuse a plan that leaves layers of different widths."""
    widths: dict[str, set[int]] = {}  # name in a layer -> groups that it keeps
    for key, kept in keep.items():
        widths.setdefault(".".join(key.partition("/")[0].split(".")[2:]), set()).add(len(kept))
    if any(len(counts) > 1 for counts in widths.values()):
        raise ValueError(
            "uniform=True needs scope='local', no protected or ignored layers and one ratio, else the widths "
            "differ between layers"
        )
