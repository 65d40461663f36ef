"""The loss of the calibration batch and its gradient, a piece of the tokens at a time.

Softmax and its gradient are computed in float32 for a piece at a time and take the place of the logits, so
that beside the logits themselves, in the model's dtype, nothing of their size exists.
"""

from __future__ import annotations

import torch

PIECE = 2**20  # logits of a piece


def loss_and_gradient_(logits: torch.Tensor, ids: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Sum up the loss of every predicted token, and turn the logits into the gradient of the sum.

    L = sum over tokens t of -log p(ids[t + 1])    dL / dz_t = softmax(z_t) - onehot(ids[t + 1])

    The sum and not the mean: in float16 the gradient of the mean would vanish.

    Args:
        logits: `(samples, tokens, vocabulary)`, part of a graph; their values are overwritten.
        ids: `(samples, tokens)` int64.
    Returns: the loss, and its gradient in the dtype of the logits. Where the gradient is not finite neither
        is the loss.
    """
    gradient = logits.data  # not detach(): a view would take the new values for its own, without its hooks
    if hasattr(logits.grad_fn, "_saved_result"):  # its backward will look at the values
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
