"""LLM-Pruner as a study: discover groups, score them, cut them, recover, measure.

The names below are the public interface. They are looked up when first used, so that `import pruner_lib` is
quick and the method itself never pulls in transformers. Where a line belongs:

    the method            groups, siblings, labels, rules, trace, norms, graph; criteria, loss, uses, hooks,
                          gradients, saliency, capacity, budget, importance; selection, twins, layout,
                          layers, placement, prune
    what it works on      assets, archives, hub, corpora, data, devices, models, checkpoints, modeling_pruned
    what is done with it  recovery, training, resumable, alpaca; evaluation, fitting, harness, samples,
                          generation; efficiency, memory, quantisation, savings
    experiments           experiment, profiles, own_profiles, stages, subjects, measures, measured, study,
                          storage, records, results
    the questions         paper, comparison, methods, contrasts, alignment, agreement, oracle, probes,
                          sweeps, dynamics, evidence, statistics
    the verdicts          claims, paper_claims, claim_records, claim_numbers, verdicts, coverage,
                          readme
    figures and pages     marks, plotting, score_plots, slices, drawing, figures_*; page, index
    notebooks             runner, execution, injected
    the benchmark         bench, bench_*, figures_bench
"""

from __future__ import annotations

from importlib import import_module

_HOME = {
    "load_model": "models",
    "save_model": "checkpoints",
    "discover": "graph",
    "estimate": "importance",
    "select": "selection",
    "prune_": "prune",
    "mask_": "prune",
    "recover": "recovery",
    "perplexity": "evaluation",
    "zero_shot": "harness",
    "generate_samples": "evaluation",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'pruner_lib' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"pruner_lib.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
