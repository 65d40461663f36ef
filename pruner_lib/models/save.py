"""Saving: a folder that everybody's tools load; never a pickle.

A model whose config says all is a plain Hugging Face checkpoint. Any other carries its layout in
`config.json` and two small source files beside the weights; a model that came with code of its own keeps
that too. Loading is in `load`.
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

# how the names of files end that a model and a tokenizer write; .py too, where the config names code
WRITTEN = (".json", ".safetensors", ".bin", ".model", ".jinja", "merges.txt", "vocab.txt")
LIBRARIES = ("torch", "transformers", "accelerate", "peft")


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    path: str | Path,
    *,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write weights (safetensors), config, tokenizer and plan to a folder, all or nothing.

    Args:
        path: a new folder, an empty one, or one that holds a model and nothing else, which is then replaced.
        max_shard_size: bytes, or text such as "5GB"; larger weights are spread over several files with an
            index.
    Returns: the folder. It loads with `load_model(path)` and with
        `AutoModelForCausalLM.from_pretrained(path)`; unevenly pruned models need `trust_remote_code=True`
        in the latter, and models that came with code of their own in both. The weights then lie in memory as
        in the file, so processors may add in another order: logits can differ in their last bits (a copy of
        the loaded model gives those of this one).
    Raises: ValueError: the folder holds something else, no such size, a model that is not plain (see
        `check_plain`), that its config does not describe, or whose class is in no file that could go along.
        OSError: the disk is full. What was there is untouched.
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
            what = f"{type(model).__name__} has one weight under several names, not listed as tied"
            advice = "list them in its _tied_weights_keys ({name: first name}), or give each its own weight"
            raise ValueError(f"{what}, so nothing was saved; {advice} [{error}]") from error
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if plans := [plan.to_dict() for plan in getattr(model, "pruned_by", ())]:
            (folder / "plan.json").write_text(json.dumps(plans[-1] | {"earlier": plans[:-1]}))

    return write_folder(path, write)


def _check_replaceable(path: Path) -> None:
    """Refuse a folder that holds anything but a model: all that is there would be lost."""
    there = list(path.iterdir()) if path.exists() else []
    config = path / "config.json"
    settings = read_json(config) if config in there else {}
    is_model = isinstance(settings, dict) and "model_type" in settings
    kinds = (*WRITTEN, ".py") if is_model and "auto_map" in settings else WRITTEN
    foreign = [one.name for one in there if one.is_dir() or not one.name.endswith(kinds)]
    if there and (foreign or not is_model):
        holds = ", ".join(sorted(foreign)[:3]) or "no config.json of a model"
        raise ValueError(f"{path} is not empty and holds {holds}; give a new folder, so that nothing is lost")


def _check_builds(model: PreTrainedModel) -> None:
    """Build what the config will say, without weights: all but the numbers must be the model's."""
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            built = type(model)(config)
    except Exception as error:  # whatever a class raises for a config that it can't build
        what = f"{type(model).__name__} can't be built from its config, so nothing was saved"
        raise ValueError(f"{what}; mend that: {error}") from error
    wanted, found = _parts(model), _parts(built)
    for name in wanted | found:
        if (came := wanted.get(name, "nothing")) != (other := found.get(name, "nothing")):
            what = f"{name} is {came} in this {type(model).__name__}, but its config would build {other}"
            advice = "change widths with prune_, put back modules that were replaced, remove hooks"
            raise ValueError(f"{what}, so nothing was saved; {advice}, tie by the config")
    for place, values in other_values(model, built, (float,), (float,)).items():
        for name in (n for n in values if n != "p" and "drop" not in n):  # dropout is for training
            what = f"{place}.{name} is {values[name]:.6g} in this {type(model).__name__}"
            advice = "set it in the config that the model is built from"
            raise ValueError(f"{what}, but not by its config, so nothing was saved; {advice}")
    _check_unsaved(model, built)


def _check_unsaved(model: PreTrainedModel, built: PreTrainedModel) -> None:
    """Let the class make the numbers that no checkpoint holds, as on loading: they must be the model's."""
    for tensor in built.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # as what is read from the folder
    made = {path: names for path, module in built.named_modules() if (names := unsaved_numbers(module))}
    for module in built.modules():
        vars(module).pop("_is_hf_initialized", None)
        for name in unsaved_numbers(module):
            module._buffers[name] = torch.zeros_like(module._buffers[name], device="cpu")
    try:
        built.initialize_weights()
    except Exception as error:  # whatever a class raises that fills weights anew, as wide as its config says
        what = f"{type(model).__name__} could not be loaded, since it fills weights of other widths anew"
        advice = "cut heads and MLP channels instead: select(..., granularity='block')"
        raise ValueError(f"{what}; nothing was saved. Of the whole model {advice} [{error}]") from error
    for path, names in made.items():
        for name in names:
            came, other = (float(m.get_submodule(path)._buffers[name]) for m in (model, built))
            if not math.isclose(came, other, rel_tol=2**-8):  # as far as bfloat16 rounds
                what = f"{path}.{name} is {came:.6g} in this {type(model).__name__}, but its class would make"
                advice = "let the class register it as a persistent buffer, which is saved"
                raise ValueError(f"{what} {other:.6g} when it is loaded, so nothing was saved; {advice}")


def _parts(model: PreTrainedModel) -> dict[str, str]:
    """Name of a tensor -> its shape, or the first of its names; of a module -> its class, which computes."""
    parts, first = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        parts[name] = f"of shape {tuple(tensor.shape)}" if known == name else f"tied to {known}"
    for name, module in model.named_modules():
        parts[name] = f"of class {type(module).__module__}.{type(module).__qualname__}"
        if own := _own_code(module):
            parts[name] += f" with {', '.join(own)} of its own"
    return parts


def _own_code(module: torch.nn.Module) -> list[str]:
    """What an instance alone computes besides its class; the hooks of libraries change no result."""
    by_accelerate = vars(module).keys() & {"_old_forward", "_original_forward"}
    replaced = "forward" in vars(module) and not by_accelerate
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    origins = [(getattr(hook, "func", hook), type(hook).__name__) for hook in hooks]
    foreign = [kind for hook, kind in origins if str(hook.__module__).partition(".")[0] not in LIBRARIES]
    return [*["forward"] * replaced, *(f"a hook ({kind})" for kind in foreign)]


def _register_code(model: PreTrainedModel) -> None:
    """Let transformers copy the files of classes that are not its own, and name them in `auto_map`."""
    dense = getattr(type(model), "dense_class", type(model))
    for cls, auto_class in ((dense, AUTO_CLASS), (type(model.config), "AutoConfig")):
        if is_foreign(cls):
            source_files(cls)  # refuses a class in no file before anything is written
            cls.register_for_auto_class(auto_class)
