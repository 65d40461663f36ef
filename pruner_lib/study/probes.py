"""Measurements beside the records, made once and then read from a cache that may be deleted at any time.

Losses on instructions that no training saw, and seconds of a forward pass. Of single groups: the loss of the
model without them (left-hand side of the paper's Eq. 3), one forward pass over the calibration batch each.
And why a model collapses when each matrix chooses for itself (paper, Table 6), by watching its blocks: cut by
groups, position p of every matrix of an axis holds the same group as before; ranked alone, each matrix moves
other groups up, and at position p strangers meet.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from pruner_lib.data.windows import calibration_ids, instructions
from pruner_lib.evaluation.efficiency import weight_bytes
from pruner_lib.evaluation.meters import meter, timed
from pruner_lib.evaluation.perplexity import evaluating, perplexity_result
from pruner_lib.files import only_one, read_json, write_json
from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.groups import Axis, Plan
from pruner_lib.method.importance import estimate_members
from pruner_lib.method.prune import mask_
from pruner_lib.recovery.instructions import IGNORED, encode
from pruner_lib.study import stages
from pruner_lib.study.records import Record, metric_from
from pruner_lib.study.results import results_dir as profile_dir
from pruner_lib.study.run import bench_of, model_of, perplexity_metric, plan_of
from pruner_lib.study.settings import Experiment, Recovery, settings_key
from pruner_lib.study.stages import KEEP_BYTES, Subject, load_own, model_hash

PASSES = {  # name -> criteria of one pass; None: a plain forward and backward pass that keeps every gradient
    "plain forward + backward": None,
    "first order (element1)": ("element1",),
    "all four Taylor criteria": ("vector", "element1", "element2", "mixed"),
}


def true_changes(
    experiment: Experiment,
    groups: Sequence[tuple[str, int]],
    *,
    profile: str = "quick",
    results_dir: Path | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how the loss on the calibration batch changes when each of some groups is set to zero alone.

    Args:    experiment: gives model and calibration.    groups: (axis name, group number).
    Returns: columns `axis`, `group`, `change` (nats a token).
    """

    def measure(dense: stages.Loaded, ids: Any) -> list[float]:
        return loss_changes(dense.model, dense.axes, groups, ids, progress=progress)

    found = once(["changes", [list(group) for group in groups]], experiment, measure, profile, results_dir)
    return pd.DataFrame(groups, columns=["axis", "group"]).assign(change=found)


def pass_costs(
    experiment: Experiment, *, repeats: int = 2, profile: str = "quick", results_dir: Path | str | None = None
) -> pd.DataFrame:
    """Time passes over the calibration batch and watch their memory, after a short pass that is not counted.

    Args:    experiment: gives model and calibration.    repeats: how often each of `PASSES` runs, in turns.
    Returns: a row a run; columns `passes`, `seconds`, `memory_mb` (at most during it, above what was there
             before, plus the weights), `weights_mb`. The numbers are of the machine that measured them.
    """

    def measure(dense: stages.Loaded, ids: Any) -> list[dict[str, Any]]:
        _pass_of(dense, ids[:1, :8], PASSES["first order (element1)"])
        weights = sum(p.numel() * p.element_size() for p in dense.model.parameters()) / 2**20
        rows = []
        gc.collect()
        for _ in range(repeats):
            for name, criteria in PASSES.items():
                seconds, above = _cost(lambda criteria=criteria: _pass_of(dense, ids, criteria), dense.model)
                row = {
                    "passes": name,
                    "seconds": seconds,
                    "memory_mb": weights + above,
                    "weights_mb": weights,
                }
                rows.append(row)
        return rows

    return pd.DataFrame(once(["costs", repeats], experiment, measure, profile, results_dir))


def once(
    what: list, experiment: Experiment, measure: Callable, profile: str, results_dir: Path | str | None
) -> Any:
    """Give what was measured before with these settings, else measure it on the dense model and keep it.

    Args:    what: settings besides model and calibration.
             measure: takes the dense model, which it may let go of, and the calibration samples; what it
             gives is kept as JSON.
    """
    bench = bench_of(profile, results_dir)
    key = settings_key(
        [what, experiment.model, stages.model_hash(experiment.model), asdict(experiment.calibration)]
    )
    path = bench.cache(f"probe-{key}.json")
    with only_one(path.with_suffix(".lock")):
        if not path.is_file():
            tokenizer = stages.load_dense(experiment.model, bench).tokenizer
            sizes = asdict(experiment.calibration)
            ids = calibration_ids(sizes.pop("corpus"), tokenizer, **sizes)  # (samples, length)
            write_json(path, measure(stages.load_dense(experiment.model, bench), ids.to(bench.device)))
    return read_json(path)


def _pass_of(dense: stages.Loaded, ids: Any, criteria: Sequence[str] | None) -> None:
    if criteria is not None:
        estimate_members(dense.model, dense.axes.of_kind("attention", "mlp"), ids, criteria=criteria)
        return
    with torch.enable_grad():
        logits = dense.model(input_ids=ids, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
    dense.model.zero_grad(set_to_none=True)


def _cost(action: Callable[[], None], model: Any) -> tuple[float, float]:
    """Seconds of an action, and how far memory rose above what was held before, in MiB."""
    device = next(model.parameters()).device
    before, peak = meter(device)
    seconds = timed(action, device)
    return seconds, max(0.0, peak() - before)


Example = Mapping[str, str]


def held_out(corpus: str, n: int, recoveries: Iterable[Recovery], *, seed: int = 0) -> list[dict[str, str]]:
    """Draw instructions that none of these recoveries sees.

    Raises:  ValueError: fewer are left than wanted.
    """
    drawn = [instructions(one.corpus, samples=one.samples, seed=one.seed) for one in recoveries]
    seen = {tuple(sorted(row.items())) for rows in drawn for row in rows}
    left = [row for row in instructions(corpus) if tuple(sorted(row.items())) not in seen]
    if len(left) < n:
        raise ValueError(
            f"of the instructions {corpus!r}, {len(left)} are seen by no recovery, wanted {n}; "
            "take fewer, or let the recoveries see fewer (`samples`)"
        )
    return [left[i] for i in np.random.default_rng(seed).choice(len(left), size=n, replace=False)]


def response_losses(
    experiment: Experiment,
    examples: Sequence[Example],
    *,
    cutoff: int = 256,
    profile: str = "quick",
    results_dir: Path | str | None = None,
) -> list[float]:
    """Measure how badly an experiment's model predicts the responses to instructions; once.

    Returns: for each example that fits into `cutoff` tokens the mean loss of its response, nats a token.
    """
    details = ["responses", [dict(one) for one in examples], cutoff]

    def measure(model: Any, tokenizer: Any) -> list[float]:
        return losses_on(model, tokenizer, examples, cutoff=cutoff)

    return _once(experiment, details, measure, profile, results_dir)


def losses_on(model: Any, tokenizer: Any, examples: Sequence[Example], *, cutoff: int = 256) -> list[float]:
    """Compute the mean loss of each example's response under a model, nats a token."""
    device, found = model.get_input_embeddings().weight.device, []
    with evaluating(model):
        for row in encode(examples, tokenizer, cutoff=cutoff):
            ids, labels = (torch.tensor([row[name]], device=device) for name in ("input_ids", "labels"))
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()  # (tokens - 1, vocabulary)
            found.append(float(F.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED)))
    return found


def timings(
    experiments: Mapping[str, Experiment],
    *,
    tokens: int = 128,
    repeats: int = 10,
    warmup: int = 2,
    profile: str = "quick",
    results_dir: Path | str | None = None,
) -> pd.DataFrame:
    """Time a forward pass of the models of several experiments, in turns, on this machine; once.

    Taking turns lets a machine that becomes slow or fast meanwhile do so for all alike. Models too large to
    be held together are timed one after the other.

    Args:    tokens: of the one sequence.    repeats: rounds that count.    warmup: rounds before them.
    Returns: columns model, round, seconds.
    """
    settings = [_settings(one) for one in experiments.values()]
    details = ["timings", list(experiments), settings, tokens, repeats, warmup]
    path = _path(details, profile, results_dir)
    if not path.is_file():
        rounds = _in_turns(experiments, tokens, repeats, warmup, profile, results_dir)
        write_json(path, [dict(zip(("model", "round", "seconds"), row, strict=True)) for row in rounds])
    return pd.DataFrame(read_json(path))


def _in_turns(
    experiments: Mapping[str, Experiment], tokens: int, repeats: int, warmup: int, profile: str, root: Any
) -> list[tuple[str, int, float]]:
    held, rows = {}, []
    for name, experiment in experiments.items():
        held[name], _ = model_of(experiment, profile=profile, results_dir=root)
        if sum(_bytes(one) for one in held.values()) > 2 * KEEP_BYTES or name == list(experiments)[-1]:
            for number in range(-warmup, repeats):
                seconds = {name: _pass(model, tokens) for name, model in held.items()}
                rows += [(name, number, time) for name, time in seconds.items() if number >= 0]
            held.clear()
    return rows


def _pass(model: Any, tokens: int) -> float:
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(weight.shape[0], (1, tokens), generator=generator).to(weight.device)
    with evaluating(model):
        return timed(lambda: model(input_ids=ids, use_cache=False), weight.device)


def _bytes(model: Any) -> int:
    return weight_bytes(model)


def _once(
    experiment: Experiment, details: list, measure: Callable[[Any, Any], Any], profile: str, root: Any
) -> Any:
    path = _path([*details, _settings(experiment)], profile, root)
    if not path.is_file():
        write_json(path, measure(*model_of(experiment, profile=profile, results_dir=root)))
    return read_json(path)


def _path(details: list, profile: str, root: Path | str | None) -> Path:
    return profile_dir(profile, root) / "measured" / f"{settings_key(details)}.json"


def _settings(experiment: Experiment) -> list:
    """Give what makes an experiment's model; how it is measured otherwise does not matter."""
    settings = asdict(experiment.canonical())
    del settings["evaluation"]
    return [settings, model_hash(experiment.model)]


def loss_of(model: nn.Module, ids: torch.Tensor) -> float:
    """Measure the loss L(D): the mean over all predicted tokens of the batch, in nats a token.

    Args:    ids: `(samples, tokens)` int64.
    Raises:  ValueError: ids that do not fit the model, or a loss that is not finite.
    """
    return float(perplexity_result(model, ids).nll.mean())


@contextmanager
def faded(
    model: nn.Module, axis: Axis, group: int, *, share: float = 1.0, structures: Collection[str] | None = None
) -> Iterator[nn.Module]:
    """Take a share of one group's weights away, W -> (1 - share) W; give them back bit for bit afterwards.

    Args:    share: 1 is what pruning does; less shows where the Taylor expansion holds.
             structures: some of the group's matrices; None: all of them.
    Raises:  ValueError: the axis has no such group or structure.
    """
    if not 0 <= group < axis.n_groups:
        raise ValueError(f"{axis.name} has the groups 0..{axis.n_groups - 1}, not {group}")
    if strange := set(structures or ()) - set(axis.structures):
        raise ValueError(
            f"{axis.name} has no structure {', '.join(sorted(strange))}; it has {', '.join(axis.structures)}"
        )
    members = [m for m in axis.members if structures is None or m.structure in structures]
    before = []
    try:
        with torch.no_grad():
            for member in members:
                weight = model.get_parameter(member.parameter)
                index = member.indices[group].to(weight.device)
                slices = weight.index_select(member.dim, index)
                before.append((weight, member.dim, index, slices))
                weight.index_copy_(member.dim, index, slices * (1 - share))
        yield model
    finally:
        with torch.no_grad():
            for weight, dim, index, slices in reversed(before):
                weight.index_copy_(dim, index, slices)


def loss_changes(
    model: nn.Module,
    axes: Mapping[str, Axis],
    groups: Sequence[tuple[str, int]],
    ids: torch.Tensor,
    *,
    progress: bool = False,
) -> list[float]:
    """Measure how the loss changes when each of some groups, alone, is set to zero.

    dL_G = L(D; W_G = 0) - L(D)

    Args:    groups: (axis name, group number).    ids: `(samples, tokens)` int64.    progress: show a bar.
    Returns: one number a group, nats a token; below 0 where the model is better without it.
    Source:  paper Eq. 3, whose left-hand side is the absolute value of this. No difference known.
    """
    whole = loss_of(model, ids)
    changes = []
    for name, group in tqdm(groups, desc="loss without a group", unit="group", disable=not progress):
        with faded(model, axes[name], group):
            changes.append(loss_of(model, ids) - whole)
    return changes


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
            block, last = model.get_submodule(axis.module), model.get_submodule(axis.last)
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
