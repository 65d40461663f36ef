"""What pruning saves: parameters, multiplications, bytes and seconds (paper, section 4.2 and Table 3).

Counting watches the operators that a forward pass runs: no architecture is named, the meta device will do.
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
    """Add up the multiplications of every operator that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.macs += operator_macs(func.overloadpacket, args, kwargs or {}, out)
        return out


def operator_macs(op, args: tuple, kwargs: dict, out) -> int:
    """Count the multiplications of one operator.

    A matrix product (m, k) x (k, n), and likewise a convolution, counts m * n * k; an entry-wise product of
    two tensors one an entry; a softmax one an entry; a fused norm two an entry (scale, weight). Additions,
    activation functions, powers and products with a single number count nothing.

    Args:    op: operator without its overload.    args, kwargs: its call.    out: its result.
    Raises:  ValueError: a fused product that has no rule here; the message names it.
    """
    if op in (aten._grouped_mm, aten._int_mm):  # rows of (m, k), each times (one of several) (k, n)
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
        raise ValueError(f"{op} multiplies but has no rule to count it, wanted one; add it to operator_macs")
    return 0


def count_parameters(model: nn.Module) -> int:
    """Count the entries of all parameters, in 8 bits or not; tied ones once."""
    return sum(one.numel() for one in [*model.parameters(), *(q for q, _ in _in_8_bits(model))])


def weight_bytes(model: nn.Module) -> int:
    """Count the bytes of all parameters in their own types, with the scales of 8-bit ones; tied ones once."""
    return sum(one.nbytes for one in [*model.parameters(), *chain(*_in_8_bits(model))])


def _in_8_bits(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """List weights and scales of the linear layers in 8 bits."""
    return [(module.q, module.scale) for module in model.modules() if isinstance(module, Int8Linear)]


def memory_mb(model: nn.Module, *, tables_mb: float = 0.0) -> float:
    """Compute what a GPU's allocator holds when the weights are loaded in 16 or 8 bits (Table 3's memory).

    Every tensor takes a multiple of 512 bytes; one over 10 MiB takes a multiple of 2 MiB, unless more than
    1 MiB of that would be left, which is then given back. No activations, no key-value cache.

    Args:    tables_mb: constant tables beside the weights, MiB. The paper's LLaMA-7B kept 32: a cosine and
             a sine of 2048 x 128 in each of 32 layers.
    Returns: MiB.
    Source:  paper, Table 3 (`torch.cuda.memory_allocated()` in its code). Differs: computed, so it needs no
             GPU; every row agrees to 0.1 MiB.
    """
    total = 0
    sizes = [2 * one.numel() for one in model.parameters()]
    for size in [*sizes, *(one.nbytes for one in chain(*_in_8_bits(model)))]:
        size = -(-size // 512) * 512
        segment = -(-size // (2 * MIB)) * 2 * MIB
        total += segment if size > 10 * MIB and segment - size <= MIB else size
    return total / MIB + tables_mb


def macs(model: nn.Module, tokens: int = MACS_TOKENS) -> int:
    """Count the multiply-accumulate operations of one forward pass; `operator_macs` says what counts.

    For LLaMA with T tokens, hidden d, h heads of size e, MLP width f, vocabulary V, that is in each layer
    4Tdhe + h(2TTe + TT) + 4The (rotary) + 3Tdf + Tf + 4Td (norms), and once 2Td + TdV + Te/2 (rotary table).

    Args:    model: any decoder, also on the meta device.    tokens: T.
    Returns: operations, the whole attention square counted, as the paper does.
    Raises:  ValueError: the forward pass can't run on the meta device (it looks at values, as routing may).
    Source:  paper, Table 3 (64 tokens; ptflops, own hooks). Differs: those hooks count one operation
             an MLP entry for the activation and none for the gate's product, we the reverse: the same sum.
             They don't count the rotary table, which the paper's model kept: 1e-8 of LLaMA-7B.
    """
    require(nn.Module, model=model)
    require("1..", tokens=tokens)
    weight = model.get_input_embeddings().weight
    ids = prompt_for(model, tokens)[:, :tokens].to(weight.device)
    # to build a mask a model looks at values, so on the meta device it gets one; some models take None only
    masks = [torch.zeros(1, 1, tokens, tokens, dtype=weight.dtype, device="meta"), None]
    for mask in masks if weight.is_meta else [None]:
        try:
            # fused attention runs as the products and the softmax that it stands for
            math = sdpa_kernel(SDPBackend.MATH)
            with torch.inference_mode(False), math, evaluating(model), MacCounter() as counter:
                model(input_ids=ids, attention_mask=mask, use_cache=False)
            return counter.macs
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            if not weight.is_meta:
                raise
            reason = error
    said = f"{type(model).__name__} can't be counted on the meta device, as it looks at values ({reason})"
    raise ValueError(f"{said}; load the model with its weights and count again")


def latency(
    model: nn.Module, *, tokens: int = 128, batch: int = 1, repeats: int = 10, warmup: int = 3
) -> list[float]:
    """Time a forward pass over random tokens, after a warm-up, waiting for the device each time.

    Args:    batch: sequences a pass.    repeats: timed passes.    warmup: passes before them, not timed.
    Returns: seconds of each repeat; `meters.quartiles` gives their median and spread.
    Raises:  ValueError: the model has no weights to run (meta device).
    Source:  paper, Table 3. Differs: that times WikiText2 on one A5000 and states neither batch nor length.
    """
    require(nn.Module, model=model)
    require("1..", tokens=tokens, batch=batch, repeats=repeats)
    require("0..", warmup=warmup)
    check_weights(model)
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(weight.shape[0], (batch, tokens), generator=generator)
    special = prompt_for(model, 1)[0, :tokens]  # some models look for them
    ids[:, : len(special)] = special
    ids = ids.to(weight.device)
    passes = range(warmup + repeats)
    with evaluating(model):
        return [timed(lambda: model(input_ids=ids, use_cache=False), ids.device) for _ in passes][warmup:]
