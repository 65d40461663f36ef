"""Estimation: one number for each group (paper section 3.2, Eq. 3 to 5).

Order of reduction, as in the reference code: within a channel of each structure, over the structures
(aggregation), then over the channels of a group; `order="group"` swaps the last two. Where the gradients
come from is in `gradients`; nothing is ranked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pruner_lib.method.gradients import visit_gradients
from pruner_lib.method.groups import ADDITIVE, AGGREGATIONS, DATA_FREE, ORDERS, SECOND_ORDER, Axis
from pruner_lib.method.offload import check_in_memory
from pruner_lib.method.options import check_choice, check_criteria, check_ids
from pruner_lib.method.predict_memory import check_memory
from pruner_lib.method.saliency import ChannelSums, Criterion


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
        model: left as it was, without gradients.
        axes: what `discover` returned, or some of it.
        calibration_ids: `(samples, tokens)` int64; the paper uses 10 samples. Not needed for random, l1 and
            l2.
        criterion: one of `CRITERIA`, or a function of your own, `criterion(weight, grad) -> saliency`: all
            three of one shape, grad the gradient of the batch loss. It is called on slices of whole rows, so
            each entry's saliency may follow from its own weight and gradient alone (or its row's). The
            saliencies are summed over a channel, with their signs, and aggregated like the others.
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
    check_choice("aggregation", aggregation, (*AGGREGATIONS, "none"))
    check_choice("order", order, ORDERS)
    scores = estimate_members(
        model, axes, calibration_ids, criteria=[criterion], seed=seed, micro_batch=micro_batch,
        checkpointing=checkpointing,
    )  # fmt: skip
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
    check_criteria(criteria, micro_batch)
    check_in_memory(model)
    parameters = dict(model.named_parameters())
    sums = ChannelSums(axes, parameters)
    sums.add_magnitudes([c for c in criteria if c in ("l1", "l2")])
    with_data = [c for c in criteria if c not in DATA_FREE]
    if with_data:
        check_ids(model, calibration_ids)
        names = set(sums.kept_dims)
        check_memory(model, calibration_ids, with_data, micro_batch, checkpointing, parameters=names)
        visit_gradients(
            model,
            calibration_ids.to(next(iter(parameters.values())).device),
            names,
            lambda name, row, g, a: sums.add_gradient(name, row, g, a, with_data),
            per_sample=any(c in SECOND_ORDER for c in with_data),
            micro_batch=micro_batch,
            additive=set(with_data) <= set(ADDITIVE),
            checkpointing=checkpointing,
        )
    scores = {c: sums.by_structure(c) for c in criteria if c != "random"}
    if "random" in criteria:
        generator = torch.Generator().manual_seed(seed)
        scores["random"] = {
            n: torch.rand((len(a.structures), a.n_groups, 1), generator=generator) for n, a in axes.items()
        }
    return {c: scores[c] for c in criteria}


def aggregate(
    axes: Mapping[str, Axis], members: Mapping[str, Tensor], aggregation: str, *, order: str = "channel"
) -> dict[str, Tensor]:
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
    check_choice("aggregation", aggregation, (*AGGREGATIONS, "none"))
    check_choice("order", order, ORDERS)
    scores = {}
    for name, axis in axes.items():
        table = members[name].double()  # (n_structures, n_groups, channels)
        if order == "group":
            table = table.sum(-1, keepdim=True)
        scores[name] = _over_structures(table, axis, aggregation).sum(-1)
    if aggregation == "prod":  # products of many tiny scores would vanish in float32
        for kinds in (("attention", "mlp"), ("hidden",)):  # a common factor for what may be ranked together
            together = [name for name, axis in axes.items() if axis.kind in kinds]
            largest = max((scores[name].max().item() for name in together), default=0.0) or 1.0
            scores |= {name: scores[name] / largest for name in together}
    return {name: s.float() for name, s in scores.items()}


def _over_structures(table: Tensor, axis: Axis, aggregation: str) -> Tensor:
    """`(n_structures, n_groups, channels)` -> `(n_groups, channels)`; with "none" as it came."""
    if aggregation == "last":
        return table[axis.structures.index(axis.last)]
    reduce = {"sum": table.sum, "mean": table.mean, "prod": table.prod, "max": table.amax}
    return reduce[aggregation](0) if aggregation in reduce else table
