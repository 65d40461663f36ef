"""Checks of what users pass to `estimate` and `select`; each error says what came and what is possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from pruner_lib.method.groups import CRITERIA, GRANULARITIES, SCOPES, TARGETS, Axis


def check_choice(option: str, value: object, choices: Sequence[str]) -> None:
    """Raise a ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"unknown {option} {value!r}; choose one of {', '.join(choices)}")


def check_criteria(criteria: Sequence, micro_batch: object) -> None:
    """Refuse criteria that are neither one of `CRITERIA` nor a function, and impossible micro-batches."""
    for criterion in criteria:
        if not callable(criterion) and criterion not in CRITERIA:
            raise ValueError(
                f"unknown criterion {criterion!r}; choose one of {', '.join(CRITERIA)}, or give a function "
                "(weight, grad) -> saliency"
            )
    if micro_batch is not None and (not isinstance(micro_batch, int) or micro_batch < 1):
        raise ValueError(f"micro_batch must be a number of samples, at least 1, or None, got {micro_batch!r}")


def check_ids(model: nn.Module, ids: torch.Tensor | None) -> None:
    """Refuse token ids that the model can't have seen.

    Raises: ValueError: wrong type or shape, or ids outside the vocabulary.
    """
    if ids is None:
        raise ValueError(
            "this criterion needs calibration ids of shape (samples, tokens); random, l1 and l2 need none"
        )
    is_tensor = isinstance(ids, torch.Tensor)
    if not is_tensor or ids.dtype != torch.int64 or ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
        got = f"{ids.dtype} {tuple(ids.shape)}" if is_tensor else type(ids).__name__
        raise ValueError(
            f"calibration ids must be int64 of shape (samples, tokens) with at least 2 tokens, got {got}"
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"calibration ids run from {ids.min().item()} to {ids.max().item()}, but the model's vocabulary "
            f"has {vocabulary} entries: were they made with another tokenizer?"
        )


def check_options(
    ratio, granularity, scope, protect_first, protect_last, ignore, target, dependency, multiple_of, uniform
) -> None:
    """Refuse options that are out of range or exclude each other."""
    by_name = isinstance(ratio, Mapping)
    for value in ratio.values() if by_name else [ratio]:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
            raise ValueError(
                f"ratio must be an int or a float in [0, 1), got {value!r}; 0.25 removes a quarter"
            )
    check_choice("granularity", granularity, tuple(GRANULARITIES))
    check_choice("scope", scope, SCOPES)
    check_choice("target", target, TARGETS)
    numbers = {"protect_first": (protect_first, 0), "protect_last": (protect_last, 0)}
    for name, (value, least) in (numbers | {"multiple_of": (multiple_of, 1)}).items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    if granularity == "channel" and protect_first + protect_last:
        raise ValueError(
            "channel granularity cuts the residual stream of every layer: protect_first and protect_last "
            "must be 0"
        )
    if by_name and (scope != "local" or target != "groups"):
        raise ValueError("ratios by axis need scope='local' and target='groups': each axis loses its own")
    if granularity == "layer" and (not dependency or by_name or ignore):
        raise ValueError(
            "granularity='layer' ranks whole layers: it takes one number as ratio, no ignore (use "
            "protect_first and protect_last) and no dependency=False (use granularity='block')"
        )


def check_names(axes: Mapping[str, Axis], patterns: Iterable[str]) -> None:
    """Refuse names and patterns that fit no axis, which are most likely misspelt."""
    if isinstance(patterns, str):
        raise ValueError(f"ignore must be a list of names or patterns of axes, got the text {patterns!r}")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in axes):
            raise ValueError(
                f"{pattern!r} fits none of the {len(axes)} axes: {', '.join(list(axes)[:4])} ..."
            )


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
