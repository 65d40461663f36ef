"""Measure what pruning saves: parameters, multiplications, bytes and seconds (paper, section 4.2, Table 3).

Multiplications are counted by watching the operators of a forward pass, for any architecture.
"""

import re
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pruner_lib.evaluation.int8 import Int8Linear
from pruner_lib.evaluation.meters import timed
from pruner_lib.method.checks import require
from pruner_lib.method.decoder import check_weights, prompt_for
from pruner_lib.method.offload import evaluating

MACS_TOKENS = 64  # the paper's input: one sequence of 64 tokens
MIB = 2**20
aten = torch.ops.aten
FUSED_PRODUCT = re.compile(r"mm\b|mm_|dot|linear|conv|attention|einsum")


class MacCounter(TorchDispatchMode):
    """Add up the multiplications of all operators that run inside this context."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.macs += operator_macs(func.overloadpacket, args, kwargs or {}, out)
        return out


def operator_macs(op, args: tuple, kwargs: dict, out) -> int:
    """Count the multiplications of one operator.

    A matrix product (m, k) x (k, n) counts m * n * k, and a convolution as the equivalent product; an
    element-wise product of two tensors counts one per entry, a softmax one per entry, a fused norm two per
    entry (scale, weight). Additions, activation functions, powers and products with a scalar count nothing.

    Args:    op: operator without its overload.    args, kwargs: its call.    out: its result.
    Raises:  ValueError: there is no rule for a fused product; the message names it.
    """
    if op in (aten._grouped_mm, aten._int_mm):  # (m, k) times (k, n), or each row times one of several
        return out.numel() * args[0].shape[-1]
    if op in flop_registry:
        return flop_registry[op](*args, **kwargs, out_val=out) // 2
    if op in (aten.mul, aten.mul_):
        two_tensors = all(isinstance(x, Tensor) and x.numel() > 1 for x in args[:2])
        return out.numel() if two_tensors and out.is_floating_point() else 0
    if op in (aten._softmax, aten._safe_softmax):
        return out.numel()
    if op in (aten.native_layer_norm, aten._fused_rms_norm, aten.native_group_norm):
        return 2 * out[0].numel()
    if FUSED_PRODUCT.search(op.__name__):
        raise ValueError(f"{op} is a product, but operator_macs has no rule to count it; add one there")
    return 0


def count_parameters(model: nn.Module) -> int:
    """Count the entries of all parameters, including 8-bit ones; tied ones once."""
    return sum(weight.numel() for weight in [*model.parameters(), *(q for q, _ in _int8_weights(model))])


def weight_bytes(model: nn.Module) -> int:
    """Count the bytes of all parameters in their dtypes and of the 8-bit scales; tied ones once."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *chain(*_int8_weights(model))])


def _int8_weights(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """List the weights and scales of 8-bit linear layers."""
    return [(module.q, module.scale) for module in model.modules() if isinstance(module, Int8Linear)]


def memory_mb(model: nn.Module, *, tables_mb: float = 0.0) -> float:
    """Compute the memory that a GPU's allocator needs for 16- or 8-bit weights (Table 3's memory).

    The size of a tensor is rounded up to a multiple of 512 bytes; above 10 MiB, to a multiple of 2 MiB,
    unless that would add more than 1 MiB. Activations and the key-value cache are not included.

    Args:    tables_mb: constant tables in addition to the weights, MiB. The paper's LLaMA-7B had 32 MiB: a
             cosine and a sine table of 2048 x 128 in each of 32 layers.
    Returns: MiB.
    Source:  paper, Table 3 (`torch.cuda.memory_allocated()` in its code). Differs: computed, so it needs no
             GPU; every row agrees to 0.1 MiB.
    """
    total = 0
    sizes = [2 * weight.numel() for weight in model.parameters()]
    for size in [*sizes, *(tensor.nbytes for tensor in chain(*_int8_weights(model)))]:
        size = -(-size // 512) * 512
        segment = -(-size // (2 * MIB)) * 2 * MIB
        total += segment if size > 10 * MIB and segment - size <= MIB else size
    return total / MIB + tables_mb


def macs(model: nn.Module, tokens: int = MACS_TOKENS) -> int:
    """Count the multiply-accumulate operations of one forward pass, by the rules of `operator_macs`.

    For LLaMA with T tokens, hidden size d, h heads of size e, MLP width f and vocabulary V, each layer has
    4Tdhe + h(2TTe + TT) + 4The (rotary) + 3Tdf + Tf + 4Td (norms), the rest 2Td + TdV + Te/2 (rotary table).

    Args:    model: any decoder, also on the meta device.    tokens: T.
    Returns: operations, counting the whole attention matrix as the paper does.
    Raises:  ValueError: the forward pass can't run on the meta device (for example, routing reads values).
    Source:  paper, Table 3 (64 tokens; ptflops with custom hooks). Differs: its hooks count one operation per
             MLP entry for the activation and none for the gate's product, and we the reverse, with the same
             sum. They don't count the rotary table, which the paper's model stored: 1e-8 of LLaMA-7B.
    """
    require(nn.Module, model=model)
    require("1..", tokens=tokens)
    weight = model.get_input_embeddings().weight
    ids = prompt_for(model, tokens)[:, :tokens].to(weight.device)
    # on the meta device a model can't build a mask, which reads values, but some models accept only None
    masks = [torch.zeros(1, 1, tokens, tokens, dtype=weight.dtype, device="meta"), None]
    for mask in masks if weight.is_meta else [None]:
        try:
            # run fused attention as separate products and softmax
            math = sdpa_kernel(SDPBackend.MATH)
            with torch.inference_mode(False), math, evaluating(model), MacCounter() as counter:
                model(input_ids=ids, attention_mask=mask, use_cache=False)
            return counter.macs
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            if not weight.is_meta:
                raise
            reason = error
    message = f"{type(model).__name__} can't be counted on the meta device, since it reads values ({reason})"
    raise ValueError(f"{message}; load the model with its weights and count again")


def latency(
    model: nn.Module, *, tokens: int = 128, batch: int = 1, repeats: int = 10, warmup: int = 3
) -> list[float]:
    """Time forward passes over random tokens after a warm-up, synchronising with the device each time.

    Args:    batch: sequences per pass.    repeats: timed passes.    warmup: passes before, not timed.
    Returns: seconds of each repeat; `meters.quartiles` gives their median and spread.
    Raises:  ValueError: the model has no weights (meta device).
    Source:  paper, Table 3. Differs: the paper times WikiText2 on one A5000, without batch size and length.
    """
    require(nn.Module, model=model)
    require("1..", tokens=tokens, batch=batch, repeats=repeats)
    require("0..", warmup=warmup)
    check_weights(model)
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(weight.shape[0], (batch, tokens), generator=generator)
    special = prompt_for(model, 1)[0, :tokens]  # some models need special tokens
    ids[:, : len(special)] = special
    ids = ids.to(weight.device)
    passes = range(warmup + repeats)
    with evaluating(model):
        return [timed(lambda: model(input_ids=ids, use_cache=False), ids.device) for _ in passes][warmup:]
