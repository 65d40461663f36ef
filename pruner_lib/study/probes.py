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
from pruner_lib.method.groups import Axis
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


Tensors = dict[str, Tensor]


def block_outputs(
    model: nn.Module, axes: Mapping[str, Axis], ids: Tensor, *, fed: Tensors | None = None
) -> tuple[Tensors, Tensors]:
    """Run a model and keep what goes into and comes out of each attention and MLP block, and of each layer.

    Args:    axes: of the whole model.    ids: `(samples, tokens)`.
             fed: axis name -> what the block is given in place of its own input.
    Returns: inputs and outputs, on the CPU: axis name -> `(samples, tokens, hidden)`; the outputs of whole
             layers are named `layers.3`.
    """
    inputs: Tensors = {}
    outputs: Tensors = {}

    def feed(name: str, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = args[0] if args else kwargs["hidden_states"]
        inputs[name] = given.detach().cpu()
        new = given if fed is None else fed[name].to(given.device)
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def keep(name: str, _: nn.Module, __: tuple, output: Any) -> None:
        outputs[name] = (output if isinstance(output, Tensor) else output[0]).detach().cpu()

    with ExitStack() as hooks, torch.no_grad():
        for name, axis in axes.items():
            if axis.layer is not None:
                block, last = model.get_submodule(axis.module), model.get_submodule(axis.last)
                hooks.callback(block.register_forward_pre_hook(partial(feed, name), with_kwargs=True).remove)
                hooks.callback(last.register_forward_hook(partial(keep, name)).remove)
        for number, layer in enumerate(decoder_layers(model)[1]):
            hooks.callback(layer.register_forward_hook(partial(keep, f"layers.{number}")).remove)
        model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
    return inputs, outputs


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
        axes = {name: axis for name, axis in dense.axes.items() if axis.layer is not None}
        inputs, wanted = block_outputs(dense.model, axes, ids)
        del dense  # a large one is loaded again for each cut
        rows = []
        for name, experiment in experiments.items():
            model, _ = study.model(experiment)
            _, alone = block_outputs(model, axes, ids, fed=inputs)
            _, running = block_outputs(model, axes, ids)
            for place, output in wanted.items():
                own, kind = (alone, axes[place].kind) if place in axes else (running, "layer")
                rows.append((name, kind, int(place.split(".")[1]), correlation(own[place], output)))
            del model
        return rows

    settings = {name: one.canonical().settings() for name, one in experiments.items()}
    rows = study.cached(["block correlations", settings, *calibration_key(first)], measure)
    return pd.DataFrame(rows, columns=["name", "kind", "layer", "correlation"])
