"""Why a model collapses when each matrix chooses for itself (paper, Table 6), by watching its blocks.

Cut by groups, position p of every matrix of an axis holds the same group as before; ranked alone, each matrix
moves other groups up, and at position p strangers meet. And what names other things that notebooks measure
beside the records, each once: a study keeps them in `results/<profile>/measured`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pruner_lib.method.decoder import decoder_layers
from pruner_lib.study.cache import calibration_key, inputs_hash
from pruner_lib.study.run import Study
from pruner_lib.study.settings import Experiment
from pruner_lib.study.stages import Loaded


def model_key(experiment: Experiment) -> list:
    """What makes an experiment's model, for `Study.cached`; how it is measured otherwise does not matter."""
    return [experiment.model_settings(), inputs_hash(experiment, evaluated=False)]


def calibrated(study: Study, experiment: Experiment) -> tuple[Loaded, Tensor]:
    """Give the dense model of an experiment and its calibration samples, `(samples, length)`."""
    dense = study.dense(experiment.model)
    ids = study.pipeline.calibration_ids(experiment.calibration, dense.tokenizer)
    return dense, ids.to(study.pipeline.device)


def block_calls(
    model: nn.Module, modules: Mapping[str, str], ids: Tensor
) -> dict[str, tuple[tuple, dict, Tensor]]:
    """Run a model, and keep how some of its modules are called, and what comes out.

    Args:    modules: name -> path in the model.    ids: `(samples, tokens)`.
    Returns: name -> arguments, named arguments, output `(samples, tokens, hidden)`; in order of execution.
    """
    calls = {}

    def keep(name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls[name] = args, kwargs, _first(output).clone()  # some models go on in place

    with ExitStack() as hooks, torch.no_grad():
        for name, path in modules.items():
            hook = model.get_submodule(path).register_forward_hook(partial(keep, name), with_kwargs=True)
            hooks.callback(hook.remove)
        model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
    return calls


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def correlation(a: Tensor, b: Tensor) -> float:
    """Correlate all entries (Pearson): 1 where they differ by scale and offset, 0 for a constant."""
    both = torch.stack([a.flatten(), b.flatten()]).double()
    return float(torch.corrcoef(both)[0, 1].nan_to_num(0.0))


def block_correlations(study: Study, experiments: Mapping[str, Experiment]) -> pd.DataFrame:
    """Correlate the blocks of pruned models with the dense model's, on the calibration samples; once.

    A block is judged by itself: it is given what the dense model's block is given. A whole layer is judged in
    the running model, so that it carries the faults of all layers before it.

    Args:    experiments: name -> a pruned model; all of one model and calibration.
    Returns: columns name, kind ("attention", "mlp" or "layer"), layer, correlation.
    """
    first = next(iter(experiments.values()))

    def measure() -> list[tuple]:
        dense, ids = calibrated(study, first)
        kinds = {name: axis.kind for name, axis in dense.axes.items() if axis.layer is not None}
        blocks = {name: dense.axes[name].module for name in kinds}
        layers = {f"layers.{i}": f"{decoder_layers(dense.model)[0]}.{i}" for i in range(dense.axes.n_layers)}
        wanted = block_calls(dense.model, blocks | layers, ids)
        del dense  # a large one is loaded again for each cut
        rows = []
        for name, experiment in experiments.items():
            model, _ = study.model(experiment)
            running = block_calls(model, layers, ids)
            for place, (args, kwargs, output) in wanted.items():
                if place in blocks:
                    with torch.no_grad():
                        own = _first(model.get_submodule(blocks[place])(*args, **kwargs))
                else:
                    own = running[place][2]
                layer = int(place.split(".")[1])
                rows.append((name, kinds.get(place, "layer"), layer, correlation(own, output)))
            del model
        return rows

    settings = {name: one.canonical().settings() for name, one in experiments.items()}
    rows = study.cached(["block correlations", settings, *calibration_key(first)], measure)
    return pd.DataFrame(rows, columns=["name", "kind", "layer", "correlation"])
