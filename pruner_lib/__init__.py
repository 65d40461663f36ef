"""LLM-Pruner as a study: discover groups, score them, cut them, recover, measure.

The names below are the public interface. They are looked up when first used, so that `import pruner_lib` is
quick and the method itself never pulls in transformers. Where a line belongs:

    method/        groups and how they are found, scored, chosen and cut: torch, numpy and scipy alone
    inputs/        what the method works on: downloads, texts, models and their checkpoints
    tuning/        recovery after pruning: LoRA fine-tuning, resumable
    measuring/     perplexity, zero-shot accuracy, texts, size, speed and memory of a model
    experiments/   experiments as plain data, profiles, stages, records, files
    questions/     what each notebook compares, and the statistics that it needs
    conclusions/   the paper's claims, the rules that judge them, the tables of the README
    figures/       one function a figure, and the look that all share
    running/       notebooks in a batch, and the page that shows what came out
    benchmark/     `inv bench`
    profiles.yaml  the settings of tiny, quick, full and paper
"""

from __future__ import annotations

from importlib import import_module

_HOME = {
    "load_model": "inputs.models",
    "save_model": "inputs.checkpoints",
    "discover": "method.graph",
    "estimate": "method.importance",
    "select": "method.selection",
    "prune_": "method.prune",
    "mask_": "method.prune",
    "recover": "tuning.recovery",
    "perplexity": "measuring.evaluation",
    "zero_shot": "measuring.harness",
    "generate_samples": "measuring.evaluation",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'pruner_lib' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"pruner_lib.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
