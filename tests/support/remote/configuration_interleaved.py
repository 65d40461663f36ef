"""Config of a decoder as remote code would hold it: names of its own, special tokens, head size implied."""

from transformers import PreTrainedConfig


class InterleavedConfig(PreTrainedConfig):
    model_type = "interleaved"
    attribute_map = {"num_hidden_layers": "num_layers"}

    def __init__(
        self,
        vocab_size=264,
        hidden_size=48,
        num_layers=3,
        num_attention_heads=6,
        inner_hidden_size=192,
        layernorm_epsilon=1e-5,
        max_sequence_length=256,
        use_cache=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        gmask_token_id=260,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.inner_hidden_size = inner_hidden_size
        self.layernorm_epsilon = layernorm_epsilon
        self.max_sequence_length = max_sequence_length
        self.use_cache = use_cache
        self.gmask_token_id = gmask_token_id
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(
            bos_token_id=bos_token_id, eos_token_id=eos_token_id, pad_token_id=pad_token_id, **kwargs
        )
