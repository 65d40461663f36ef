"""The reference code's choices on an MHA llama, worked out here anew from its formulas, one weight at a time.

Its formulas as coded: saliences from one backward pass over the batch (g) and one for each sample (A: mean of
the squared gradients); per channel of each matrix; reduced over the matrices of a group; then summed over the
channels of a head. l1 and l2 take the mean over the matrices, whatever the strategy.
"""

from __future__ import annotations

import pytest
import torch
from families import build, first_of, tokens
from torch.nn.functional import cross_entropy

from pruner_lib import discover, select
from pruner_lib.method.importance import aggregate, estimate_members

HEADS, HEAD_DIM, CHANNELS, HIDDEN = 6, 8, 40, 24
CRITERIA = ("l1", "l2", "vector", "element1", "element2", "mixed")
STRATEGIES = {"sum": torch.sum, "mean": torch.mean, "prod": torch.prod, "max": torch.amax}
INNER = range(1, 3)  # of three layers
IDS = tokens(4, 12)


def _loss(model, ids):
    logits = model(ids).logits
    return cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def _gradients(model, ids) -> dict[str, torch.Tensor]:
    model.zero_grad()
    _loss(model, ids).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def saliences():
    """Parameter -> criterion -> salience of each weight; the model, in float64."""
    model = build("llama-mha").double()
    batch = _gradients(model, IDS)
    single = [_gradients(model, IDS[n : n + 1]) for n in range(len(IDS))]
    found = {}
    for name, p in model.named_parameters():
        w, g = p.detach(), batch[name]
        a = torch.stack([one[name] ** 2 for one in single]).mean(0)
        found[name] = {
            "l1": w.abs(), "l2": w**2, "vector": w * g, "element1": w * g, "element2": w * a * w,
            "mixed": w * g - w * a * w / 2,
        }  # fmt: skip
    model.zero_grad()
    return model, found


def _channels(salience, criterion: str, dim: int) -> torch.Tensor:
    """Score of each channel of one matrix; `dim` is the one that is cut."""
    if salience.ndim == 1:
        return salience.abs()
    if criterion == "vector":
        return salience.sum(1 - dim).abs()
    return salience.abs().sum(1 - dim)


def _expected(found, criterion: str, strategy: str) -> dict[str, torch.Tensor]:
    """Axis -> score of each group, as the reference code would have it."""

    def reduce(members: list[tuple[str, int]]) -> torch.Tensor:
        table = torch.stack([_channels(found[name][criterion], criterion, dim) for name, dim in members])
        return STRATEGIES["mean" if criterion in ("l1", "l2") else strategy](table, 0)

    scores, stream = {}, [("model.embed_tokens.weight", 1)]
    for i in range(3):
        layer = f"model.layers.{i}."
        attention = [(f"{layer}self_attn.{m}_proj.weight", 1 if m == "o" else 0) for m in "qovk"]
        mlp = [(f"{layer}mlp.{m}_proj.weight", 1 if m == "down" else 0) for m in ("gate", "up", "down")]
        scores[f"layers.{i}.attention"] = reduce(attention).view(HEADS, HEAD_DIM).sum(1)
        scores[f"layers.{i}.mlp"] = reduce(mlp)
        stream += [(f"{layer}{n}_layernorm.weight", 0) for n in ("input", "post_attention")]
        stream += [(name, 1 - dim) for name, dim in attention + mlp]
    stream += [("model.norm.weight", 0), ("lm_head.weight", 1)]
    return scores | {"hidden": reduce(stream)}


@pytest.fixture(scope="module")
def ours(saliences):
    """The model's axes, and our scores of their members by every criterion."""
    axes = discover(saliences[0])
    return axes, estimate_members(saliences[0], axes, IDS, criteria=CRITERIA)


def _both(saliences, ours, criterion: str, strategy: str):
    """The model's axes with our scores, and the scores that the reference code would have."""
    axes, members = ours
    aggregation = "mean" if criterion in ("l1", "l2") else strategy
    return (
        axes,
        aggregate(axes, members[criterion], aggregation),
        _expected(saliences[1], criterion, strategy),
    )


def _lowest(values: torch.Tensor, n: int) -> set[int]:
    return set(torch.argsort(values)[:n].tolist())


def _removed(plan) -> dict[str, set[int]]:
    return {name: set(range(plan.n_groups[name])) - set(kept.tolist()) for name, kept in plan.keep.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("criterion", first_of(CRITERIA, 4))
def test_kept_groups_of_every_criterion_and_strategy(saliences, ours, criterion, strategy):
    axes, scores, wanted = _both(saliences, ours, criterion, strategy)
    heads, channels = 6 * 8 - int(6 * 8 * 0.6), 40 - int(40 * 0.6)
    local = _removed(select(axes, scores, ratio=0.4, protect_first=1))
    assert not local["layers.0.attention"] and not local["layers.0.mlp"]
    for i in INNER:
        assert local[f"layers.{i}.attention"] == _lowest(wanted[f"layers.{i}.attention"], heads // 8)
        assert local[f"layers.{i}.mlp"] == _lowest(wanted[f"layers.{i}.mlp"], channels)
    stream = _removed(select(axes, scores, ratio=0.25, granularity="channel"))
    assert stream == {"hidden": _lowest(wanted["hidden"], HIDDEN - int(HIDDEN * 0.75))}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("criterion", first_of(CRITERIA, 4))
def test_kept_groups_of_one_list_of_heads_and_channels(saliences, ours, criterion, strategy):
    axes, scores, wanted = _both(saliences, ours, criterion, strategy)
    got = _removed(select(axes, scores, ratio=0.4, scope="joint", protect_first=1))
    names = [f"layers.{i}.{kind}" for i in INNER for kind in ("attention", "mlp")]
    units = torch.cat([wanted[name] for name in names])
    assert len(units) == 2 * (HEADS + CHANNELS)
    n = len(units) - int(len(units) * 0.6)
    sizes = [len(wanted[name]) for name in names]
    for part in units.split(sizes):  # ours alone: the best group of an axis stays
        part[part.argmax()] = torch.inf
    gone = torch.zeros(len(units), dtype=torch.bool)
    gone[list(_lowest(units, n))] = True
    for name, part in zip(names, gone.split(sizes), strict=True):
        assert got[name] == set(part.nonzero().flatten().tolist())


def test_random_scores_are_ranked_as_given(ours):
    """random: one number a channel, summed over the channels of a head."""
    axes, _ = ours
    generator = torch.Generator().manual_seed(3)
    drawn = {n: torch.rand(a.n_groups * a.width, generator=generator) for n, a in axes.items()}
    given = {n: drawn[n].view(a.n_groups, a.width).sum(1) for n, a in axes.items()}
    got = _removed(select(axes, given, ratio=0.5))
    for name, removed in got.items():
        width = axes[name].width
        by_hand = drawn[name].view(-1, width).sum(1)
        assert removed == _lowest(by_hand, (len(drawn[name]) - int(len(drawn[name]) * 0.5)) // width)


def test_strategies_choose_differently(ours):
    """The opposite: a wrong reduction would be seen."""
    axes, members = ours
    plans = [
        _removed(select(axes, aggregate(axes, members["element1"], a), ratio=0.4, scope=scope))
        for a in ("sum", "prod", "max")
        for scope in ("local", "joint")
    ]
    assert all(a != b for i, a in enumerate(plans) for b in plans[:i])
