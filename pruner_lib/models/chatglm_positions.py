"""Positions of ChatGLM-6B: where each token stands, what it may not see, and how channels turn.

All of it is read off the special tokens of a prompt; `chatglm` has the picture. This file travels with it
beside the weights of a saved model, so it needs transformers alone.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig


def two_positions(input_ids: Tensor, attention_mask: Tensor, config: PreTrainedConfig) -> Tensor:
    """Place each token in the prompt and in what is filled in.

    Args:    input_ids, attention_mask: `(batch, tokens)`; mask 0: padding.
    Returns: `(batch, 2, tokens)` int64: position and block position; padding on the left has 0 and 0.
    """
    real = attention_mask.long()
    place = (real.cumsum(-1) - 1).clamp(min=0)  # among the tokens that are no padding
    filled = (input_ids == config.bos_token_id).cumsum(-1) > 0  # from <sop> on
    wanted = input_ids == config.gmask_token_id  # it wins where there are both
    wanted = torch.where(wanted.any(-1, keepdim=True), wanted, input_ids == config.mask_token_id)
    gap = place.gather(-1, wanted.long().argmax(-1, keepdim=True))  # (batch, 1): place of the first
    return torch.stack([torch.where(filled, gap, place), (filled * real).cumsum(-1)], dim=1)


def hidden_from(input_ids: Tensor, attention_mask: Tensor, past: int, config: PreTrainedConfig) -> Tensor:
    """Say what each token may not see: what comes later, unless that is the prompt; padding.

    Args:    attention_mask: `(batch, past + tokens)`.    past: tokens before these, in the cache; all of them
             are seen.
    Returns: `(batch, 1, tokens, past + tokens)`, True where a token (dim 2) may not see another (dim 3).
    """
    n = input_ids.shape[1]
    place = torch.arange(past + n, device=input_ids.device)
    later = (place > place[past:, None])[None]  # (1, tokens, past + tokens)
    if past == 0:
        later = later & ((input_ids == config.bos_token_id).cumsum(-1) > 0)[:, None]  # from <sop> on
    return (later | (attention_mask == 0)[:, None])[:, None]


def lacks_gap(input_ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """`(batch,)`: True where no [gMASK] or [MASK] says what is filled in, or no <sop> where that starts."""
    masks = (input_ids == config.gmask_token_id) | (input_ids == config.mask_token_id)
    return ~(masks.any(-1) & (input_ids == config.bos_token_id).any(-1))


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """Turn pairs of the channels of x `(batch, heads, tokens, channels)` by positions `(batch, tokens)`.

    The frequencies are rounded to half precision, as those in training.
    """
    exponents = -torch.arange(0, x.shape[-1], 2).float() / x.shape[-1]
    precise = torch.float16 if x.dtype == torch.float16 else torch.float32  # in half as in training
    frequencies = (10000.0**exponents).half().to(x.device, precise)  # (channels / 2,)
    angle = positions[:, None, :, None].to(precise) * frequencies
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)  # (batch, 1, tokens, channels / 2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def check_forms(attention_mask: Tensor | None, position_ids: Tensor | None, past: int) -> None:
    """Refuse masks and positions of another form than `ChatGLMModel.forward` takes."""
    if attention_mask is not None and attention_mask.ndim not in (2, 4):
        wanted = "(batch, tokens) or (batch, 1, tokens, tokens)"
        raise ValueError(f"attention_mask came with shape {tuple(attention_mask.shape)}, wanted {wanted}")
    if position_ids is not None and position_ids.shape[1:-1] != (2,):
        came = tuple(position_ids.shape)
        raise ValueError(f"position_ids came with shape {came}, wanted (batch, 2, tokens)")
    if past and position_ids is None:
        raise ValueError("after a cache position_ids are wanted: they follow from the whole prompt")
