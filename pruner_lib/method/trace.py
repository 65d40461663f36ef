"""Dependency tracing: run the model once on index labels (paper section 3.1, "discovery stage").

One forward pass on the meta device (batch 1, 3 tokens, eager attention) runs under a dispatch mode that
carries labels through every operator by the rules in `operators`. `discover` turns the recording into groups;
`check_cut` compares it with the groups that a cut should leave.
"""

import re
from collections import Counter
from functools import partial
from os.path import commonprefix

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pruner_lib.method.decoder import decoder_layers, prompt_for
from pruner_lib.method.groups import Axes, Plan
from pruner_lib.method.labels import Recording, labels_of, set_labels
from pruner_lib.method.operators import COMPUTED, COPIES, LOOKUPS, labels_for, numbers_in, tensors_in

N_TOKENS = 3
FROM_LISTS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
PLAIN = {"_attn_implementation": "eager", "_experts_implementation": "batched_mm"}  # config for tracing


class LabelMode(TorchDispatchMode):
    """Carry labels through every operator of a forward pass on the meta device."""

    def __init__(self, recording: Recording):
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = tensors_in([args, kwargs])
        labelled = any(labels_of(x) is not None for x in tensors)
        rec, numbers = self.recording, numbers_in(func, args, kwargs)
        for number in numbers:
            rec.compute_with(number)
        rec.reached.update(id(x) for x in tensors if isinstance(x, nn.Parameter))
        op = func.overloadpacket
        if op in COMPUTED or (torch.Tag.pointwise in func.tags and op not in COPIES):
            rec.compute_with(str(op))
            for labels in filter(None, map(labels_of, tensors)):
                if labels.source == "activation":
                    rec.use(labels, (func, *numbers))
        on_cpu = [x for x in tensors if x.ndim and not x.is_meta]  # created by the model
        mixed = on_cpu and len(on_cpu) < len(tensors) and op not in LOOKUPS
        if mixed or (on_cpu and torch.device(kwargs.get("device") or "cpu").type == "meta"):
            for table in (x for x in on_cpu if x.is_floating_point() and x.numel()):
                rec.compute_with(*table.unique().tolist())
        if mixed:
            args, kwargs = tree_map_only(torch.Tensor, _to_meta, (args, kwargs))
        out = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:  # random numbers depend on the shape
            for drawn in tensors_in([out]):
                rec.compute_with(float(drawn.numel()))
        if labelled:
            labels = labels_for(rec, func, args, kwargs, out)
            for tensor, label in zip(tensors_in([out]), labels, strict=False):
                set_labels(tensor, label)
        return out


class DoesNotRun(ValueError):
    """A model can't be traced.

    Args: place: path of the module that failed.    cause: the error that its code raised.
    """

    def __init__(self, message: str, place: str, cause: str):
        super().__init__(message)
        self.place, self.cause = place, cause


class KeepLists(TorchFunctionMode):
    """Keep the values of lists, as in `x[:, [-2]]` and `torch.tensor([0.5])`, which the meta device loses."""

    def __init__(self, recording: Recording):
        super().__init__()
        self.recording = recording

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FROM_LISTS:
            numbers = [x for x in tree_leaves([args, kwargs]) if type(x) in (int, float)]
            if any(type(x) is float for x in numbers):  # integers alone are indices
                self.recording.compute_with(*numbers)
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            index = tuple(torch.tensor(i, device="cpu") if isinstance(i, list) else i for i in args[1])
            args = (args[0], index)
        return func(*args, **(kwargs or {}))


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """Move a tensor that the model created on the CPU (masks, positions) to the meta device."""
    if tensor.device.type != "cpu" or not tensor.ndim:
        return tensor
    moved = tensor.to("meta")
    set_labels(moved, labels_of(tensor))
    return moved


def trace(model: nn.Module, path: str = "") -> Recording:
    """Run `model` on labels and return the recording.

    Buffers and unlabelled inputs of decoder layers (position biases, masks, rotary tables) get labels too.

    Args:
        model: a decoder on the meta device, as from `without_weights`; its hooks and settings are changed.
        path: of its layers; "": find them by `decoder_layers`.
    Raises: DoesNotRun: the model does not run on the meta device.    ValueError: it returns no logits.
    """
    rec = Recording()
    for name, parameter in model.named_parameters():
        set_labels(parameter, rec.label(parameter, name, "parameter"))
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and buffer.numel() > 1:
            set_labels(buffer, rec.label(buffer, f"{name}:", "constant"))
    path, layers = (path, model.get_submodule(path)) if path else decoder_layers(model)
    for number, layer in enumerate(layers):
        hook = partial(_enter_layer, rec, f"{path}.{number}", number)
        layer.register_forward_pre_hook(hook, with_kwargs=True)
        layer.register_forward_hook(lambda *_: setattr(rec, "layer", None), always_call=True)
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: rec.running.append(path))
        module.register_forward_hook(lambda *_: rec.running.__delitem__(-1))  # not after an error
    with torch.no_grad(), KeepLists(rec), LabelMode(rec):
        out = _forward_on_meta(model, rec)
    logits = out[0] if isinstance(out, tuple) else getattr(out, "logits", None)
    labels = labels_of(logits)
    if labels is None:
        raise ValueError(f"{type(model).__name__} returns no logits from weights; pass a decoder with a head")
    rec.outputs.append(torch.unique(labels.tensors[0]).numpy())
    return rec


def _forward_on_meta(model: nn.Module, rec: Recording):
    """Run a few tokens in evaluation mode, with attention and experts as plain matrix products."""
    model.eval()
    for key, plain in PLAIN.items():
        if getattr(getattr(model, "config", None), key, None) is not None:
            setattr(model.config, key, plain)
    ids = torch.zeros(1, N_TOKENS, dtype=torch.long, device="meta")
    attempts = (
        {"input_ids": ids, "attention_mask": torch.zeros(1, 1, N_TOKENS, N_TOKENS, device="meta")},
        {"input_ids": ids, "attention_mask": None},  # some models build their own mask only from None
        {"input_ids": prompt_for(model, N_TOKENS)},  # some need special tokens in the prompt
    )
    errors: dict[str, tuple[int, str]] = {}  # error -> number of recorded factors, and the running module
    for arguments in attempts:
        try:
            return model(**arguments, use_cache=False)
        except Exception as error:  # noqa: BLE001  the model's own code may raise anything
            errors.setdefault(f"{type(error).__name__}: {error}", (len(rec.factors), rec.module))
            for recorded in (rec.factors, rec.places, rec.running):
                recorded.clear()  # from the failed pass
    farthest = max(errors, key=lambda error: errors[error][0])
    message = f"{type(model).__name__} can't be traced with {N_TOKENS} tokens on the meta device"
    raise DoesNotRun(f"{message}: {' | '.join(errors)}", errors[farthest][1], farthest)


def error_with_cache(model: nn.Module) -> str:
    """Run a traced model with a cache, as models do by default; return the error, "" if there is none."""
    ids = torch.zeros(1, N_TOKENS, dtype=torch.long, device="meta")
    try:
        model(input_ids=ids, use_cache=True)
    except Exception as error:  # noqa: BLE001  the model's own code may raise anything
        return f"{type(error).__name__}: {error}"
    return ""


def _enter_layer(rec: Recording, path: str, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
    """Give labels to unlabelled tensors that enter a layer."""
    rec.layer = number
    for argument, value in [*((str(i), a) for i, a in enumerate(args)), *kwargs.items()]:
        labels = labels_of(value)
        unlabelled = labels is None or labels.source == "constant"
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim and unlabelled:
            set_labels(value, rec.label(value, f"{path}:{argument}", "constant"))


def check_cut(
    cut: nn.Module, path: str, plan: Plan, numbers: Counter, axes: Axes | None, keep: dict, stays: dict
) -> None:
    """Trace a cut model without weights; refuse the plan if it fails, mixes groups, or uses other numbers.

    It is not enough that shapes fit: if a model splits its heads into blocks (codegen), kept heads may move
    to another block, and the model still runs. In the cut model, the r-th kept groups of an axis's structures
    must be one component, different for each r, and all used alike. This includes unpruned axes.

    Args:
        cut: a copy without weights that has the widths, or the layers, of the plan.    path: of its layers.
        numbers: `Axes.numbers` of the dense model, with the layers' numbers after the cut.
        axes: of the dense model; None for a plan of layers.    keep: axis name -> structure -> kept groups.
        stays: parameter -> dim -> sorted kept entries, `(n,)` or `(slices, n)`.
    Raises: ValueError: names the groups or module at fault, and what to prune instead.
    """
    names, model_class = list(plan.cut), type(cut).__name__
    plan_cuts = f"cutting {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    try:
        rec = trace(cut, path)
    except DoesNotRun as error:
        fault = f"{error.place or 'the model'} ({type(cut.get_submodule(error.place)).__name__}) would fail"
        advice = _advice(plan, axes, error.place)
        raise ValueError(f"after {plan_cuts}, {fault}; nothing was cut. {advice} [{error.cause}]") from error
    components = rec.components(query_heads=plan.query_heads)
    entries, uses = rec.entries(components), rec.uses_of(components)
    for name, axis in (axes or {}).items():
        tables = []
        for member in axis.members:
            places = member.indices[keep.get(name, {}).get(member.structure, slice(None))]
            if (kept := stays.get(member.parameter, {}).get(member.dim)) is not None:
                places = torch.searchsorted(kept if member.expert is None else kept[member.expert], places)
            tables.append(entries[member.parameter, member.dim, "parameter"][places.numpy()])
        found = np.concatenate(tables, 1)  # (n_kept, entries of a group): components
        distinct = len(np.unique(found[:, 0])) == len(found) and len(np.unique(uses[found])) == 1
        if (found != found[:, :1]).any() or not distinct:
            reason = f"would mix the groups of {name}, which {model_class} divides into blocks"
            advice = f"Keep equally many groups of each block. {_advice(plan, axes, axis.module)}"
            raise ValueError(f"{plan_cuts} {reason}; nothing was cut. {advice}")
    factors, operators = Counter(rec.factors), (factor for factor in numbers if type(factor[1]) is str)
    missing = [(layer, op) for layer, op in operators if (layer, op) not in factors and layer is not None]
    if changed := [*(factors - numbers), *missing]:
        cause = "width" if keep else "place or count of its layers"
        value, place = changed[0][1], "" if changed[0] in numbers else rec.places.get(changed[0], "")
        value = value if type(value) is str else f"the number {value:.6g}"
        module = f"{place} of {model_class}" if place else model_class
        message = f"{module} would compute with {value}, which follows the {cause}, unlike the dense model"
        raise ValueError(f"after {plan_cuts}, {message}; nothing was cut. {_advice(plan, axes, place)}")


def _advice(plan: Plan, axes: Axes | None, place: str = "") -> str:
    """Return what to prune instead: other axes than those of the plan that are nearest to a module."""
    if axes is None:
        return "Keep other layers, or cut groups of the layers: select(..., granularity='block')"
    chosen = [axes[name] for name in dict.fromkeys(key.partition("/")[0] for key in plan.cut)]
    if any(axis.layer is None for axis in chosen):
        return "Cut heads and MLP channels instead: select(..., granularity='block')"
    shared = [len(commonprefix([axis.module.split("."), place.split(".")])) for axis in chosen]
    nearest = [axis for axis, n in zip(chosen, shared, strict=True) if n == max(shared)]
    names = [f"{axis.siblings}*" if axis.siblings else axis.name for axis in nearest]
    ignore = sorted({re.sub(r"^layers\.\d+", "layers.*", name) for name in names})
    by_query = plan.query_heads and any(axis.kind == "attention" for axis in nearest)
    other = ", or cut whole key-value heads: discover(model, query_heads=False)" if by_query else ""
    return f"Ignore such axes: select(..., ignore={ignore}){other}"
