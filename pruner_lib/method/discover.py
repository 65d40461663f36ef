"""Discovery: from traced labels to groups and axes (paper section 3.1 and Figure 2).

The groups are the connected components of the recorded equalities; components with the same number of entries
in the same places form an axis. Every expert of a layer has its own axis, as has every key-value head with
`query_heads`: these are siblings, which must all keep the same number of groups, because they share tensors.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from pruner_lib.method.checks import require
from pruner_lib.method.decoder import check_plain, decoder_layers
from pruner_lib.method.groups import Axes, Axis, Member
from pruner_lib.method.labels import Recording, pairs_in, unique_pairs
from pruner_lib.method.names import KINDS
from pruner_lib.method.norms import norm_members, obstacle_in_norms
from pruner_lib.method.offload import without_weights
from pruner_lib.method.operators import NO_RULE
from pruner_lib.method.trace import trace

# components of the same form, which become an axis unless there is an obstacle: the axis, named by layer and
# kind, and `(n_groups,)` the component of each group
Candidate = tuple[Axis, np.ndarray]


def discover(model: nn.Module, *, query_heads: bool = False) -> Axes:
    """Find every prunable group of a decoder by running it once on index labels.

    Args:
        model: a Hugging Face style decoder with a language-model head, on any device, also the meta device.
        query_heads: with grouped-query attention, prune single query heads: each key-value head has an axis
            whose groups are its query heads, and all these axes keep the same number. By default a group is
            a key-value head with all its query heads.
    Returns: axis name -> `Axis`, in layer order, the residual stream (`hidden`) last. `.notes` says what was
        left out and why.
    Raises: ValueError: the model is not a plain decoder (see `check_plain`), or can't be traced.
    Source: paper section 3.1, Eq. 1 and 2. Differs: the reference walks autograd nodes and needs a
        hand-edited model class; here the dependencies follow from index labels.
    """
    check_plain(model)
    require(bool, query_heads=query_heads)
    model = without_weights(model)
    path, layers = decoder_layers(model)
    rec = trace(model)
    coarse = rec.components(query_heads=False)
    components = rec.components(query_heads=True) if query_heads else coarse
    key_value_head = np.zeros(components.max() + 1, np.int64)  # component -> the coarse one that contains it
    key_value_head[components] = coarse
    candidates = _candidates(model, rec, components, path)
    free, notes = _without_obstacles(model, rec, candidates, components, query_heads)
    axes: dict[str, Axis] = {}
    named = _named(free, path, rec.stacks)
    single = Counter(axis.layer for axis, _ in named if axis.kind == "attention" and axis.n_groups == 1)
    for axis, groups in named:
        if _stacked(axis, rec.stacks):
            parts = _split_experts(axis, len(model.get_parameter(axis.members[0].parameter)))
        else:
            parts = _split_queries(axis, key_value_head[groups])
        axes |= {part.name: part for part in parts}
        if axis.kind == "attention" and axis.n_groups == 1:
            reason = "each head has its own modules, so no other group is like it and it is always kept"
            if single[axis.layer] == 1:
                reason = "all query heads share one key-value head; query_heads=True makes each a group"
            notes.append(f"{axis.name}: {reason}")
    total, *per_layer = (sum(p.numel() for p in module.parameters()) for module in (model, *layers))
    facts = {"n_parameters": total, "layer_parameters": per_layer, "numbers": Counter(rec.factors)}
    return Axes(axes, notes=notes, **facts)


def _candidates(model: nn.Module, rec: Recording, components: np.ndarray, path: str) -> list[Candidate]:
    """Return an axis for each form of components that produce and consume channels and feed no logits."""
    entries = rec.entries(components)
    used = [(name, dim, "parameter") for name, dim in rec.roles]
    used += [owner for owner in entries if owner[2] == "constant"]
    forms = _forms([entries[owner] for owner in used], components.max() + 1)
    by_form: dict[int, list[tuple]] = {}  # form -> (owner, its entries of this form)
    for owner in used:
        form_of_entry = forms[entries[owner]]
        for form in np.unique(form_of_entry).tolist():
            by_form.setdefault(form, []).append((owner, np.flatnonzero(form_of_entry == form)))
    heads: Counter[int] = Counter()  # component -> attention heads in it: batch indices of one product
    for labels in rec.products:
        heads |= Counter(components[labels].tolist())  # elementwise maximum
    reached = np.concatenate(rec.outputs)
    outputs = set(components[reached[reached >= 0]].tolist())
    candidates = []
    for places in by_form.values():
        tables, groups = _index_tables(places, entries)
        members, constants, size = [], [], 0
        for ((owner, dim, source), _), table in zip(places, tables, strict=True):
            if source == "parameter":
                structure, parameter = re.sub(r"\.(weight|bias)$", "", owner), model.get_parameter(owner)
                members.append(Member(owner, dim, torch.from_numpy(table), rec.roles[owner, dim], structure))
                size += parameter.numel() // parameter.shape[dim] * table.shape[1]
            elif len(table) > 1 and (table.shape[1] == 1 or owner.endswith(":")):
                constants.append((*owner.split(":"), dim))
        if groups[0] in outputs or {m.role for m in members} != {"in", "out"}:
            continue
        layers = {re.match(rf"{re.escape(path)}\.(\d+)\.|", m.parameter)[1] for m in members}
        layer = layers.pop() if len(layers) == 1 else None
        kind = "hidden" if layer is None else "attention" if groups[0] in heads else "mlp"
        name = kind if layer is None else f"layers.{layer}.{kind}"
        flags = {"in_stack": any(m.parameter in rec.stacks for m in members), "heads": heads[groups[0]] or 1}
        axis = Axis(name, kind, len(groups), tuple(members), size, tuple(constants), **flags)
        candidates.append((axis, groups))
    return candidates


def _index_tables(places: Sequence[tuple], entries: Mapping) -> tuple[list[np.ndarray], np.ndarray]:
    """Return a table `(n_groups, width)` per place (owner, its entries), and the component of each group."""
    owner, chosen = places[0]  # defines the group numbers
    order, first = np.unique(entries[owner][chosen], return_index=True)  # components, ascending
    rank = first.argsort().argsort()  # group number of each component
    tables = []
    for owner, chosen in places:
        number = rank[np.searchsorted(order, entries[owner][chosen])]  # group of each entry
        tables.append(chosen[np.argsort(number, kind="stable")].reshape(len(order), -1))
    return tables, order[first.argsort()]


def _forms(entries: Sequence[np.ndarray], n_components: int) -> np.ndarray:
    """Number the forms of components, `(n_components,)`; equal forms have as many entries in each place."""
    forms, fresh = np.zeros(n_components, np.int64), 1
    for place in entries:  # (size,) component of each entry
        components, counts = np.unique(place, return_counts=True)
        keys, inverse = np.unique(forms[components] * (counts.max() + 1) + counts, return_inverse=True)
        forms[components] = fresh + inverse.reshape(-1)
        fresh += len(keys)
    return forms


def _without_obstacles(
    model: nn.Module, rec: Recording, candidates: list[Candidate], components: np.ndarray, query_heads: bool
) -> tuple[list[Candidate], list[str]]:
    """Return the axes that can be cut, and a note for each of the others that names its obstacle."""
    reasons: dict[int, str] = {}  # component that can't be cut -> why
    averaged: dict[int, dict[str, str]] = {}  # component -> module that takes its mean -> why it can't be cut
    unknown = set()  # a note for each operator without a rule and each parameter that it involves
    # outputs of query heads that share values: a head with a zero query still returns the mean of the values
    outputs = pairs_in(rec.shared)[:, 0] if query_heads else ()
    for pairs, reason, module in rec.pinned:
        if (module is not None or not reason) and np.isin(pairs, outputs).any():
            adds = f"{module} takes a mean over" if module else "the model adds up"
            reason = f"{adds} what they read from shared values; try query_heads=False"
            module = None
        if not reason:
            continue
        met = np.where(pairs < 0, -1, components[pairs])
        for component in np.unique(met[met[:, 0] != met[:, 1]]).tolist():
            if module is None:
                reasons.setdefault(component, reason)
            else:
                averaged.setdefault(component, {})[module] = reason
        labels = pairs[pairs >= 0].tolist() if reason.startswith(NO_RULE) else ()
        owners = {rec.owner_of(label) for label in labels}
        unknown |= {f"{owner}: left whole, {reason}" for owner, _, kind in owners if kind == "parameter"}
    pairs = unique_pairs(components[pairs_in(rec.spread)])
    for label, other in pairs[np.isin(pairs[:, 0], list(reasons))].tolist():
        reasons.setdefault(other, reasons[label])  # a pinned label was broadcast over `other`
    stream = {(m.parameter, m.dim) for axis, _ in candidates for m in axis.members if axis.layer is None}
    heads = set(np.concatenate([components[labels] for labels in rec.products] or [()]).tolist())
    free, notes, uses, path = [], sorted(unknown), rec.uses_of(components), decoder_layers(model)[0]
    unused = {name: p.shape for name, p in model.named_parameters() if id(p) not in rec.reached}
    for axis, groups in candidates:
        obstacle = next((reasons[c] for c in groups.tolist() if c in reasons), None)
        if fixed := [c for c in axis.constants if not c[1] or axis.layer is None]:
            source = "input" if fixed[0][1] else "buffer"
            obstacle = obstacle or f"the {source} {fixed[0][0]} has entries of each group"
        if (uses[groups] != uses[groups[0]]).any():
            obstacle = obstacle or "the model computes with them differently, by their places"
        beside = re.search(r"\.\d+\b", axis.module) and not f"{path}.".startswith(f"{axis.module}.")
        if axis.layer is None and beside:
            obstacle = f"{axis.module} is part of a list beside the decoder layers"
        prefix = "" if axis.layer is None else f"{axis.module}."
        sizes = {axis.n_groups, *(m.indices.numel() for m in axis.members)}
        for name in (n for n, shape in unused.items() if n.startswith(prefix) and sizes & {*shape}):
            reason = f"{name}, of the same width, is not used when the model reads only a few tokens"
            obstacle = obstacle or f"{reason}; to cut them, remove it from the model and discover again"
        if axis.layer is not None and not obstacle:
            norms = {member.structure for member in norm_members(model, axis.members)}
            means = (averaged[c] for c in averaged.keys() & set(groups.tolist()))
            other_means = [reason for mean in means for module, reason in mean.items() if module not in norms]
            obstacle = other_means[0] if other_means else obstacle_in_norms(model, axis.members)
        holders = dict.fromkeys(m.parameter.rpartition(".")[0] for m in axis.members)
        if tied := [h for h in holders if isinstance(model.get_submodule(h), nn.MultiheadAttention)]:
            obstacle = f"{tied[0]} is a torch.nn.MultiheadAttention, whose heads span the width of its input"
        if axis.kind == "mlp" and not obstacle:
            consumers = (m for m in axis.members if m.role == "in")
            others = ((m.parameter, dim) for m in consumers for dim in range(3) if dim != m.dim)
            obstacle = "inner channels that feed no residual stream" if stream.isdisjoint(others) else None
        first = axis.members[0].parameter
        if not obstacle:
            free.append((axis, groups))
            if axis.layer is None and groups[0] in heads:
                reason = "that layers share are cut with the hidden channels, by granularity='channel' alone"
                notes.append(f"{first}: {axis.n_groups} attention heads {reason}")
        elif not any(note.startswith(f"{m.parameter}: ") for m in axis.members for note in unknown):
            notes.append(f"{first}: {axis.n_groups} groups left whole, {obstacle}")
    return free, notes


def _named(candidates: Sequence[Candidate], path: str, stacks: set[str]) -> list[Candidate]:
    """Sort by layer, the residual stream last; name several of a kind by module, and within one by number."""
    counts, named = Counter(axis.name for axis, _ in candidates), []
    ordered = sorted(candidates, key=lambda c: (c[0].layer is None, c[0].layer or 0, KINDS.index(c[0].kind)))
    for axis, groups in ordered:
        name = axis.name
        if axis.layer is None and counts[name] > 1:
            name = f"{name}.{axis.members[0].parameter}"
        elif counts[name] > 1 or _stacked(axis, stacks):
            name = f"layers.{axis.layer}.{axis.module.removeprefix(f'{path}.{axis.layer}.')}"
        named.append((replace(axis, name=name), groups))
    counts, before = Counter(axis.name for axis, _ in named), Counter()
    for i, (axis, groups) in enumerate(named):
        if counts[axis.name] > 1:  # in one module, such as heads of different forms
            named[i] = replace(axis, name=f"{axis.name}.{before[axis.name]}"), groups
            before[axis.name] += 1
    return named


def _stacked(axis: Axis, stacks: set[str]) -> bool:
    """True if each of a layer's stacked experts has its own groups."""
    return axis.layer is not None and all(m.parameter in stacks and m.dim for m in axis.members)


def _split_experts(axis: Axis, n_experts: int) -> list[Axis]:
    """Return an axis for each matrix of a stack `(experts, ...)`."""
    members = [tuple(replace(m, expert=e) for m in axis.members) for e in range(n_experts)]
    shared = {"siblings": axis.name, "group_parameters": axis.group_parameters // n_experts}
    return [replace(axis, name=f"{axis.name}.{e}", members=m, **shared) for e, m in enumerate(members)]


def _split_queries(axis: Axis, owner: np.ndarray) -> list[Axis]:
    """Return an axis per key-value head (`owner`, `(n_groups,)`), or `axis` itself if each owns one group."""
    heads = list(dict.fromkeys(owner.tolist()))
    if len(heads) == axis.n_groups:
        return [axis]
    parts, shared = [], {"siblings": axis.name, "side_by_side": len(heads)}
    for i, head in enumerate(heads):
        groups = np.flatnonzero(owner == head)
        members = tuple(replace(m, indices=m.indices[groups]) for m in axis.members)
        parts.append(replace(axis, name=f"{axis.name}.{i}", n_groups=len(groups), members=members, **shared))
    return parts
