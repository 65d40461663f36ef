"""Estimation: one importance score per group (paper section 3.2, Eq. 3 to 5).

A saliency is a signed number for each entry of a weight. Weights and gradients arrive in slices of rows (see
`gradients`), and their saliencies are summed in float64. Nothing is ranked here.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pruner_lib.method.checks import plain_number, require
from pruner_lib.method.decoder import check_weights
from pruner_lib.method.gradients import visit_gradients
from pruner_lib.method.groups import Axis, Member
from pruner_lib.method.memory import HeapTrimmer
from pruner_lib.method.module_gradients import rows_of
from pruner_lib.method.names import ADDITIVE, AGGREGATIONS, CRITERIA, DATA_FREE, ORDERS, SECOND_ORDER
from pruner_lib.method.offload import check_in_memory
from pruner_lib.method.options import check_axes, check_ids
from pruner_lib.method.predict_memory import check_fits, predict_memory
from pruner_lib.method.repair import obs_scores

Criterion = str | Callable[[Tensor, Tensor], Tensor]


def estimate(
    model: nn.Module,
    axes: Mapping[str, Axis],
    calibration_ids: Tensor | None = None,
    *,
    criterion: Criterion = "element1",
    aggregation: str = "sum",
    order: str = "channel",
    seed: int = 0,
    micro_batch: int | None = None,
    checkpointing: bool = False,
) -> dict[str, Tensor]:
    """Score every group of every axis; higher means keep.

    Args:
        model: is not changed; no gradients are left in it.
        axes: the result of `discover`, or some of its axes.
        calibration_ids: `(samples, tokens)` int64; the paper uses 10 samples; not needed for random, l1, l2.
        criterion: one of `CRITERIA`, "obs" (not in the paper and without gradients: `repair.obs_scores`, for
            heads and MLP channels), or a custom function `criterion(weight, grad) -> saliency`, all three of
            one shape, grad the gradient of the batch loss. It is called on slices of whole rows. The signed
            saliencies are summed over a channel, and aggregated like the others.
        aggregation: over the structures of a group: "sum" (the paper's default), "mean", "prod", "max" or
            "last" (o_proj and down_proj); "none" keeps them apart, for `select(..., dependency=False)`.
        order: sum a group's channels after aggregation ("channel", as in the reference) or before ("group").
        seed: random seed of the criterion "random".
        micro_batch: samples per forward pass, None: all at once; the scores do not depend on it.
        checkpointing: recompute the decoder layers' activations, which takes a third more time and a fraction
            of the memory, and gives the same scores.
    Returns: axis name -> `(n_groups,)` float32; `(n_structures, n_groups)` with aggregation "none". Scores
        are nan, with a warning, if the loss does not depend on a matrix that the axis cuts.
    Raises: ValueError: the criterion, aggregation or order is unknown, the ids do not fit the model, or the
        pass needs more memory than is available (the message says how much, and suggests a setting).
    Source: paper Eq. 3 (vector), Eq. 4 and 5 (element1, element2, mixed), section 3.2 (aggregation).
    """
    require((*AGGREGATIONS, "none"), aggregation=aggregation)
    require(ORDERS, order=order)
    if criterion == "obs":
        if aggregation != "sum":
            raise ValueError(f"criterion 'obs' has no aggregation {aggregation!r}; leave it out")
        return obs_scores(model, axes, calibration_ids)
    options = {"seed": seed, "micro_batch": micro_batch, "checkpointing": checkpointing}
    scores = estimate_members(model, axes, calibration_ids, criteria=[criterion], **options)
    return aggregate(axes, scores[criterion], aggregation, order=order)


def estimate_members(
    model: nn.Module,
    axes: Mapping[str, Axis],
    calibration_ids: Tensor | None = None,
    *,
    criteria: Iterable[Criterion],
    seed: int = 0,
    micro_batch: int | None = None,
    checkpointing: bool = False,
) -> dict[Criterion, dict[str, Tensor]]:
    """Score every channel of every structure by several criteria in one pass over the calibration batch.

    Each criterion sums its `saliencies` over a channel; vector takes the absolute value of the sum.
        l1: sum |w|    l2: sum w^2

    Args:    see `estimate`.
    Returns: criterion -> axis name -> `(n_structures, n_groups, channels)` float32, on the CPU.
    Raises:  ValueError: see `estimate`.
    Source:  paper Eq. 3 to 5; reference file `hf_llama_pruner.py`. Differs: a bias counts with its weight,
        and with grouped-query attention query rows are credited to their own key-value head.
    """
    criteria = list(criteria)
    for criterion in criteria:
        if not callable(criterion):
            require(CRITERIA, criterion=criterion)
    criteria = list(dict.fromkeys(criteria))
    require("1.. or None", micro_batch=micro_batch)
    require("0..", seed=seed)
    micro_batch, seed = plain_number(micro_batch), plain_number(seed)
    check_in_memory(model)
    check_weights(model)
    check_axes(axes, model)
    parameters = dict(model.named_parameters())
    sums = ChannelSums(axes, parameters, criteria)
    sums.add_magnitudes()
    if with_data := sums.with_data:
        check_ids(model, calibration_ids)
        names, (samples, tokens) = set(sums.kept_dims), calibration_ids.shape
        size, task = micro_batch or samples, f"scoring {samples} samples of {tokens} tokens"
        predict = partial(predict_memory, model, samples, tokens, with_data, parameters=names)
        sizes = [size // 2**k for k in range(size.bit_length())]  # down to 1
        advice = "use fewer or shorter samples, or a machine with more memory: even with"
        names_tried = ("micro_batch", "checkpointing")
        check_fits(model, task, predict, sizes, checkpointing, names=names_tried, otherwise=advice)
        ids = calibration_ids.to(next(iter(parameters.values())).device)
        per_sample, additive = not {*with_data}.isdisjoint(SECOND_ORDER), {*with_data} <= {*ADDITIVE}
        options = {"per_sample": per_sample, "additive": additive, "micro_batch": micro_batch}
        visit_gradients(model, ids, names, sums.add_gradient, checkpointing=checkpointing, **options)
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: (len(axis.structures), axis.n_groups, 1) for name, axis in axes.items()}
    random = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return {c: random if c == "random" else sums.by_structure(c) for c in criteria}


def aggregate(
    axes: Mapping[str, Axis], members: Mapping[str, Tensor], aggregation: str, *, order: str = "channel"
) -> dict[str, Tensor]:
    """Combine the scores of a group's structures into one score.

    order "channel": I_G = sum over channels c of A_m s_mc
    order "group":   I_G = A_m (sum over channels c of s_mc)

    with A one of sum, mean, prod, max and last over the structures m. Both orders give the same scores for
    sum, mean and last, and for groups of one channel (an MLP). The mean ranks as the sum does, except with
    `scope="joint"`, because heads and MLP channels have different numbers of structures.

    Args: members: axis name -> `(n_structures, n_groups, channels)`, one criterion of `estimate_members`.
    Returns: axis name -> `(n_groups,)` float32; `(n_structures, n_groups)` with aggregation "none".
    Raises: ValueError: unknown aggregation or order.
    Source: paper section 3.2 (i) to (iv), which leaves the order open; the reference code uses "channel".
    """
    require((*AGGREGATIONS, "none"), aggregation=aggregation)
    require(ORDERS, order=order)
    scores = {}
    for name, axis in axes.items():
        table = members[name].double()  # (n_structures, n_groups, channels)
        table = table.sum(-1, keepdim=True) if order == "group" else table
        if aggregation == "last":
            table = table[axis.structures.index(axis.last)]
        elif aggregation != "none":
            reduce = {"sum": table.sum, "mean": table.mean, "prod": table.prod, "max": table.amax}
            table = reduce[aggregation](0)
        scores[name] = table.sum(-1)
    if aggregation == "prod":  # products of many tiny scores would underflow in float32
        for kinds in (("attention", "mlp"), ("hidden",)):  # axes that may be ranked together share a factor
            names = [name for name, axis in axes.items() if axis.kind in kinds]
            largest = max((scores[name].max().item() for name in names), default=0.0) or 1.0
            scores |= {name: scores[name] / largest for name in names}
    return {name: s.float() for name, s in scores.items()}


def saliencies(w: Tensor, g: Tensor, a: Tensor | None, criteria: Collection[Criterion]) -> Iterator[tuple]:
    """Yield each criterion that needs gradients, and the saliency of each entry of a weight by it.

    With s = g * w:    vector: s    element1: |s|    element2: w a w    mixed: |s - w a w / 2|

    Args:
        w: a slice of a weight.    g: gradient of the batch loss.    a: mean squared gradient of the samples;
            None without second-order criteria. All of one shape; g and a are overwritten.
    Raises: ValueError: a custom criterion returned another shape.
    """
    for criterion in filter(callable, criteria):
        saliency = criterion(w.clone(), g.clone())
        got = tuple(saliency.shape) if isinstance(saliency, Tensor) else type(saliency).__name__
        if got != w.shape:
            name, shape = getattr(criterion, "__name__", criterion), tuple(w.shape)
            raise ValueError(f"criterion {name} returned {got} for a weight of shape {shape}; return {shape}")
        yield criterion, saliency
    s = g.mul_(w)
    if "vector" in criteria:
        yield "vector", s
    if a is not None:
        waw = a.mul_(w).mul_(w)
        if "element2" in criteria:
            yield "element2", waw
        if "mixed" in criteria:
            yield "mixed", waw.mul_(-0.5).add_(s).abs_()
    if "element1" in criteria:
        yield "element1", s.abs_()


class ChannelSums:
    """Running sums of the saliencies along the dims that axes cut, filled slice by slice."""

    def __init__(self, axes: Mapping[str, Axis], parameters: Mapping[str, Tensor], criteria: list[Criterion]):
        self.axes, self.parameters = axes, parameters
        self.magnitudes = [c for c in criteria if c in ("l1", "l2")]
        self.with_data = [c for c in criteria if c not in DATA_FREE]
        self.kept_dims: dict[str, set[tuple[int, ...]]] = {}  # parameter -> dims not summed over
        self.sums: dict[tuple[Criterion, str, tuple[int, ...]], Tensor] = {}
        for axis in axes.values():
            for m in axis.members:
                self.kept_dims.setdefault(m.parameter, set()).add(_dims(m))

    def add_magnitudes(self) -> None:
        """Add the magnitudes of all weights, slice by slice.    l1: |w|    l2: w^2"""
        trimmer = HeapTrimmer()
        for name in self.kept_dims if self.magnitudes else ():
            trimmer.check()
            w = self.parameters[name].detach()
            step = rows_of(w.shape, w.device)
            for row, part in zip(range(0, w.shape[0], step), w.split(step), strict=True):
                magnitude = part.to(torch.promote_types(w.dtype, torch.float32)).abs()
                for criterion in self.magnitudes:
                    self._add(criterion, name, row, magnitude if criterion == "l1" else magnitude * magnitude)

    def add_gradient(self, name: str, row: int, g: Tensor, a: Tensor | None) -> None:
        """Add the saliencies of a slice that starts at `row`; overwrites `g` and `a`."""
        w = self.parameters[name].detach()[row : row + len(g)].to(g.dtype)
        for criterion, saliency in saliencies(w, g, a, self.with_data):
            self._add(criterion, name, row, saliency)

    def _add(self, criterion: Criterion, name: str, row: int, saliency: Tensor) -> None:
        shape = self.parameters[name].shape
        for dims in self.kept_dims[name]:
            others = [d for d in range(saliency.ndim) if d not in dims]
            part = saliency.sum(others) if others else saliency
            key = criterion, name, dims
            if key not in self.sums:
                self.sums[key] = part.new_zeros([shape[d] for d in dims], dtype=torch.float64)
            total = self.sums[key]
            total = total[row : row + len(part)] if dims[0] == 0 else total
            total += part

    def by_structure(self, criterion: Criterion) -> dict[str, Tensor]:
        """Axis name -> `(n_structures, n_groups, channels)`; query rows add up on the KV head's channels."""
        scores = {}
        for name, axis in self.axes.items():
            tables = {}  # structure, width -> (n_groups, width)
            for m in axis.members:
                unknown = torch.full([self.parameters[m.parameter].shape[d] for d in _dims(m)], torch.nan)
                channels = self.sums.get((criterion, m.parameter, _dims(m)), unknown).cpu()
                if m.expert is not None:
                    channels = channels[m.expert]
                key = m.structure, m.width
                tables[key] = tables.get(key, 0) + channels[m.indices]
            common = dict.fromkeys(axis.structures, 0)
            for (structure, _), table in tables.items():
                table = table.abs() if criterion == "vector" else table
                # (n_groups, width) -> (n_groups, width / channels, channels) -> (n_groups, channels)
                common[structure] = common[structure] + table.unflatten(1, (-1, axis.width)).sum(1)
            scores[name] = torch.stack([*common.values()]).float()
        return scores


def _dims(member: Member) -> tuple[int, ...]:
    """Return the dims of a parameter along which a member's entries differ, which are not summed over."""
    return (member.dim,) if member.expert is None else (0, member.dim)
