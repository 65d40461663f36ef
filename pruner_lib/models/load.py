"""The models that are pruned: where a name, a folder or a hub id becomes a decoder and its tokenizer.

`smollm2-135m` is the embedded default, made once from its GGUF file into a float32 safetensors folder, and
`smollm2-135m-mha` and `smollm2-135m-glm` are its twins (see `twins`); `tiny` is a random
two-layer llama (see `tiny`). A name is looked up in the local data directory first (a folder
of that name), then in the asset cache; else it is a folder or a hub id.
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
NAMES = (EMBEDDED, *TWINS, "tiny")  # what `load_model` knows, apart from folders and hub ids
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OLD_MASKS = re.compile(r"\.(attn|attention)\.(masked_bias|bias|causal_mask)$")  # no weights, but once saved


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
        name_or_path: one of `NAMES`, a folder with a checkpoint (ours too), or a hub id, with a revision if
            it should stay the same: "owner/name@5f0b02c".
        dtype: of the weights.
        device: where the model is put, such as "cpu" or "cuda:0"; "auto" takes CUDA when there is one.
        device_map: spreads a checkpoint over devices and CPU memory instead: "auto", or module -> device, as
            in transformers.
        seed: of the weights of `tiny`; the other models have none to draw.
        trust_remote_code: run code that lies beside the weights, where the model is no part of transformers.

    Raises: ValueError: unknown name, not found, no decoder with a language-model head, weights missing or
        without a place, no such device, or code of its own that is not trusted.
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
    # each weight goes straight to its GPU: the whole model never is in CPU memory
    placed = {"": device} if device_map is None and device.startswith("cuda") else device_map
    advice = f"Known names: {', '.join(NAMES)}; or give a folder."
    try:
        with nullcontext() if folder else hub_lookup(f"model {name!r}", advice):
            source, revision = str(folder or hub_id), revision or "main"
            model, tokenizer = _load(source, dtype, placed, trust_remote_code, revision)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # missing, damaged, other settings; panics of a tokenizer are no Exception
        if type(error) is ValueError and "\n" not in str(error):  # one sentence
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{folder or name} is no whole checkpoint with its tokenizer: {reason}") from error
    return (model.to(device) if placed is None else model).eval(), tokenizer


def find_model(name: str) -> Path | None:
    """Find the folder of a model; None where the name can only be a hub id.

    Raises: ValueError: neither a name, nor a folder with a checkpoint, nor a hub id.
    """
    folder = own_folder(name) or (_embedded(name) if name in (EMBEDDED, *TWINS) else None)
    if folder is not None and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; wanted a folder that save_pretrained wrote")
    if folder is None and not re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?", name):
        places = "no folder here or in PRUNER_LIB_DATA, and no hub id (owner/name); check the spelling"
        raise ValueError(f"unknown model {name!r}: it is no known name ({', '.join(NAMES)}), {places}")
    return folder


def own_folder(name: str) -> Path | None:
    """Find a model that is the user's own: in the local data directory or, of no name of ours, anywhere."""
    if name in ("tiny", ""):
        return None
    place = Path(name).expanduser()
    return local_path(name) or (place if name not in NAMES and os.path.isdir(place) else None)


def _embedded(name: str) -> Path:
    build = _dequantise if name == EMBEDDED else partial(_write_twin, TWINS[name])
    return build_folder(cache_root() / "models" / name, build, source=ASSETS[EMBEDDED].sha256)


def _load(
    source: str, dtype: torch.dtype, device_map: str | dict | None, trusted: bool, revision: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint; an unevenly pruned one, and ChatGLM-6B, by our own code, never by that beside it."""
    config = _config(source, trusted, revision)
    pruned, ours = hasattr(config, "pruning_layout"), isinstance(config, ChatGLMConfig)
    trusted = trusted and not ours
    if not trusted:
        config._attn_implementation = None  # the name of a kernel would fetch code from the hub
    build = PrunedModelForCausalLM if pruned else AutoModelForCausalLM
    if ours:
        dense = ChatGLMForConditionalGeneration
        build = pruned_class(dense) if pruned else dense
    elif not (trusted and AUTO_CLASS in (getattr(config, "auto_map", None) or {})):
        _check_decoder(source, config)
    _check_place(Path(source))
    how = {"dtype": dtype, "device_map": device_map, "trust_remote_code": trusted, "revision": revision}
    try:
        with _read_into_memory():
            model, report = build.from_pretrained(source, config=config, output_loading_info=True, **how)
    except UnpicklingError as error:
        what = f"a .bin file of {source} is damaged or holds more than numbers, none of which was run"
        advice = "take a revision in safetensors, or convert the files to safetensors where you trust them"
        raise ValueError(f"{what}; {advice}") from error
    spare = {name for name in report["unexpected_keys"] if not OLD_MASKS.search(name)}
    for names, fault in ((report["missing_keys"], "lacks"), (spare, "has no place in its config.json for")):
        if names:
            weights = f"weights of {type(model).__name__}, such as {', '.join(sorted(names)[:3])}"
            raise ValueError(f"{source} {fault} {len(names)} {weights}")
    if ours:
        return tie_equal_(model), ChatGLMTokenizer.from_pretrained(source, revision=revision)
    return model, _load_tokenizer(source, trusted, revision)


def _config(source: str, trusted: bool, revision: str) -> PreTrainedConfig:
    """Read a config; refuse untrusted code beside the weights, and a damaged layout."""
    settings, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    ours = settings.get("model_type") == "chatglm" and settings.keys().isdisjoint(LATER_KEYS)
    unknown = "auto_map" in settings and settings.get("model_type") not in CONFIG_MAPPING
    if not trusted and not ours and (unknown or "dense_class" in settings):
        files = ", ".join(sorted(p.name for p in Path(source).glob("*.py"))) or "on the hub"
        came = f"a model of type {settings.get('model_type')!r} with code of its own ({files})"
        advice = "which runs only where it is trusted: read it, then load_model(..., trust_remote_code=True)"
        raise ValueError(f"{source} holds {came}, {advice}")
    if "pruning_layout" in settings:
        try:
            check_layout(settings["pruning_layout"])
        except ValueError as error:
            advice = "save the model again with save_model"
            raise ValueError(f"{source}/config.json is damaged: {error}; {advice}") from error
    if ours:
        config = ChatGLMConfig.from_pretrained(source, revision=revision)
        vars(config).pop("auto_map", None)  # names the hub's own code
        return config
    return AutoConfig.from_pretrained(source, trust_remote_code=trusted, revision=revision)


def _check_place(folder: Path) -> None:
    """Refuse an index that names files elsewhere: results rest on the files of the folder alone."""
    for index in folder.glob("*.index.json"):
        names = read_json(index)["weight_map"].values()
        if away := [name for name in names if Path(name).name != name]:
            said = f"{index} names {away[0]}, which does not lie beside it"
            raise ValueError(f"{said}; put all files of the weights into one folder")


def _check_decoder(source: str, config: PreTrainedConfig) -> None:
    """Refuse a config from which transformers builds no decoder with a language-model head."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type) or ()
    known = [known] if isinstance(known, str) else known
    named = config.architectures or []
    # where the architecture is not named, go by what the config says of itself
    decodes = bool(named) or getattr(config, "is_decoder", True)
    if getattr(config, "is_encoder_decoder", False) or not decodes or not {*known} & {*(named or known)}:
        came = f"{source} is no decoder with a language-model head: it holds {named or config.model_type}"
        wanted = f"a causal language model such as {', '.join(known) or 'LlamaForCausalLM'}, no encoder"
        raise ValueError(f"{came}; wanted {wanted}")


def _load_tokenizer(source: str, trusted: bool, revision: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; the first conversions of LLaMA name a class that never was, and no special token."""
    if get_tokenizer_config(source, revision=revision).get("tokenizer_class") != "LLaMATokenizer":
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trusted, revision=revision)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    return LlamaTokenizer.from_pretrained(source, revision=revision, **special)


@contextmanager
def _read_into_memory() -> Iterator[None]:
    """Let transformers read one weight after the other into memory of its own.

    By default it maps the files, and a mapped file stays mapped, whole, while any of its weights is in use:
    after a cut the old weights would still be there beside the new ones, and so while a dtype is converted.
    What threads read in parallel lies in pools of their own, which the system doesn't get back after a cut.
    """
    mapped = modeling_utils.safe_open
    # transformers >= 5.23 names a backend of its own, which would win over that of a `partial`
    modeling_utils.safe_open = lambda *args, **how: mapped(*args, **how | {"backend": "pread"})
    try:
        with patch_environment(HF_DEACTIVATE_ASYNC_LOAD="1"):  # without threads
            yield
    finally:
        modeling_utils.safe_open = mapped


def _dequantise(folder: Path) -> None:
    """Write the embedded model as float32 safetensors, with its tokenizer; values as in the GGUF."""
    source, gguf = fetch(EMBEDDED), ASSETS[EMBEDDED].files[0]
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
    del model.config.quantization_config, model.hf_quantizer  # the weights are plain numbers by now
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _write_twin(twin_of: Callable[[PreTrainedModel], PreTrainedModel], folder: Path) -> None:
    """Write a twin of the embedded model, with its tokenizer."""
    model, tokenizer = load_model(_embedded(EMBEDDED))  # not the user's own of that name
    twin_of(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
