"""Export: one GGUF file, for llama.cpp and what is built on it (ollama, LM Studio).

A model whose layers are all alike is written as llama.cpp's architecture `llama`. One with layers of
different widths is written as its `deci`, made for models out of neural architecture search: the same
function, with head counts and MLP widths as lists, a number a layer. Numbers are written as they are;
llama.cpp's own `llama-quantize` makes them smaller. The tokenizer is in `export_tokenizer`.
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

MODEL_TYPES = ("llama", "mistral", "qwen2")  # one function: RMS norms, rotated halves, SiLU-gated MLPs
STATIC_ROPES = ("default", "linear", "llama3")  # angles that depend on nothing but the position
Entry = tuple[str, Tensor, torch.dtype, int]  # name and type in the file, tensor, heads to interleave or 0
TYPES = {  # dtype of the weights -> of the tensor, of the file
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
    """Write a decoder of the LLaMA kind, pruned or not, with its tokenizer as one GGUF file.

    Args:
        model: in memory, or what `load_model` takes: a name, a folder or a hub id.
        path: the file; one that is there is replaced.
        tokenizer: of a model in memory; for the others that of their folder.
        dtype: float32, float16 or bfloat16, for the matrices; vectors are float32. None: that of the
            model, float32 for one that is read here.
    Returns: `path`. `llama-cli -m path` runs it, and `ollama create` with a Modelfile of `FROM path`.
    Raises: ValueError: another architecture, a setting or tokenizer that llama.cpp has not in this form,
        or weights too large for float16. OSError: the disk is full. Nothing is written then.
    Source: llama.cpp, `convert_hf_to_gguf.py` and `src/models/deci.cpp`.
    """
    if isinstance(model, (str, Path)):
        model, found = load_model(model, dtype=dtype or torch.float32)
        tokenizer = tokenizer or found
    require(os.PathLike, path=path)
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file, such as {Path(path) / 'model.gguf'}")
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
                    raise ValueError(f"{name} holds numbers that float16 can't; write bfloat16 or float32")
                writer.write_tensor_data(tensor.view(torch.uint8).numpy())
        finally:
            writer.close()

    return write_atomic(path, write)


def check_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype | None = None
) -> tuple[GGUFWriter, list[Entry]]:
    """Describe a model as GGUF, or raise the ValueError of `to_gguf`; nothing is written.

    Returns: a writer that holds all but the tensors (sizes, rope, tokenizer), and the tensors.
    """
    _check_function(model)
    dtype = dtype or model.dtype
    require((*TYPES,), dtype=dtype)
    config, vocabulary = model.config, model.get_input_embeddings().num_embeddings
    parts = [(layer.self_attn, layer.mlp) for layer in model.model.layers]
    widths = [  # query heads, key and value heads, and MLP channels, a number a layer
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
    # a model that looks back over a sliding window only is the same up to that length
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    writer.add_context_length(min(window, config.max_position_embeddings))
    writer.add_layer_norm_rms_eps(model.model.norm.variance_epsilon)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_file_type(TYPES[dtype][1])
    writer.add_vocab_size(vocabulary)
    add_tokenizer(writer, tokenizer, vocabulary)
    return writer, _tensors(model, dtype)


def _check_function(model: PreTrainedModel) -> None:
    """Refuse a model that llama.cpp's `llama` and `deci` would compute in another way."""
    check_in_memory(model)
    check_weights(model)
    require(PreTrainedModel, model=model)
    config = model.config
    if config.model_type not in MODEL_TYPES or model.get_output_embeddings() is None:
        came = f"got {config.model_type!r} ({type(model).__name__}), which llama.cpp's own converter may read"
        raise ValueError(f"GGUF is for language models of the types {', '.join(MODEL_TYPES)}, {came}")
    layers, rope_type = model.model.layers, config.rope_parameters["rope_type"]
    head_dim, n_rotated = layers[0].self_attn.head_dim, 2 * len(model.model.rotary_emb.inv_freq)
    scalings = {layer.self_attn.scaling for layer in layers}
    norms = {m.variance_epsilon for m in model.modules() if hasattr(m, "variance_epsilon")}
    settings = (  # what came, is that what llama.cpp computes
        ("hidden_act", config.hidden_act, config.hidden_act in ("silu", "swish")),
        ("rope_type", rope_type, rope_type in STATIC_ROPES),
        ("number of rotated channels a head", n_rotated, n_rotated == head_dim),
        ("attention is scaled by", scalings, scalings == {head_dim**-0.5}),
        ("norms have the epsilons", norms, len(norms) == 1),
    )
    for name, came, fits in settings:
        if not fits:
            raise ValueError(f"llama.cpp has no llama like this one, {name}: {came}; no GGUF can be written")


def _tensors(model: PreTrainedModel, dtype: torch.dtype) -> list[Entry]:
    """List the tensors of the file; refuse a parameter that has no place in a llama of llama.cpp."""
    layers = model.model.layers
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, len(layers))
    head_dim, tensors = layers[0].self_attn.head_dim, []
    for name, parameter in model.named_parameters():  # tied ones once, as llama.cpp wants them
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored in (None, "output.bias"):
            raise ValueError(f"llama.cpp has no place in a llama for {name}: this model can't become a GGUF")
        rotated = name.rsplit(".", 2)[-2] in ("q_proj", "k_proj")
        kind = torch.float32 if parameter.ndim == 1 else dtype  # llama.cpp adds and multiplies such vectors
        tensors.append((stored, parameter.detach(), kind, len(parameter) // head_dim if rotated else 0))
    factors = _rope_factors(model)
    return tensors if factors is None else [*tensors, ("rope_freqs.weight", factors, torch.float32, 0)]


def _rope_factors(model: PreTrainedModel) -> Tensor | None:
    """By what llama.cpp divides the angle of each pair: `(head_dim / 2,)`, None where nothing is scaled."""
    frequencies = model.model.rotary_emb.inv_freq.float().cpu()
    exponents = torch.arange(len(frequencies), dtype=torch.float32) / len(frequencies)
    factors = model.config.rope_parameters["rope_theta"] ** -exponents / frequencies
    return None if torch.allclose(factors, torch.ones(())) else factors
