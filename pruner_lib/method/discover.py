"""Discovery: from traced labels to groups and axes (paper section 3.1 and Figure 2).

Connected components of the recorded equalities are the groups; components of the same make in the same
place form an axis. Nothing is scored or cut here.

Some axes must keep equally many groups, because their weights make up one tensor. The experts of a layer are
stacked in one parameter; the query heads of each key and value head lie side by side in another. Every
expert, and every key and value head, has groups of its own, but the tensors stay rectangular only if all of
them lose the same number.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.groups import Axes, Axis, Member
from pruner_lib.method.labels import Recording, unique_pairs
from pruner_lib.method.norms import obstacle_in_norms
from pruner_lib.method.operators import NO_RULE
from pruner_lib.method.trace import trace


def split_experts(axis: Axis, n_experts: int) -> list[Axis]:
    """One axis for each matrix of a stack `(experts, ...)`."""
    return [
        replace(
            axis,
            name=f"{axis.name}.{e}",
            members=tuple(replace(m, at=(0, e)) for m in axis.members),
            group_parameters=axis.group_parameters // n_experts,
            siblings=axis.name,
        )
        for e in range(n_experts)
    ]


def split_queries(axis: Axis, owner: np.ndarray) -> list[Axis]:
    """One axis for each key and value head, whose groups are its query heads.

    Args: owner: `(n_groups,)` which key and value head each query head uses.
    """
    heads = list(dict.fromkeys(owner.tolist()))
    rows = {head: np.flatnonzero(owner == head) for head in heads}
    return [
        replace(
            axis,
            name=f"{axis.name}.{i}",
            n_groups=len(rows[head]),
            members=tuple(replace(m, indices=m.indices[rows[head]]) for m in axis.members),
            siblings=axis.name,
            side_by_side=len(heads),
        )
        for i, head in enumerate(heads)
    ]


def discover(model: nn.Module, *, query_heads: bool = False) -> Axes:
    """Find every prunable group of a decoder by running it once on index labels.

    Args:
        model: a Hugging Face style decoder with a language-model head, on any device; the meta device is
            enough.
        query_heads: with grouped-query attention, let the query heads of each key and value head be its
            groups (one axis a key and value head, all of which keep the same number), instead of whole key
            and value heads with all their query heads.
    Returns: axis name -> `Axis`, in the order of the layers, the residual stream (`hidden`) last. `.notes`
        says what was left out and why.
    Raises: ValueError: the model is no decoder, or does not run on the meta device.
    Source: paper section 3.1, Eq. 1 and 2. Differs: the reference walks autograd nodes and needs a
        hand-edited model class; here the dependencies follow from index labels.
    """
    path, layers = decoder_layers(model)
    rec = trace(model, layers)
    whole = _components(rec, rec.shared)
    components = _components(rec, []) if query_heads else whole
    blocks = _blocks(rec, components)
    classes = _classes(blocks, components.max() + 1)
    pinned = {classes[c]: reason for c, reason in _pinned(rec, components).items()}
    is_head = _marked(classes, components, rec.products)
    is_output = _marked(classes, components, rec.outputs)
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    whole_of = np.zeros(components.max() + 1, np.int64)
    whole_of[components] = whole
    found, hidden = [], set()
    notes = _unknown_operators(rec)
    for members, constants, groups in _members(blocks, classes, rec):
        if is_output[groups[0]] or {m.role for m in members} != {"in", "out"}:
            continue
        places = {_layer_of(m.parameter, path) for m in members}
        place = places.pop() if len(places) == 1 else None
        kind = "hidden" if place is None else "attention" if is_head[groups[0]] else "mlp"
        if place is None:
            hidden |= {(m.parameter, m.dim) for m in members}
        obstacle = pinned.get(classes[groups[0]])
        if place is not None and not obstacle:
            obstacle = obstacle_in_norms(model, members)
        if obstacle:
            if not obstacle.startswith(NO_RULE):  # those are in the notes already
                notes.append(f"{members[0].parameter}: {len(groups)} groups left whole, {obstacle}")
            continue
        found.append((kind, place, members, constants, whole_of[groups]))
    axes = _name(found, hidden, sizes, path, notes, rec.stacks)
    per_layer = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    total = sum(p.numel() for p in model.parameters())
    return Axes(axes, n_parameters=total, layer_parameters=per_layer, notes=notes)


def _unknown_operators(rec: Recording) -> list[str]:
    """One note for each operator without a rule and each parameter that it meets."""
    notes = {}
    for labels, reason in rec.pinned:
        owners = {rec.owner_of(label) for label in labels.tolist()} if reason.startswith(NO_RULE) else ()
        for owner, _, source in owners:
            if source == "parameter":
                notes[f"{owner}: left whole, {reason}"] = None
    return sorted(notes)


def _marked(classes: np.ndarray, components: np.ndarray, labels: list[np.ndarray]) -> np.ndarray:
    marked = np.zeros(len(classes), bool)
    found = np.concatenate([*labels, np.zeros(0, np.int64)])
    marked[components[found[found >= 0]]] = True
    return marked


def _components(rec: Recording, shared: list[np.ndarray]) -> np.ndarray:
    """Component number of each label: first the equalities, then broadcasts that stay inside one
    component."""
    pairs = np.concatenate([*rec.equal, *shared, np.zeros((0, 2), np.int64)])
    components = _connect(pairs, rec.n_labels)
    spread = np.concatenate([*rec.spread, np.zeros((0, 2), np.int64)])
    if not len(spread):
        return components
    met = unique_pairs(np.stack([spread[:, 0], components[spread[:, 1]]], 1))
    labels, first, counts = np.unique(met[:, 0], return_index=True, return_counts=True)
    alone = counts == 1
    joined = np.stack([components[labels[alone]], met[first[alone], 1]], 1)
    return _connect(joined, components.max() + 1)[components]


def _pinned(rec: Recording, components: np.ndarray) -> dict[int, str]:
    """Components that can't be cut -> why. What a pinned label was broadcast over is pinned with it."""
    reasons: dict[int, str] = {}
    for labels, reason in rec.pinned:
        for component in np.unique(components[labels]).tolist():
            reasons.setdefault(component, reason)
    spread = np.concatenate([*rec.spread, np.zeros((0, 2), np.int64)])
    pairs = unique_pairs(components[spread])
    for label, other in pairs[np.isin(pairs[:, 0], list(reasons))].tolist():
        reasons.setdefault(other, reasons[label])
    return reasons


def _connect(pairs: np.ndarray, n: int) -> np.ndarray:
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _blocks(rec: Recording, components: np.ndarray) -> list[tuple[tuple[str, int, str], np.ndarray]]:
    """(owner, component of each entry) for the dims of parameters that were used, in order of execution,
    then constants."""
    ends = [*rec.starts[1:], rec.n_labels]
    ranges = {
        owner: components[s:e] for owner, s, e in zip(rec.owners, rec.starts, ends, strict=True) if owner[0]
    }
    used = [(name, dim, "parameter") for name, dim in rec.roles]
    constants = [owner for owner in ranges if owner[2] == "constant"]
    return [(owner, ranges[owner]) for owner in used + constants]


def _classes(blocks: list, n_components: int) -> np.ndarray:
    """Class of each component; two share one when they have the same number of entries in the same places."""
    classes = np.zeros(n_components, np.int64)
    fresh = 1
    for _, entries in blocks:
        components, counts = np.unique(entries, return_counts=True)
        keys, inverse = np.unique(classes[components] * (counts.max() + 1) + counts, return_inverse=True)
        classes[components] = fresh + inverse.reshape(-1)
        fresh += len(keys)
    return classes


def _members(blocks: list, classes: np.ndarray, rec: Recording):
    """Yield (members, constants, component of each group) of each class; members hold index tables of shape
    `(n_groups, width)`."""
    ranks: dict[int, np.ndarray] = {}
    members: dict[int, list[Member]] = {}
    constants: dict[int, list[tuple[str, str, int]]] = {}
    groups: dict[int, np.ndarray] = {}
    for (owner, dim, source), entries in blocks:
        for number in np.unique(classes[entries]):
            where = np.flatnonzero(classes[entries] == number)
            if number not in ranks:  # the first member of an axis numbers its groups
                order, first = np.unique(entries[where], return_index=True)
                ranks[number] = np.zeros(len(classes), np.int32)
                groups[number] = order[np.argsort(first)]
                ranks[number][groups[number]] = np.arange(len(order))
            rank = ranks[number][entries[where]]
            n_groups = int(rank.max()) + 1
            table = where[np.argsort(rank, kind="stable")].reshape(n_groups, -1)
            if source == "constant":
                if table.shape == (n_groups, 1) and n_groups > 1:
                    constants.setdefault(number, []).append((*owner.split(":"), dim))
            else:
                role = rec.roles[owner, dim]
                member = Member(owner, dim, torch.from_numpy(table), role, _structure(owner))
                members.setdefault(number, []).append(member)
    for number, found in members.items():
        yield tuple(found), tuple(constants.get(number, ())), groups[number]


def _structure(parameter: str) -> str:
    module, _, name = parameter.rpartition(".")
    return module if name in ("weight", "bias") else parameter


def _layer_of(parameter: str, path: str) -> int | None:
    if not parameter.startswith(path + "."):
        return None
    return int(parameter[len(path) + 1 :].split(".")[0])


def _name(
    found: list, hidden: set, sizes: dict, path: str, notes: list[str], stacks: set[str]
) -> dict[str, Axis]:
    """Name the axes; what is neither a head, an MLP channel nor the residual stream becomes a note."""
    places: dict[tuple, list] = {}
    for kind, layer, members, constants, owner in found:
        consumers = [m for m in members if m.role == "in"]
        if kind == "mlp" and not any(
            (m.parameter, d) in hidden for m in consumers for d in range(3) if d != m.dim
        ):
            notes.append(
                f"{members[0].parameter}: {len(members[0].indices)} inner channels that feed no residual "
                "stream; left whole"
            )
            continue
        places.setdefault((layer is None, layer or 0, KIND_ORDER[kind]), []).append(
            (kind, layer, members, constants, owner)
        )
    axes = {}
    for _, group in sorted(places.items(), key=lambda item: item[0]):
        for kind, layer, members, constants, owner in group:
            stacked = layer is not None and all(m.parameter in stacks and m.dim for m in members)
            name = kind if layer is None else f"layers.{layer}.{kind}"
            if layer is None and len(group) > 1:
                name = f"{kind}.{members[0].parameter}"
            elif len(group) > 1 or stacked:
                name = f"layers.{layer}.{_common_path(members, path)}"
            n = members[0].indices.shape[0]
            per_group = sum(
                int(np.prod(sizes[m.parameter])) // sizes[m.parameter][m.dim] * m.width for m in members
            )
            in_stack = any(m.parameter in stacks for m in members)
            axis = Axis(name, kind, n, members, per_group, constants, in_stack=in_stack)
            parts = [axis]
            if stacked:
                parts = split_experts(axis, sizes[members[0].parameter][0])
            elif len(set(owner.tolist())) < n:
                parts = split_queries(axis, owner)
            axes |= {part.name: part for part in parts}
            if kind == "attention" and n == 1:
                notes.append(
                    f"{name}: all query heads share one key and value head, so there is only one group; "
                    "discover(model, query_heads=True) finds them one by one"
                )
    return axes


KIND_ORDER = {"attention": 0, "mlp": 1, "hidden": 2}


def _common_path(members: tuple[Member, ...], path: str) -> str:
    parts = [m.structure[len(path) + 1 :].split(".")[1:] for m in members]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)
