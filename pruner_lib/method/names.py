"""The names of the method's options (paper section 3), importable without torch."""

KINDS = ("attention", "mlp", "hidden")
GRANULARITIES = {"block": ("attention", "mlp"), "channel": ("hidden",), "layer": ()}  # -> kinds that are cut
SCOPES = ("local", "global", "joint")
TARGETS = ("groups", "parameters")
AGGREGATIONS = ("sum", "mean", "prod", "max", "last")
ORDERS = ("channel", "group")
CRITERIA = ("random", "l1", "l2", "vector", "element1", "element2", "mixed")
DATA_FREE = ("random", "l1", "l2")
SECOND_ORDER = ("element2", "mixed")  # need the gradient of each sample
ADDITIVE = ("vector", "element2")  # sums over samples, so micro-batches can be scored one by one
