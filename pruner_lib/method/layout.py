"""The widths of a pruned model as data (a layout), and how to apply them to a dense model.

A copy of this file is saved beside the weights of an unevenly pruned checkpoint, so it imports only torch.
`size_rules` derives what a layout must hold and `prune` writes it; nothing here is specific to a model class.
"""

import copy

import torch
from torch import nn

# attribute of a leaf module -> the dim of its weight whose size it holds
LEAF_SIZES = {"out_features": 0, "in_features": 1, "num_embeddings": 0, "embedding_dim": 1, "nx": 0, "nf": 1}
NUMBERS = (int, float, bool)  # types of the attributes that a layout holds


class LayerConfig:
    """A layer's view of the model's config: overrides some keys and reads the others from the shared one."""

    def __init__(self, shared, overrides: dict):
        vars(self).update(_shared=shared, _overrides=dict(overrides))

    def __getattr__(self, name: str):
        if name in ("_shared", "_overrides"):  # not set yet while being copied
            raise AttributeError(name)
        native = getattr(self._shared, "attribute_map", {}).get(name, name)
        if native in self._overrides:
            return self._overrides[native]
        return getattr(self._shared, name)

    def __setattr__(self, name: str, value) -> None:
        setattr(self._shared, name, value)

    def __deepcopy__(self, memo: dict) -> "LayerConfig":
        return LayerConfig(copy.deepcopy(self._shared, memo), self._overrides)


class InputSelection:
    """Forward pre-hook that selects the slices of the kept groups from inputs with one slice per group."""

    def __init__(self, inputs: dict[str, dict]):
        self.inputs = inputs  # argument -> {"dim", "total", "keep"}

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        args = list(args)
        for argument, cut in self.inputs.items():
            holder, key = (args, int(argument)) if argument.isdigit() else (kwargs, argument)
            if key in (range(len(args)) if holder is args else kwargs) and holder[key] is not None:
                holder[key] = _select(holder[key], **cut)
        return tuple(args), kwargs


def _select(value: torch.Tensor, dim: int, total: int, keep: list[int]) -> torch.Tensor:
    index = torch.tensor(keep, device=value.device)
    if value.shape[dim] == total:
        return value.index_select(dim, index)
    folded = value.unflatten(dim, (-1, total))  # (..., batch, groups, ...)
    return folded.index_select(dim + 1, index).flatten(dim, dim + 1)


def empty_layout() -> dict:
    """Return a layout without entries; every part maps a path to JSON data.

    `shapes`: parameter -> shape. `attributes`: module -> {attribute: number}. `config`: layer -> {config key:
    int}. `inputs`: module -> {argument: {dim, total, keep}}.
    """
    return {"shapes": {}, "attributes": {}, "config": {}, "inputs": {}}


def check_layout(layout: object) -> None:
    """Raise a ValueError unless a layout that was read from a file has the form of `empty_layout`."""
    checks = {"shapes": _are_sizes, "attributes": _are_numbers, "config": _are_numbers, "inputs": _are_inputs}
    complete = isinstance(layout, dict) and layout.keys() == checks.keys()
    if not complete or not all(isinstance(layout[part], dict) for part in checks):
        raise ValueError(f"pruning_layout must be a dict of {', '.join(checks)}, got {str(layout)[:80]!r}")
    for part, is_right in checks.items():
        for name, entry in layout[part].items():
            if not (isinstance(name, str) and is_right(entry)):
                raise ValueError(f"pruning_layout, {part} of {name!r}: {str(entry)[:80]!r} is malformed")


def _are_sizes(entry: object, least: int = 1) -> bool:
    return isinstance(entry, list) and all(type(n) is int and n >= least for n in entry)


def _are_numbers(entry: object) -> bool:
    return isinstance(entry, dict) and all(k.isidentifier() and type(n) in NUMBERS for k, n in entry.items())


def _are_inputs(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(cut, dict)
        and cut.keys() == {"dim", "total", "keep"}
        and _are_sizes([cut["dim"], cut["total"]], 0)
        and _are_sizes(cut["keep"], 0)
        for cut in entry.values()
    )


def layout_of(model: nn.Module) -> dict | None:
    """Return the current layout of a pruned model, whose vocabulary may have grown since the cut, or None."""
    layout = getattr(model, "pruning_layout", None)
    if layout is not None:
        now = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()}
        shapes = {n: list(now[n].shape) if n in now else shape for n, shape in layout["shapes"].items()}
        layout = {**layout, "shapes": shapes}
    return layout


def merge_layouts(model: nn.Module, new: dict) -> dict:
    """Return the layout of a model after a further cut; selections of inputs compose."""
    merged = copy.deepcopy(layout_of(model) or empty_layout())
    for path, cuts in new["inputs"].items():
        for name, cut in cuts.items():
            if before := merged["inputs"].setdefault(path, {}).get(name):
                cut = {**before, "keep": [before["keep"][k] for k in cut["keep"]]}
            merged["inputs"][path][name] = cut
    merged["shapes"].update(new["shapes"])
    for part in ("attributes", "config"):
        for path, entry in new[part].items():
            merged[part].setdefault(path, {}).update(entry)
    return merged


def apply_layout_(model: nn.Module, layout: dict) -> nn.Module:
    """Change the modules to match the layout; replace parameters of another shape by uninitialised ones.

    Raises: ValueError: the layout names a module or parameter that the model does not have.
    """
    try:
        for name, shape in layout["shapes"].items():
            if tuple((old := model.get_parameter(name)).shape) != tuple(shape):
                set_parameter_(model, name, torch.empty(shape, dtype=old.dtype, device=old.device))
            set_leaf_sizes_(model.get_submodule(name.rpartition(".")[0]))
        for path, attributes in layout["attributes"].items():
            module = model.get_submodule(path)
            for name, value in attributes.items():
                setattr(module, name, (value,) if isinstance(getattr(module, name), tuple) else value)
        for path, overrides in layout["config"].items():
            for module in model.get_submodule(path).modules():
                if (config := vars(module).get("config")) is not None:
                    shared = config._shared if _is(config, LayerConfig) else config
                    module.config = LayerConfig(shared, overrides)
        for path, inputs in layout["inputs"].items():
            module = model.get_submodule(path)
            hook = next((h for h in module._forward_pre_hooks.values() if _is(h, InputSelection)), None)
            if hook is None:
                module.register_forward_pre_hook(InputSelection(inputs), with_kwargs=True, prepend=True)
            else:
                hook.inputs = inputs
    except AttributeError as error:
        raise ValueError(f"the layout does not fit {type(model).__name__}: {error}") from error
    return model


def _is(value: object, kind: type) -> bool:
    """True for this class and for that of the copy of this file in a loaded checkpoint."""
    return type(value).__name__ == kind.__name__


def set_layout(model: nn.Module, layout: dict | None) -> None:
    """Store a layout in the model and in its config, which `save_pretrained` writes; None removes it."""
    model.pruning_layout = layout
    if layout is not None:
        model.config.pruning_layout = layout
    elif hasattr(model.config, "pruning_layout"):
        del model.config.pruning_layout


def own_config_(model: nn.Module) -> None:
    """Copy a model's config, so that other models built from the same object do not change with it."""
    copies: dict = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, type(model.config)) or _is(value, LayerConfig):
                vars(module)[name] = copy.deepcopy(value, copies)


def set_parameter_(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a parameter in all modules that share it, with its hooks and attributes."""
    old = model.get_parameter(name)
    new = nn.Parameter(value, requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        setattr(new, hooks, getattr(old, hooks))
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[key] = new


def set_leaf_sizes_(module: nn.Module) -> None:
    """Set a leaf module's size attributes (in_features, ...) to the shape of its weight."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return
    for attribute, dim in LEAF_SIZES.items():
        if attribute in vars(module) and dim < weight.ndim:
            setattr(module, attribute, weight.shape[dim])
    if "normalized_shape" in vars(module):
        module.normalized_shape = tuple(weight.shape)
