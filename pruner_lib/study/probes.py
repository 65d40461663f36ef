"""What is measured beside the records, each once: a study keeps it in `results/<profile>/measured`.

Losses on instructions, and seconds of a forward pass. And why a model collapses when each matrix
chooses for itself (paper, Table 6), by watching its blocks: cut by groups, position p of every matrix of an
axis holds the same group as before; ranked alone, each matrix moves other groups up, and at position p
strangers meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruner_lib.data.corpora import local_text
from pruner_lib.evaluation.efficiency import weight_bytes
from pruner_lib.evaluation.meters import in_turn
from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.groups import Axis
from pruner_lib.method.offload import evaluating
from pruner_lib.method.prune import mask_
from pruner_lib.recovery.instructions import IGNORED, encode
from pruner_lib.study.cache import files_hash, inputs_hash
from pruner_lib.study.records import Record, metrics_from
from pruner_lib.study.run import Study
from pruner_lib.study.settings import Experiment
from pruner_lib.study.stages import KEEP_BYTES, Loaded


def model_key(experiment: Experiment) -> list:
    """What makes an experiment's model, for `Study.cached`; how it is measured otherwise does not matter."""
    return [experiment.model_settings(), inputs_hash(experiment, evaluated=False)]


def calibration_key(experiment: Experiment) -> list:
    """What makes the model and the calibration samples of an experiment, for `Study.cached`."""
    how = experiment.calibration
    return [experiment.model, files_hash(experiment.model, [local_text(how.corpus)]), asdict(how)]


def calibrated(study: Study, experiment: Experiment) -> tuple[Loaded, Tensor]:
    """Give the dense model of an experiment and its calibration samples, `(samples, length)`."""
    dense = study.dense(experiment.model)
    ids = study.pipeline.calibration_ids(experiment.calibration, dense.tokenizer)
    return dense, ids.to(study.pipeline.device)


Example = Mapping[str, str]


def response_losses(
    study: Study, experiment: Experiment, examples: Sequence[Example], *, cutoff: int = 256
) -> list[float]:
    """Measure how badly an experiment's model predicts the responses to instructions; once.

    Returns: for each example that fits into `cutoff` tokens the mean loss of its response, nats a token.
    """
    key = ["responses", [dict(one) for one in examples], cutoff, model_key(experiment)]
    return study.cached(key, lambda: losses_on(*study.model(experiment), examples, cutoff=cutoff))


def losses_on(model: Any, tokenizer: Any, examples: Sequence[Example], *, cutoff: int = 256) -> list[float]:
    """Compute the mean loss of each example's response under a model, nats a token."""
    device, losses = model.get_input_embeddings().weight.device, []
    with evaluating(model):
        for row in encode(examples, tokenizer, cutoff=cutoff):
            ids, labels = (torch.tensor([row[name]], device=device) for name in ("input_ids", "labels"))
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()  # (tokens - 1, vocabulary)
            losses.append(float(F.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED)))
    return losses


def timings(
    study: Study,
    experiments: Mapping[str, Experiment],
    *,
    tokens: int = 128,
    repeats: int = 10,
    warmup: int = 2,
) -> pd.DataFrame:
    """Time a forward pass of the models of several experiments, in turns, on this machine; once.

    Taking turns lets a machine that becomes slow or fast meanwhile do so for all alike. Models too large to
    be held together are timed one after the other.

    Args:    tokens: of the one sequence.    repeats: rounds that count.    warmup: rounds before them.
    Returns: columns model, round, seconds.
    """

    def run(model: nn.Module) -> None:
        weight = model.get_input_embeddings().weight
        ids = torch.randint(weight.shape[0], (1, tokens), generator=torch.Generator().manual_seed(0))
        with evaluating(model):
            model(input_ids=ids.to(weight.device), use_cache=False)

    def measure() -> list[dict[str, Any]]:
        held, rows = {}, []
        for name, experiment in experiments.items():
            held[name], _ = study.model(experiment)
            if sum(map(weight_bytes, held.values())) > 2 * KEEP_BYTES or name == list(experiments)[-1]:
                calls = {one: partial(run, model) for one, model in held.items()}
                seconds = in_turn(calls, repeats, study.pipeline.device, warmup=warmup)
                rows += [(one, i, seconds[one][i]) for i in range(repeats) for one in held]
                held.clear()
                calls.clear()
        return [dict(zip(("model", "round", "seconds"), row, strict=True)) for row in rows]

    settings = [model_key(one) for one in experiments.values()]
    key = ["timings", list(experiments), settings, tokens, repeats, warmup]
    return pd.DataFrame(study.cached(key, measure))


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

    def feed(name: str) -> Callable:
        def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            given = args[0] if args else kwargs["hidden_states"]
            inputs[name] = given.detach().cpu()
            new = given if fed is None else fed[name].to(given.device)
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

        return before

    def keep(name: str) -> Callable:
        def after(_: nn.Module, __: tuple, output: Any) -> None:
            outputs[name] = (output if isinstance(output, Tensor) else output[0]).detach().cpu()

        return after

    with ExitStack() as hooks, torch.no_grad():
        for name, axis in axes.items():
            if axis.layer is not None:
                block, last = model.get_submodule(axis.module), model.get_submodule(axis.last)
                hooks.callback(block.register_forward_pre_hook(feed(name), with_kwargs=True).remove)
                hooks.callback(last.register_forward_hook(keep(name)).remove)
        for number, layer in enumerate(decoder_layers(model)[1]):
            hooks.callback(layer.register_forward_hook(keep(f"layers.{number}")).remove)
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


def at_zero(study: Study, record: Record) -> Record:
    """Measure the model of a record with its groups set to zero in place of cut: no matrix moves up; once.

    Returns: the record with the perplexities of that model. It is on no disk, and not what `run` would give.
    """
    experiment, how = record.experiment, record.experiment.evaluation

    def measure() -> dict[str, Any]:
        own = study.pipeline.own(experiment.model)
        subject = mask_(own.model, study.plan(experiment)), own.tokenizer
        texts = [study.pipeline.measure_text(text, how, *subject) for text in how.texts]
        return {str(name): asdict(metric) for text in texts for name, metric in text.items()}

    key = ["at zero", experiment.canonical().settings(), inputs_hash(experiment)]
    return replace(record, metrics=metrics_from(study.cached(key, measure)))
