"""Saving: a folder that everybody's tools load; never a pickle.

A model whose config says all is a plain Hugging Face checkpoint. Any other carries its layout in
`config.json` and two small source files beside the weights. Loading is in `models`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_SHARD_SIZE = "5GB"


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, path: str | Path) -> Path:
    """Write weights (safetensors), config, tokenizer and plan to a folder, all or nothing.

    Args: path: a new folder, an empty one, or one that holds a model, which is then replaced.
    Returns: the folder. It loads with `load_model(path)` and with
        `AutoModelForCausalLM.from_pretrained(path)`; unevenly pruned models need `trust_remote_code=True`
        in the latter.
    Raises: ValueError: the folder holds something else.    OSError: the disk is full; what was there is
        untouched.
    """
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
        _write(model, tokenizer, part)
        part.chmod(0o755)
        _swap(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    layout = getattr(model, "pruning_layout", None)
    if layout:
        from pruner_lib.modeling_pruned import AUTO_MAP, copy_code

        config = json.loads((folder / "config.json").read_text())
        config |= {"pruning_layout": layout, "auto_map": AUTO_MAP}
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        copy_code(folder)
    plans = [plan.to_dict() for plan in getattr(model, "pruned_by", ())]
    if plans:
        (folder / "plan.json").write_text(json.dumps(plans[-1] | {"earlier": plans[:-1]}))


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
