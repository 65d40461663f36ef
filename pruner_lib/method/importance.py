"""Estimation: one number for each group (paper section 3.2, Eq. 3 to 5).

Slices of gradients become saliencies, and these one number for each channel: sums are taken along the dims
that axes do not cut, slice by slice, in float64 between slices.

Order of reduction, as in the reference code: within a channel of each structure, over the structures
(aggregation), then over the channels of a group; `order="group"` swaps the last two. Where the gradients
come from is in `gradients`; nothing is ranked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from pruner_lib.method.gradients import visit_gradients
from pruner_lib.method.groups import ADDITIVE, CRITERIA, DATA_FREE, SECOND_ORDER, Axis, Member
from pruner_lib.method.memory import Tidy
from pruner_lib.method.module_gradients import rows_of
from pruner_lib.method.offload import check_in_memory
from pruner_lib.method.predict_memory import check_memory


class Tables:
    """Running sums of the saliencies along the dims that axes cut, filled slice by slice."""

    def __init__(self, axes: Mapping[str, Axis], parameters: Mapping[str, torch.Tensor]):
        self.axes = axes
        self.places: dict[str, set[tuple[int, ...]]] = {}  # parameter -> dims that stay
        self.parameters = {name: p.detach() for name, p in parameters.items()}
        self.sums: dict[tuple[str, str, tuple[int, ...]], torch.Tensor] = {}
        for axis in axes.values():
            for m in axis.members:
                self.places.setdefault(m.parameter, set()).add(_dims(m))

    def add_magnitudes(self, criteria: list[str]) -> None:
        tidy = Tidy()
        for name in self.places if criteria else ():
            tidy.look()
            w = self.parameters[name]
            step = rows_of(w.shape, w.device)
            for row, part in zip(range(0, w.shape[0], step), w.split(step), strict=True):
                magnitude = part.to(torch.promote_types(w.dtype, torch.float32)).abs()
                if "l1" in criteria:
                    self._reduce("l1", name, row, magnitude)
                if "l2" in criteria:
                    self._reduce("l2", name, row, magnitude * magnitude)

    def add(self, name: str, row: int, g: torch.Tensor, a: torch.Tensor | None, criteria: list[str]) -> None:
        """Add a slice of the gradient; `g` and `a` are used up."""
        w = self.parameters[name][row : row + len(g)].to(g.dtype)
        s = g.mul_(w)
        if "vector" in criteria:
            self._reduce("vector", name, row, s)
        if a is not None:
            waw = a.mul_(w).mul_(w)
            if "element2" in criteria:
                self._reduce("element2", name, row, waw)
            if "mixed" in criteria:
                self._reduce("mixed", name, row, waw.mul_(-0.5).add_(s).abs_())
        if "element1" in criteria:
            self._reduce("element1", name, row, s.abs_())

    def _reduce(self, criterion: str, name: str, row: int, salience: torch.Tensor) -> None:
        shape = self.parameters[name].shape
        for dims in self.places[name]:
            others = [d for d in range(salience.ndim) if d not in dims]
            part = salience.sum(others) if others else salience
            key = criterion, name, dims
            if key not in self.sums:
                self.sums[key] = part.new_zeros([shape[d] for d in dims], dtype=torch.float64)
            total = self.sums[key]
            total = total[row : row + len(part)] if dims[0] == 0 else total
            total += part

    def fold(self, criterion: str) -> dict[str, torch.Tensor]:
        """Structures wider than the others (query rows of a KV head) are summed onto the common channels."""
        found = {}
        for name, axis in self.axes.items():
            tables = dict.fromkeys(axis.structures, 0)
            for m in axis.members:
                channels = self.sums[criterion, m.parameter, _dims(m)].cpu()
                if m.at:
                    channels = channels.select(_dims(m).index(m.at[0]), m.at[1])
                tables[m.structure] = tables[m.structure] + channels[m.indices]  # (n_groups, width)
            if criterion == "vector":
                tables = {structure: table.abs() for structure, table in tables.items()}
            found[name] = torch.stack(
                [t.unflatten(1, (-1, axis.width)).sum(1) for t in tables.values()]
            ).float()
        return found


def _dims(member: Member) -> tuple[int, ...]:
    """The dims of a parameter whose entries a member tells apart."""
    return tuple(sorted({member.dim} | ({member.at[0]} if member.at else set())))


AGGREGATIONS = ("sum", "mean", "prod", "max", "last", "none")
ORDERS = ("channel", "group")


def estimate(
    model: nn.Module,
    axes: Mapping[str, Axis],
    calibration_ids: torch.Tensor | None = None,
    *,
    criterion: str = "element1",
    aggregation: str = "sum",
    order: str = "channel",
    seed: int = 0,
    micro_batch: int | None = None,
    checkpointing: bool = False,
) -> dict[str, torch.Tensor]:
    """Score every group of every axis; higher means keep.

    Args:
        model: left as it was, without gradients.
        axes: what `discover` returned, or some of it.
        calibration_ids: `(samples, tokens)` int64; the paper uses 10 samples. Not needed for random, l1 and
            l2.
        criterion: one of `CRITERIA`.
        aggregation: over the structures of a group: "sum" (the paper's default), "mean", "prod", "max" or
            "last" (o_proj and down_proj); "none" keeps them apart, for `select(..., dependency=False)`.
        order: what is reduced first: "channel" aggregates each channel of a group and then sums the
            channels (the code's order), "group" sums the channels of each structure and then aggregates;
            see `aggregate`.
        seed: of the criterion "random".
        micro_batch: samples of one forward pass, None: all at once; the scores do not depend on it.
        checkpointing: compute each decoder layer twice instead of keeping its activations; a third more time
            for a fraction of the memory, and the same scores.
    Returns: axis name -> `(n_groups,)` float32; `(n_structures, n_groups)` with aggregation "none".
    Raises: ValueError: unknown criterion, aggregation or order, ids that do not fit the model, or more memory
        needed than is available (the message says how much, and a setting that fits).
    Source: paper Eq. 3 (vector), Eq. 4 and 5 (element1, element2, mixed), section 3.2 (aggregation).
    """
    _check_reduction(aggregation, order)
    scores = estimate_members(
        model, axes, calibration_ids, criteria=[criterion], seed=seed, micro_batch=micro_batch,
        checkpointing=checkpointing,
    )  # fmt: skip
    return aggregate(axes, scores[criterion], aggregation, order=order)


def estimate_members(
    model: nn.Module,
    axes: Mapping[str, Axis],
    calibration_ids: torch.Tensor | None = None,
    *,
    criteria: Iterable[str],
    seed: int = 0,
    micro_batch: int | None = None,
    checkpointing: bool = False,
) -> dict[str, dict[str, torch.Tensor]]:
    """Score every channel of every structure by several criteria in one pass over the calibration batch.

    Per channel c of a structure W, with s = g * w (g: gradient of the batch loss, A: mean squared sample
    gradient):

        l1: sum |w|    l2: sum w^2    vector: |sum s|    element1: sum |s|    element2: sum w A w    mixed:
            sum |s - w A w / 2|

    Returns: criterion -> axis name -> `(n_structures, n_groups, channels)` float32, on the CPU.
    Raises: ValueError: unknown criterion, no calibration ids where they are needed, ids outside the
        vocabulary, or more memory needed than is available.
    Source: paper Eq. 3 to 5; reference file `hf_llama_pruner.py`. Differs: a bias counts with its weight,
        and with grouped-query attention query rows are credited to their own key and value head.
    """
    criteria = list(dict.fromkeys(criteria))
    for criterion in criteria:
        if criterion not in CRITERIA:
            raise ValueError(f"unknown criterion {criterion!r}; choose one of {', '.join(CRITERIA)}")
    check_in_memory(model)
    if micro_batch is not None and (not isinstance(micro_batch, int) or micro_batch < 1):
        raise ValueError(f"micro_batch must be a number of samples, at least 1, or None, got {micro_batch!r}")
    parameters = dict(model.named_parameters())
    tables = Tables(axes, parameters)
    tables.add_magnitudes([c for c in criteria if c in ("l1", "l2")])
    moving = [c for c in criteria if c not in DATA_FREE]
    if moving:
        check_ids(model, calibration_ids)
        places = set(tables.places)
        check_memory(model, calibration_ids, moving, micro_batch, checkpointing, parameters=places)
        visit_gradients(
            model,
            calibration_ids.to(next(iter(parameters.values())).device),
            places,
            lambda name, row, g, a: tables.add(name, row, g, a, moving),
            per_sample=any(c in SECOND_ORDER for c in moving),
            micro_batch=micro_batch,
            additive=set(moving) <= set(ADDITIVE),
            checkpointing=checkpointing,
        )
    scores = {c: tables.fold(c) for c in criteria if c != "random"}
    if "random" in criteria:
        generator = torch.Generator().manual_seed(seed)
        scores["random"] = {
            n: torch.rand((len(a.structures), a.n_groups, 1), generator=generator) for n, a in axes.items()
        }
    return {c: scores[c] for c in criteria}


def aggregate(
    axes: Mapping[str, Axis], members: Mapping[str, torch.Tensor], aggregation: str, *, order: str = "channel"
) -> dict[str, torch.Tensor]:
    """Combine the structures of each group to one score.

    order "channel": I_G = sum over channels c of A_m s_mc    order "group": I_G = A_m (sum over channels c
    of s_mc)

    with A one of sum, mean, prod, max and last over the structures m. For sum, mean and last, and where a
    group is one channel (an MLP), both orders are the same. The mean ranks as the sum does, unless heads and
    MLP channels are ranked in one list (`select(..., scope="joint")`): they have different numbers of
    structures.

    Args: members: axis name -> `(n_structures, n_groups, channels)`, one criterion of `estimate_members`.
    Returns: axis name -> `(n_groups,)` float32; `(n_structures, n_groups)` with aggregation "none".
    Raises: ValueError: unknown aggregation or order.
    Source: paper section 3.2 (i) to (iv). The paper does not say which reduction comes first; "channel" is
        the code's.
    """
    _check_reduction(aggregation, order)
    scores = {}
    for name, axis in axes.items():
        table = members[name].double()
        if order == "group":
            table = table.sum(-1, keepdim=True)
        if aggregation == "none":
            reduced = table
        elif aggregation == "sum":
            reduced = table.sum(0)
        elif aggregation == "mean":
            reduced = table.mean(0)
        elif aggregation == "prod":
            reduced = table.prod(0)
        elif aggregation == "max":
            reduced = table.amax(0)
        else:
            reduced = table[axis.structures.index(axis.last)]
        scores[name] = reduced.sum(-1)
    if aggregation == "prod":  # products of many tiny scores would vanish in float32
        for kinds in (("attention", "mlp"), ("hidden",)):  # a common factor for what may be ranked together
            together = [name for name, axis in axes.items() if axis.kind in kinds]
            largest = max((scores[name].max().item() for name in together), default=0.0) or 1.0
            scores |= {name: scores[name] / largest for name in together}
    return {name: s.float() for name, s in scores.items()}


def _check_reduction(aggregation: str, order: str) -> None:
    for what, value, known in (("aggregation", aggregation, AGGREGATIONS), ("order", order, ORDERS)):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(known)}")


def check_ids(model: nn.Module, ids: torch.Tensor | None) -> None:
    """Refuse token ids that the model can't have seen.

    Raises: ValueError: wrong type or shape, or ids outside the vocabulary.
    """
    if ids is None:
        raise ValueError(
            "this criterion needs calibration ids of shape (samples, tokens); random, l1 and l2 need none"
        )
    if (
        not isinstance(ids, torch.Tensor)
        or ids.dtype != torch.int64
        or ids.ndim != 2
        or ids.shape[0] < 1
        or ids.shape[1] < 2
    ):
        what = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(
            f"calibration ids must be int64 of shape (samples, tokens) with at least 2 tokens, got {what}"
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"calibration ids run from {ids.min().item()} to {ids.max().item()}, but the model's vocabulary "
            f"has {vocabulary} entries: were they made with another tokenizer?"
        )
