"""Builds an unevenly pruned model from its config; travels beside the weights together with `layout.py`.

`config.json` is the dense model's, with one more key, `pruning_layout`: the widths that the config can't
say. The dense class is built first and then given these widths, so this file knows no architecture and
copies no model code. Loaded by `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`;
needs transformers, not pruner_lib.
"""

from __future__ import annotations

import shutil
import sys
from functools import cache
from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedModel

from .layout import apply_layout_

FILES = ("modeling_pruned.py", "layout.py")
AUTO_MAP = {"AutoModelForCausalLM": "modeling_pruned.PrunedModelForCausalLM"}


@cache
def pruned_class(architecture: str) -> type[PreTrainedModel]:
    """Subclass of a transformers model class whose instances have the widths of `config.pruning_layout`.

    Raises: ValueError: the installed transformers has no class of this name.
    """
    dense = getattr(transformers, architecture, None)
    if dense is None:
        raise ValueError(
            f"transformers {transformers.__version__} has no model class {architecture}; install a newer one"
        )

    class Pruned(dense):
        dense_class = dense

        def __init__(self, config, *args, **kwargs):
            super().__init__(config, *args, **kwargs)
            self.pruning_layout = config.pruning_layout
            apply_layout_(self, config.pruning_layout)

        def save_pretrained(self, save_directory, *args, **kwargs):
            super().save_pretrained(save_directory, *args, **kwargs)
            copy_code(save_directory)

    # transformers renames weights on loading and saving for its own classes only, and goes by these names
    Pruned.__name__, Pruned.__qualname__, Pruned.__module__ = architecture, architecture, dense.__module__
    return Pruned


def copy_code(folder: str | Path) -> None:
    """Put this file and `layout.py` beside the weights."""
    here = Path(sys.modules[__name__].__file__).parent
    for name in FILES:
        if (here / name).resolve() != (Path(folder) / name).resolve():
            shutil.copyfile(here / name, Path(folder) / name)


class PrunedModelForCausalLM(PreTrainedModel):
    """What `auto_map` names: hands over to the pruned form of the class that `architectures` names."""

    config_class = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        config = config or AutoConfig.from_pretrained(pretrained_model_name_or_path)
        build = pruned_class(config.architectures[0])
        return build.from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config, **kwargs):
        return pruned_class(config.architectures[0])._from_config(config, **kwargs)
