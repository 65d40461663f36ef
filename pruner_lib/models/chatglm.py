"""ChatGLM-6B (Tables 5, 20 and 21 of the paper) as a model of transformers: no code of the hub has to run.

Names of parameters and config keys are those of THUDM/chatglm-6b, whose own code no longer runs on current
transformers. Written from what that code does; logits agree with it to 1e-4. A prompt is filled in:

    tokens            t0 t1 t2 [gMASK] | <sop> a0 a1 a2      [MASK] instead: a gap inside of the text
    position           0  1  2    3    |   3    3  3  3      the place that is filled in, from <sop> on
    block position     0  0  0    0    |   1    2  3  4      the place inside of what is filled in
    attention         each sees all    | the prompt, and what stands before

Half of the channels of a head turn by each of the two positions. A residual sum adds the *normalised* input,
times sqrt(2 * 28). This file travels beside the weights of a saved model, so it needs transformers alone.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

# not by the package's name: the file lies beside this one, here and in a saved folder
from .chatglm_positions import check_forms, hidden_from, lacks_gap, turned, two_positions

HIDDEN = -10000.0  # the score of what a token may not see
ALPHA = math.sqrt(2 * 28)  # the released code has this number for any number of layers
LATER_KEYS = ("padded_vocab_size", "ffn_hidden_size", "multi_query_attention", "kv_channels")  # of ChatGLM2


class ChatGLMConfig(PreTrainedConfig):
    """Sizes and special tokens of a ChatGLM; the defaults are those of THUDM/chatglm-6b.

    Raises: ValueError: the config of ChatGLM2 or later, which is another architecture of the same
        `model_type`; weights in 4 or 8 bits; a trained prefix; positions of one dimension.
    """

    model_type = "chatglm"
    attribute_map = {"num_hidden_layers": "num_layers", "max_position_embeddings": "max_sequence_length"}
    keys_to_ignore_at_inference = ["past_key_values"]
    _auto_class = "AutoConfig"  # saved with this file beside it, for who has transformers alone

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    head_dim: int | None = None  # None: hidden_size / num_attention_heads; a number once heads were cut
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
    bos_token_id: int = 130004  # <sop>: here the prompt ends and what is filled in starts
    eos_token_id: int | list[int] | None = 130005  # <eop>

    def __post_init__(self, **kwargs):
        refused = {key: kwargs[key] for key in LATER_KEYS if key in kwargs}
        refused |= {key: kwargs[key] for key in ("pre_seq_len", "quantization_bit") if kwargs.get(key)}
        refused |= {} if self.position_encoding_2d else {"position_encoding_2d": False}
        if refused:
            came = ", ".join(f"{key}={value}" for key, value in refused.items())
            wanted = "ChatGLM-6B as it was released, in floating point: no later version, no trained prefix"
            raise ValueError(f"the config has {came}; wanted {wanted}")
        super().__post_init__(**kwargs)


class ChatGLMAttention(nn.Module):
    """Attention whose query, key and value rows lie head by head in one matrix."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        if self.head_dim < 4 or self.head_dim % 4:
            wanted = "a multiple of four: two positions turn pairs of them; change heads or head_dim"
            raise ValueError(f"a head has {self.head_dim} channels, wanted {wanted}")
        width = self.num_attention_heads * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, 3 * width)
        self.dense = nn.Linear(width, config.hidden_size)

    def forward(self, x: Tensor, hidden: Tensor, positions: Tensor, cache: DynamicCache | None) -> Tensor:
        mixed = self.query_key_value(x).unflatten(-1, (self.num_attention_heads, 3 * self.head_dim))
        query, key, value = mixed.transpose(1, 2).chunk(3, dim=-1)  # (batch, heads, tokens, head_dim)
        places = positions.unbind(1)  # each turns one half of the channels
        query, key = (torch.cat([*map(turned, z.chunk(2, -1), places)], -1) for z in (query, key))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        scale = 32.0  # divided out and multiplied in again: half precision overflows; exact, a power of two
        scores = (query / (math.sqrt(self.head_dim) * scale)) @ key.transpose(-1, -2)
        scores = scores.masked_fill(hidden, HIDDEN).float() * scale  # (batch, heads, tokens, all tokens)
        seen = scores.softmax(-1).to(value.dtype) @ value
        return self.dense(seen.transpose(1, 2).flatten(-2))


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

    def forward(self, x: Tensor, hidden: Tensor, positions: Tensor, past_key_values=None) -> Tensor:
        x = self.input_layernorm(x)
        x = x * ALPHA + self.attention(x, hidden, positions, past_key_values)
        x = self.post_attention_layernorm(x)
        return x * ALPHA + self.mlp(x)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # they follow from the size


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

        A row without a gap to fill in is plain text: it is read after "[gMASK] <sop>", put before it here.

        Args:    attention_mask: `(batch, past + tokens)`, 0 for padding, None for no padding; or what may not
                 be seen, `(batch, 1, tokens, past + tokens)`: True, as the hub's tokenizer gives it, or below
                 zero, as elsewhere in transformers.
                 position_ids: `(batch, 2, tokens)`; None: they follow from the special tokens.
        Raises:  ValueError: masks or positions of another form; tokens after a cache without positions; <sop>
                 without [gMASK] or [MASK].
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        n = input_ids.shape[1]
        check_forms(attention_mask, position_ids, past)
        padding = input_ids.new_ones(len(input_ids), past + n)
        if attention_mask is not None and attention_mask.ndim == 4:
            hidden = attention_mask if attention_mask.dtype == torch.bool else attention_mask < 0
        else:
            padding = padding if attention_mask is None else attention_mask
            if position_ids is None:
                input_ids, padding = self._opened(input_ids, padding)
            hidden = hidden_from(input_ids, padding, past, self.config)
        if position_ids is None:
            position_ids = two_positions(input_ids, padding, self.config)
        x = self.word_embeddings(input_ids)  # (batch, tokens, hidden)
        for layer in self.layers:
            x = layer(x, hidden, position_ids, past_key_values=past_key_values)
        return BaseModelOutputWithPast(self.final_layernorm(x)[:, -n:], past_key_values)

    def _opened(self, input_ids: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Put "[gMASK] <sop>" before rows of plain text, and padding before the others if there are any."""
        plain = lacks_gap(input_ids, self.config)[:, None]  # (batch, 1)
        if not plain.any():
            return input_ids, padding
        if (plain & (input_ids == self.config.bos_token_id).any(-1, keepdim=True)).any():
            found = "a row has <sop>, but no [gMASK] or [MASK] for the place that is filled in"
            raise ValueError(f"{found}; take the ids that the tokenizer gives, or plain text alone")
        opening = input_ids.new_tensor([[self.config.gmask_token_id, self.config.bos_token_id]])
        opening = torch.where(plain, opening, self.config.pad_token_id or 0)
        return torch.cat([opening, input_ids], 1), torch.cat([plain.expand(-1, 2).to(padding), padding], 1)


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

        `position_ids` is not named here: whoever finds the name would count positions of one dimension.
        """
        positions = kwargs.pop("position_ids", None)
        out = self.transformer(input_ids, attention_mask, positions, past_key_values, use_cache)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])  # (batch, tokens, vocabulary)
        size = self.config.vocab_size
        loss = None if labels is None else self.loss_function(logits, labels, size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(self, input_ids: Tensor, attention_mask=None, **kwargs) -> dict:
        """Choose what one step of generation reads; positions follow from the whole text so far."""
        if lacks_gap(input_ids, self.config).any():
            wanted = "[gMASK] or [MASK], and <sop> behind it; take the ids that the tokenizer gives"
            raise ValueError(f"a prompt to go on from has {wanted}")
        padding = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if padding.ndim != 2:
            raise ValueError(f"attention_mask came with shape {tuple(padding.shape)}, wanted (batch, tokens)")
        kwargs["position_ids"] = two_positions(input_ids, padding, self.config)  # the last ones are kept
        return super().prepare_inputs_for_generation(input_ids, attention_mask=padding, **kwargs)


def tie_equal_(model: ChatGLMForConditionalGeneration) -> ChatGLMForConditionalGeneration:
    """Share one matrix between embedding and output layer where they are equal, as the hub's own code does.

    The checkpoint holds it twice, and its config says nothing: 6.17 billion parameters, not 6.71.
    """
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    here = embedding.device == output.device and embedding.device.type != "meta"
    if here and embedding.shape == output.shape and torch.equal(embedding, output):
        model.config.tie_word_embeddings = True
        model.tie_weights()
    return model
