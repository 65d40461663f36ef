"""Why a model collapses when each matrix chooses for itself (paper, Table 6): its blocks, watched.

Cut by groups, position p of every matrix of an axis holds the same group as before. Ranked alone, each matrix
moves other groups up, and at position p strangers meet. Nothing is cut here that is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruner_lib.method.graph import decoder_layers
from pruner_lib.method.groups import Axis, Plan
from pruner_lib.method.twins import common_module

if TYPE_CHECKING:
    import pandas as pd

    from pruner_lib.experiments.experiment import Experiment
    from pruner_lib.experiments.records import Record

Tensors = dict[str, torch.Tensor]


def block_outputs(
    model: nn.Module, axes: Mapping[str, Axis], ids: torch.Tensor, *, fed: Tensors | None = None
) -> tuple[Tensors, Tensors]:
    """Run a model and keep what goes into and comes out of each attention and MLP block, and of each layer.

    Args:    axes: of the whole model.    ids: `(samples, tokens)`.
             fed: axis name -> what the block is given in place of its own input.
    Returns: inputs and outputs, on the CPU: axis name -> `(samples, tokens, hidden)`; the outputs of whole
             layers are named `layers.3`.
    """
    inputs: Tensors = {}
    outputs: Tensors = {}
    handles = []
    for name, axis in axes.items():
        if axis.layer is not None:
            block, last = model.get_submodule(common_module(axis)), model.get_submodule(axis.last)
            handles.append(block.register_forward_pre_hook(_feeder(name, inputs, fed), with_kwargs=True))
            handles.append(last.register_forward_hook(_keeper(name, outputs)))
    for number, layer in enumerate(decoder_layers(model)[1]):
        handles.append(layer.register_forward_hook(_keeper(f"layers.{number}", outputs)))
    with _removed(handles), torch.no_grad():
        model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
    return inputs, outputs


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlate all entries (Pearson): 1 where b is a but for scale and offset, 0 where it tells nothing."""
    a, b = (t.double().flatten() - t.double().mean() for t in (a, b))
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0


def aligned(plan: Plan) -> dict[str, float]:
    """Tell at which share of the positions that are left all matrices of an axis hold the same group.

    Returns: axis name -> share in [0, 1], of the axes that lose groups; 1 where groups were cut as groups.
    """
    kept: dict[str, list[torch.Tensor]] = {}
    for key in plan.cut:
        kept.setdefault(key.partition("/")[0], []).append(plan.keep[key])
    return {
        name: float(torch.stack([(one == rows[0]) for one in rows]).all(0).float().mean())
        for name, rows in kept.items()
    }


def following(
    experiments: Mapping[str, Experiment], *, profile: str = "quick", results_dir: Path | str | None = None
) -> pd.DataFrame:
    """Correlate the blocks of pruned models with the dense model's, on the calibration samples; cached.

    A block is judged by itself: it is given what the dense model's block is given. A whole layer is judged in
    the running model, so that it carries the faults of all layers before it.

    Args:    experiments: name -> a pruned model; all of one model and calibration.
    Returns: columns name, kind ("attention", "mlp" or "layer"), layer, correlation.
    """
    import pandas as pd

    from pruner_lib.experiments.study import model_of
    from pruner_lib.questions.probes import once

    def measure(dense: Any, ids: Any) -> list[tuple]:
        axes = {name: axis for name, axis in dense.axes.items() if axis.layer is not None}
        inputs, wanted = block_outputs(dense.model, axes, ids)
        del dense  # a large one is loaded again for each cut
        rows = []
        for name, asked in experiments.items():
            model, _ = model_of(asked, profile=profile, results_dir=results_dir)
            _, alone = block_outputs(model, axes, ids, fed=inputs)
            _, running = block_outputs(model, axes, ids)
            for place, output in wanted.items():
                own = alone if place in axes else running
                kind = axes[place].kind if place in axes else "layer"
                rows.append((name, kind, int(place.split(".")[1]), correlation(own[place], output)))
            del model
        return rows

    what = ["following", {name: asked.canonical().settings() for name, asked in experiments.items()}]
    found = once(what, next(iter(experiments.values())), measure, profile, results_dir)
    return pd.DataFrame(found, columns=["name", "kind", "layer", "correlation"])


def at_zero(record: Record, *, profile: str = "quick", results_dir: Path | str | None = None) -> Record:
    """Measure the model of a record with its groups set to zero in place of cut: no matrix moves up; cached.

    Returns: the record with the perplexities of that model. It is on no disk, and not what `run` would give.
    """
    from pruner_lib.experiments.measures import perplexity_metric
    from pruner_lib.experiments.records import metric_from
    from pruner_lib.experiments.stages import load_own
    from pruner_lib.experiments.study import bench_of, plan_of
    from pruner_lib.experiments.subjects import Subject
    from pruner_lib.method.prune import mask_
    from pruner_lib.questions.probes import once

    asked = record.experiment

    def measure(dense: Any, _: Any) -> dict[str, Any]:
        del dense  # ours to change is another one
        plan = plan_of(asked, profile=profile, results_dir=results_dir)
        own = load_own(asked.model, bench_of(profile, results_dir))
        size = sum(parameter.numel() for parameter in own.model.parameters())
        subject = Subject(mask_(own.model, plan), own.tokenizer, plan, (), size, size)
        texts = asked.evaluation.texts
        found = {text: perplexity_metric(text, asked.evaluation, subject) for text in texts}
        length = asked.evaluation.length
        return {f"perplexity/{text}@{length}": asdict(metric) for text, metric in found.items()}

    found = once(["at zero", asked.canonical().settings()], asked, measure, profile, results_dir)
    return replace(record, metrics={name: metric_from(values) for name, values in found.items()})


def _feeder(name: str, inputs: Tensors, fed: Tensors | None) -> Any:
    def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = args[0] if args else kwargs["hidden_states"]
        inputs[name] = given.detach().cpu()
        if fed is None:
            return args, kwargs
        other = fed[name].to(given.device)
        return ((other, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": other})

    return before


def _keeper(name: str, outputs: Tensors) -> Any:
    def after(_: nn.Module, __: tuple, output: Any) -> None:
        outputs[name] = (output if isinstance(output, torch.Tensor) else output[0]).detach().cpu()

    return after


@contextmanager
def _removed(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
