"""Export a model as one GGUF file, for llama.cpp and tools built on it (ollama, LM Studio).

A model whose layers all have the same widths is written as llama.cpp's architecture `llama`, any other as
`deci`, which computes the same function but has lists of head counts and MLP widths, one number per layer.
Weights are not quantised; llama.cpp's `llama-quantize` can do that. `export_tokenizer` writes the tokenizer.
"""

import os
from pathlib import Path

import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruner_lib.files import check_folder, write_atomic
from pruner_lib.method.checks import require
from pruner_lib.method.decoder import check_weights
from pruner_lib.method.offload import check_in_memory
from pruner_lib.models.export_tokenizer import add_tokenizer
from pruner_lib.models.load import load_model
from pruner_lib.models.twins import interleaved

MODEL_TYPES = ("llama", "mistral", "qwen2")  # the same function: RMS norms, RoPE on halves, SiLU-gated MLPs
STATIC_ROPES = ("default", "linear", "llama3")  # angles that depend only on the position
Entry = tuple[str, Tensor, torch.dtype, int]  # name and dtype in the file, tensor, heads to interleave or 0
TYPES = {  # dtype of the weights -> GGUF types of a tensor and of the file
    torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}


def to_gguf(
    model: PreTrainedModel | str | Path,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a LLaMA-like decoder, pruned or not, and its tokenizer as one GGUF file.

    Args:
        model: a model in memory, or what `load_model` takes: a name, a folder or a hub id.
        path: the file; an existing one is replaced.
        tokenizer: required for a model in memory; None loads it with the model.
        dtype: float32, float16 or bfloat16, for matrices; vectors are float32. None: that of a model in
            memory, float32 for a loaded one.
    Returns: `path`. `llama-cli -m path` runs it, and `ollama create` with a Modelfile of `FROM path`.
    Raises: ValueError: llama.cpp does not support the architecture, a setting or the tokenizer, or weights
        are too large for float16. OSError: the disk is full. Nothing is written in these cases.
    Source: llama.cpp, `convert_hf_to_gguf.py` and `src/models/deci.cpp`.
    """
    if isinstance(model, (str, Path)):
        model, loaded = load_model(model, dtype=dtype or torch.float32)
        tokenizer = tokenizer or loaded
    require(os.PathLike, path=path)
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; give the path of a file, such as {Path(path) / 'model.gguf'}")
    check_folder(Path(path).parent)
    writer, tensors = check_gguf(model, tokenizer, dtype)
    for name, parameter, kind, _ in tensors:
        size = parameter.numel() * kind.itemsize
        writer.add_tensor_info(name, parameter.shape, None, size, raw_dtype=TYPES[kind][0])

    def write(temporary: Path) -> None:
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, parameter, kind, n_heads in tensors:
                rows = interleaved(parameter, n_heads) if n_heads else parameter
                tensor = rows.to(device="cpu", dtype=kind).contiguous()
                if kind == torch.float16 and not tensor.isfinite().all():
                    raise ValueError(f"{name} has values too large for float16; use bfloat16 or float32")
                writer.write_tensor_data(tensor.view(torch.uint8).numpy())
        finally:
            writer.close()

    return write_atomic(path, write)


def check_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype | None = None
) -> tuple[GGUFWriter, list[Entry]]:
    """Check that a model can be written as GGUF, as `to_gguf` does, without writing it.

    Returns: a writer with all metadata (sizes, rope, tokenizer), and the tensors.
    """
    _check_supported(model)
    dtype = dtype or model.dtype
    require((*TYPES,), dtype=dtype)
    config, vocabulary = model.config, model.get_input_embeddings().num_embeddings
    parts = [(layer.self_attn, layer.mlp) for layer in model.model.layers]
    widths = [  # query heads, key-value heads and MLP channels of each layer
        [attention.q_proj.out_features // attention.head_dim for attention, _ in parts],
        [attention.k_proj.out_features // attention.head_dim for attention, _ in parts],
        [mlp.down_proj.in_features for _, mlp in parts],
    ]
    uniform = all(len(set(numbers)) == 1 for numbers in widths)
    n_q, n_kv, n_mlp = [numbers[0] if uniform else numbers for numbers in widths]
    writer = GGUFWriter(None, "llama" if uniform else "deci")
    writer.add_head_count(n_q)
    writer.add_head_count_kv(n_kv)
    writer.add_feed_forward_length(n_mlp)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(parts[0][0].head_dim)
    writer.add_block_count(len(parts))
    writer.add_embedding_length(model.get_input_embeddings().embedding_dim)
    # up to the length of the window, sliding-window attention equals full attention
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    writer.add_context_length(min(window, config.max_position_embeddings))
    writer.add_layer_norm_rms_eps(model.model.norm.variance_epsilon)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_file_type(TYPES[dtype][1])
    writer.add_vocab_size(vocabulary)
    add_tokenizer(writer, tokenizer, vocabulary)
    return writer, _tensors(model, dtype)


def _check_supported(model: PreTrainedModel) -> None:
    """Refuse a model that llama.cpp's `llama` and `deci` would compute differently."""
    check_in_memory(model)
    check_weights(model)
    require(PreTrainedModel, model=model)
    config = model.config
    if config.model_type not in MODEL_TYPES or model.get_output_embeddings() is None:
        found = f"got {config.model_type!r} ({type(model).__name__}); try llama.cpp's own converter"
        raise ValueError(f"to_gguf writes language models of the types {', '.join(MODEL_TYPES)}, {found}")
    layers, rope_type = model.model.layers, config.rope_parameters["rope_type"]
    head_dim, n_rotated = layers[0].self_attn.head_dim, 2 * len(model.model.rotary_emb.inv_freq)
    scalings = {layer.self_attn.scaling for layer in layers}
    norms = {m.variance_epsilon for m in model.modules() if hasattr(m, "variance_epsilon")}
    settings = (  # name, value, whether llama.cpp supports it
        ("hidden_act", config.hidden_act, config.hidden_act in ("silu", "swish")),
        ("rope_type", rope_type, rope_type in STATIC_ROPES),
        ("number of rotated channels per head", n_rotated, n_rotated == head_dim),
        ("set of attention scales", scalings, scalings == {head_dim**-0.5}),
        ("set of norm epsilons", norms, len(norms) == 1),
    )
    for name, value, is_supported in settings:
        if not is_supported:
            raise ValueError(f"no GGUF can be written: llama.cpp does not support that the {name} is {value}")


def _tensors(model: PreTrainedModel, dtype: torch.dtype) -> list[Entry]:
    """List the tensors of the file; refuse parameters that llama.cpp's `llama` does not have."""
    layers = model.model.layers
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, len(layers))
    head_dim, tensors = layers[0].self_attn.head_dim, []
    for name, parameter in model.named_parameters():  # tied weights once, as llama.cpp expects
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored in (None, "output.bias"):
            raise ValueError(f"no GGUF can be written: llama.cpp's llama has no parameter {name}")
        rotated = name.rsplit(".", 2)[-2] in ("q_proj", "k_proj")
        kind = torch.float32 if parameter.ndim == 1 else dtype  # llama.cpp needs float32 vectors
        tensors.append((stored, parameter.detach(), kind, len(parameter) // head_dim if rotated else 0))
    factors = _rope_factors(model)
    return tensors if factors is None else [*tensors, ("rope_freqs.weight", factors, torch.float32, 0)]


def _rope_factors(model: PreTrainedModel) -> Tensor | None:
    """Compute the divisors of each pair's angle for llama.cpp: `(head_dim / 2,)`, or None if all are 1."""
    frequencies = model.model.rotary_emb.inv_freq.float().cpu()
    exponents = torch.arange(len(frequencies), dtype=torch.float32) / len(frequencies)
    factors = model.config.rope_parameters["rope_theta"] ** -exponents / frequencies
    return None if torch.allclose(factors, torch.ones(())) else factors
