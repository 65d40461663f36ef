"""The model that an experiment is about: loaded, pruned by its plan and, if asked for, recovered.

Each stage comes from the cache where it can (`stages`). What is measured on it is known to `measures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pruner_lib.experiments import stages
from pruner_lib.experiments.experiment import Experiment


@dataclass(frozen=True)
class Subject:
    """A model made by an experiment's settings, with its tokenizer and how it came about.

    Args:    plan: which groups stayed; None for the whole model.    history: of the recovery, step by step.
             n_dense, n_left: scalar parameters before and after the cut.
    """

    model: Any
    tokenizer: Any
    plan: Any
    history: tuple[dict[str, Any], ...]
    n_dense: int
    n_left: int

    @property
    def sparsity(self) -> float:
        """The share of all parameters that is gone."""
        return 1 - self.n_left / self.n_dense


def make_subject(asked: Experiment, bench: stages.Bench, criteria: Sequence[str] = ()) -> Subject:
    """Make the model of an experiment; the dense one is that in memory, which the caller must not change.

    Args:    criteria: others to estimate in the same calibration pass, for experiments that follow.
    """
    from pruner_lib import prune_
    from pruner_lib.measuring.efficiency import count_parameters
    from pruner_lib.measuring.quantisation import quantise_

    plan = stages.choose(asked, bench, criteria) if asked.ratio else None
    changes = plan is not None or asked.recovery or asked.int8
    load = stages.load_own if changes else stages.load_dense
    loaded = load(asked.model, bench)
    n_dense, history = count_parameters(loaded.model), []
    if plan is not None:
        with bench.timed("prune"):
            prune_(loaded.model, plan, axes=loaded.axes)
    n_left = count_parameters(loaded.model)
    if asked.recovery:
        loaded, history = stages.recover_model(asked, loaded, bench)
    if asked.int8:
        with bench.timed("quantise"):
            quantise_(loaded.model)
    return Subject(loaded.model, loaded.tokenizer, plan, tuple(history), n_dense, n_left)
