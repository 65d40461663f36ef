"""The names of the criteria, and what kind of pass each of them needs (paper Eq. 3 to 5)."""

from __future__ import annotations

CRITERIA = ("random", "l1", "l2", "vector", "element1", "element2", "mixed")
DATA_FREE = ("random", "l1", "l2")
SECOND_ORDER = ("element2", "mixed")  # need the gradient of each sample
ADDITIVE = ("vector", "element2")  # sums over samples: micro-batches are scored one by one
