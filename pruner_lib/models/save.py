"""Saving: a folder that everybody's tools load; never a pickle.

A model whose config says all is a plain Hugging Face checkpoint. Any other carries its layout in
`config.json` and two small source files beside the weights; a model that came with code of its own keeps
that too. Loading is in `load`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruner_lib.models.modeling_pruned import AUTO_CLASS, AUTO_MAP, copy_code, is_foreign

MAX_SHARD_SIZE = "5GB"


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    path: str | Path,
    *,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write weights (safetensors), config, tokenizer and plan to a folder, all or nothing.

    Args:
        path: a new folder, an empty one, or one that holds a model, which is then replaced.
        max_shard_size: bytes, or text such as "5GB"; larger weights are spread over several files with an
            index.
    Returns: the folder. It loads with `load_model(path)` and with
        `AutoModelForCausalLM.from_pretrained(path)`; unevenly pruned models need `trust_remote_code=True`
        in the latter, and models that came with code of their own in both.
    Raises: ValueError: the folder holds something else, no such size, a model with an adapter, or one whose
        class is in no file that could go along.    OSError: the disk is full; what was there is untouched.
    """
    if not isinstance(model, PreTrainedModel) or any(
        ".base_layer." in n for n, _ in model.named_parameters()
    ):
        raise ValueError(
            f"{type(model).__name__} carries an adapter or is no model of transformers; save a plain model, "
            "as merge_and_unload() and recover(..., merge=True) return it, or the adapter by save_pretrained"
        )
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists():
        raise ValueError(
            f"{path} is not empty and holds no model; give a new folder, so that nothing is overwritten"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _write(model, tokenizer, part, max_shard_size)
        part.chmod(0o755)
        _swap(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, max_shard_size: int | str
) -> None:
    dense = getattr(type(model), "dense_class", type(model))
    _register_code(model, dense)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    layout = getattr(model, "pruning_layout", None)
    if layout:
        config = json.loads((folder / "config.json").read_text())
        config |= {"pruning_layout": layout, "auto_map": (config.get("auto_map") or {}) | AUTO_MAP}
        if is_foreign(dense):
            config["dense_class"] = f"{dense.__module__.rpartition('.')[2]}.{dense.__name__}"
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        copy_code(folder, dense)
    plans = [plan.to_dict() for plan in getattr(model, "pruned_by", ())]
    if plans:
        (folder / "plan.json").write_text(json.dumps(plans[-1] | {"earlier": plans[:-1]}))


def _register_code(model: PreTrainedModel, dense: type[PreTrainedModel]) -> None:
    """Let transformers copy the files of classes that are not its own, and name them in `auto_map`."""
    for cls in filter(is_foreign, (dense, type(model.config))):
        if not getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__ == "__main__":
            raise ValueError(
                f"{cls.__name__} is defined in {cls.__module__}, which is no file that can be put beside the "
                "weights; move the class into a module of its own and import it"
            )
    if is_foreign(dense) and dense is type(model):
        dense.register_for_auto_class(AUTO_CLASS)
    if is_foreign(type(model.config)):
        type(model.config).register_for_auto_class()


def _swap(part: Path, path: Path) -> None:
    """Put the finished folder in its place; the old one goes only once the new one stands."""
    if not path.exists():
        os.replace(part, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    os.replace(path, old / "was")
    try:
        os.replace(part, path)
    except OSError:
        os.replace(old / "was", path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
