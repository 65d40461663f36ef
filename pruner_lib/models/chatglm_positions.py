"""Positions, attention mask and rotary embedding of ChatGLM-6B, derived from the special tokens of a prompt.

`chatglm` illustrates them. This file is saved with a model, so it imports only transformers.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig


def two_positions(input_ids: Tensor, attention_mask: Tensor, config: PreTrainedConfig) -> Tensor:
    """Compute the two positions of each token: in the prompt, and in the fill.

    Args:    input_ids, attention_mask: `(batch, tokens)`; mask 0: padding.
    Returns: `(batch, 2, tokens)` int64: position and block position; both are 0 for padding on the left.
    """
    real = attention_mask.long()
    place = (real.cumsum(-1) - 1).clamp(min=0)  # among the tokens that are not padding
    filled = (input_ids == config.bos_token_id).cumsum(-1) > 0  # from <sop> on
    masks = input_ids == config.gmask_token_id  # takes precedence over [MASK]
    masks = torch.where(masks.any(-1, keepdim=True), masks, input_ids == config.mask_token_id)
    gap = place.gather(-1, masks.long().argmax(-1, keepdim=True))  # (batch, 1): place of the first
    return torch.stack([torch.where(filled, gap, place), (filled * real).cumsum(-1)], dim=1)


def masked_tokens(input_ids: Tensor, attention_mask: Tensor, past: int, config: PreTrainedConfig) -> Tensor:
    """Mask padding and later tokens, except those of the prompt.

    Args:    attention_mask: `(batch, past + tokens)`.    past: number of cached tokens, all visible.
    Returns: `(batch, 1, tokens, past + tokens)`, True where a token (dim 2) can't see another (dim 3).
    """
    n = input_ids.shape[1]
    place = torch.arange(past + n, device=input_ids.device)
    later = (place > place[past:, None])[None]  # (1, tokens, past + tokens)
    if past == 0:
        later = later & ((input_ids == config.bos_token_id).cumsum(-1) > 0)[:, None]  # from <sop> on
    return (later | (attention_mask == 0)[:, None])[:, None]


def has_no_gap(input_ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """Return `(batch,)`: True for rows without [gMASK] or [MASK], or without <sop>."""
    masks = (input_ids == config.gmask_token_id) | (input_ids == config.mask_token_id)
    return ~(masks.any(-1) & (input_ids == config.bos_token_id).any(-1))


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs of channels of x `(batch, heads, tokens, channels)` by positions `(batch, tokens)`.

    The frequencies are rounded to half precision, as in training.
    """
    exponents = -torch.arange(0, x.shape[-1], 2).float() / x.shape[-1]
    precise = torch.float16 if x.dtype == torch.float16 else torch.float32  # half precision as in training
    frequencies = (10000.0**exponents).half().to(x.device, precise)  # (channels / 2,)
    angle = positions[:, None, :, None].to(precise) * frequencies
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)  # (batch, 1, tokens, channels / 2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def check_shapes(attention_mask: Tensor | None, position_ids: Tensor | None, past: int) -> None:
    """Refuse masks and positions whose shapes `ChatGLMModel.forward` does not take."""
    if attention_mask is not None and attention_mask.ndim not in (2, 4):
        expected = "(batch, tokens) or (batch, 1, tokens, tokens)"
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected {expected}")
    if position_ids is not None and position_ids.shape[1:-1] != (2,):
        raise ValueError(f"position_ids has shape {tuple(position_ids.shape)}, expected (batch, 2, tokens)")
    if past and position_ids is None:
        raise ValueError("position_ids must be given with a cache: they depend on the whole prompt")
