"""Predict the memory of a pass before it starts (not part of the paper's method).

One sample runs forward, and every tensor that autograd would keep for backward is counted and dropped. The
count times the samples, the largest temporary tensors and the memory held already are added up.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from pruner_lib.method.decoder import check_weights, decoder_layers, prompt_for
from pruner_lib.method.gradients import PIECE, Pass, batch_sizes
from pruner_lib.method.memory import HOLES, available_bytes, held_bytes
from pruner_lib.method.module_gradients import in_slices, product_dtype, rows_of
from pruner_lib.method.names import ADDITIVE, DATA_FREE, SECOND_ORDER
from pruner_lib.method.offload import frozen

FLOAT32 = 4


@dataclass(frozen=True)
class Memory:
    """Predicted bytes of a pass at its peak."""

    held: int  # now, by the process including the weights (on a GPU: by tensors)
    activations: int  # kept for backward by one micro-batch; includes the logits for scoring
    kept: int = 0  # scoring: inputs and output gradients of modules, kept until the last micro-batch
    logits: int = 0  # training: at the labels of one micro-batch, with their gradients
    optimizer: int = 0  # training: gradients of the adapter and the two moments of Adam
    temporary: int = 0  # the largest temporary tensors: a piece of the loss, or gradients

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by purpose, in addition to those that are held now."""
        return {name: size for name, size in asdict(self).items() if size and name != "held"}

    @property
    def extra(self) -> int:
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        return self.held + self.extra


def _fresh_bytes(model: nn.Module) -> Callable[..., int]:
    """Return a function that counts the bytes of tensors it has not seen, except those of the model."""
    seen = {StorageWeakRef(x.untyped_storage()) for x in [*model.parameters(), *model.buffers()]}

    def count(*values: object) -> int:
        storages = (x.untyped_storage() for x in tree_leaves(values) if isinstance(x, torch.Tensor))
        fresh = {ref: s.nbytes() for s in storages if (ref := StorageWeakRef(s)) not in seen}
        seen.update(fresh)
        return sum(fresh.values())

    return count


@dataclass
class Forward:
    """Bytes that a forward pass of one sample keeps for backward."""

    saved: list[int]  # in each decoder layer; last, outside of them
    entries: list[int]  # of the inputs of each decoder layer
    widest: int = 0  # the largest output of a module in a layer
    inputs: int = 0  # of the watched modules
    outputs: int = 0  # of the watched modules
    result: int = 0  # of the pass, unless it is saved for backward anyway

    def kept(self, recomputed: bool) -> int:
        """Return the bytes at the peak; if recomputed, all layers but one keep only their inputs."""
        *layers, outside = self.saved
        return outside + (sum(self.entries) + max(layers) if recomputed else sum(layers))


def predict_memory(
    model: nn.Module,
    samples: int,
    tokens: int,
    criteria: Iterable[str],
    micro_batch: int | None = None,
    checkpointing: bool = False,
    *,
    parameters: set[str] | None = None,
) -> Memory:
    """Predict the peak memory of `estimate_members` with calibration ids by running one sample forward.

    Args:
        model: must have its weights.
        parameters: names of the parameters that the axes cut; None: all.
    Returns: bytes; `.total` is the resident memory of the process, on a GPU the memory of its tensors.
    Raises: ValueError: the model has no weights.
    """
    check_weights(model)
    device, criteria = next(model.parameters()).device, set(criteria)
    names = {name for name, _ in model.named_parameters()} if parameters is None else parameters
    ids = prompt_for(model, tokens)[:, :tokens].to(device)
    pass_ = Pass(model, names, lambda name, uses: None)
    with frozen(model), pass_.hooked():
        counted = count_forward(model, lambda: pass_.forward(ids), pass_.owners)
    second = not criteria.isdisjoint(SECOND_ORDER)
    sizes = batch_sizes(samples, tokens, micro_batch, second)
    largest, whole_batch = max(sizes), len(sizes) > 1 and not criteria - set(DATA_FREE) <= set(ADDITIVE)
    gradient = _largest_gradient(pass_.owners, second, (samples if whole_batch else largest) * tokens)
    return Memory(
        held=held_bytes(model),
        activations=largest * (counted.kept(checkpointing) + counted.result),
        kept=samples * (counted.inputs + counted.outputs) if whole_batch else 0,
        temporary=max(3 * FLOAT32 * PIECE, gradient + 3 * largest * counted.widest) + HOLES // 2,
    )


def check_fits(
    model: nn.Module,
    task: str,
    predict: Callable[[int, bool], Memory],
    sizes: Sequence[int],
    recomputed: bool,
    *,
    names: tuple[str, str],
    otherwise: str,
) -> None:
    """Refuse a pass that needs more bytes than are available on the model's device, if that is known.

    Args:
        predict: takes a micro-batch size, and whether layers are recomputed.
        sizes: to try, starting with the setting of the pass, as is `recomputed`.    names: of both settings.
        otherwise: the advice if no setting fits.
    Raises: ValueError: says what is needed, what is available, and a setting to try.
    """
    available = available_bytes(next(model.parameters()).device)
    if available is None or (memory := predict(sizes[0], recomputed)).extra <= available:
        return
    for recompute, size in product(sorted({recomputed, True}), sizes):
        needed = predict(size, recompute).extra
        if needed <= available:
            break
    parts = ", ".join(f"{name} {part / 1e9:.2f} GB" for name, part in memory.parts.items())
    need = f"{memory.extra / 1e9:.2f} GB ({parts}) beside the {memory.held / 1e9:.2f} GB held now"
    advice = "try" if needed <= available else otherwise
    setting = f"{names[0]}={size}, {names[1]}={recompute}, {needed / 1e9:.2f} GB"
    raise ValueError(f"{task} needs {need}, and {available / 1e9:.2f} GB are available; {advice} {setting}")


def _largest_gradient(owners: Mapping[nn.Module, Iterable[str]], second: bool, n_tokens: int) -> int:
    """Return the most bytes that one parameter's gradient takes while it is computed and reduced."""
    sizes = [0]
    for module, keys in owners.items():
        sliced = in_slices(module)
        for p in (module._parameters[key] for key in keys):
            rows = rows_of(p.shape, p.device) if sliced else p.shape[0]
            slice_bytes = FLOAT32 * rows * (p.numel() // p.shape[0])
            copies = (3 + second) * slice_bytes + (0 if sliced else p.numel() * p.element_size())
            widened = product_dtype(p.dtype) != p.dtype and sliced and p.ndim > 1
            sizes.append(copies + (FLOAT32 * n_tokens * sum(p.shape) if widened else 0))
    return max(sizes)


def count_forward(model: nn.Module, run: Callable, watched: Collection[nn.Module] = ()) -> Forward:
    """Run a forward pass and count what autograd would keep, and the inputs and outputs of `watched`."""
    layers = decoder_layers(model)[1]
    counted = Forward([0] * (len(layers) + 1), [0] * len(layers))
    fresh, entered, used = (_fresh_bytes(model) for _ in range(3))
    place = -1  # number of the running layer; -1 outside of layers

    def save(x: torch.Tensor) -> None:
        counted.saved[place] += fresh(x)

    def enter(number, module, args, kwargs) -> None:
        nonlocal place
        place = number
        counted.entries[number] = entered(args, kwargs)

    def leave(module, args, output) -> None:
        nonlocal place
        place = -1

    def count(module, args, kwargs, output) -> None:
        size = sum(x.nbytes for x in tree_leaves(output) if isinstance(x, torch.Tensor))
        counted.widest = max(counted.widest, size if place >= 0 else 0)
        if module in watched:
            counted.inputs += used(args, kwargs)
            counted.outputs += size

    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(module.register_forward_hook(count, with_kwargs=True))
        for number, layer in enumerate(layers):
            hook = partial(enter, number)
            stack.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
            stack.enter_context(layer.register_forward_hook(leave))
        with saved_tensors_hooks(save, lambda nothing: nothing):
            result = run()
    counted.result = fresh(result)
    return counted
