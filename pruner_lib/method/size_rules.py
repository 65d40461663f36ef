"""Which config keys and module attributes count groups, read off twins of the model.

A twin is the same model class built on the meta device from an edited config. Two twins that differ in
nothing but the number of heads show which attributes of which modules follow that number, so no
line of code is for one architecture.
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
    """How a model's numbers follow the number of groups of one kind."""

    # config key -> its value for one group (`num_attention_heads`: 3 where a KV head has 3 query heads)
    keys: dict[str, int] = field(default_factory=dict)
    # config keys that must be written out, because they would otherwise follow from others (`head_dim`)
    fixed: dict[str, int] = field(default_factory=dict)
    # module path -> {attribute: its value for one group}
    attributes: dict[str, dict[str, int]] = field(default_factory=dict)
    # False where no config edit gives these sizes (the head size is tied to the hidden size, or the width is
    # written into the class): such a model can't be a plain checkpoint
    in_config: bool = True

    def config(self, n: int) -> dict[str, int]:
        """Config keys -> their values for `n` groups."""
        return {key: per_group * n for key, per_group in self.keys.items()} | self.fixed


def build_twin(model: nn.Module, edits: dict) -> nn.Module:
    """Build the model's class on the meta device from its config with some keys edited."""
    config = copy.deepcopy(model.config)
    config.update(edits)
    with torch.device("meta"):
        return getattr(type(model), "dense_class", type(model))(config)


def find_size_rules(model: nn.Module, axes: Mapping[str, Axis], cut: Collection[str]) -> dict[str, SizeRule]:
    """Find out what follows the number of groups, for every axis that is cut.

    Axes in modules of the same name follow the same rule, whatever their layer.

    Raises: ValueError: the class does not build the model's modules, or an attribute changes with the number
        of groups, but not in proportion.
    """
    alike: dict[tuple, list[Axis]] = {}
    for axis in axes.values():
        parts = tuple(m.parameter.replace(f".{axis.layer}.", ".*.", 1) for m in axis.members)
        alike.setdefault((axis.kind, axis.side_by_side, parts), []).append(axis)
    rules, dense = {}, build_twin(model, {})
    # how many heads share a key and value head, and what lies beside them, is in a pruned model not as the
    # config says, but in its twin it is
    by_query = any(axis.kind == "attention" and axis.siblings for axis in axes.values())
    whole = discover(dense, query_heads=by_query) if getattr(model, "pruning_layout", None) else {}
    built = {name for name, _ in dense.named_parameters(remove_duplicate=False)}
    if other := {m.parameter for name in cut for m in axes[name].members} - built:
        what = f"{type(model).__name__} does not build {min(other)}, so its size can't follow the config"
        raise ValueError(f"{what}; give the model a class that builds all its modules")
    for group in alike.values():
        if any(axis.name in cut for axis in group):
            twins = [whole[axis.name] for axis in group if axis.name in whole]
            like = (dense, twins, [*whole.values()]) if twins else (model, group, [*axes.values()])
            rule = _find_size_rule(*like, dense)
            rules |= dict.fromkeys((axis.name for axis in group), rule)
    return rules


def _find_size_rule(model: nn.Module, axes: list[Axis], all_axes: list[Axis], dense: nn.Module) -> SizeRule:
    """Build a probe with fewer groups in like modules, and compare it with `dense`, the unedited twin.

    Args: all_axes: of the model; other axes of the kind may follow the same config key.
    """
    first = axes[0]
    cut = first.members[0]
    entries = dense.get_parameter(cut.parameter).shape[cut.dim] - _rest(model, first, cut)
    n = entries // cut.width // first.side_by_side
    probe_n, tied = min(2, n - 1), None
    kind = [a for a in all_axes if a.kind == first.kind]
    for keys, fixed in _candidates(model.config.to_dict(), first, n, probe_n) if n > 1 else ():
        edits = {k: v * probe_n // n if v else probe_n for k, v in keys.items()}
        try:
            probe = build_twin(model, edits | fixed)
        except Exception:  # noqa: BLE001  a class may refuse a config in any way; then this is not the right edit
            continue
        shapes = shapes_of(probe)
        if not all(_fits(shapes, model, axis, probe_n) for axis in axes):
            continue
        if _other_dims(dense, kind) == _other_dims(probe, kind):
            attributes = _attributes(dense, probe, axes, n, probe_n, ())
            for key in [*edits] if len(edits) > 1 else ():  # those of a router (`n_group`) count no heads
                less = {k: v for k, v in edits.items() if k != key}
                if _builds_alike(model, less | fixed, probe, axes):
                    edits = less
            per_group = {k: (keys[k] or n) // n for k in edits}
            # a float that follows the width, as the scale of an embedding, was trained otherwise; of what is
            # cut in a layer, `check_cut` compares those that are made while the model runs
            in_config = not other_values(dense, probe, (float, *HOLDERS), [float])
            around = dense if first.kind == "hidden" else dense.get_submodule(first.module)
            in_config = in_config and not any(unsaved_numbers(module) for module in around.modules())
            if first.kind == "hidden":
                in_config = in_config and trace(dense).factors == trace(probe).factors
            return SizeRule(per_group, fixed, attributes, in_config)
        tied = tied or probe
    if tied is None:
        return SizeRule(in_config=False)
    heads = () if first.kind != "hidden" else [a for a in all_axes if a.kind == "attention"]
    return SizeRule(attributes=_attributes(dense, tied, axes, n, probe_n, heads), in_config=False)


def _builds_alike(model: nn.Module, edits: dict, probe: nn.Module, axes: list[Axis]) -> bool:
    """Does the class, from these edits, build the shapes of a probe and the same numbers around the axes?"""
    try:
        twin = build_twin(model, edits)
    except Exception:  # noqa: BLE001  refused, in whichever way: then they do not do without the others
        return False
    around = [(twin.get_submodule(axis.module), probe.get_submodule(axis.module)) for axis in axes]
    alike = shapes_of(twin) == shapes_of(probe)
    return alike and not any(other_values(one, other, (int, tuple)) for one, other in around)


def layer_edits(model: nn.Module, shapes: dict, keep: list[int], n: int) -> dict:
    """Config edits that build the model with some layers only: how many there are, and what is listed by
    layer.

    Args: shapes: of the parameters that are left, see `shapes_of`.
    Raises: ValueError: no edit builds it, as where the config counts leading layers of another form.
    """
    config = model.config.to_dict()
    edits: dict = {k: len(keep) for k, v in config.items() if v == n and type(v) is int and "layer" in k}
    edits |= {k: [v[i] for i in keep] for k, v in config.items() if isinstance(v, list) and len(v) == n}
    others = {k: v for k, v in config.items() if type(v) is int and 0 < v < n and k not in edits}
    fronts = ({k: sum(i < v for i in keep)} for k, v in others.items())
    for more in ({}, *fronts):  # how many leading layers have another form is one of the integers
        if builds(model, edits | more, shapes):
            return edits | more
    what = f"the config of {type(model).__name__} can't say that only the layers {keep} of {n} are left"
    raise ValueError(f"{what}; keep the layers that differ from the others")


def builds(model: nn.Module, edits: dict, shapes: dict) -> bool:
    """Does the class, from a config that went through its JSON form, build exactly these shapes?"""
    try:
        twin = build_twin(model, edits)
        # some configs refuse, e.g. heads that do not divide the hidden size
        type(twin.config).from_dict(twin.config.to_dict())
        return shapes_of(twin) == shapes
    except Exception:  # noqa: BLE001  refused, in whichever way: then the layout is saved beside the config
        return False


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def _rest(model: nn.Module, axis: Axis, member: Member) -> int:
    """Entries along a member's dim that are no group's, as keys and values beside the query heads."""
    shape = model.get_parameter(member.parameter).shape
    return shape[member.dim] - axis.side_by_side * member.indices.numel()


def _candidates(config: dict, axis: Axis, n: int, probe_n: int) -> Iterator[tuple[dict, dict]]:
    """Config edits to try: ({key that counts groups: its value}, {key to write out: value})."""
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
    """Do the dims that this axis cuts have the size that `probe_n` groups need?"""
    return all(
        m.parameter in shapes
        and shapes[m.parameter][m.dim] == probe_n * m.width * axis.side_by_side + _rest(model, axis, m)
        for m in axis.members
    )


def _other_dims(twin: nn.Module, axes: list[Axis]) -> dict[str, list[int]]:
    """Parameter -> its sizes along the dims that none of these axes cuts."""
    cut, shapes = {(m.parameter, m.dim) for axis in axes for m in axis.members}, shapes_of(twin)
    return {name: [n for d, n in enumerate(s) if (name, d) not in cut] for name, s in shapes.items()}


def other_values(
    model: nn.Module, twin: nn.Module, types: Sequence[type], held: Sequence[type] = PLAIN
) -> dict[str, dict[str, Any]]:
    """Module path -> attributes of some types that are others in the twin, with the model's value.

    Args: held: of a list, tuple or dict the entries of these types are compared, at any depth.
    """

    def entries(value: Any) -> list:
        return [x for x in tree_leaves(value) if type(x) in held]

    twins = dict(twin.named_modules())
    values: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items() if path in twins else ():
            of_a_library = name.startswith("_") or name in ("training", "gradient_checkpointing")
            if type(value) not in types or (of_a_library and type(value) is not float):
                continue
            if entries(value) != entries(vars(twins[path]).get(name, value)):
                values.setdefault(path, {})[name] = value
    return values


def unsaved_numbers(module: nn.Module) -> list[str]:
    """A module's own buffers of one number that no checkpoint holds: its class makes them anew when it is
    loaded, and may make them from the widths, as a scale."""
    buffers = module.named_buffers(recurse=False)
    single = [name for name, b in buffers if b.is_floating_point() and b.numel() == 1]
    return [name for name in single if name in module._non_persistent_buffers_set]


def size_in(value: object) -> object:
    """The one number in a tuple, as the shape that a norm without weights holds; else the value itself."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _attributes(
    dense: nn.Module, probe: nn.Module, axes: list[Axis], n: int, probe_n: int, apart_from: Sequence[Axis]
) -> dict[str, dict[str, int]]:
    """Integer attributes that follow the number of groups, in the modules around each axis.

    Args: apart_from: axes whose own modules count something else that the twin could not hold still.
    """
    per_group: dict[str, dict[str, int]] = {}
    others = tuple(f"{axis.module}." for axis in apart_from)
    around = tuple("" if axis.kind == "hidden" else f"{axis.module}." for axis in axes)
    for path, values in other_values(dense, probe, (int, tuple), (int,)).items():
        if not f"{path}.".startswith(around) or f"{path}.".startswith(others):
            continue
        module, twin = (vars(m.get_submodule(path)) for m in (dense, probe))
        is_leaf = module["_parameters"].get("weight") is not None  # which repeats the shape of its weight
        for name in values:
            value, other = size_in(module.get(name)), size_in(twin.get(name))
            repeated = is_leaf and name in (*LEAF_SIZES, "normalized_shape")
            if repeated or type(value) is not int or type(other) is not int:
                continue
            if value * probe_n != other * n:
                came = f"{path}.{name} is {value} for {n} groups of {axes[0].name}, {other} for {probe_n}"
                raise ValueError(f"{came}: not in proportion, so its value after the cut can't be derived")
            per_group.setdefault(path, {})[name] = value // n
    return per_group
