"""A decoder in the manner of ChatGLM-6B, as remote code: what a library must not take for granted.

Sequence-first tensors, one fused projection whose rows are interleaved by head, a rotary embedding of two
dimensions, its own scaling of the residual, and a mask that follows from the special tokens of the prompt.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_interleaved import InterleavedConfig


def prompt_lengths(input_ids, config):
    """How many tokens of each row all others may see: those before bos."""
    lengths = []
    for row in input_ids.tolist():
        if config.gmask_token_id not in row or config.bos_token_id not in row:
            raise ValueError("a prompt must end in the tokens gmask and bos")
        lengths.append(row.index(config.bos_token_id))
    return lengths


def two_positions(input_ids, config):
    """(batch, 2, tokens): the position, which stands still from bos on, and the one inside the answer."""
    rows = []
    for row, length in zip(input_ids.tolist(), prompt_lengths(input_ids, config), strict=True):
        answer = len(row) - length
        position = list(range(length)) + [row.index(config.gmask_token_id)] * answer
        rows.append([position, [0] * length + list(range(1, answer + 1))])
    return torch.tensor(rows, device=input_ids.device)


def hidden_from(input_ids, config):
    """(batch, 1, tokens, tokens): True where a token may not look."""
    tokens = torch.arange(input_ids.shape[1], device=input_ids.device)
    lengths = torch.tensor(prompt_lengths(input_ids, config), device=input_ids.device)
    later = tokens[None, :] > tokens[:, None]
    return (later[None] & (tokens >= lengths[:, None])[:, None])[:, None]


def rotate(x, position):
    """Turn pairs of channels. x: (tokens, batch, heads, channels), position: (batch, tokens)."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = position.transpose(0, 1)[:, :, None, None].float() * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class InterleavedAttention(nn.Module):
    def __init__(self, hidden_size, num_attention_heads, layer_id):
        super().__init__()
        self.layer_id = layer_id
        self.num_attention_heads = num_attention_heads
        self.hidden_size_per_partition = hidden_size
        self.hidden_size_per_attention_head = hidden_size // num_attention_heads
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, x, mask, position_ids, cache):
        tokens, batch, _ = x.shape
        heads, size = self.num_attention_heads, self.hidden_size_per_attention_head
        mixed = self.query_key_value(x).view(tokens, batch, heads, 3 * size)
        query, key, value = mixed.chunk(3, dim=-1)
        query, key = (
            torch.cat([rotate(part, position_ids[:, i]) for i, part in enumerate(z.chunk(2, dim=-1))], dim=-1)
            for z in (query, key)
        )
        if cache is not None:
            key, value = cache.update(key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3), self.layer_id)
            key, value = key.permute(2, 0, 1, 3), value.permute(2, 0, 1, 3)
        scale = float(self.layer_id + 1)  # divided out before the product, multiplied in after it
        query = query.reshape(tokens, batch * heads, size) / (size**0.5 * scale)
        key = key.reshape(-1, batch * heads, size)
        scores = torch.bmm(query.transpose(0, 1), key.transpose(0, 1).transpose(1, 2))
        scores = scores.view(batch, heads, tokens, -1)
        if mask is not None:
            scores = scores.masked_fill(mask, -10000.0)
        weights = F.softmax(scores.float() * scale, dim=-1).to(x.dtype)
        value = value.reshape(-1, batch * heads, size).transpose(0, 1)
        mixed = torch.bmm(weights.view(batch * heads, tokens, -1), value).view(batch, heads, tokens, size)
        mixed = mixed.permute(2, 0, 1, 3).contiguous().view(tokens, batch, self.hidden_size_per_partition)
        return self.dense(mixed)


class InterleavedMLP(nn.Module):
    def __init__(self, hidden_size, inner_hidden_size):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(hidden_size, inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(inner_hidden_size, hidden_size)

    def forward(self, x):
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x)))


class InterleavedBlock(nn.Module):
    def __init__(self, config, layer_id):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = InterleavedAttention(config.hidden_size, config.num_attention_heads, layer_id)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = InterleavedMLP(config.hidden_size, config.inner_hidden_size)
        self.alpha = (2 * config.num_layers) ** 0.5

    def forward(self, x, mask, position_ids, cache):
        x = self.input_layernorm(x)
        x = x * self.alpha + self.attention(x, mask, position_ids, cache)
        x = self.post_attention_layernorm(x)
        return x * self.alpha + self.mlp(x)


class InterleavedPreTrainedModel(PreTrainedModel):
    config_class = InterleavedConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = False
    _no_split_modules = ["InterleavedBlock"]


class InterleavedModel(InterleavedPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(InterleavedBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.post_init()

    def get_input_embeddings(self):
        return self.word_embeddings

    def set_input_embeddings(self, value):
        self.word_embeddings = value

    def forward(
        self,
        input_ids,
        position_ids=None,
        attention_mask=None,
        past_key_values=None,
        use_cache=None,
        **kwargs,
    ):
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = two_positions(input_ids, self.config)
        # from the second call on there is one token at a time, which sees everything
        mask = hidden_from(input_ids, self.config) if past == 0 else None
        if attention_mask is not None:  # (batch, tokens), 0 for padding
            padding = attention_mask[:, None, None, :] == 0
            mask = padding if mask is None else mask | padding
        x = self.word_embeddings(input_ids).transpose(0, 1)  # (tokens, batch, hidden)
        for layer in self.layers:
            x = layer(x, mask, position_ids, past_key_values if use_cache else None)
        x = self.final_layernorm(x)
        return BaseModelOutputWithPast(x, past_key_values if use_cache else None)


class InterleavedForCausalLM(InterleavedPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = InterleavedModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def prepare_inputs_for_generation(
        self, input_ids, next_sequence_length=None, past_key_values=None, attention_mask=None, **kwargs
    ):
        n = next_sequence_length or input_ids.shape[1]
        return {
            "input_ids": input_ids[:, -n:],
            "position_ids": two_positions(input_ids, self.config)[..., -n:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
        }

    def forward(self, input_ids, labels=None, **kwargs):
        out = self.transformer(input_ids, **kwargs)
        logits = self.lm_head(out.last_hidden_state).transpose(0, 1).contiguous()  # (batch, tokens, words)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)
