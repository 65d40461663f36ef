"""Saving: a folder that everybody's tools load; never a pickle.

A model whose config says all is a plain Hugging Face checkpoint. Any other carries its layout in
`config.json` and two small source files beside the weights; a model that came with code of its own keeps
that too. Loading is in `load`.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruner_lib.files import write_folder
from pruner_lib.models.modeling_pruned import AUTO_CLASS, is_foreign, make_saveable_, source_files


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    path: str | Path,
    *,
    max_shard_size: int | str = "5GB",
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
        ".base_layer." in name for name, _ in model.named_parameters()
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
    _register_code(make_saveable_(model))

    def write(folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if plans := [plan.to_dict() for plan in getattr(model, "pruned_by", ())]:
            (folder / "plan.json").write_text(json.dumps(plans[-1] | {"earlier": plans[:-1]}))

    return write_folder(path, write)


def _register_code(model: PreTrainedModel) -> None:
    """Let transformers copy the files of classes that are not its own, and name them in `auto_map`."""
    dense = getattr(type(model), "dense_class", type(model))
    for cls, auto_class in ((dense, AUTO_CLASS), (type(model.config), "AutoConfig")):
        if is_foreign(cls):
            source_files(cls)  # refuses a class in no file before anything is written
            cls.register_for_auto_class(auto_class)
