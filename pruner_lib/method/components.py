"""Connected components of what a trace recorded: which entries belong together (paper section 3.1).

`discover` makes groups and axes of them, `proof` compares them before and after a cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pruner_lib.method.labels import Recording, unique_pairs


def components_of(rec: Recording, *, query_heads: bool) -> np.ndarray:
    """`(n_labels,)` component number of each label: first the equalities, then broadcasts that stay inside
    one component."""
    components = _connect(pairs_in(rec.equal if query_heads else [*rec.equal, *rec.shared]), rec.n_labels)
    spread = pairs_in(rec.spread)
    if not len(spread):
        return components
    met = unique_pairs(np.stack([spread[:, 0], components[spread[:, 1]]], 1))  # (label, component)
    labels, first, counts = np.unique(met[:, 0], return_index=True, return_counts=True)
    alone = counts == 1
    joined = np.stack([components[labels[alone]], met[first[alone], 1]], 1)
    return _connect(joined, components.max() + 1)[components]


def entries_of(rec: Recording, components: np.ndarray) -> dict[tuple[str, int, str], np.ndarray]:
    """(name, dim, source) of each parameter and constant -> `(size,)` the component of each entry."""
    ends = [*rec.starts[1:], rec.n_labels]
    return {o: components[s:e] for o, s, e in zip(rec.owners, rec.starts, ends, strict=True) if o[0]}


def _connect(pairs: np.ndarray, n: int) -> np.ndarray:
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def pairs_in(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([*parts, np.zeros((0, 2), np.int64)])
