"""Save a model as a folder that standard tools can load, never as a pickle.

A model that its config fully describes becomes a plain Hugging Face checkpoint. Any other has its layout in
`config.json` and two small source files next to the weights; a model with custom code keeps its files, too.
`load` loads these folders.
"""

import json
import math
import re
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruner_lib.files import check_folder, read_json, write_folder
from pruner_lib.method.checks import require
from pruner_lib.method.decoder import check_plain, check_weights
from pruner_lib.method.size_rules import other_values, unsaved_numbers
from pruner_lib.models.modeling_pruned import AUTO_CLASS, is_foreign, make_saveable_, source_files

# suffixes of the files of a model and a tokenizer; also .py if the config names code
WRITTEN = (".json", ".safetensors", ".bin", ".model", ".jinja", "merges.txt", "vocab.txt")
LIBRARIES = ("torch", "transformers", "accelerate", "peft")


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    path: str | Path,
    *,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write weights (safetensors), config, tokenizer and plan to a folder, completely or not at all.

    Args:
        path: a new or empty folder, or one that holds only a model, which is replaced.
        max_shard_size: bytes, or text such as "5GB"; larger weights are split into several files.
    Returns: the folder. `load_model(path)` and `AutoModelForCausalLM.from_pretrained(path)` load it. The
        latter needs `trust_remote_code=True` for unevenly pruned models, both for models with custom code.
        Logits of the loaded model can differ in their last bits, since its weights are aligned differently
        in memory (a copy of the loaded model gives equal logits).
    Raises: ValueError: the folder holds something else, the size is invalid, the model is not plain (see
        `check_plain`) or its config does not describe it, or its class is not defined in a file that can be
        saved with it. OSError: the disk is full. The folder is then unchanged.
    """
    check_plain(model)
    check_weights(model)
    require(PreTrainedModel, model=model)
    if tokenizer is not None:
        require(PreTrainedTokenizerBase, tokenizer=tokenizer)
    if not re.fullmatch(r"[1-9]\d*|(?=.*[1-9])\d+(\.\d+)? *[KMGT]B", str(max_shard_size).upper()):
        raise ValueError(f"max_shard_size must be bytes, or a text such as '5GB', got {max_shard_size!r}")
    _check_replaceable(path := check_folder(path))
    _register_code(make_saveable_(model))
    _check_builds(model)

    def write(folder: Path) -> None:
        try:
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        except RuntimeError as error:
            if "shared tensors" not in str(error):
                raise
            fault = f"{type(model).__name__} has one weight under several names that are not listed as tied"
            advice = "list them in its _tied_weights_keys ({name: first name}), or give each its own weight"
            raise ValueError(f"{fault}, so nothing was saved; {advice} [{error}]") from error
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if plans := [plan.to_dict() for plan in getattr(model, "pruned_by", ())]:
            (folder / "plan.json").write_text(json.dumps(plans[-1] | {"earlier": plans[:-1]}))

    return write_folder(path, write)


def _check_replaceable(path: Path) -> None:
    """Refuse a folder that holds anything other than a model, since its content would be lost."""
    entries = list(path.iterdir()) if path.exists() else []
    config = path / "config.json"
    settings = read_json(config) if config in entries else {}
    is_model = isinstance(settings, dict) and "model_type" in settings
    suffixes = (*WRITTEN, ".py") if is_model and "auto_map" in settings else WRITTEN
    foreign = [entry.name for entry in entries if entry.is_dir() or not entry.name.endswith(suffixes)]
    if entries and (foreign or not is_model):
        holds = ", ".join(sorted(foreign)[:3]) or "no config.json of a model"
        raise ValueError(f"{path} is not empty and holds {holds}; give a new folder, so that nothing is lost")


def _check_builds(model: PreTrainedModel) -> None:
    """Build the config without weights, and check that everything else equals the model."""
    kind = type(model).__name__
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            built = type(model)(config)
    except Exception as error:  # a class may raise anything
        raise ValueError(f"{kind} can't be built from its config, so nothing was saved: {error}") from error
    actual, expected = _parts(model), _parts(built)
    for name in actual | expected:
        if (ours := actual.get(name, "nothing")) != (theirs := expected.get(name, "nothing")):
            fault = f"{name} is {ours} in this {kind}, but its config would build {theirs}"
            advice = "change widths with prune_, restore modules that were replaced, remove hooks"
            raise ValueError(f"{fault}, so nothing was saved; {advice}, tie weights by the config")
    for path, values in other_values(model, built, (float,), (float,)).items():
        for name in (n for n in values if n != "p" and "drop" not in n):  # dropout matters only for training
            fault = f"{path}.{name} is {values[name]:.6g} in this {kind}, but not by its config"
            raise ValueError(f"{fault}, so nothing was saved; set it in the config and build from that")
    _check_unsaved(model, built)


def _check_unsaved(model: PreTrainedModel, built: PreTrainedModel) -> None:
    """Recompute the numbers that no checkpoint holds, as loading does, and compare them with the model's."""
    kind = type(model).__name__
    for tensor in built.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # as if it had been loaded
    unsaved = {path: names for path, module in built.named_modules() if (names := unsaved_numbers(module))}
    for module in built.modules():
        vars(module).pop("_is_hf_initialized", None)
        for name in unsaved_numbers(module):
            module._buffers[name] = torch.zeros_like(module._buffers[name], device="cpu")
    try:
        built.initialize_weights()
    except Exception as error:  # a class may raise anything, such as for widths unlike its config's
        fault = f"{kind} could not be loaded, since it initialises weights with the widths of its config"
        advice = "prune heads and MLP channels of the dense model instead: select(..., granularity='block')"
        raise ValueError(f"{fault}; nothing was saved; {advice} [{error}]") from error
    for path, names in unsaved.items():
        for name in names:
            ours, theirs = (float(m.get_submodule(path)._buffers[name]) for m in (model, built))
            if not math.isclose(ours, theirs, rel_tol=2**-8):  # the precision of bfloat16
                fault = f"{path}.{name} is {ours:.6g} in {kind}, but its class would compute {theirs:.6g}"
                advice = "let the class register it as a persistent buffer, which is saved"
                raise ValueError(f"{fault} when it is loaded, so nothing was saved; {advice}")


def _parts(model: PreTrainedModel) -> dict[str, str]:
    """Map each tensor to its shape or to the first of its names, and each module to its class."""
    parts, first = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        parts[name] = f"of shape {tuple(tensor.shape)}" if known == name else f"tied to {known}"
    for name, module in model.named_modules():
        parts[name] = f"of class {type(module).__module__}.{type(module).__qualname__}"
        if custom := _custom_code(module):
            parts[name] += f" with custom {', '.join(custom)}"
    return parts


def _custom_code(module: torch.nn.Module) -> list[str]:
    """List what an instance computes besides its class, except hooks of libraries, which change no result."""
    by_accelerate = vars(module).keys() & {"_old_forward", "_original_forward"}
    replaced = "forward" in vars(module) and not by_accelerate
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    origins = [(getattr(hook, "func", hook), type(hook).__name__) for hook in hooks]
    foreign = [kind for hook, kind in origins if str(hook.__module__).partition(".")[0] not in LIBRARIES]
    return [*["forward"] * replaced, *(f"hook ({kind})" for kind in foreign)]


def _register_code(model: PreTrainedModel) -> None:
    """Let transformers copy the files of custom classes and name them in `auto_map`."""
    dense = getattr(type(model), "dense_class", type(model))
    for cls, auto_class in ((dense, AUTO_CLASS), (type(model.config), "AutoConfig")):
        if is_foreign(cls):
            source_files(cls)  # refuses a class that is not defined in a file, before anything is written
            cls.register_for_auto_class(auto_class)
