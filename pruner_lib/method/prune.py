"""Cutting: apply a plan to a model in place (paper section 3.2, last paragraph).

`prune_` removes groups and adapts modules and configs; `mask_` sets the same groups to zero. Both models
compute the same function, which the tests assert for every architecture.
"""

from collections import Counter

import torch
from torch import nn

from pruner_lib.method.checks import require
from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.depth import drop_layers_, separate_layers
from pruner_lib.method.discover import discover
from pruner_lib.method.groups import Axes, Axis, Member, Plan
from pruner_lib.method.layout import (
    apply_layout_,
    empty_layout,
    layout_of,
    merge_layouts,
    own_config_,
    set_layout,
    set_parameter_,
)
from pruner_lib.method.norms import norm_factor, norm_members
from pruner_lib.method.offload import check_in_memory, without_weights
from pruner_lib.method.options import check_axes
from pruner_lib.method.size_rules import SizeRule, builds, find_size_rules, shapes_of, size_in
from pruner_lib.method.trace import check_cut


def prune_(model: nn.Module, plan: Plan, *, axes: Axes | None = None) -> nn.Module:
    """Remove the groups that a plan does not keep; the public `models.prune.prune_` also prepares saving.

    Args: axes: of the model in its current state, if they have been discovered already.
    Returns: the same model, with `pruning_layout` and `pruned_by`; other models that share modules with it
        are cut too.
    Raises: ValueError: the plan does not fit the model, the cut model would not run or mix its groups (see
        `check_cut`), or its weights are offloaded. The model is then unchanged.
    """
    check_in_memory(model)
    require(Plan, plan=plan)
    if "layers" in plan.keep:
        return drop_layers_(model, plan)
    axes = axes_of(model, plan, axes, prove=False)  # the cut is proved below
    keep = _keep_by_structure(axes, plan)
    kept = {name: len(next(iter(per.values()))) for name, per in keep.items()}
    cuts = _cut_indices(model, axes, keep)
    factors = _norm_factors(model, axes, keep, cuts)
    rules = find_size_rules(model, axes, kept)
    layout = _layout(model, axes, keep, cuts, rules)
    numbers = axes.numbers.copy()
    for parameter, factor in factors.items():
        norm = parameter.rpartition(".")[0]
        values = vars(model.get_submodule(norm)).items()
        eps = {n: value * factor**2 for n, value in values if "eps" in n and isinstance(value, float)}
        layout["attributes"].setdefault(norm, {}).update(eps)
        numbers.update((layer, value) for layer in range(axes.n_layers) for value in eps.values())
    scaled = any(factor != 1 for factor in factors.values())  # a plain config has one epsilon for all
    plain = None if scaled else _plain_config(model, axes, kept, layout, rules)
    merged = merge_layouts(model, layout | {"config": {}} if plain else layout)
    trial = apply_layout_(without_weights(model), merged)
    trial.config.update(plain or {})
    check_cut(trial, decoder_layers(model)[0], plan, numbers, axes, keep, cuts)
    own_config_(model)
    with torch.no_grad():
        for parameter, by_dim in cuts.items():
            weight = model.get_parameter(parameter).detach()
            for dim, index in by_dim.items():
                index = index.to(weight.device)
                if index.ndim == 1:
                    weight = weight.index_select(dim, index)
                else:  # separately for each slice along dim 0: (slices, 1, ..., entries, 1, ...)
                    shape = [len(index), *[1] * (dim - 1), -1, *[1] * (weight.ndim - dim - 1)]
                    weight = torch.take_along_dim(weight, index.view(shape), dim)
            weight = weight * factors[parameter] if parameter in factors else weight
            set_parameter_(model, parameter, weight.contiguous())
            del weight
    apply_layout_(model, merged).config.update(plain or {})
    set_layout(model, None if plain is not None else merged)
    model.pruned_by = [*getattr(model, "pruned_by", ()), plan]
    return model


@torch.no_grad()
def mask_(model: nn.Module, plan: Plan, *, axes: Axes | None = None) -> nn.Module:
    """Set the weights of the groups that a plan does not keep to zero, without changing shapes.

    Args: axes: of the model in its current state, if they have been discovered already.
    Raises: ValueError: the plan does not fit the model, or its weights are offloaded; nothing is changed.
    """
    check_in_memory(model)
    require(Plan, plan=plan)
    if "layers" in plan.keep:
        _, layers = separate_layers(model, plan)
        for i in set(range(len(layers))) - set(plan.keep["layers"].tolist()):
            for parameter in layers[i].parameters():
                parameter.zero_()
        return model
    axes = axes_of(model, plan, axes)
    pointers = Counter(p.data_ptr() for p in model.parameters())
    for parameter in model.parameters():
        if pointers[parameter.data_ptr()] > 1:  # shares memory with a parameter of other groups
            parameter.data = parameter.data.clone()
    for name, per_structure in _keep_by_structure(axes, plan).items():
        for member in axes[name].members:
            weight, dim = model.get_parameter(member.parameter), member.dim
            if member.expert is not None:
                weight, dim = weight[member.expert], dim - 1
            removed = removed_entries(axes[name], member, per_structure[member.structure])
            weight.index_fill_(dim, removed.to(weight.device), 0)
    return model


def axes_of(model: nn.Module, plan: Plan, axes: Axes | None, *, prove: bool = True) -> Axes:
    """Return the axes that a plan is for: those passed, after a check, or newly discovered ones."""
    if axes is None:
        return discover(model, query_heads=plan.query_heads)
    require(Axes, axes=axes)
    check_axes(axes, model)
    if prove:  # another model may have the same names and shapes
        _keep_by_structure(axes, plan)  # refuses a plan for other groups
        try:
            check_cut(without_weights(model), decoder_layers(model)[0], plan, axes.numbers, axes, {}, {})
        except ValueError as error:
            message = f"the axes are from another model: {type(model).__name__} has other groups"
            raise ValueError(f"{message}; leave `axes` out or run discover again") from error
    return axes


def _keep_by_structure(axes: Axes, plan: Plan) -> dict[str, dict[str, torch.Tensor]]:
    """Return axis that loses groups -> structure -> kept groups; refuse a plan for another model."""
    keep: dict[str, dict[str, torch.Tensor]] = {}
    for key, kept in plan.keep.items():
        name, _, structure = key.partition("/")
        if name not in axes:
            advice = f"select from its own axes ({', '.join([*axes][:6])} ...)"
            raise ValueError(f"the plan cuts {name}, which this model does not have; {advice}")
        axis = axes[name]
        plan.check_count(key, axis.n_groups)
        if structure and structure not in axis.structures:
            raise ValueError(f"the plan ranks {structure} alone, but {name} has {axis.structures}")
        if len(kept) < axis.n_groups:
            structures = [structure] if structure else axis.structures
            keep.setdefault(name, {}).update(dict.fromkeys(structures, kept))
    _check_even(axes, keep)
    return keep


def removed_entries(axis: Axis, member: Member, kept: torch.Tensor) -> torch.Tensor:
    """Return the entries of a member that belong to groups which are not kept."""
    removed = torch.ones(axis.n_groups, dtype=torch.bool)
    removed[kept] = False
    return member.indices[removed].reshape(-1)


def _cut_indices(model: nn.Module, axes: Axes, keep: dict) -> dict[str, dict[int, torch.Tensor]]:
    """Return parameter -> dim -> sorted kept entries: `(n,)`, or `(slices, n)` for stacks along dim 0."""
    masks: dict[str, dict[int, torch.Tensor]] = {}  # of kept entries
    for name, per_structure in keep.items():
        for member in axes[name].members:
            shape = model.get_parameter(member.parameter).shape
            slices = () if member.expert is None else shape[:1]
            all_kept = torch.ones(*slices, shape[member.dim], dtype=torch.bool)
            mask = masks.setdefault(member.parameter, {}).setdefault(member.dim, all_kept)
            removed = removed_entries(axes[name], member, per_structure[member.structure])
            (mask if member.expert is None else mask[member.expert])[removed] = False
    cuts: dict[str, dict[int, torch.Tensor]] = {}
    for parameter, by_dim in masks.items():
        for dim, mask in by_dim.items():
            if len(mask.sum(-1).unique()) > 1:
                message = f"some axes that share {parameter} are missing, and all must keep as many groups"
                raise ValueError(f"{message}; pass all that discover returned, or leave `axes` out")
            cuts.setdefault(parameter, {})[dim] = mask.nonzero()[:, -1].view(*mask.shape[:-1], -1)
    return cuts


def _norm_factors(model: nn.Module, axes: Axes, keep: dict, cuts: dict) -> dict[str, float]:
    """Return weight of a norm over all groups of a cut axis -> factor that makes up for the removed ones."""
    factors = {}
    for name in (n for n in keep if axes[n].layer is not None):
        for member in norm_members(model, axes[name].members, axes[name].side_by_side):
            factor = norm_factor(model.get_submodule(member.structure), cuts[member.parameter][member.dim])
            if factor is None:
                raise ValueError(f"{member.structure} is a norm over all groups of {name} and can't be cut")
            factors[member.parameter] = factor
    return factors


def _layout(model: nn.Module, axes: Axes, keep: dict, cuts: dict, rules: dict[str, SizeRule]) -> dict:
    """Return what the modules need besides their smaller weights, see `empty_layout`."""
    layout, names = empty_layout(), {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # all names of a tied weight
        first = names.setdefault(id(parameter), name)
        if first in cuts:
            shape = list(parameter.shape)
            for dim, index in cuts[first].items():
                shape[dim] = index.shape[-1]
            layout["shapes"][name] = shape
    path, before = decoder_layers(model)[0], (layout_of(model) or empty_layout())["config"]
    for name, per_structure in keep.items():
        axis, rule, kept = axes[name], rules[name], per_structure[axes[name].last]
        n, prefix = len(kept), "" if axis.kind == "hidden" else f"{axis.module}."
        for module, attributes in rule.attributes.items():
            if f"{module}.".startswith(prefix):
                values = {a: size_in(vars(model.get_submodule(module))[a]) for a in attributes}
                scaled = {a: value * n // axis.n_groups for a, value in values.items()}
                layout["attributes"].setdefault(module, {}).update(scaled)
        if axis.layer is not None:
            layer = f"{path}.{axis.layer}"
            values = rule.config(axis.n_groups) | before.get(layer, {})
            scaled = {key: values[key] * n // axis.n_groups for key in rule.keys}
            layout["config"].setdefault(layer, {}).update(scaled | rule.fixed)
        for module, argument, dim in axis.constants:
            cut = {"dim": dim, "total": axis.n_groups, "keep": kept.tolist()}
            layout["inputs"].setdefault(module, {})[argument] = cut
    return layout


def _plain_config(model: nn.Module, axes: Axes, kept: dict, layout: dict, rules: dict) -> dict | None:
    """Return config edits from which the model class builds the pruned model, or None if there are none."""
    if getattr(model, "pruning_layout", None) or layout["inputs"]:
        return None
    edits: dict[str, int] = {}
    for name, rule in rules.items():
        values = rule.config(kept.get(name, axes[name].n_groups))
        if not rule.in_config or any(edits.get(key, value) != value for key, value in values.items()):
            return None
        edits |= values
    shapes = {name: tuple(layout["shapes"].get(name, shape)) for name, shape in shapes_of(model).items()}
    return edits if builds(model, edits, shapes) else None


def _check_even(axes: Axes, keep: dict[str, dict[str, torch.Tensor]]) -> None:
    """Refuse a plan after which the structures of an axis, or siblings, keep different numbers of groups."""
    counts: dict[str, dict[str, int]] = {}  # axis or siblings -> structure or axis -> number of kept groups
    for name, axis in axes.items():
        kept = {s: len(keep.get(name, {}).get(s, range(axis.n_groups))) for s in axis.structures}
        counts[name] = kept
        if axis.siblings:
            counts.setdefault(axis.siblings, {})[name] = min(kept.values())
    for name, kept in counts.items():
        if len(set(kept.values())) > 1:
            uneven = ", ".join(f"{part}: {n}" for part, n in list(kept.items())[:6])
            rule = "must all keep the same number of groups, or their tensors would not fit together"
            raise ValueError(f"the parts of {name} {rule}; the plan keeps {uneven} ...")
