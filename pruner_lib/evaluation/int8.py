"""Quantise linear layers to 8 bits, as LLM.int8() stores and multiplies them (Table 13).

A quantised model is evaluated like any other; `efficiency` counts its bytes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruner_lib.method.checks import require

LEVELS = 127  # integers from -127 to 127
OUTLIER = 6.0  # input columns with a larger value stay in floating point


class Int8Linear(nn.Module):
    """A linear layer with 8-bit integer weights.

    w_ij = s_i q_ij, with a scale s_i for each output i; x_tj = r_t p_tj, with a scale r_t for each token t,
    computed in each call. y_ti = r_t s_i sum_j p_tj q_ij + b_i, where the sum is over integers. Input columns
    j with an outlier are excluded from that sum and multiplied in floating point.

    Args:    linear: the layer to quantise; it is not changed.
             outlier: values above this magnitude are outliers; None: there are none.
             per_token: False uses one scale for all tokens of a call.
    Source:  Dettmers et al., LLM.int8() (NeurIPS 2022), sections 3.1 and 3.2. No difference known.
    """

    def __init__(self, linear: nn.Linear, *, outlier: float | None = OUTLIER, per_token: bool = True) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = _scale(weight.float(), dim=1)  # (out, 1)
        self.register_buffer("q", (weight.float() / scale).round().to(torch.int8))  # (out, in)
        self.register_buffer("scale", scale[:, 0].contiguous())  # (out,) float32
        self.bias = linear.bias
        self.outlier, self.per_token = outlier, per_token

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()  # (tokens, in)
        rest = 0.0
        if self.outlier is not None:
            columns = (rows.abs().amax(0) > self.outlier).nonzero()[:, 0]
            rest = rows[:, columns] @ (self.q[:, columns] * self.scale[:, None]).T
            rows = rows.index_fill(1, columns, 0)
        scale = _scale(rows, dim=1 if self.per_token else (0, 1))
        product = integer_product((rows / scale).round().to(torch.int8), self.q)
        y = product * scale * self.scale + rest
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)


def quantise_(model: nn.Module, *, outlier: float | None = OUTLIER, per_token: bool = True) -> nn.Module:
    """Quantise all linear layers except the output layer to 8 bits, in place, one at a time.

    Args:    model: a decoder on any device; the meta device suffices for counting.
             outlier, per_token: see `Int8Linear`.
    Raises:  ValueError: there is no linear layer besides the output layer.
    """
    require(nn.Module, model=model)
    require("(0, inf) or None", outlier=outlier)
    require(bool, per_token=per_token)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = [name for name, layer in model.named_modules() if type(layer) is nn.Linear and layer is not head]
    if not names:
        raise ValueError(f"{type(model).__name__} has no linear layers (torch.nn.Linear) to quantise")
    for name in names:
        model.set_submodule(name, Int8Linear(model.get_submodule(name), outlier=outlier, per_token=per_token))
    return model


def is_quantised(model: nn.Module) -> bool:
    """Return whether a model has 8-bit linear layers."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply integers: `(m, k)` and `(n, k)` int8 -> `(m, n)` float32, with exact sums.

    A GPU needs sizes that are multiples of 8 and more than 16 rows, so matrices are padded with zeros.
    """
    m, n = len(a), len(b)
    if a.device.type == "cuda":
        a = F.pad(a, (0, -a.shape[1] % 8, 0, max(24 - m, -m % 8)))
        b = F.pad(b, (0, -b.shape[1] % 8, 0, -n % 8))
    return torch._int_mm(a, b.T)[:m, :n].float()


def _scale(x: Tensor, dim: int | tuple[int, int]) -> Tensor:
    return x.abs().amax(dim, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
