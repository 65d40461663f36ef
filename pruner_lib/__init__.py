"""LLM-Pruner as a study: discover groups, score them, cut them, recover, measure.

The names below are the public interface. They are looked up when first used, so that `import pruner_lib` is
quick and the method itself never pulls in transformers. Where a line belongs:

    method/        groups and how they are found, scored, chosen and cut: torch, numpy and scipy alone
    models/        models by name: load, save, the code that travels with a checkpoint
    data/          downloads, texts and instructions, windows of tokens
    recovery/      recovery after pruning: LoRA fine-tuning, resumable
    evaluation/    perplexity, zero-shot accuracy, texts, size, speed and memory of a model
    files.py       atomic writes, strict JSON, locks
    study/         the study itself, what the notebooks share; nothing above imports it
"""

from __future__ import annotations

from importlib import import_module

_HOME = {
    "load_model": "models.load",
    "save_model": "models.save",
    "discover": "method.discover",
    "estimate": "method.importance",
    "select": "method.select",
    "prune_": "method.prune",
    "mask_": "method.prune",
    "recover": "recovery.recover",
    "perplexity": "evaluation.perplexity",
    "zero_shot": "evaluation.zero_shot",
    "generate_samples": "evaluation.perplexity",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'pruner_lib' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"pruner_lib.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
