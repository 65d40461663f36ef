"""Load a decoder and its tokenizer by name, from a folder or from the hub.

`smollm2-135m` is the embedded default, converted once from its GGUF file to a float32 safetensors folder;
`smollm2-135m-mha` and `smollm2-135m-glm` are its twins (see `twins`); `tiny` is a random two-layer llama (see
`tiny`). A name is looked up first in the local data directory (a folder of that name), then in the asset
cache; anything else is a folder or a hub id.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate.utils import patch_environment
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer, modeling_utils
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from pruner_lib.data.assets import ASSETS, build_folder, cache_root, fetch, hub_lookup, local_path
from pruner_lib.files import read_json
from pruner_lib.method.checks import require
from pruner_lib.method.layout import check_layout
from pruner_lib.models.chatglm import LATER_KEYS, ChatGLMConfig, ChatGLMForConditionalGeneration, tie_equal_
from pruner_lib.models.chatglm_tokenizer import ChatGLMTokenizer
from pruner_lib.models.devices import find_device
from pruner_lib.models.modeling_pruned import AUTO_CLASS, PrunedModelForCausalLM, pruned_class
from pruner_lib.models.tiny import tiny_model, tiny_tokenizer
from pruner_lib.models.twins import as_glm, with_own_heads

EMBEDDED = "smollm2-135m"
TWINS = {"smollm2-135m-mha": with_own_heads, "smollm2-135m-glm": as_glm}
NAMES = (EMBEDDED, *TWINS, "tiny")  # known to `load_model`, besides folders and hub ids
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OLD_MASKS = re.compile(r"\.(attn|attention)\.(masked_bias|bias|causal_mask)$")  # saved by old versions


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    device_map: str | dict[str, str | int] | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder in evaluation mode, and its tokenizer.

    Args:
        name_or_path: one of `NAMES`, a folder with a checkpoint (pruned ones, too), or a hub id, optionally
            with a revision to pin: "owner/name@5f0b02c".
        dtype: of the weights.
        device: such as "cpu" or "cuda:0"; "auto" takes CUDA if available.
        device_map: distributes a checkpoint over devices and CPU memory instead: "auto", or module -> device,
            as in transformers.
        seed: random seed for the weights of `tiny`; ignored for other models.
        trust_remote_code: run code from the checkpoint if transformers does not have the model class.

    Raises: ValueError: the name is unknown or not found, the model is not a decoder with a language-model
        head, weights are missing or unexpected, the device is not available, or custom code is not trusted.
    """
    name = str(name_or_path)
    require(DTYPES, dtype=dtype)
    require("0..", seed=seed)
    require(bool, trust_remote_code=trust_remote_code)
    device = find_device(device)
    if name == "tiny":
        if device_map is not None:
            raise ValueError("tiny fits every device: device_map is for checkpoints, leave it out")
        return tiny_model(seed).to(device=device, dtype=dtype).eval(), tiny_tokenizer()
    folder, (hub_id, _, revision) = find_model(name), name.partition("@")
    # load weights directly onto the GPU, without the whole model in CPU memory
    placed = {"": device} if device_map is None and device.startswith("cuda") else device_map
    advice = f"Known names: {', '.join(NAMES)}; or give a folder."
    part, source, revision = "model", str(folder or hub_id), revision or "main"
    try:
        with nullcontext() if folder else hub_lookup(f"model {name!r}", advice):
            model = _load(source, dtype, placed, trust_remote_code, revision)
            part = "tokenizer"
            tokenizer = _load_tokenizer(source, model.config, trust_remote_code, revision)
    except BaseException as error:  # a panic of the tokenizer library is not an Exception
        is_sentence = type(error) is ValueError and "\n" not in str(error)
        if is_sentence or isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"the {part} of {folder or name} can't be loaded: {reason}") from error
    return (model.to(device) if placed is None else model).eval(), tokenizer


def find_model(name: str) -> Path | None:
    """Find the folder of a model; None if the name can only be a hub id.

    Raises: ValueError: it is neither a known name, nor a folder with a checkpoint, nor a hub id.
    """
    folder = own_folder(name) or (_embedded(name) if name in (EMBEDDED, *TWINS) else None)
    if folder is not None and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; expected a folder that save_pretrained wrote")
    if folder is None and not re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?", name):
        others = "no folder here or in PRUNER_LIB_DATA, and no hub id (owner/name); check the spelling"
        raise ValueError(f"unknown model {name!r}: it is no known name ({', '.join(NAMES)}), {others}")
    return folder


def own_folder(name: str) -> Path | None:
    """Find a custom model: a folder in the local data directory, or any folder not named like one of ours."""
    if name in ("tiny", ""):
        return None
    folder = Path(name).expanduser()
    return local_path(name) or (folder if name not in NAMES and os.path.isdir(folder) else None)


def _embedded(name: str) -> Path:
    build = _dequantise if name == EMBEDDED else partial(_write_twin, TWINS[name])
    return build_folder(cache_root() / "models" / name, build, source=ASSETS[EMBEDDED].sha256)


def _load(
    source: str, dtype: torch.dtype, device_map: str | dict | None, trusted: bool, revision: str
) -> PreTrainedModel:
    """Load a model; pruned ones and ChatGLM-6B by this library's code, not by code in the folder."""
    config = _config(source, trusted, revision)
    is_pruned, is_chatglm = hasattr(config, "pruning_layout"), isinstance(config, ChatGLMConfig)
    trusted = trusted and not is_chatglm
    if not trusted:
        config._attn_implementation = None  # the name of a kernel would download code from the hub
    loader = PrunedModelForCausalLM if is_pruned else AutoModelForCausalLM
    if is_chatglm:
        dense = ChatGLMForConditionalGeneration
        loader = pruned_class(dense) if is_pruned else dense
    elif not (trusted and AUTO_CLASS in (getattr(config, "auto_map", None) or {})):
        _check_decoder(source, config)
    _check_index(Path(source))
    options = {"dtype": dtype, "device_map": device_map, "trust_remote_code": trusted, "revision": revision}
    try:
        with _read_into_memory():
            model, report = loader.from_pretrained(source, config=config, output_loading_info=True, **options)
    except UnpicklingError as error:
        fault = f"a .bin file of {source} is damaged or holds more than numbers; nothing in it was run"
        advice = "use a revision in safetensors or, if you trust the files, convert them to safetensors"
        raise ValueError(f"{fault}; {advice}") from error
    unexpected = {name for name in report["unexpected_keys"] if not OLD_MASKS.search(name)}
    for names, kind in ((report["missing_keys"], "missing"), (unexpected, "unexpected")):
        if names:
            weights = f"weights of {type(model).__name__}, such as {', '.join(sorted(names)[:3])}"
            raise ValueError(f"{source} has {len(names)} {kind} {weights}; check its files and config.json")
    return tie_equal_(model) if is_chatglm else model


def _config(source: str, trusted: bool, revision: str) -> PreTrainedConfig:
    """Read a config; refuse custom code that is not trusted, and a damaged layout."""
    settings, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    is_chatglm = settings.get("model_type") == "chatglm" and settings.keys().isdisjoint(LATER_KEYS)
    is_custom = "auto_map" in settings and settings.get("model_type") not in CONFIG_MAPPING
    if not trusted and not is_chatglm and (is_custom or "dense_class" in settings):
        files = ", ".join(sorted(p.name for p in Path(source).glob("*.py"))) or "on the hub"
        found = f"a model of type {settings.get('model_type')!r} with custom code ({files})"
        advice = "which runs only if you trust it: read it, then call load_model(..., trust_remote_code=True)"
        raise ValueError(f"{source} holds {found}, {advice}")
    if "pruning_layout" in settings:
        try:
            check_layout(settings["pruning_layout"])
        except ValueError as error:
            advice = "save the model again with save_model"
            raise ValueError(f"{source}/config.json is damaged: {error}; {advice}") from error
    if is_chatglm:
        config = ChatGLMConfig.from_pretrained(source, revision=revision)
        vars(config).pop("auto_map", None)  # refers to the hub's own code
        return config
    return AutoConfig.from_pretrained(source, trust_remote_code=trusted, revision=revision)


def _check_index(folder: Path) -> None:
    """Refuse an index that refers to files outside the folder, since only files in the folder are hashed."""
    for index in folder.glob("*.index.json"):
        names = read_json(index)["weight_map"].values()
        if outside := [name for name in names if Path(name).name != name]:
            fault = f"{index} names {outside[0]}, which is not in the same folder"
            raise ValueError(f"{fault}; put all weight files into one folder")


def _check_decoder(source: str, config: PreTrainedConfig) -> None:
    """Refuse a config from which transformers builds no decoder with a language-model head."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type) or ()
    known = [known] if isinstance(known, str) else known
    named = config.architectures or []
    # if no architecture is named, use the flags of the config
    decodes = bool(named) or getattr(config, "is_decoder", True)
    if getattr(config, "is_encoder_decoder", False) or not decodes or not {*known} & {*(named or known)}:
        found = f"{source} is no decoder with a language-model head: it holds {named or config.model_type}"
        expected = f"a causal language model such as {', '.join(known) or 'LlamaForCausalLM'}, no encoder"
        raise ValueError(f"{found}; expected {expected}")


def _load_tokenizer(source: str, config: object, trusted: bool, revision: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; early conversions of LLaMA name a class that doesn't exist, and no special tokens."""
    if isinstance(config, ChatGLMConfig):
        return ChatGLMTokenizer.from_pretrained(source, revision=revision)
    if get_tokenizer_config(source, revision=revision).get("tokenizer_class") != "LLaMATokenizer":
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trusted, revision=revision)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    return LlamaTokenizer.from_pretrained(source, revision=revision, **special)


@contextmanager
def _read_into_memory() -> Iterator[None]:
    """Let transformers copy weights into memory, one after the other.

    By default it memory-maps the files, and a whole file stays mapped while any of its weights is in use, so
    pruning or converting the dtype would not free the old weights. Memory that parallel threads allocate is
    not returned to the system either.
    """
    original = modeling_utils.safe_open
    # transformers >= 5.23 passes a backend, which would override that of a `partial`
    modeling_utils.safe_open = lambda *args, **options: original(*args, **options | {"backend": "pread"})
    try:
        with patch_environment(HF_DEACTIVATE_ASYNC_LOAD="1"):  # without threads
            yield
    finally:
        modeling_utils.safe_open = original


def _dequantise(folder: Path) -> None:
    """Write the embedded model as float32 safetensors, with its tokenizer and the values of the GGUF file."""
    source, gguf = fetch(EMBEDDED), ASSETS[EMBEDDED].files[0]
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
    del model.config.quantization_config, model.hf_quantizer  # the weights are no longer quantised
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _write_twin(twin_of: Callable[[PreTrainedModel], PreTrainedModel], folder: Path) -> None:
    """Write a twin of the embedded model, with its tokenizer."""
    model, tokenizer = load_model(_embedded(EMBEDDED))  # not a custom model of that name
    twin_of(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
