"""LLM-Pruner as a study: discover groups, score them, prune them, recover, evaluate.

The names below are the public interface. They are imported on first use, so that `import pruner_lib` is fast
and the method itself never imports transformers. The packages:

    method/        groups: discovery, scoring, selection and pruning; needs only torch, numpy and scipy
    models/        models by name: load, prune, save, and the code that travels with a checkpoint
    data/          downloads, texts and instructions, windows of tokens
    recovery/      recovery after pruning: LoRA fine-tuning that can be resumed
    evaluation/    perplexity, zero-shot accuracy, generated text, size, speed and memory of a model
    files.py       atomic writes, strict JSON, locks
    study/         the study itself, shared by the notebooks; nothing above imports it
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which don't call `__getattr__`
    from pruner_lib.data.windows import calibration_ids as calibration_ids
    from pruner_lib.data.windows import instructions as instructions
    from pruner_lib.data.windows import text_ids as text_ids
    from pruner_lib.evaluation.perplexity import generate_samples as generate_samples
    from pruner_lib.evaluation.perplexity import perplexity as perplexity
    from pruner_lib.evaluation.zero_shot import zero_shot as zero_shot
    from pruner_lib.method.discover import discover as discover
    from pruner_lib.method.groups import Axes as Axes
    from pruner_lib.method.groups import Plan as Plan
    from pruner_lib.method.importance import estimate as estimate
    from pruner_lib.method.prune import mask_ as mask_
    from pruner_lib.method.repair import repair_ as repair_
    from pruner_lib.method.select import select as select
    from pruner_lib.models.export import to_gguf as to_gguf
    from pruner_lib.models.load import load_model as load_model
    from pruner_lib.models.prune import prune_ as prune_
    from pruner_lib.models.save import save_model as save_model
    from pruner_lib.recovery.recover import recover as recover

_HOME = {
    "Axes": "method.groups",
    "Plan": "method.groups",
    "calibration_ids": "data.windows",
    "discover": "method.discover",
    "estimate": "method.importance",
    "generate_samples": "evaluation.perplexity",
    "instructions": "data.windows",
    "load_model": "models.load",
    "mask_": "method.prune",
    "perplexity": "evaluation.perplexity",
    "prune_": "models.prune",
    "recover": "recovery.recover",
    "repair_": "method.repair",
    "save_model": "models.save",
    "select": "method.select",
    "text_ids": "data.windows",
    "to_gguf": "models.export",
    "zero_shot": "evaluation.zero_shot",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'pruner_lib' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"pruner_lib.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
