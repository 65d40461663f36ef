"""Builds an unevenly pruned model from its config; travels beside the weights together with `layout.py`.

`config.json` is the dense model's, with one more key, `pruning_layout`: the widths that the config can't
say. The dense class is built first and then given these widths, so this file knows no architecture and
copies no model code. Where that class is no part of transformers, its own files lie in the folder too, and
the key `dense_class` names it. Loaded by `AutoModelForCausalLM.from_pretrained(folder,
trust_remote_code=True)`; needs transformers, not pruner_lib.

The key `per_layer_config` of transformers is not used: up to 5.23 the model classes do not build from it (a
config that carries it raises as soon as a class, or the check of the config itself, reads a key that differs
between layers, such as `num_attention_heads`), and it holds config keys only, so not the widths of models
whose head size follows from the hidden size, nor slices of inputs.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_relative_import_files

from pruner_lib.method.layout import apply_layout_, check_layout

AUTO_CLASS = "AutoModelForCausalLM"
AUTO_MAP = {AUTO_CLASS: "modeling_pruned.PrunedModelForCausalLM"}


@cache
def pruned_class(dense: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Subclass of a model class whose instances have the widths of `config.pruning_layout`."""

    class Pruned(dense):
        dense_class = dense
        _auto_class = None  # else transformers would write the dense class into `auto_map`

        def __init__(self, config, *args, **kwargs):
            check_layout(config.pruning_layout)
            super().__init__(config, *args, **kwargs)
            self.pruning_layout = config.pruning_layout
            apply_layout_(self, config.pruning_layout)

        def save_pretrained(self, save_directory, *args, **kwargs):
            self.config.pruning_layout = self.pruning_layout  # it may have been cut again since
            super().save_pretrained(save_directory, *args, **kwargs)
            copy_code(save_directory, dense)

    # transformers renames weights on loading and saving for its own classes only, and goes by these names
    Pruned.__name__, Pruned.__qualname__, Pruned.__module__ = dense.__name__, dense.__name__, dense.__module__
    return Pruned


def find_dense(config, source: str, **kwargs) -> type[PreTrainedModel]:
    """The class that the model had before it was pruned: of transformers, or from a file beside the weights.

    Raises: ValueError: the installed transformers has no class of this name.
    """
    own = getattr(config, "dense_class", None)
    if not own and not getattr(config, "pruning_layout", None):  # a whole model: its own class, if it has one
        own = (getattr(config, "auto_map", None) or {}).get(AUTO_CLASS)
    if own:
        return get_class_from_dynamic_module(own, source, **kwargs)
    dense = getattr(transformers, config.architectures[0], None)
    if dense is None:
        raise ValueError(
            f"transformers {transformers.__version__} has no model class {config.architectures[0]}; "
            "install a newer one"
        )
    return dense


def _class_for(config, source: str, **kwargs) -> type[PreTrainedModel]:
    """The class that builds a model. It need not be a pruned one: once such a model was loaded, transformers
    asks here for every model of the same config class."""
    dense = find_dense(config, source, **kwargs)
    return pruned_class(dense) if getattr(config, "pruning_layout", None) else dense


def is_foreign(cls: type) -> bool:
    """Is this class no part of transformers, so that its code must travel with the weights?"""
    return cls.__module__.partition(".")[0] != "transformers"


def copy_code(folder: str | Path, dense: type[PreTrainedModel]) -> None:
    """Put this file and `layout.py` beside the weights, and those of a dense class that needs its own."""
    paths = [Path(sys.modules[name].__file__) for name in (__name__, apply_layout_.__module__)]
    if is_foreign(dense):
        own = Path(sys.modules[dense.__module__].__file__)
        paths += [own, *map(Path, get_relative_import_files(own))]
    for path in paths:
        target = Path(folder) / path.name
        if path.resolve() != target.resolve():
            text = path.read_text(encoding="utf-8")  # beside the weights there is no pruner_lib
            target.write_text(text.replace("from pruner_lib.method.layout", "from .layout"), encoding="utf-8")


class PrunedModelForCausalLM:
    """What `auto_map` names: hands over to the pruned form of the dense class. It is never built itself."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        source = str(pretrained_model_name_or_path)
        trusted = kwargs.get("trust_remote_code")
        config = config or AutoConfig.from_pretrained(source, trust_remote_code=trusted)
        hub = {k: kwargs[k] for k in ("cache_dir", "revision", "token", "local_files_only") if k in kwargs}
        build = _class_for(config, source, **hub)
        return build.from_pretrained(source, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config, **kwargs):
        return _class_for(config, config.name_or_path)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class=AUTO_CLASS) -> None:
        """Asked for by transformers; the files are copied by `copy_code` instead."""
