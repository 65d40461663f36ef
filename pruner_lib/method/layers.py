"""Dropping whole decoder layers, in place (the granularity that the paper compares with in its Table 8).

The layers that stay are renumbered, and the config is told how many there are. Which ones go is chosen in
`selection`.
"""

from __future__ import annotations

from torch import nn

from pruner_lib.method.graph import decoder_layers
from pruner_lib.method.groups import Plan
from pruner_lib.method.layout import empty_layout, set_layout
from pruner_lib.method.twins import build_twin, builds, other_floats, shapes_of


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
