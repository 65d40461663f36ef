"""Index labels and their equalities, the basis of dependency discovery (paper section 3.1, Eq. 1 and 2).

Every entry along every dim of every parameter has an integer label; an activation carries a label tensor of
its own shape (-1: no parameter entry). This module defines what element-wise operations and matrix products
do to labels, and records which labels depend on each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of one tensor: one table for an activation, one for each dim of a parameter or constant."""

    tensors: tuple[torch.Tensor, ...]
    source: str = "activation"  # "activation", "parameter" or "constant"
    zero: bool = True  # entries of a masked group are zero; False after an exp, a softmax or `+ 1`

    def map(self, function) -> "Labels":
        return replace(self, tensors=tuple(function(t) for t in self.tensors))


@dataclass
class Recording:
    """The record of one labelled forward pass."""

    owners: list[tuple[str, int, str]] = field(default_factory=list)  # (name, dim, source)
    starts: list[int] = field(default_factory=list)  # first label of each owner, ascending
    n_labels: int = 0
    equal: list[np.ndarray] = field(default_factory=list)  # pairs of labels in the same group
    # pairs that tie several heads to one key-value head: equalities, unless query heads are the groups
    shared: list[np.ndarray] = field(default_factory=list)
    # pairs (label, other) of a label that was broadcast over several others: it joins their group if they
    # all belong to one
    spread: list[np.ndarray] = field(default_factory=list)
    # labels that each stand for a batch index of a product of two activations (an attention head)
    products: list[np.ndarray] = field(default_factory=list)
    # (parameter, dim) -> "in" or "out", in the order of their last execution
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    outputs: list[np.ndarray] = field(default_factory=list)  # labels that reach the output of the model
    # what the model computes with besides weights: the decoder layer's number or None, then the name of an
    # operator, a number (see `numbers_in`) or the numbers of a list that becomes a tensor
    factors: list[tuple] = field(default_factory=list)
    places: dict[tuple, str] = field(default_factory=dict)  # factor -> path of the first module that uses it
    # pairs of labels that can't be removed unless both are in one group (-1 is in none), the reason, and the
    # leaf module if the reason is a mean, which is allowed for norms (see `norms`)
    pinned: list[tuple[np.ndarray, str, str | None]] = field(default_factory=list)
    # distinct labels, and a hash of how they are used in a computation
    uses: list[tuple[np.ndarray, int]] = field(default_factory=list)
    running: list[str] = field(default_factory=list)  # paths of the running modules, innermost last
    layer: int | None = None  # the running decoder layer
    # parameters whose slices along dim 0 are separate matrices, selected while the model runs (experts)
    stacks: set[str] = field(default_factory=set)
    reached: set[int] = field(default_factory=set)  # ids of the parameters that some operator received

    @property
    def module(self) -> str:
        """Path of the innermost running module."""
        return self.running[-1] if self.running else ""

    def compute_with(self, *values: object) -> None:
        """Record what the model computes with besides weights, see `factors`."""
        self.factors.append((self.layer, *values))
        self.places.setdefault(self.factors[-1], self.module)

    def pin(self, labels: Labels | None, reason: str) -> None:
        """Record that labels can't be removed."""
        for table in () if labels is None else labels.tensors:
            distinct = np.unique(collapse(table)[0].numpy())
            self.pinned.append((np.stack([distinct, np.full_like(distinct, -1)], 1), reason, None))

    def mix(self, labels: Labels | None, dims: Sequence[int], reason: str, module: str | None = None) -> None:
        """Record that a result depends on the number of entries along `dims`, even on zero entries."""
        for table in () if labels is None else labels.tensors:
            (table,) = collapse(table)
            lanes = table.movedim(tuple(dims), tuple(range(-len(dims), 0))).flatten(-len(dims))
            pairs = np.stack([part.reshape(-1).numpy() for part in (lanes[..., 1:], lanes[..., :-1])], 1)
            self.pinned.append((pairs, reason, module))

    def add_up(self, labels: Labels | None, dims: Sequence[int], op: object) -> None:
        """Record a sum along `dims`, which is harmless (an empty reason) if masked entries are zero."""
        if labels is not None:
            self.mix(labels, dims, "" if labels.zero else f"{op} adds up masked entries that are not zero")

    def use(self, labels: Labels, computation: tuple) -> None:
        """Record that an activation is used in a computation, each of its labels once."""
        flat = collapse(labels.tensors[0])[0].reshape(-1).numpy()
        self.uses.append((flat[flat >= 0], hash(computation)))

    def uses_of(self, components: np.ndarray) -> np.ndarray:
        """`(n_components,)` sums of the hashes of their labels' uses; equal if they are used alike."""
        uses, sums = np.zeros(self.n_labels, np.int64), np.zeros(components.max() + 1, np.int64)
        for labels, computation in self.uses:
            uses[labels] += computation
        np.add.at(sums, components, uses)
        return sums

    def new_labels(self, n: int, owner: tuple[str, int, str] | None = None) -> torch.Tensor:
        labels = torch.from_numpy(np.arange(self.n_labels, self.n_labels + n))  # torch.arange would be traced
        self.owners.append(owner or ("", 0, "product"))
        self.starts.append(self.n_labels)
        self.n_labels += n
        return labels

    def label(self, tensor: torch.Tensor, owner: str, source: str) -> Labels:
        """Give every entry along every dim of a parameter or constant a new label."""
        tables = []
        for dim, size in enumerate(tensor.shape):
            labels = self.new_labels(size, (owner, dim, source))
            tables.append(labels.view(-1, *[1] * (tensor.ndim - dim - 1)).expand(tensor.shape))
        return Labels(tuple(tables), source)

    def owner_of(self, label: int) -> tuple[str, int, str]:
        return self.owners[int(np.searchsorted(self.starts, label, side="right")) - 1]

    def components(self, *, query_heads: bool) -> np.ndarray:
        """Connect equal labels, then those broadcast inside one component; `(n_labels,)` group of each."""
        equal = self.equal if query_heads else [*self.equal, *self.shared]
        components = _connect(pairs_in(equal), self.n_labels)
        spread = pairs_in(self.spread)
        met = unique_pairs(np.stack([spread[:, 0], components[spread[:, 1]]], 1))  # (label, component)
        labels, first, counts = np.unique(met[:, 0], return_index=True, return_counts=True)
        inside = counts == 1
        joined = np.stack([components[labels[inside]], met[first[inside], 1]], 1)
        return _connect(joined, components.max() + 1)[components]

    def entries(self, components: np.ndarray) -> dict[tuple[str, int, str], np.ndarray]:
        """(name, dim, source) of each parameter and constant -> `(size,)` the component of each entry."""
        ends = [*self.starts[1:], self.n_labels]
        owned = zip(self.owners, self.starts, ends, strict=True)
        return {owner: components[start:end] for owner, start, end in owned if owner[0]}

    def set_role(self, labels: torch.Tensor, role: str, *, only_if_new: bool = False) -> None:
        """Record that the parameter dim with these labels is executed, as "in" or "out"."""
        if not labels.numel():
            return
        first = int(labels[(0,) * labels.ndim])  # a reshape would materialise an expanded table
        if first >= 0:
            owner, dim, source = self.owner_of(first)
            if source == "parameter" and not (only_if_new and (owner, dim) in self.roles):
                self.roles.pop((owner, dim), None)
                self.roles[owner, dim] = role


def same_along(labels: torch.Tensor, dim: int) -> bool:
    """True if all slices of `labels` along `dim` are equal."""
    if labels.shape[dim] == 1 or labels.stride(dim) == 0:
        return True
    (labels,) = collapse(labels)  # for speed: tables of parameters are expanded
    return bool((labels == labels.narrow(dim, 0, 1)).all())


def collapse(*tables: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Broadcast label tensors and shrink dims along which none of them changes (mostly tokens) to size 1."""
    tables = torch.broadcast_tensors(*tables)
    for dim in range(tables[0].ndim):
        if all(t.shape[dim] == 1 or t.stride(dim) == 0 for t in tables):
            tables = tuple(t.narrow(dim, 0, 1) for t in tables)
    return tables


def _connect(pairs: np.ndarray, n: int) -> np.ndarray:
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def pairs_in(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate arrays of pairs, `(n, 2)`; there may be none."""
    return np.concatenate([*parts, np.zeros((0, 2), np.int64)])


def unique_pairs(pairs: np.ndarray) -> np.ndarray:
    """Return the distinct rows of non-negative numbers, sorted; one key per row is much faster to sort."""
    base = int(pairs[:, 1].max(initial=0)) + 1
    keys = np.sort(pairs[:, 0] * base + pairs[:, 1])
    keys = keys[np.diff(keys, prepend=-1) > 0]
    return np.stack([keys // base, keys % base], 1)


def _met(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Return the pairs of different labels at the same position of tables of one shape, `(n, 2)`."""
    pairs = np.stack([a.reshape(-1).numpy(), b.reshape(-1).numpy()], 1)
    return pairs[(pairs >= 0).all(1) & (pairs[:, 0] != pairs[:, 1])]


def combine(rec: Recording, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Record what an element-wise operation ties together, and return the labels of its result.

    Labels that meet one to one are equal. A label that meets several others was broadcast over them
    (a q_norm that all heads share); such pairs are recorded in `spread`.
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    a, b = collapse(a, b)
    flat = _met(a, b)
    spreads_a = spreads_b = False
    if len(flat) > 1 and not (np.diff(flat, axis=0) > 0).all():
        flat = unique_pairs(flat)
        many = [np.unique(flat[:, s], return_counts=True, return_inverse=True) for s in (0, 1)]
        wide_a, wide_b = ((counts > 1)[inverse.reshape(-1)] for _, inverse, counts in many)
        spreads_a, spreads_b = wide_a.any(), wide_b.any()
        rec.spread += [flat[wide_a], flat[wide_b][:, ::-1]]
        flat = flat[~wide_a & ~wide_b]
    rec.equal.append(flat)
    first, second = (b, a) if spreads_a and not spreads_b else (a, b)
    return torch.where(first >= 0, first, second).expand(shape)


def multiply(rec: Recording, a: Labels | None, b: Labels | None, shape: tuple[int, ...]) -> Labels | None:
    """Record what a batched product `(batch, m, k) x (batch, k, n)` ties together, and return its labels."""
    if a is not None and a.source == "parameter":
        flip = lambda x: None if x is None else x.map(lambda t: t.transpose(1, 2))  # noqa: E731
        return flip(multiply(rec, flip(b), flip(a), (shape[0], shape[2], shape[1])))
    if b is not None and b.source == "parameter":
        if a is not None and not (a.zero or b.zero):
            rec.mix(a, [2], "a weight is changed so that its masked entries are not zero")
        consumed, produced = _sides(b.tensors)
        for table in consumed:
            rec.set_role(table, "in")
            if a is not None:
                rec.equal.append(_met(*collapse(a.tensors[0], table[:, :, :1].transpose(1, 2))))
        for table in produced:
            rec.set_role(table, "out")
            return Labels((table[:, :1, :].expand(shape),))
        return None
    empty = [x is None or x.source == "constant" or bool((x.tensors[0] < 0).all()) for x in (a, b)]
    a, b = (None if nothing else x for x, nothing in zip((a, b), empty, strict=True))
    if a is not None and b is not None:
        return replace(_attend(rec, a.tensors[0], b.tensors[0], shape), zero=a.zero or b.zero)
    for x, dim in ((b, 1), (a, 2)):
        if x is not None and same_along(x.tensors[0], dim):
            return x.map(lambda t, dim=dim: t.narrow(dim, 0, 1).expand(shape))
        rec.add_up(x, [dim], "aten.mm with no weight")
    return None


def _sides(tables: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Split a weight's label tensors `(batch, k, n)` into those of the contracted and produced dims."""
    consumed = [t for t in tables if not same_along(t, 1)]
    produced = [t for t in tables if not same_along(t, 2)]
    rest = [t for t in tables if same_along(t, 0) and not any(t is u for u in consumed + produced)]
    for table in rest:  # a dim of size 1, along which nothing varies
        (produced if consumed and not produced else consumed).append(table)
    return consumed, produced


def _attend(rec: Recording, a: torch.Tensor, b: torch.Tensor, shape: tuple[int, int, int]) -> Labels:
    """Record that a product of two activations ties everything inside a batch index (an attention head).

    Labels that heads share beside private ones (the rotary key of latent attention) belong to no head.
    """
    head = rec.new_labels(shape[0])  # (batch,)
    rec.products.append(head.numpy())
    for table in (a, b):
        for dim in (1, 2):
            table = table.narrow(dim, 0, 1) if same_along(table, dim) else table
        pairs = unique_pairs(_met(head.view(-1, 1, 1).expand(table.shape), table))  # (n, 2): head, label
        labels, inverse, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
        shared = (counts > 1)[inverse.reshape(-1)]
        private = np.unique(pairs[~shared, 0])
        rec.equal.append(pairs[~shared])
        rec.shared.append(pairs[shared & ~np.isin(pairs[:, 0], private)])
    for table, dim in ((b, 1), (a, 2)):
        if same_along(table, dim) and not bool((table < 0).any()):
            return Labels((_of_each_head(rec, head, table.narrow(dim, 0, 1)).expand(shape),))
    return Labels((head.view(-1, 1, 1).expand(shape),))


def _of_each_head(rec: Recording, head: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Give each head new labels for its product with values that it shares with other heads."""
    if table.unique().numel() == table.numel():
        return table
    labels = rec.new_labels(table.numel()).view(table.shape)
    rec.shared.append(_met(labels, table))
    rec.equal.append(_met(head.view(-1, 1, 1).expand(table.shape), labels))
    return labels


def labels_of(x) -> Labels | None:
    return getattr(x, "_pruner_labels", None)


def set_labels(tensor: torch.Tensor, labels: Labels | None) -> None:
    tensor._pruner_labels = labels
