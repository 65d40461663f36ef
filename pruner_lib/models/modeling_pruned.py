"""Build an unevenly pruned model from its config; saved with the weights, together with `layout.py`.

`config.json` is the dense model's, with one additional key, `pruning_layout`: the widths that other keys
can't express. The dense class is built first and then resized to them, so this file has no model code. If
that class is not part of transformers, its own files are saved too, and the key `dense_class` names it.
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads the folder, as do the other Auto
classes in `HEADS`; this needs transformers but not pruner_lib.

Any other class would build the dense widths and, with `ignore_mismatched_sizes`, initialise them randomly. To
prevent that, the key `transformers_weights` holds an instruction instead of a file name: transformers stops
with it, and only the classes here remove the key.

transformers' own `per_layer_config` is not used: up to 5.23 no model class reads it, and it holds only config
keys, so neither widths of models whose head size follows from the hidden size, nor slices of inputs.
"""

import json
import sys
from functools import cache
from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_relative_import_files

from pruner_lib.method.layout import apply_layout_, check_layout, layout_of

AUTO_CLASS = "AutoModelForCausalLM"
MODULE = "modeling_pruned"  # name of this file in a saved folder
NO_FILE = (  # the end of the error message of all other classes
    "these are pruned weights, which AutoModelForCausalLM.from_pretrained reads; pass the argument "
    "`trust_remote_code=True`"
)
TASKS = ("", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice")
HEADS = {f"AutoModel{task}": f"PrunedModel{task}" for task in TASKS}  # Auto class -> class in this file


@cache
def pruned_class(dense: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Create a subclass whose instances have, and save, the widths of `config.pruning_layout`."""

    class Pruned(dense):
        dense_class = dense
        _auto_class = None  # otherwise transformers would write the dense class into `auto_map`

        def __init__(self, config, *args, **kwargs):
            super().__init__(config, *args, **kwargs)
            if hasattr(config, "pruning_layout"):
                check_layout(config.pruning_layout)
                self.pruning_layout = config.pruning_layout
                apply_layout_(self, _layout_for(self, config.pruning_layout))

        @classmethod
        def from_pretrained(cls, source, *args, config=None, **kwargs):
            config = config or cls.config_class.from_pretrained(source)
            vars(config).pop("transformers_weights", None)
            return super().from_pretrained(source, *args, config=config, **kwargs)

        def __reduce_ex__(self, protocol):  # this class can't be imported by name
            return _new_instance, (dense,), *super().__reduce_ex__(protocol)[2:]

        def save_pretrained(self, save_directory, *args, **kwargs):
            copy_code(save_directory, dense)
            write_layout(self)
            super().save_pretrained(save_directory, *args, **kwargs)
            block_other_classes(save_directory)

        def _upload_modified_files(self, working_dir, *args, **kwargs):
            copy_code(working_dir, dense)  # only files modified after save_pretrained was called are uploaded
            block_other_classes(working_dir)
            return super()._upload_modified_files(working_dir, *args, **kwargs)

    # transformers renames weights on loading and saving only for classes with these names
    Pruned.__name__, Pruned.__qualname__, Pruned.__module__ = dense.__name__, dense.__name__, dense.__module__
    return Pruned


def _new_instance(dense: type[PreTrainedModel]) -> PreTrainedModel:
    cls = pruned_class(dense)
    return cls.__new__(cls)


def make_saveable_(model: PreTrainedModel) -> PreTrainedModel:
    """Change the class of a pruned model, so that its `save_pretrained` writes a folder that can be loaded.

    The class keeps its name and is a subclass of the dense class. If the config alone describes the model (no
    `pruning_layout`), it is the dense class itself.
    """
    dense = getattr(type(model), "dense_class", type(model))
    if getattr(model, "pruning_layout", None):
        model.__class__ = pruned_class(dense)
        write_layout(model)
    elif dense is not type(model):
        model.__class__ = dense
        auto_map = model.config.auto_map
        model.config.auto_map = {k: v for k, v in auto_map.items() if not v.startswith(f"{MODULE}.")}
        vars(model.config).pop("dense_class", None)
    return model


def write_layout(model: PreTrainedModel) -> None:
    """Write what loading needs into the config of a pruned model."""
    config, dense = model.config, type(model).dense_class
    model.pruning_layout = config.pruning_layout = layout_of(model)
    heads = {auto_class: f"{MODULE}.{name}" for auto_class, name in HEADS.items()}
    if is_foreign(dense):
        heads = {AUTO_CLASS: heads[AUTO_CLASS]}
        config.dense_class = f"{dense.__module__.rpartition('.')[2]}.{dense.__name__}"
    if is_foreign(type(config)):
        type(config).register_for_auto_class()
    config.auto_map = {**(getattr(config, "auto_map", None) or {}), **heads}


def block_other_classes(folder: str | Path) -> None:
    """Change the config in a folder so that classes which would build the dense widths can't load it."""
    path = Path(folder) / "config.json"
    if path.exists():
        settings = json.loads(path.read_text(encoding="utf-8")) | {"transformers_weights": NO_FILE}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _layout_for(model: PreTrainedModel, layout: dict) -> dict:
    """Convert the layout of a causal language model for another head on the same body, or the body alone."""
    if model.can_generate():
        return layout
    names = {name for name, _ in [*model.named_modules(), *model.named_parameters()]}
    body = f"{model.base_model_prefix}." if model.base_model is model else ""
    parts = {part: {n.removeprefix(body): entry for n, entry in layout[part].items()} for part in layout}
    return {part: {n: entry for n, entry in parts[part].items() if n in names} for part in parts}


def _class_for(config, source: str, auto_class: str, **kwargs) -> type[PreTrainedModel]:
    """Find the class that builds a model, in transformers or in a file saved with the weights.

    Dense models are handled too: once a pruned model was loaded, transformers calls this for every model of
    the same config class.
    """
    pruned = getattr(config, "pruning_layout", None)
    custom = getattr(config, "dense_class", None)
    if not custom and not pruned:
        custom = (getattr(config, "auto_map", None) or {}).get(auto_class)
    if custom:
        dense = get_class_from_dynamic_module(custom, source, **kwargs)
    else:
        known = getattr(transformers, auto_class)._model_mapping._model_mapping.get(config.model_type, [])
        known, saved = [known] if isinstance(known, str) else known, (config.architectures or [""])[0]
        is_saved = saved in known or (not known and auto_class == AUTO_CLASS)
        dense = getattr(transformers, saved if is_saved else "".join(known[:1]), None)
    if dense is None:
        fault = f"transformers {transformers.__version__} has no {auto_class} for {config.model_type}"
        raise ValueError(f"{fault}; install a newer version, or use another Auto class")
    return pruned_class(dense) if pruned else dense


def is_foreign(cls: type) -> bool:
    """Return whether a class is not part of transformers, so that its code must be saved with the weights."""
    return cls.__module__.partition(".")[0] != "transformers"


def source_files(cls: type) -> list[Path]:
    """List the file that defines a class, and the files that it imports relatively.

    Raises: ValueError: the class is not defined in a file that can be saved with the weights.
    """
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if not file or cls.__module__ == "__main__":
        fault = f"{cls.__name__} is defined in {cls.__module__}, no file that can be saved with the weights"
        raise ValueError(f"{fault}; move the class into a separate module and import it")
    return [Path(file), *map(Path, get_relative_import_files(file))]


def copy_code(folder: str | Path, dense: type[PreTrainedModel]) -> None:
    """Copy this file, `layout.py` and the files of a dense class that is not part of transformers.

    Raises: ValueError: the dense class is not defined in a file; nothing was written.
    """
    paths = [Path(sys.modules[name].__file__) for name in (__name__, apply_layout_.__module__)]
    paths += source_files(dense) if is_foreign(dense) else []
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in paths:
        target = Path(folder) / path.name
        if path.resolve() != target.resolve():
            text = path.read_text(encoding="utf-8")  # the copy must not need pruner_lib
            target.write_text(text.replace("from pruner_lib.method.layout", "from .layout"), encoding="utf-8")


class PrunedModelForCausalLM:
    """The class named in `auto_map`: it delegates to the pruned dense class and has no instances itself."""

    auto_class = AUTO_CLASS

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        source = str(pretrained_model_name_or_path)
        trusted = kwargs.get("trust_remote_code")
        config = config or AutoConfig.from_pretrained(source, trust_remote_code=trusted)
        hub = {k: kwargs[k] for k in ("cache_dir", "revision", "token", "local_files_only") if k in kwargs}
        build = _class_for(config, source, cls.auto_class, **hub)
        return build.from_pretrained(source, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config, **kwargs):
        return _class_for(config, config.name_or_path, cls.auto_class)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class=AUTO_CLASS) -> None:
        """Do nothing when called by transformers; `copy_code` copies the files."""


for auto_class, name in HEADS.items():  # PrunedModel, PrunedModelForSequenceClassification ...
    globals().setdefault(name, type(name, (PrunedModelForCausalLM,), {"auto_class": auto_class}))
