"""Cutting: carry out a plan on a model, in place (paper section 3.2, last paragraph).

`prune_` removes the groups and makes the modules, the layers' configs and the model's config agree; `mask_`
sets the same groups to zero. Both give the same function of the input: the theorem that the tests hold on
every architecture. Nothing is chosen here; see `select`. The cut of whole decoder layers is in `depth`.
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

    Args: axes: of the model in its present state, if they have been discovered already.
    Returns: the same model, with `pruning_layout` and `pruned_by`; another model that holds one of its
        modules is cut with it.
    Raises: ValueError: the plan does not fit the model, the model would no longer run or mix its groups (see
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
    scaled = any(factor != 1 for factor in factors.values())  # a plain config has one epsilon for all norms
    plain = None if scaled else _plain_config(model, axes, kept, layout, rules)
    layout["config"] = {} if plain else layout["config"]
    merged = merge_layouts(model, layout)
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
                else:  # each slice along dim 0 its own: (slices, 1, ..., entries, 1, ...)
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
    """Set the weights of the groups that a plan does not keep to zero; shapes stay.

    Args: axes: of the model in its present state, if they have been discovered already.
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
    memory = Counter(p.data_ptr() for p in model.parameters())
    for parameter in model.parameters():
        if memory[parameter.data_ptr()] > 1:  # with another one, whose groups are others
            parameter.data = parameter.data.clone()
    for name, per_structure in _keep_by_structure(axes, plan).items():
        for member in axes[name].members:
            weight, dim = model.get_parameter(member.parameter), member.dim
            if member.expert is not None:
                weight, dim = weight[member.expert], dim - 1
            gone = gone_entries(axes[name], member, per_structure[member.structure])
            weight.index_fill_(dim, gone.to(weight.device), 0)
    return model


def axes_of(model: nn.Module, plan: Plan, axes: Axes | None, *, prove: bool = True) -> Axes:
    """Give the axes that a plan is for: those passed, after a check, or else newly discovered ones.

    Args: prove: run the model on labels, since another one may have the same names and shapes.
    """
    if axes is None:
        return discover(model, query_heads=plan.query_heads)
    require(Axes, axes=axes)
    check_axes(axes, model)
    if prove:
        _keep_by_structure(axes, plan)  # refuses a plan for other groups
        try:
            check_cut(without_weights(model), decoder_layers(model)[0], plan, axes.numbers, axes, {}, {})
        except ValueError as error:
            what = f"the axes are those of another model: {type(model).__name__} has other groups"
            raise ValueError(f"{what}; leave `axes` out or run discover again") from error
    return axes


def _keep_by_structure(axes: Axes, plan: Plan) -> dict[str, dict[str, torch.Tensor]]:
    """Axes that lose groups -> structure -> kept groups; checks that the plan was made for this model."""
    keep: dict[str, dict[str, torch.Tensor]] = {}
    for key, kept in plan.keep.items():
        name, _, structure = key.partition("/")
        if name not in axes:
            there = f"{', '.join(list(axes)[:6])} ... (Plan.query_heads says which axes are discovered)"
            raise ValueError(f"the plan cuts {name}, which this model does not have; its axes: {there}")
        axis = axes[name]
        plan.check_count(key, axis.n_groups)
        if structure and structure not in axis.structures:
            raise ValueError(f"the plan ranks {structure} alone, but {name} has {axis.structures}")
        if len(kept) < axis.n_groups:
            own = [structure] if structure else axis.structures
            keep.setdefault(name, {}).update(dict.fromkeys(own, kept))
    _check_even(axes, keep)
    return keep


def gone_entries(axis: Axis, member: Member, kept: torch.Tensor) -> torch.Tensor:
    """Entries of a member that belong to groups which do not stay."""
    gone = torch.ones(axis.n_groups, dtype=torch.bool)
    gone[kept] = False
    return member.indices[gone].reshape(-1)


def _cut_indices(model: nn.Module, axes: Axes, keep: dict) -> dict[str, dict[int, torch.Tensor]]:
    """Parameter -> dim -> sorted entries that stay: `(n,)`, or `(slices, n)` where each slice along dim 0
    keeps its own."""
    stays: dict[str, dict[int, torch.Tensor]] = {}  # masks
    for name, per_structure in keep.items():
        for member in axes[name].members:
            shape = model.get_parameter(member.parameter).shape
            slices = () if member.expert is None else shape[:1]
            whole = torch.ones(*slices, shape[member.dim], dtype=torch.bool)
            mask = stays.setdefault(member.parameter, {}).setdefault(member.dim, whole)
            gone = gone_entries(axes[name], member, per_structure[member.structure])
            (mask if member.expert is None else mask[member.expert])[gone] = False
    for parameter, mask in ((name, mask) for name, by_dim in stays.items() for mask in by_dim.values()):
        if len(mask.sum(-1).unique()) > 1:
            what = f"the axes lack some of those that share {parameter}, which must all keep as many groups"
            raise ValueError(f"{what}; give all of what discover returned, or no axes")
    return {
        # slice after slice where the mask has slices
        parameter: {dim: mask.nonzero()[:, -1].view(*mask.shape[:-1], -1) for dim, mask in by_dim.items()}
        for parameter, by_dim in stays.items()
    }


def _norm_factors(model: nn.Module, axes: Axes, keep: dict, cuts: dict) -> dict[str, float]:
    """Norms that run over all groups of a cut axis -> by what their weight makes up for those that go."""
    factors = {}
    for name in (n for n in keep if axes[n].layer is not None):
        for member in norm_members(model, axes[name].members, axes[name].side_by_side):
            factor = norm_factor(model.get_submodule(member.structure), cuts[member.parameter][member.dim])
            if factor is None:
                raise ValueError(f"{member.structure} is a norm over all groups of {name} and can't be cut")
            factors[member.parameter] = factor
    return factors


def _layout(model: nn.Module, axes: Axes, keep: dict, cuts: dict, rules: dict[str, SizeRule]) -> dict:
    """What the modules need besides their smaller weights, see `empty_layout`."""
    layout, names = empty_layout(), {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # a class may tie by either name
        first = names.setdefault(id(parameter), name)
        if first in cuts:
            shape = list(parameter.shape)
            for dim, index in cuts[first].items():
                shape[dim] = index.shape[-1]
            layout["shapes"][name] = shape
    path, before = decoder_layers(model)[0], (layout_of(model) or empty_layout())["config"]
    for name, per_structure in keep.items():
        axis, rule, kept = axes[name], rules[name], per_structure[axes[name].last]
        n, around = len(kept), "" if axis.kind == "hidden" else axis.module
        for module, attributes in rule.attributes.items():
            if not around or f"{module}.".startswith(f"{around}."):
                now = {a: size_in(vars(model.get_submodule(module))[a]) for a in attributes}
                scaled = {a: value * n // axis.n_groups for a, value in now.items()}
                layout["attributes"].setdefault(module, {}).update(scaled)
        if axis.layer is not None:
            place = f"{path}.{axis.layer}"
            now = rule.config(axis.n_groups) | before.get(place, {})
            own = {key: now[key] * n // axis.n_groups for key in rule.keys}
            layout["config"].setdefault(place, {}).update(own | rule.fixed)
        for module, argument, dim in axis.constants:
            cut = {"dim": dim, "total": axis.n_groups, "keep": kept.tolist()}
            layout["inputs"].setdefault(module, {})[argument] = cut
    return layout


def _plain_config(model: nn.Module, axes: Axes, kept: dict, layout: dict, rules: dict) -> dict | None:
    """Config edits after which the model class alone builds the pruned model, or None if there are none."""
    if getattr(model, "pruning_layout", None) or layout["inputs"]:
        return None
    edits: dict[str, int] = {}
    for name, rule in rules.items():
        own = rule.config(kept.get(name, axes[name].n_groups))
        if not rule.in_config or any(edits.get(key, value) != value for key, value in own.items()):
            return None
        edits |= own
    shapes = {name: tuple(layout["shapes"].get(name, shape)) for name, shape in shapes_of(model).items()}
    return edits if builds(model, edits, shapes) else None


def _check_even(axes: Axes, keep: dict[str, dict[str, torch.Tensor]]) -> None:
    """Refuse a plan after which the structures of an axis, or siblings, keep different numbers of groups."""
    counts: dict[str, dict[str, int]] = {}  # axis or siblings -> what must keep as many -> how many it keeps
    for name, axis in axes.items():
        kept = {s: len(keep.get(name, {}).get(s, range(axis.n_groups))) for s in axis.structures}
        counts[name] = kept
        if axis.siblings:
            counts.setdefault(axis.siblings, {})[name] = min(kept.values())
    for name, kept in counts.items():
        if len(set(kept.values())) > 1:
            uneven = ", ".join(f"{part}: {n}" for part, n in list(kept.items())[:6])
            wanted = "must all keep the same number of groups, else their tensors no longer fit each other"
            raise ValueError(f"the parts of {name} {wanted}; the plan keeps {uneven} ...")
