"""ChatGLM-6B (Tables 5, 20 and 21 of the paper) as a transformers model that runs no code from the hub.

Parameter names and config keys are those of THUDM/chatglm-6b, whose own code no longer runs with current
transformers. This is a reimplementation; its logits agree to 1e-4. The model fills a gap in a prompt:

    tokens            t0 t1 t2 [gMASK] | <sop> a0 a1 a2      [MASK] instead: a gap inside the text
    position           0  1  2    3    |   3    3  3  3      from <sop> on, the position of the gap
    block position     0  0  0    0    |   1    2  3  4      the position within the fill
    attention         each sees all    | the prompt and earlier tokens

Each of the two positions rotates half of the channels of a head. The residual connection adds the
*normalised* input, times sqrt(2 * 28). This file is saved with a model, so it imports only transformers.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

# a relative import, which also works in a saved folder
from .chatglm_positions import check_shapes, has_no_gap, masked_tokens, rotated, two_positions

MASKED = -10000.0  # the attention score of masked tokens
ALPHA = math.sqrt(2 * 28)  # the released code uses this number for any number of layers
LATER_KEYS = ("padded_vocab_size", "ffn_hidden_size", "multi_query_attention", "kv_channels")  # of ChatGLM2


class ChatGLMConfig(PreTrainedConfig):
    """Sizes and special tokens of a ChatGLM; the defaults are those of THUDM/chatglm-6b.

    Raises: ValueError: the config is that of ChatGLM2 or later (another architecture with the same
        `model_type`), or has 4- or 8-bit weights, a trained prefix or one-dimensional positions.
    """

    model_type = "chatglm"
    attribute_map = {"num_hidden_layers": "num_layers", "max_position_embeddings": "max_sequence_length"}
    keys_to_ignore_at_inference = ["past_key_values"]
    _auto_class = "AutoConfig"  # saves this file with the config, so that transformers alone can load it

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    head_dim: int | None = None  # None: hidden_size / num_attention_heads; a number once heads were pruned
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 3
    mask_token_id: int = 130000
    gmask_token_id: int = 130001
    bos_token_id: int = 130004  # <sop>: ends the prompt, starts the fill
    eos_token_id: int | list[int] | None = 130005  # <eop>

    def __post_init__(self, **kwargs):
        refused = {key: kwargs[key] for key in LATER_KEYS if key in kwargs}
        refused |= {key: kwargs[key] for key in ("pre_seq_len", "quantization_bit") if kwargs.get(key)}
        refused |= {} if self.position_encoding_2d else {"position_encoding_2d": False}
        if refused:
            found = ", ".join(f"{key}={value}" for key, value in refused.items())
            expected = "the original ChatGLM-6B in floating point: no later version, no trained prefix"
            raise ValueError(f"the config has {found}; expected {expected}")
        super().__post_init__(**kwargs)


class ChatGLMAttention(nn.Module):
    """Attention with the query, key and value rows of all heads, head by head, in one matrix."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        if self.head_dim < 4 or self.head_dim % 4:
            expected = "expected a multiple of four, since two positions rotate pairs of channels"
            raise ValueError(f"a head has {self.head_dim} channels; {expected}; change heads or head_dim")
        width = self.num_attention_heads * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, 3 * width)
        self.dense = nn.Linear(width, config.hidden_size)

    def forward(self, x: Tensor, masked: Tensor, positions: Tensor, cache: DynamicCache | None) -> Tensor:
        mixed = self.query_key_value(x).unflatten(-1, (self.num_attention_heads, 3 * self.head_dim))
        query, key, value = mixed.transpose(1, 2).chunk(3, dim=-1)  # (batch, heads, tokens, head_dim)
        both = positions.unbind(1)  # each rotates one half of the channels
        query, key = (torch.cat([*map(rotated, z.chunk(2, -1), both)], -1) for z in (query, key))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        scale = 32.0  # keeps half precision from overflowing; a power of two, so it changes no bits
        scores = (query / (math.sqrt(self.head_dim) * scale)) @ key.transpose(-1, -2)
        scores = scores.masked_fill(masked, MASKED).float() * scale  # (batch, heads, tokens, all tokens)
        context = scores.softmax(-1).to(value.dtype) @ value
        return self.dense(context.transpose(1, 2).flatten(-2))


class ChatGLMBlock(GradientCheckpointingLayer):
    """A decoder layer: y = a n(x) + attention(n(x)), z = a m(y) + mlp(m(y)) with norms n, m and a = ALPHA."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        mlp = {
            "dense_h_to_4h": nn.Linear(config.hidden_size, config.inner_hidden_size),
            "activation": ACT2FN["gelu_pytorch_tanh"],
            "dense_4h_to_h": nn.Linear(config.inner_hidden_size, config.hidden_size),
        }
        self.mlp = nn.Sequential(OrderedDict(mlp))

    def forward(self, x: Tensor, masked: Tensor, positions: Tensor, past_key_values=None) -> Tensor:
        x = self.input_layernorm(x)
        x = x * ALPHA + self.attention(x, masked, positions, past_key_values)
        x = self.post_attention_layernorm(x)
        return x * ALPHA + self.mlp(x)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """Class attributes shared by both models."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # recomputed from the head size


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The decoder without its output layer."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run the decoder on tokens `(batch, tokens)`.

        A row without a gap is plain text, and "[gMASK] <sop>" is put before it.

        Args:    attention_mask: `(batch, past + tokens)`, 0 for padding, None for no padding; or a mask
                 `(batch, 1, tokens, past + tokens)` that is True (as from the hub's tokenizer) or negative
                 (as elsewhere in transformers) for masked tokens.
                 position_ids: `(batch, 2, tokens)`; None derives them from the special tokens.
        Raises:  ValueError: a mask or positions have another shape, there are a cache but no positions, or a
                 row has <sop> without [gMASK] or [MASK].
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        n = input_ids.shape[1]
        check_shapes(attention_mask, position_ids, past)
        padding = input_ids.new_ones(len(input_ids), past + n)
        if attention_mask is not None and attention_mask.ndim == 4:
            masked = attention_mask if attention_mask.dtype == torch.bool else attention_mask < 0
        else:
            padding = padding if attention_mask is None else attention_mask
            if position_ids is None:
                input_ids, padding = self._with_gap(input_ids, padding)
            masked = masked_tokens(input_ids, padding, past, self.config)
        if position_ids is None:
            position_ids = two_positions(input_ids, padding, self.config)
        x = self.word_embeddings(input_ids)  # (batch, tokens, hidden)
        for layer in self.layers:
            x = layer(x, masked, position_ids, past_key_values=past_key_values)
        return BaseModelOutputWithPast(self.final_layernorm(x)[:, -n:], past_key_values)

    def _with_gap(self, input_ids: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """If rows are plain text, put "[gMASK] <sop>" before them and padding before the others."""
        plain = has_no_gap(input_ids, self.config)[:, None]  # (batch, 1)
        if not plain.any():
            return input_ids, padding
        if (plain & (input_ids == self.config.bos_token_id).any(-1, keepdim=True)).any():
            found = "a row has <sop>, but no [gMASK] or [MASK] for the gap"
            raise ValueError(f"{found}; give the ids from the tokenizer, or only plain text")
        prefix = input_ids.new_tensor([[self.config.gmask_token_id, self.config.bos_token_id]])
        prefix = torch.where(plain, prefix, self.config.pad_token_id or 0)
        return torch.cat([prefix, input_ids], 1), torch.cat([plain.expand(-1, 2).to(padding), padding], 1)


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """The decoder with its output layer."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Predict the next tokens; arguments as in `ChatGLMModel.forward`, `labels` as in transformers.

        `position_ids` is hidden in kwargs, since callers that find it would pass one-dimensional positions.
        """
        positions = kwargs.pop("position_ids", None)
        out = self.transformer(input_ids, attention_mask, positions, past_key_values, use_cache)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])  # (batch, tokens, vocabulary)
        size = self.config.vocab_size
        loss = None if labels is None else self.loss_function(logits, labels, size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(self, input_ids: Tensor, attention_mask=None, **kwargs) -> dict:
        """Prepare the inputs of one generation step; positions depend on the whole text so far."""
        if has_no_gap(input_ids, self.config).any():
            expected = "[gMASK] or [MASK], followed by <sop>; give the ids from the tokenizer"
            raise ValueError(f"a prompt for generation needs {expected}")
        padding = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if padding.ndim != 2:
            raise ValueError(f"attention_mask has shape {tuple(padding.shape)}, expected (batch, tokens)")
        kwargs["position_ids"] = two_positions(input_ids, padding, self.config)  # the last ones are kept
        return super().prepare_inputs_for_generation(input_ids, attention_mask=padding, **kwargs)


def tie_equal_(model: ChatGLMForConditionalGeneration) -> ChatGLMForConditionalGeneration:
    """Tie embedding and output layer if their weights are equal, as the hub's own code does.

    The checkpoint stores the matrix twice and its config does not say so: 6.17 billion parameters, not 6.71.
    """
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    comparable = embedding.device == output.device and embedding.device.type != "meta"
    if comparable and embedding.shape == output.shape and torch.equal(embedding, output):
        model.config.tie_word_embeddings = True
        model.tie_weights()
    return model
