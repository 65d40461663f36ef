"""Find the config keys and module attributes that count groups, by comparing twins of the model.

A twin is the same model class built on the meta device from an edited config. Two twins that differ only in
the number of heads show which attributes depend on it, so that no code is specific to an architecture.
"""

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pruner_lib.method.discover import discover
from pruner_lib.method.groups import Axis, Member
from pruner_lib.method.layout import LEAF_SIZES
from pruner_lib.method.trace import trace

HOLDERS, PLAIN = (list, tuple, dict), (str, int, float, bool, type(None))  # types of attributes and entries


@dataclass(frozen=True)
class SizeRule:
    """How config keys and module attributes depend on the number of groups of one kind."""

    # config key -> its value per group (`num_attention_heads`: 3 if a KV head has 3 query heads)
    keys: dict[str, int] = field(default_factory=dict)
    # config keys to set explicitly, because by default they would follow from others (`head_dim`)
    fixed: dict[str, int] = field(default_factory=dict)
    # module path -> {attribute: its value per group}
    attributes: dict[str, dict[str, int]] = field(default_factory=dict)
    # False if no config edit gives these sizes (the head size is tied to the hidden size, or the class fixes
    # the width): such a model can't be a plain checkpoint
    in_config: bool = True

    def config(self, n: int) -> dict[str, int]:
        """Return config keys -> their values for `n` groups."""
        return {key: per_group * n for key, per_group in self.keys.items()} | self.fixed


def build_twin(model: nn.Module, edits: dict) -> nn.Module:
    """Build the model's class on the meta device from its config with edited keys."""
    config = copy.deepcopy(model.config)
    config.update(edits)
    with torch.device("meta"):
        return getattr(type(model), "dense_class", type(model))(config)


def find_size_rules(model: nn.Module, axes: Mapping[str, Axis], cut: Collection[str]) -> dict[str, SizeRule]:
    """Find what depends on the number of groups of each cut axis; corresponding axes of layers share a rule.

    Raises: ValueError: the class does not build the model's modules, or an attribute is not in proportion.
    """
    alike: dict[tuple, list[Axis]] = {}
    for axis in axes.values():
        parts = tuple(m.parameter.replace(f".{axis.layer}.", ".*.", 1) for m in axis.members)
        alike.setdefault((axis.kind, axis.side_by_side, parts), []).append(axis)
    rules, dense = {}, build_twin(model, {})
    # the sizes of a model with a layout differ from its config, those of its twin do not
    by_query = any(axis.kind == "attention" and axis.siblings for axis in axes.values())
    dense_axes = discover(dense, query_heads=by_query) if getattr(model, "pruning_layout", None) else {}
    built = {name for name, _ in dense.named_parameters(remove_duplicate=False)}
    if other := {m.parameter for name in cut for m in axes[name].members} - built:
        raise ValueError(f"{type(model).__name__} does not build {min(other)}; use a class that does")
    for group in alike.values():
        if any(axis.name in cut for axis in group):
            twins = [dense_axes[axis.name] for axis in group if axis.name in dense_axes]
            source = (dense, twins, [*dense_axes.values()]) if twins else (model, group, [*axes.values()])
            rules |= dict.fromkeys((axis.name for axis in group), _find_size_rule(*source, dense))
    return rules


def _find_size_rule(model: nn.Module, axes: list[Axis], all_axes: list[Axis], dense: nn.Module) -> SizeRule:
    """Build a probe with fewer groups in these axes, and compare it with `dense`, the unedited twin."""
    first = axes[0]
    cut = first.members[0]
    entries = dense.get_parameter(cut.parameter).shape[cut.dim] - _rest(model, first, cut)
    n = entries // cut.width // first.side_by_side
    probe_n, tied = min(2, n - 1), None
    kind = [a for a in all_axes if a.kind == first.kind]  # all may depend on the same config key
    for keys, fixed in _candidates(model.config.to_dict(), first, n, probe_n) if n > 1 else ():
        edits = {k: v * probe_n // n if v else probe_n for k, v in keys.items()}
        try:
            probe = build_twin(model, edits | fixed)
        except Exception:  # noqa: BLE001  a class may refuse a config with any error
            continue
        shapes = shapes_of(probe)
        if not all(_fits(shapes, model, axis, probe_n) for axis in axes):
            continue
        if _other_dims(dense, kind) == _other_dims(probe, kind):
            attributes = _attributes(dense, probe, axes, n, probe_n, ())
            for key in [*edits] if len(edits) > 1 else ():  # drop keys of other things (a router's `n_group`)
                fewer = {k: v for k, v in edits.items() if k != key}
                if _builds_alike(model, fewer | fixed, probe, axes):
                    edits = fewer
            per_group = {k: (keys[k] or n) // n for k in edits}
            # floats of the old width (such as the scale of an embedding) belong to the trained model, so the
            # config must not change them; `check_cut` compares those that layers compute while they run
            in_config = not other_values(dense, probe, (float, *HOLDERS), [float])
            hidden = first.kind == "hidden"
            scope = dense if hidden else dense.get_submodule(first.module)
            in_config = in_config and not any(map(unsaved_numbers, scope.modules()))
            in_config = in_config and not (hidden and trace(dense).factors != trace(probe).factors)
            return SizeRule(per_group, fixed, attributes, in_config)
        tied = tied or probe
    if tied is None:
        return SizeRule(in_config=False)
    # `tied` differs in other dims too, such as those of heads
    heads = () if first.kind != "hidden" else [a for a in all_axes if a.kind == "attention"]
    return SizeRule(attributes=_attributes(dense, tied, axes, n, probe_n, heads), in_config=False)


def _builds_alike(model: nn.Module, edits: dict, probe: nn.Module, axes: list[Axis]) -> bool:
    """True if the edits build the shapes of the probe and the same numbers in the axes' modules."""
    try:
        twin = build_twin(model, edits)
    except Exception:  # noqa: BLE001  a class may refuse a config with any error
        return False
    pairs = [[m.get_submodule(axis.module) for m in (twin, probe)] for axis in axes]
    return shapes_of(twin) == shapes_of(probe) and not any(other_values(*p, (int, tuple)) for p in pairs)


def layer_edits(model: nn.Module, shapes: dict, keep: list[int], n: int) -> dict:
    """Return config edits that build only some layers: their number, and shorter lists of entries per layer.

    Args: shapes: of the remaining parameters, see `shapes_of`.
    Raises: ValueError: no edit builds the model.
    """
    config = model.config.to_dict()
    edits: dict = {k: len(keep) for k, v in config.items() if v == n and type(v) is int and "layer" in k}
    edits |= {k: [v[i] for i in keep] for k, v in config.items() if isinstance(v, list) and len(v) == n}
    others = {k: v for k, v in config.items() if type(v) is int and 0 < v < n and k not in edits}
    leading = ({k: sum(i < v for i in keep)} for k, v in others.items())
    for more in ({}, *leading):  # an integer may count leading layers of another form
        if builds(model, edits | more, shapes):
            return edits | more
    message = f"the config of {type(model).__name__} can't describe the layers {keep} of {n} alone"
    raise ValueError(f"{message}; keep the layers that differ from the others")


def builds(model: nn.Module, edits: dict, shapes: dict) -> bool:
    """True if the class builds exactly these shapes, and the config survives its JSON form."""
    try:
        twin = build_twin(model, edits)
        type(twin.config).from_dict(twin.config.to_dict())
        return shapes_of(twin) == shapes
    except Exception:  # noqa: BLE001  a class may refuse a config with any error
        return False


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def _rest(model: nn.Module, axis: Axis, member: Member) -> int:
    """Count the entries along a member's dim that belong to no group, such as keys fused with query heads."""
    shape = model.get_parameter(member.parameter).shape
    return shape[member.dim] - axis.side_by_side * member.indices.numel()


def _candidates(config: dict, axis: Axis, n: int, probe_n: int) -> Iterator[tuple[dict, dict]]:
    """Yield config edits to try: ({key that counts groups: its value}, {key to set explicitly: value})."""
    numbers = {k: v for k, v in config.items() if type(v) is int and v > 0}
    hidden = {k: v for k, v in numbers.items() if k in ("hidden_size", "n_embd", "d_model")}
    if axis.kind == "attention":
        heads = {k: v for k, v in numbers.items() if re.search("head|group|kv", k) and v % n == 0}
        heads = {k: v for k, v in heads.items() if not re.search("dim|size|rank", k)}
        for key, value in heads.items() if axis.side_by_side > 1 else ():
            yield {key: value}, {}
            yield {key: value}, {"head_dim": axis.width}
        yield heads, {}
        yield heads, {"head_dim": axis.width}
        yield heads | {k: v for k, v in hidden.items() if v * probe_n % n == 0}, {}
    elif axis.kind == "mlp":
        for key, value in numbers.items():
            if value == n and key not in hidden and "vocab" not in key:
                yield {key: value}, {}
        for key in (k for k, v in config.items() if v is None and re.search("inner|ffn|intermediate", k)):
            yield {key: None}, {}
    else:
        yield hidden, {}
        heads = config.get("num_attention_heads") or config.get("n_head")
        if heads and hidden:
            yield hidden, {"head_dim": numbers.get("head_dim") or next(iter(hidden.values())) // heads}


def _fits(shapes: dict, model: nn.Module, axis: Axis, probe_n: int) -> bool:
    """True if the dims that this axis cuts have the size of `probe_n` groups."""
    return all(
        m.parameter in shapes
        and shapes[m.parameter][m.dim] == probe_n * m.width * axis.side_by_side + _rest(model, axis, m)
        for m in axis.members
    )


def _other_dims(twin: nn.Module, axes: list[Axis]) -> dict[str, list[int]]:
    """Return parameter -> its sizes along the dims that none of these axes cuts."""
    cut, shapes = {(m.parameter, m.dim) for axis in axes for m in axis.members}, shapes_of(twin)
    return {name: [n for d, n in enumerate(s) if (name, d) not in cut] for name, s in shapes.items()}


def other_values(
    model: nn.Module, twin: nn.Module, types: Sequence[type], held: Sequence[type] = PLAIN
) -> dict[str, dict[str, Any]]:
    """Return module path -> {attribute that differs in the twin: the model's value}.

    Args:   types: of the attributes.    held: types of the entries of lists, tuples and dicts, at any depth.
    """

    def entries(value: Any) -> list:
        return [x for x in tree_leaves(value) if type(x) in held]

    twins = dict(twin.named_modules())
    values: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items() if path in twins else ():
            internal = name.startswith("_") or name in ("training", "gradient_checkpointing")
            if type(value) not in types or (internal and type(value) is not float):
                continue
            if entries(value) != entries(vars(twins[path]).get(name, value)):
                values.setdefault(path, {})[name] = value
    return values


def unsaved_numbers(module: nn.Module) -> list[str]:
    """List a module's scalar buffers that are not saved: its class may recompute them from the widths."""
    buffers = {name: b for name, b in module.named_buffers(recurse=False) if b.is_floating_point()}
    return [n for n, b in buffers.items() if b.numel() == 1 and n in module._non_persistent_buffers_set]


def size_in(value: object) -> object:
    """Return the number in a tuple of one, such as the shape in a norm without weights; else the value."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _attributes(
    dense: nn.Module, probe: nn.Module, axes: list[Axis], n: int, probe_n: int, exclude: Sequence[Axis]
) -> dict[str, dict[str, int]]:
    """Return integer attributes that depend on the number of groups, in modules of `axes`, not `exclude`."""
    per_group: dict[str, dict[str, int]] = {}
    excluded = tuple(f"{axis.module}." for axis in exclude)
    prefixes = tuple("" if axis.kind == "hidden" else f"{axis.module}." for axis in axes)
    for path, values in other_values(dense, probe, (int, tuple), (int,)).items():
        if not f"{path}.".startswith(prefixes) or f"{path}.".startswith(excluded):
            continue
        module, twin = (vars(m.get_submodule(path)) for m in (dense, probe))
        is_leaf = module["_parameters"].get("weight") is not None
        for name in values:
            value, other = size_in(module.get(name)), size_in(twin.get(name))
            in_leaf = is_leaf and name in (*LEAF_SIZES, "normalized_shape")  # follows the shape of the weight
            if in_leaf or type(value) is not int or type(other) is not int:
                continue
            if value * probe_n != other * n:
                message = f"{path}.{name} is {value} for {n} groups of {axes[0].name}, {other} for {probe_n}"
                raise ValueError(f"{message}: not in proportion, so its value after the cut is unknown")
            per_group.setdefault(path, {})[name] = value // n
    return per_group
