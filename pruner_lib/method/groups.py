"""The data types of the method: members, axes and plans (paper section 3.1).

An axis holds n interchangeable groups; a plan says which of them to keep. Nothing here reads a model.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, field
from functools import cached_property
from math import gcd
from os.path import commonprefix
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from pruner_lib.method.checks import plain_number, require
from pruner_lib.method.display import axes_html, axes_text, axis_text, plan_html, plan_text
from pruner_lib.method.names import CRITERIA as CRITERIA  # for the notebooks
from pruner_lib.method.names import KINDS


@dataclass(frozen=True, eq=False, repr=False)
class Member:
    """One dim of one parameter that the groups of an axis divide among themselves."""

    parameter: str  # name in `model.named_parameters()`
    dim: int  # the dim that is cut
    indices: torch.Tensor  # `(n_groups, width)` int64; row k: the entries along `dim` that belong to group k
    role: str  # "out" if the entries produce the channel, "in" if they consume it
    structure: str  # the paper's W_i that this member is part of; a weight and its bias are one structure
    expert: int | None = None  # slice along dim 0 of a stack of experts that the member is limited to

    @property
    def width(self) -> int:
        return self.indices.shape[1]

    def __repr__(self) -> str:
        place = "" if self.expert is None else f" of slice {self.expert}"
        return f"{self.parameter}: {self.width} of dim {self.dim}{place} per group ({self.role})"


@dataclass(frozen=True, eq=False, repr=False)
class Axis:
    """n interchangeable groups at one place of the model, numbered 0..n_groups-1."""

    name: str  # `layers.3.attention`, `layers.3.mlp` or `hidden`
    kind: str  # one of `KINDS`
    n_groups: int
    members: tuple[Member, ...]  # in the order in which the forward pass reaches them
    group_parameters: int  # number of scalar parameters removed with one group
    # inputs with an entry per group, such as position biases per head: `(module, argument, dim)`; if a buffer
    # has one, `(buffer, "", dim)`, the groups can't be pruned
    constants: tuple[tuple[str, str, int], ...] = ()
    # axes with the same value must keep the same number of groups, because their weights are stacked in one
    # tensor (the experts of a layer) or lie side by side (the query heads of each key-value head)
    siblings: str = ""
    side_by_side: int = 1  # number of siblings that share each dim
    in_stack: bool = False  # a member is a dim of stacked experts
    heads: int = 1  # attention heads per group: with grouped-query attention all that share its KV head

    @cached_property
    def structures(self) -> tuple[str, ...]:
        """The matrices of a group (the paper's W_1..W_M), in order of execution."""
        return tuple(dict.fromkeys(m.structure for m in self.members))

    @property
    def last(self) -> str:
        """The structure of the group that runs last: o_proj or down_proj, whose input dim is cut."""
        consuming = [m.structure for m in self.members if m.role == "in"]
        return (consuming or list(self.structures))[-1]

    @property
    def width(self) -> int:
        """Channels of one group (head_dim for an attention head, 1 for an MLP channel)."""
        consumed = [m.width for m in self.members if m.role == "in"][-1]
        return gcd(consumed // self.heads, *(m.width for m in self.members))

    @property
    def layer(self) -> int | None:
        """Number of the decoder layer that holds the axis; None for the residual stream."""
        parts = self.name.split(".")
        return int(parts[1]) if parts[0] == "layers" else None

    @cached_property
    def module(self) -> str:
        """Path of the smallest module that holds all members."""
        return ".".join(commonprefix([m.parameter.split(".")[:-1] for m in self.members]))

    __repr__ = axis_text


@dataclass(eq=False, repr=False)
class Axes(dict[str, Axis]):
    """The axes that `discover` returns, by name, with facts about the model as a whole."""

    axes: InitVar[Mapping[str, Axis]]
    _: KW_ONLY
    n_parameters: int  # scalar parameters of the model, shared ones counted once
    layer_parameters: list[int]  # `(n_layers,)` scalar parameters of each decoder layer
    notes: list[str]  # why a structure was left out, one sentence each
    numbers: Counter[tuple]  # what the model computes with besides its weights (see `Recording.factors`)

    def __post_init__(self, axes: Mapping[str, Axis]):
        self.update(axes)

    @property
    def n_layers(self) -> int:
        return len(self.layer_parameters)

    def of_kind(self, *kinds: str) -> "Axes":
        """Return the axes of some kinds, with the same facts about the model."""
        require([KINDS, ...], kinds=kinds)
        chosen = {name: axis for name, axis in self.items() if axis.kind in kinds}
        return Axes(chosen, **vars(self))

    __repr__ = axes_text
    _repr_html_ = axes_html


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """The groups to keep: plain immutable data, saved as JSON."""

    # axis name -> sorted int64 group numbers. Keys are `axis/structure` if each structure was ranked alone
    # (`dependency=False`). For layer granularity the only key is `layers`.
    keep: Mapping[str, torch.Tensor]
    n_groups: Mapping[str, int]  # the same keys -> number of groups before the cut
    settings: Mapping[str, Any] = field(default_factory=dict)  # how the plan was chosen (ratio, scope, ...)
    query_heads: bool = False  # the axes are from `discover(model, query_heads=True)`

    def __post_init__(self):
        require(Mapping, keep=self.keep, n_groups=self.n_groups, settings=self.settings)
        require(bool, query_heads=self.query_heads)
        require([str, ...], **{"names of axes": [*self.keep]})
        if one_sided := self.keep.keys() ^ self.n_groups.keys():
            raise ValueError(f"keep and n_groups name different axes: {sorted(one_sided)[:4]}")
        if "layers" in self.keep and len(self.keep) > 1:
            raise ValueError("a plan of whole layers cuts nothing else: cut them first, then discover again")
        require("1..", **{f"n_groups[{name!r}]": n for name, n in self.n_groups.items()})
        keep = {}
        for name, kept in self.keep.items():
            kept = kept.tolist() if hasattr(kept, "tolist") else kept  # of torch or numpy
            numbers = [plain_number(k) for k in kept] if isinstance(kept, (list, tuple, range)) else []
            n, are_whole = self.n_groups[name], all(type(k) is int for k in numbers)
            if not numbers or not are_whole or numbers != [k for k in sorted({*numbers}) if 0 <= k < n]:
                expected = f"a sorted list of at least one number in 0..{n - 1} without repeats"
                raise ValueError(f"kept groups of {name} must be {expected}, got {self.keep[name]!r:.60}")
            keep[name] = torch.tensor(numbers)
        for name, value in (("keep", keep), ("n_groups", self.n_groups), ("settings", self.settings)):
            object.__setattr__(self, name, MappingProxyType(dict(value)))

    def __reduce__(self):  # a MappingProxyType can't be copied or pickled
        return Plan, (dict(self.keep), dict(self.n_groups), dict(self.settings), self.query_heads)

    @property
    def cut(self) -> dict[str, torch.Tensor]:
        """Keys that lose at least one group -> the groups that they keep."""
        return {name: kept for name, kept in self.keep.items() if len(kept) < self.n_groups[name]}

    def check_count(self, key: str, present: int) -> None:
        """Raise a ValueError unless the plan expects `present` groups at this key."""
        if (n := self.n_groups[key]) != present:
            advice = "make a plan for this model, and call mask_ and repair_ before prune_"
            raise ValueError(f"the plan is for {n} groups at {key}, but this model has {present}: {advice}")

    def to_dict(self) -> dict:
        return {
            "settings": dict(self.settings),
            "n_groups": dict(self.n_groups),
            "keep": {name: kept.tolist() for name, kept in self.keep.items()},
            "query_heads": self.query_heads,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the plan as JSON text, and write it to `path` if given (ValueError if that fails)."""
        text = json.dumps(self.to_dict())
        try:
            if path is not None:
                Path(path).write_text(text)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"the plan can't be written to {path!r} ({error}); pass a file name") from error
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> "Plan":
        """Read a plan from JSON text or from a file (ValueError if it is not a plan)."""
        try:
            text = str(source)
            text = text if text.lstrip().startswith("{") else Path(source).read_text("utf-8-sig")
            data = {"settings": {}, "query_heads": False} | json.loads(text)
            values = [data[name] for name in ("keep", "n_groups", "settings", "query_heads")]
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            expected = "a plan with keep, n_groups, settings and query_heads"
            raise ValueError(f"{source!r:.80} is not {expected} ({error})") from error
        return cls(*values)

    __repr__ = plan_text
    _repr_html_ = plan_html
