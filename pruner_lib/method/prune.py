"""Cutting: carry out a plan on a model, in place (paper section 3.2, last paragraph).

`prune_` removes the groups and makes the modules, the layers' configs and the model's config agree; `mask_`
sets the same groups to zero. Both give the same function of the input: the theorem that the tests hold on
every architecture. Nothing is chosen here; see `select`.

Whole decoder layers can go as well (the granularity that the paper compares with in its Table 8): those that
stay are renumbered, and the config gets their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.discover import discover
from pruner_lib.method.groups import Axes, Axis, Member, Plan
from pruner_lib.method.layout import apply_layout_, empty_layout, merge_layouts, set_layout, set_parameter_
from pruner_lib.method.norms import norm_factor, norm_members
from pruner_lib.method.offload import check_in_memory
from pruner_lib.method.size_rules import (
    Law,
    build_twin,
    builds,
    learn,
    other_floats,
    same_make,
    shapes_of,
)


def drop_layers_(model: nn.Module, plan: Plan) -> nn.Module:
    """Keep some decoder layers, renumber them, and shorten what the config lists by layer."""
    path, layers = decoder_layers(model)
    n, keep = len(layers), plan.keep["layers"].tolist()
    plan.check_count("layers", n)
    if getattr(model, "pruning_layout", None):
        raise ValueError(
            "drop layers before cutting widths unevenly: the layout names layers by their number"
        )
    edits = _layer_edits(model, path, keep, n)
    twin = build_twin(model, edits)
    parts = [dict(layer.named_modules()) for layer in layers]
    numbered = [
        (name, attribute)
        for name, module in parts[0].items()
        for attribute in vars(module)
        if all(
            vars(part[name]).get(attribute) == i and type(vars(part[name])[attribute]) is int
            for i, part in enumerate(parts)
        )
    ]
    for new, old in enumerate(keep):
        for name, attribute in numbered:
            setattr(parts[old][name], attribute, new)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.ModuleList(layers[i] for i in keep))
    for key, value in edits.items():
        setattr(model.config, key, value)
    trained = other_floats(model, twin)
    set_layout(model, {**empty_layout(), "attributes": trained} if trained else None)
    model.pruned_by = [*getattr(model, "pruned_by", ()), plan]
    return model


def _layer_edits(model: nn.Module, path: str, keep: list[int], n: int) -> dict:
    """Config edits that build the model with some layers only: how many there are, and what is listed by
    layer.

    Raises: ValueError: no edit builds it, as where the config counts layers of another make from the front.
    """
    config = model.config.to_dict()
    edits: dict = {k: len(keep) for k, v in config.items() if v == n and type(v) is int and "layer" in k}
    edits |= {k: [v[i] for i in keep] for k, v in config.items() if isinstance(v, list) and len(v) == n}
    wanted = {}
    for name, shape in shapes_of(model).items():
        number, _, rest = name.removeprefix(path + ".").partition(".")
        if not name.startswith(path + "."):
            wanted[name] = shape
        elif int(number) in keep:
            wanted[f"{path}.{keep.index(int(number))}.{rest}"] = shape
    fronts = [
        {k: sum(i < v for i in keep)}
        for k, v in config.items()
        if type(v) is int and 0 < v < n and k not in edits
    ]
    for more in [{}, *fronts]:  # the number of leading layers of another make is one of the integers
        if builds(model, edits | more, wanted):
            return edits | more
    raise ValueError(
        f"the config of {type(model).__name__} can't say that only the layers {keep} of {n} are left; "
        "keep the layers that differ from the others"
    )


def prune_(model: nn.Module, plan: Plan, *, axes: Axes | None = None) -> nn.Module:
    """Remove the groups that a plan does not keep.

    Args:
        model: on any device, in any dtype; its parameters are replaced by smaller ones, one after the other.
        plan: from `select`, for this model.
        axes: of the model as it is, where they are known, as of one that it is a copy of; None: discovered.
    Returns: the same model. `model.pruning_layout` is None if its config alone now says all (a plain
        checkpoint), else the widths that its config can't say. `model.pruned_by` lists the plans carried
        out so far.
    Raises: ValueError: the plan does not fit the model, or its weights are offloaded. The model is then
        unchanged.
    """
    check_in_memory(model)
    if "layers" in plan.keep:
        return drop_layers_(model, plan)
    axes = discover(model, query_heads=plan.query_heads) if axes is None else _axes_of(model, axes)
    keep = _keep_by_structure(axes, plan)
    kept = {name: len(next(iter(per.values()))) for name, per in keep.items()}
    check_even(axes, kept)
    cuts = _cut_indices(model, axes, keep)
    factors = _norm_factors(model, axes, keep, cuts)
    laws = _laws(model, axes, kept)
    layout = _layout(model, axes, keep, kept, cuts, laws)
    plain = _plain_config(model, axes, kept, layout, laws)
    with torch.no_grad():
        for parameter, by_dim in cuts.items():
            weight = model.get_parameter(parameter).detach()
            for dim, index in by_dim.items():
                weight = _take(weight, dim, index.to(weight.device))
            weight = weight * factors[parameter] if parameter in factors else weight
            set_parameter_(model, parameter, weight.contiguous())
            del weight
    merged = merge_layouts(
        getattr(model, "pruning_layout", None), {**layout, "config": {} if plain else layout["config"]}
    )
    apply_layout_(model, merged)
    for key, value in (plain or {}).items():
        setattr(model.config, key, value)
    set_layout(model, None if plain is not None else merged)
    model.pruned_by = [*getattr(model, "pruned_by", ()), plan]
    return model


def mask_(model: nn.Module, plan: Plan) -> nn.Module:
    """Set the weights of the groups that a plan does not keep to zero; shapes stay.

    Raises: ValueError: the plan does not fit the model, or its weights are offloaded. The model is then
        unchanged.
    """
    check_in_memory(model)
    with torch.no_grad():
        if "layers" in plan.keep:
            _, layers = decoder_layers(model)
            plan.check_count("layers", len(layers))
            for i in sorted(set(range(len(layers))) - set(plan.keep["layers"].tolist())):
                for parameter in layers[i].parameters():
                    parameter.zero_()
            return model
        axes = discover(model, query_heads=plan.query_heads)
        for name, per_structure in _keep_by_structure(axes, plan).items():
            for member in axes[name].members:
                weight, dim = model.get_parameter(member.parameter), member.dim
                if member.at:
                    weight, dim = weight.select(*member.at), dim - (member.at[0] < dim)
                gone = _gone(axes[name], member, per_structure[member.structure])
                weight.index_fill_(dim, gone.to(weight.device), 0)
    return model


def _axes_of(model: nn.Module, axes: Axes) -> Axes:
    total = sum(p.numel() for p in model.parameters())
    if axes.n_parameters != total:
        raise ValueError(
            f"the axes are those of a model of {axes.n_parameters} parameters, but this one has {total}; "
            "leave `axes` out to discover them"
        )
    return axes


def _keep_by_structure(axes: Axes, plan: Plan) -> dict[str, dict[str, torch.Tensor]]:
    """Axes that lose groups -> structure -> kept groups; checks that the plan was made for this model."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, kept in plan.keep.items():
        name, _, structure = key.partition("/")
        if name not in axes:
            raise ValueError(
                f"the plan cuts {name}, which this model does not have; its axes: "
                f"{', '.join(list(axes)[:6])} ..."
            )
        axis = axes[name]
        plan.check_count(key, axis.n_groups)
        if len(kept) == axis.n_groups:
            continue
        if structure and structure not in axis.structures:
            raise ValueError(
                f"the plan ranks {structure} alone, but {name} consists of {', '.join(axis.structures)}"
            )
        for s in [structure] if structure else axis.structures:
            found.setdefault(name, {})[s] = kept
    for name, per in found.items():
        counts = {len(kept) for kept in per.values()}
        if set(per) != set(axes[name].structures) or len(counts) > 1:
            raise ValueError(
                f"the structures of {name} must all keep the same number of groups, else the matrices no "
                f"longer fit each other; the plan keeps { {s: len(k) for s, k in per.items()} }"
            )
    return found


def _gone(axis: Axis, member: Member, kept: torch.Tensor) -> torch.Tensor:
    """Entries of a member that belong to groups which do not stay."""
    gone = torch.ones(axis.n_groups, dtype=torch.bool)
    gone[kept] = False
    return member.indices[gone].reshape(-1)


def _cut_indices(model: nn.Module, axes: Axes, keep: dict) -> dict[str, dict[int, torch.Tensor]]:
    """Parameter -> dim -> sorted entries that stay: `(n,)`, or `(slices, n)` where each slice along dim 0
    keeps its own."""
    stays: dict[tuple[str, int], torch.Tensor] = {}
    for name, per_structure in keep.items():
        for member in axes[name].members:
            shape = model.get_parameter(member.parameter).shape
            rows = (shape[0],) if member.at else ()
            key = member.parameter, member.dim
            mask = stays.setdefault(key, torch.ones(*rows, shape[member.dim], dtype=torch.bool))
            gone = _gone(axes[name], member, per_structure[member.structure])
            (mask[member.at[1]] if member.at else mask)[gone] = False
    cuts: dict[str, dict[int, torch.Tensor]] = {}
    for (parameter, dim), mask in stays.items():
        index = mask.nonzero()[:, -1]
        cuts.setdefault(parameter, {})[dim] = index.view(len(mask), -1) if mask.ndim == 2 else index
    return cuts


def _take(weight: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    if index.ndim == 1:
        return weight.index_select(dim, index)
    shape = [index.shape[0]] + [1] * (weight.ndim - 1)
    shape[dim] = index.shape[1]
    return torch.take_along_dim(weight, index.view(shape), dim)


def _norm_factors(model: nn.Module, axes: Axes, keep: dict, cuts: dict) -> dict[str, float]:
    """Norms that run over all groups of a cut axis -> by what their weight makes up for those that go."""
    factors = {}
    for name in (n for n in keep if axes[n].layer is not None):
        for member in norm_members(model, axes[name].members, axes[name].side_by_side):
            if member.parameter in factors:  # a sibling axis has asked
                continue
            factor = norm_factor(model.get_submodule(member.structure), cuts[member.parameter][member.dim])
            if factor is None:
                raise ValueError(f"{member.structure} is a norm over all groups of {name} and can't be cut")
            factors[member.parameter] = factor
    return factors


def _laws(model: nn.Module, axes: Axes, kept: dict[str, int]) -> dict[str, Law]:
    """What follows the number of groups, for every axis of a make that is cut."""
    laws = {}
    dense = build_twin(model, {})
    for make in same_make(axes):
        if any(axis.name in kept for axis in make):
            laws |= dict.fromkeys((axis.name for axis in make), learn(model, make, axes, dense))
    return laws


def _layout(
    model: nn.Module, axes: Axes, keep: dict, kept: dict[str, int], cuts: dict, laws: dict[str, Law]
) -> dict:
    """What the modules must be told besides their smaller weights."""
    layout = empty_layout()
    for parameter, by_dim in cuts.items():
        shape = list(model.get_parameter(parameter).shape)
        for dim, index in by_dim.items():
            shape[dim] = index.shape[-1]
        layout["shapes"][parameter] = shape
    path = decoder_layers(model)[0]
    for name in keep:
        _describe_axis(layout, laws[name], axes[name], keep[name], kept[name], path)
    return layout


def _describe_axis(layout: dict, law: Law, axis: Axis, per_structure: dict, n: int, path: str) -> None:
    around = "" if axis.kind == "hidden" else axis.module
    for module, attributes in law.attributes.items():
        if not around or module == around or module.startswith(around + "."):
            layout["attributes"].setdefault(module, {}).update({a: c * n for a, c in attributes.items()})
    if axis.layer is None:
        if axis.constants:
            raise ValueError(
                f"{axis.name} can't be cut: {axis.constants[0][:2]} enters the layers with one slice for "
                "each channel"
            )
        return
    layer = f"{path}.{axis.layer}"
    layout["config"].setdefault(layer, {}).update({k: c * n for k, c in law.keys.items()} | law.fixed)
    for module, argument, dim in axis.constants:
        cut = {"dim": dim, "total": axis.n_groups, "keep": per_structure[axis.last].tolist()}
        layout["inputs"].setdefault(module, {})[argument] = cut


def _plain_config(
    model: nn.Module, axes: Axes, kept: dict[str, int], layout: dict, laws: dict[str, Law]
) -> dict | None:
    """Config edits after which the model class alone builds the pruned model, or None if there are none."""
    if getattr(model, "pruning_layout", None) or layout["inputs"]:
        return None
    edits: dict[str, int] = {}
    for name, law in laws.items():
        n = kept.get(name, axes[name].n_groups)
        mine = {key: per_group * n for key, per_group in law.keys.items()} | law.fixed
        if not law.free or any(edits.get(key, value) != value for key, value in mine.items()):
            return None
        edits |= mine
    wanted = shapes_of(model) | {name: tuple(shape) for name, shape in layout["shapes"].items()}
    return edits if builds(model, edits, wanted) else None


def check_even(axes: Mapping[str, Axis], kept: Mapping[str, int]) -> None:
    """Refuse a plan that would leave a stack ragged.

    Args: kept: axis name -> groups kept, for the axes that lose some.
    Raises: ValueError: siblings keep different numbers of groups.
    """
    touched = {axes[name].siblings for name in kept} - {""}
    for siblings in touched:
        counts = {n: kept.get(n, a.n_groups) for n, a in axes.items() if a.siblings == siblings}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"the axes of {siblings} share their tensors and must all keep the same number of groups; "
                f"the plan keeps {_some(f'{n}: {k}' for n, k in counts.items())}"
            )


def _some(parts: Iterable[str], n: int = 6) -> str:
    parts = list(parts)
    return ", ".join(parts[:n]) + (" ..." if len(parts) > n else "")
