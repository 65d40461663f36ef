"""One backward pass, one parameter at a time (paper section 3.2: the gradients that Eq. 3 to 5 need).

Parameters are frozen, so that backward only carries gradients of activations. When it reaches a module, the
gradient of the module's parameters, per sample if needed, is computed from the saved input and the output
gradient (see `module_gradients`), passed to a visitor, and freed.

With micro-batches, scores that are not sums over samples, such as |g * w|, need the gradient of the whole
batch: the inputs and output gradients of the modules, which are much smaller, are kept until the last one.
"""

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.memory import HeapTrimmer
from pruner_lib.method.module_gradients import Use, gradient_slices
from pruner_lib.method.offload import frozen, recomputing


class _Kept(torch.autograd.Function):
    """Save tensors for backward as an operator does, so that checkpointing drops and recomputes them too."""

    @staticmethod
    def forward(ctx, spark, *tensors):
        ctx.save_for_backward(*tensors)
        return spark.clone()

    @staticmethod
    def backward(ctx, grad):  # no gradient flows to the tensors
        return (grad, *[None] * (len(ctx.needs_input_grad) - 1))


class _Direct(TorchFunctionMode):
    """Find weights that a model uses outside of calls of their modules, so that their gradient is missed."""

    def __init__(self, names: dict[int, str]):
        super().__init__()
        self.names = names  # id of each weight -> its name
        self.running: Counter[str] = Counter()  # names of weights in the modules that are running
        self.found: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        made_like = name.startswith("new_") or name.endswith("_like") or name == "detach"
        if isinstance(out, torch.Tensor) and torch.is_grad_enabled() and not made_like:
            operands = args[:1] if name in ("to", "type_as") else tree_leaves([args, kwargs])
            found = {self.names[id(x)] for x in operands if id(x) in self.names}
            self.found |= {name for name in found if not self.running[name]}
        return out


class Pass:
    """State of one pass: the module calls of forward, and the parameters that still await gradients.

    Args:
        parameters: names of the parameters whose gradient is needed.
        finish: called as `finish(name, uses)` when all gradients of a parameter have arrived.
    """

    def __init__(self, model: nn.Module, parameters: set[str], finish: Callable[[str, list[Use]], None]):
        self.model, self.finish = model, finish
        names = {id(p): name for name, p in model.named_parameters() if name in parameters}
        self.owners: dict[nn.Module, dict[str, str]] = {}  # module -> its key -> name in the model
        for module in model.modules():
            if keys := {key: names[id(p)] for key, p in module._parameters.items() if id(p) in names}:
                self.owners[module] = keys
        self.direct = _Direct(names)
        self.of_model = {id(x): x for x in (*model.parameters(), *model.buffers())}
        self.pending: dict[str, int] = defaultdict(int)
        self.uses: dict[str, list[Use]] = defaultdict(list)
        self.visited: set[str] = set()
        self.finishing = self.in_backward = False
        self.local = False  # True while a module is called again to compute its parameters' gradient
        self.shape = (1, 1, 0)  # samples, tokens and number of the micro-batch
        self.trimmer = HeapTrimmer()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.model.modules():
                if isinstance(module, nn.Embedding):
                    stack.enter_context(module.register_forward_pre_hook(self._spread))
                    stack.enter_context(module.register_forward_hook(self._open))
            for module in self.owners:
                stack.enter_context(module.register_forward_pre_hook(self._enter))
                stack.enter_context(module.register_forward_hook(self._watch, with_kwargs=True))
            with suppress(ValueError):  # the model may have no list of layers
                for layer in decoder_layers(self.model)[1]:
                    stack.enter_context(layer.register_forward_hook(self._trim))
            yield

    def forward(self, ids: torch.Tensor, number: int = 0) -> torch.Tensor:
        """Run the model on a micro-batch; `(samples, tokens, vocabulary)`."""
        self.shape = (*ids.shape, number)
        self.pending.clear()
        with self.direct:
            return self.model(input_ids=ids, use_cache=False).logits

    def backward(self, logits: torch.Tensor, gradient: torch.Tensor, *, finish: bool) -> None:
        self.finishing, self.in_backward = finish, True
        try:
            torch.autograd.backward(logits, gradient)
        finally:
            self.in_backward = False
        for name in list(self.uses) if finish else ():  # not used by the last micro-batch
            self._finish(name)

    def _spread(self, module, args: tuple):
        """Expand a row of positions that all samples share, which would mix their gradients."""
        samples, tokens, _ = self.shape
        if not self.local and args and getattr(args[0], "shape", None) == (1, tokens):
            return (args[0].expand(samples, tokens), *args[1:])

    def _open(self, module, inputs, output):
        # clone, because some models scale their embeddings in place, which autograd forbids for a leaf
        if self.local or not isinstance(output, torch.Tensor) or output.requires_grad:
            return output
        return output.requires_grad_().clone()

    def _enter(self, module: nn.Module, args: tuple) -> None:
        self.direct.running.update(self.owners[module].values())

    def _watch(self, module: nn.Module, args: tuple, kwargs: dict, output):
        self.direct.running.subtract(self.owners[module].values())
        if self.local or not torch.is_grad_enabled():
            return output
        leaves, spec = tree_flatten(output)
        weights = {id(p) for p in module._parameters.values() if p is not None}  # frozen, may be the output
        leaves = [x.detach().requires_grad_() if id(x) in weights else x for x in leaves]
        floats = [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]
        for x in floats if not any(x.requires_grad for x in floats) else ():
            x.requires_grad_()
        places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.requires_grad]
        if len(places) > 1:  # if one is computed from another, views keep their gradients apart
            leaves = [x.view_as(x) if i in places else x for i, x in enumerate(leaves)]
        arrive = self._receiver(module, places, *tree_flatten((args, kwargs)))
        if places and not self.in_backward:
            for name in self.owners[module].values():
                self.pending[name] += 1
        if len(places) > 1:
            register_multi_grad_hook([leaves[i] for i in places], arrive)
        elif places:  # it may be the logits, whose gradient the hook above would miss
            leaves[places[0]].register_hook(lambda grad: arrive([grad]))
        return tree_unflatten(leaves, spec)

    def _receiver(self, module: nn.Module, places: list[int], inputs: list, spec) -> Callable:
        """Return a function to call with the output gradients of a module call; it holds the inputs."""
        tensors = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
        spark = torch.zeros((), requires_grad=True)
        kept = [_Kept.apply(spark, *(inputs[i].detach() for i in tensors))]
        others = {i: x for i, x in enumerate(inputs) if i not in tensors}
        shape, shared = self.shape, {i for i in tensors if self._is_shared(inputs[i])}

        def arrive(grads) -> None:
            holder = kept.pop()  # before torch 2.13, saved tensors live as long as the output, not as grad_fn
            by_place = others | dict(zip(tensors, holder.grad_fn.saved_tensors, strict=True))
            grads = [g if g is None else g.detach() for g in grads]
            inputs = [by_place[i] for i in range(len(by_place))]
            for key, name in self.owners[module].items():
                self.uses[name].append(Use(module, key, inputs, spec, grads, places, *shape, shared))
                self.pending[name] -= 1
                if self.pending[name] == 0 and self.finishing:  # a shared parameter has several uses
                    self._finish(name)

        return arrive

    def _is_shared(self, x: torch.Tensor) -> bool:
        """True for a weight, a buffer, or a vector computed from such alone: every sample needs all of it."""
        samples, tokens, _ = self.shape
        constant = x.is_floating_point() and not x.requires_grad
        return id(x) in self.of_model or (constant and x.ndim == 1 and len(x) != samples * tokens)

    def _finish(self, name: str) -> None:
        self.visited.add(name)
        self.local = True
        try:
            self.finish(name, self.uses.pop(name))
        finally:
            self.local = False

    def _trim(self, layer: nn.Module, inputs: tuple, output) -> None:
        """Trim the heap after a layer, in forward and in backward."""
        self.trimmer.check()
        for x in tree_leaves(output):
            if isinstance(x, torch.Tensor) and x.requires_grad:
                x.register_hook(lambda grad: self.trimmer.check())


PIECE = 2**20  # logits per piece


def loss_and_gradient_(logits: torch.Tensor, ids: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Sum the loss of all predicted tokens, and overwrite the logits with the gradient of the sum.

    L = sum over tokens t of -log p(ids[t + 1])    dL / dz_t = softmax(z_t) - onehot(ids[t + 1])

    Works in float32 on a piece of the tokens at a time, so that no second tensor of the logits' size exists,
    and on the sum, because in float16 the gradient of the mean would underflow.

    Args:
        logits: `(samples, tokens, vocabulary)`, part of a graph; their values are overwritten.
        ids: `(samples, tokens)` int64.
    Returns: the loss, and its gradient in the dtype of the logits. If the gradient is not finite, neither is
        the loss.
    """
    gradient = logits.data  # a change through detach() would make a view rebuild its grad_fn, without hooks
    if hasattr(logits.grad_fn, "_saved_result"):  # backward reads the values
        gradient = gradient.clone()
    dtype = torch.promote_types(logits.dtype, torch.float32)
    step = max(1, PIECE // logits.shape[-1])
    loss = torch.zeros((), dtype=torch.float64, device=logits.device)
    for z, targets in zip(gradient, ids[:, 1:].to(logits.device), strict=True):
        for start in range(0, len(targets), step):
            target = targets[start : start + step, None]  # (tokens, 1)
            piece = z[start : start + len(target)]
            p = piece.to(dtype).log_softmax(-1)
            loss -= p.gather(1, target).sum(dtype=torch.float64)
            p.exp_().scatter_add_(1, target, -torch.ones_like(target, dtype=dtype))
            piece.copy_(p)
    gradient[:, -1] = 0  # the last token predicts nothing
    return loss.item(), gradient


def visit_gradients(
    model: nn.Module,
    ids: torch.Tensor,
    parameters: set[str],
    visit: Callable[[str, int, torch.Tensor, torch.Tensor | None], None],
    *,
    per_sample: bool,
    micro_batch: int | None = None,
    additive: bool = False,
    checkpointing: bool = False,
) -> float:
    """Run one forward and backward pass over a calibration batch and visit each parameter's gradient.

    L = mean over all predicted tokens of the batch; A = (1/N) sum over samples n of (dL_n / dW)^2, where
    L_n is the mean loss of sample n alone.

    Args:
        ids: `(samples, tokens)` int64.    parameters: names of the parameters to visit.
        visit: called as `visit(name, row, g, a)` with slices `g` of `dL/dW` and `a` of `A` that start at this
            row of the weight, float32 (float64 for a float64 model); `a` is None unless `per_sample`. It may
            overwrite both, and must not keep them.
        micro_batch, checkpointing: see `estimate`.
        additive: visit the gradients of each micro-batch separately, whose sum is the gradient.
    Returns: the loss. Parameters of modules whose output does not affect it are skipped with a warning.
    Raises: ValueError: the loss is not finite, or a gradient is incomplete or can't be split by sample.
    Source: paper Eq. 3 to 5; reference code `hf_prune.py`, which divides the sum of Eq. 5 by N as here.
    """
    n_samples, n_tokens = ids.shape
    sizes = batch_sizes(n_samples, n_tokens, micro_batch, per_sample)
    scale = 1 / (n_samples * (n_tokens - 1))

    def finish(name: str, uses: list[Use]) -> None:
        for row, g, a in gradient_slices(uses, n_samples, scale, per_sample):
            visit(name, row, g, a)

    pass_ = Pass(model, parameters, finish)
    loss = 0.0
    with frozen(model), pass_.hooked(), recomputing(model) if checkpointing else nullcontext():
        for number, part in enumerate(ids.split(sizes)):
            logits = pass_.forward(part, number)
            summed, gradient = loss_and_gradient_(logits, part)
            loss += summed * scale
            if not math.isfinite(loss):
                raise ValueError(f"the calibration loss is {loss}; use a wider dtype or other samples")
            pass_.backward(logits, gradient, finish=additive or number == len(sizes) - 1)
            del logits, gradient
    unused = {name for name, count in pass_.pending.items() if count} - pass_.visited - pass_.direct.found
    if unused:
        message = f"the loss does not depend on {sorted(unused)[:3]}, since the module's output is not used"
        warnings.warn(f"{message}: the scores of axes that cut them are nan", stacklevel=4)
    if missed := sorted((parameters - pass_.visited - unused) | pass_.direct.found):
        reason = "the forward pass does not use them, or not only by calls of the module that holds them"
        message = f"no gradient reached {missed[:3]}, or only a part of it: {reason}"
        raise ValueError(f"{message}; use a criterion without gradients, such as l2")
    return loss


def batch_sizes(samples: int, tokens: int, micro_batch: int | None, per_sample: bool) -> list[int]:
    """Return micro-batch sizes; with `per_sample`, none equals `tokens`, so that shapes are unambiguous."""
    size = min(micro_batch or samples, samples)
    sizes = [size] * (samples // size) + [samples % size] * (samples % size > 0)
    return [part for s in sizes for part in ([s - 1, 1] if per_sample and s == tokens else [s])]
