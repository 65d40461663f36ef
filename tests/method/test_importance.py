"""Scores are what the equations say, from one pass, in the code's order of reduction."""

from __future__ import annotations

import copy

import pytest
import torch
from by_hand import GRADIENT, loss
from families import FAMILIES, IN_BLOCKS, MORE_FAMILIES, build, discovered, tokens

from pruner_lib import discover, estimate, prune_, select
from pruner_lib.method import importance, module_gradients
from pruner_lib.method.groups import Axis, Member
from pruner_lib.method.importance import aggregate, estimate_members
from pruner_lib.method.names import ORDERS


def test_vector_score_is_the_first_order_loss_change():
    """Finite differences: scale one MLP channel up and down by two percent."""
    model, ids = build("llama-gqa"), tokens(3, 8)
    axis = discover(model)["layers.1.mlp"]
    scores = estimate_members(model, {axis.name: axis}, ids, criteria=["vector"])["vector"][axis.name]
    for row, structure in enumerate(axis.structures):
        member = next(m for m in axis.members if m.structure == structure)
        for k in (scores[row].argmax().item(), scores[row].median(0).indices.item()):
            moved = []
            for step in (0.02, -0.02):
                changed = copy.deepcopy(model)
                weight = changed.get_parameter(member.parameter)
                with torch.no_grad():
                    weight.select(member.dim, k).mul_(1 + step)
                    moved.append(loss(changed, ids).item())
            slope = abs(moved[0] - moved[1]) / 0.04
            assert scores[row, k].item() == pytest.approx(slope, rel=0.01, abs=5e-5)
            assert scores[row, k].item() > 2e-4


def test_mixed_is_first_order_less_half_the_second():
    model, ids = build("llama-mha"), tokens(3, 8)
    axes = discover(model).of_kind("mlp")
    s = {
        c: aggregate(axes, m, "sum")["layers.0.mlp"]
        for c, m in estimate_members(model, axes, ids, criteria=GRADIENT).items()
    }
    assert (s["mixed"] <= s["element1"] + s["element2"] / 2 + 1e-6).all()
    assert (s["mixed"] >= (s["element1"] - s["element2"] / 2).abs() * 0.999 - 1e-6).all()
    assert not torch.allclose(s["mixed"], s["element1"])


def test_magnitudes_are_sums_of_powers():
    model = build("llama-mha")
    axis = discover(model)["layers.1.mlp"]
    mlp = model.model.layers[1].mlp
    for criterion, power in (("l1", 1), ("l2", 2)):
        wanted = sum(
            w.detach().abs().pow(power).sum(1)
            for w in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T)
        )
        found = estimate(model, {axis.name: axis}, criterion=criterion)[axis.name]
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("width", [1, 2])
def test_matrix_with_both_dims_in_a_group_counts_each_entry_of_them_once(width):
    """As Doge's dt_proj, one row a head and all its values (1 and 8), and XLNet's relative keys (4 and 8)."""
    model = torch.nn.ModuleDict({"dt": torch.nn.Linear(12, 3 * width, bias=False)})
    rows, columns = torch.arange(3 * width).view(3, width), torch.arange(12).view(3, 4)
    members = [Member("dt.weight", dim, at, "in", "dt") for dim, at in ((0, rows), (1, columns))]
    axes = {"heads": Axis("heads", "attention", 3, tuple(members), 0)}
    squares = model["dt"].weight.detach().square()
    wanted = squares.view(3, width, 12).sum((1, 2)) + squares.view(3 * width, 3, 4).sum((0, 2))
    torch.testing.assert_close(estimate(model, axes, criterion="l2")["heads"], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitudes_are_read_a_slice_at_a_time(monkeypatch, dtype):
    """The largest weight is never copied whole to float32; the sums are those of the whole."""
    model = build("llama-mha").to(dtype)
    axes = discover(model)
    whole = estimate_members(model, axes, criteria=["l1", "l2"])
    monkeypatch.setitem(module_gradients.SLICE, "cpu", 50)
    seen, reduce = [], importance.ChannelSums._add

    def watched(self, criterion, name, row, values):
        seen.append(values.numel())
        reduce(self, criterion, name, row, values)

    monkeypatch.setattr(importance.ChannelSums, "_add", watched)
    sliced = estimate_members(model, axes, criteria=["l1", "l2"])
    assert max(seen) <= 50
    for criterion, scores in sliced.items():
        for name, table in scores.items():
            torch.testing.assert_close(table, whole[criterion][name])


def test_a_criterion_of_ones_own_is_reduced_like_the_others():
    """element1, and a signed one that needs the weight alone, as a user would write them."""
    (model, axes), ids = discovered("llama-gqa"), tokens(3, 8)

    def mine(weight, grad):
        return (weight * grad).abs()

    for options in ({}, {"aggregation": "max", "order": "group"}, {"micro_batch": 2}):
        usual = estimate(model, axes, ids, criterion="element1", **options)
        own = estimate(model, axes, ids, criterion=mine, **options)
        for name, scores in usual.items():
            torch.testing.assert_close(own[name], scores)
    squares = estimate(model, axes, ids, criterion=lambda weight, grad: -weight.square())
    for name, scores in estimate(model, axes, criterion="l2").items():
        torch.testing.assert_close(squares[name], -scores)


def test_a_criterion_of_ones_own_changes_neither_the_model_nor_the_other_criteria():
    (model, axes), ids = discovered("llama-gqa"), tokens(3, 8)
    before = {name: p.clone() for name, p in model.named_parameters()}

    def destructive(weight, grad):
        return weight.mul_(grad.zero_())

    others = ["vector", "element1", "mixed"]
    together = estimate_members(model, axes, ids, criteria=[destructive, *others])
    alone = estimate_members(model, axes, ids, criteria=others)
    assert list(together) == [destructive, *others]
    for criterion in others:
        for name, scores in alone[criterion].items():
            assert torch.equal(together[criterion][name], scores)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda weight, grad: weight.sum(-1), r"criterion <lambda> returned \(.*\) for a weight of shape"),
        (lambda weight, grad: 1.0, "returned float for a weight"),
    ],
)
def test_a_criterion_that_returns_another_shape_is_refused(criterion, message):
    model = build("llama-mha")
    with pytest.raises(ValueError, match=message):
        estimate(model, discover(model), tokens(3, 8), criterion=criterion)
    with pytest.raises(ValueError, match="needs calibration ids"):
        estimate(model, discover(model), criterion=criterion)


def test_random_follows_its_seed():
    model, axes = discovered("llama-mha")
    first, again, other = (
        estimate(model, axes, criterion="random", seed=s)["layers.0.mlp"] for s in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_aggregation_reduces_structures_before_channels():
    axes = discovered("llama-mha")[1].of_kind("attention")
    members = {name: torch.rand(4, 6, 8) for name in axes}
    table = members["layers.0.attention"]
    scores = {
        how: aggregate(axes, members, how)["layers.0.attention"]
        for how in ("sum", "max", "last", "none", "prod")
    }
    torch.testing.assert_close(scores["sum"], table.sum((0, 2)))
    torch.testing.assert_close(scores["max"], table.amax(0).sum(-1))
    torch.testing.assert_close(scores["last"], table[3].sum(-1))  # q, k, v, o: the last is o_proj
    torch.testing.assert_close(scores["none"], table.sum(-1))
    wanted = table.prod(0).sum(-1)
    torch.testing.assert_close(scores["prod"] / scores["prod"][0], wanted / wanted[0])
    assert not torch.allclose(scores["max"], table.sum(-1).amax(0))  # the other order is another score


def test_other_order_sums_channels_before_structures():
    axes = discovered("llama-mha")[1].of_kind("attention", "mlp")
    members = {name: torch.rand(len(a.structures), a.n_groups, a.width) for name, a in axes.items()}
    sums = members["layers.0.attention"].sum(-1)  # (n_structures, n_groups)
    wanted = {"sum": sums.sum(0), "prod": sums.prod(0), "max": sums.amax(0), "last": sums[3], "none": sums}
    for how, by_hand in wanted.items():
        both = {order: aggregate(axes, members, how, order=order) for order in ORDERS}
        found = both["group"]["layers.0.attention"]
        torch.testing.assert_close(found / found.max(), by_hand / by_hand.max())
        ranks = {
            order: scores["layers.0.attention"] / scores["layers.0.attention"].max()
            for order, scores in both.items()
        }
        assert torch.allclose(ranks["channel"], ranks["group"]) is (how not in ("prod", "max")), how
        one = {order: scores["layers.1.mlp"] / scores["layers.1.mlp"].max() for order, scores in both.items()}
        torch.testing.assert_close(one["channel"], one["group"])  # a group of one channel knows no order


def test_estimate_passes_the_order_on():
    model, ids = build("llama-mha"), tokens(3, 8)
    axes = discover(model).of_kind("attention")
    members = estimate_members(model, axes, ids, criteria=["element1"])["element1"]
    found = {order: estimate(model, axes, ids, aggregation="max", order=order) for order in ORDERS}
    for order, scores in found.items():
        torch.testing.assert_close(scores, aggregate(axes, members, "max", order=order))
    assert not torch.allclose(*(scores["layers.0.attention"] for scores in found.values()))


def test_products_of_tiny_scores_do_not_vanish():
    axes = discovered("llama-mha")[1].of_kind("attention")
    members = {name: torch.rand(4, 6, 8) * 1e-14 for name in axes}
    scores = aggregate(axes, members, "prod")
    assert all((s > 0).all() for s in scores.values())


def test_query_rows_are_credited_to_their_own_kv_head():
    """Only the queries of KV head 0 carry weight: only group 0 has a score."""
    model = build("llama-gqa")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[24:] = 0
    axis = discover(model)["layers.0.attention"]
    found = estimate_members(model, {axis.name: axis}, tokens(3, 8), criteria=["element1"])["element1"][
        axis.name
    ]
    assert found[0, 0].sum() > 0 and found[0, 1].sum() == 0


BIG_BIRD = dict(
    vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
    max_position_embeddings=64, is_decoder=True, attention_type="original_full", sep_token_id=2,
)  # fmt: skip


@pytest.mark.parametrize("how", [{"criterion": "element2"}, {"criterion": "vector", "micro_batch": 1}])
def test_a_module_beside_the_loss_hinders_only_the_axis_that_cuts_it(how, monkeypatch):
    """The pooler of BigBird reads the residual stream, and nothing reads the pooler."""
    monkeypatch.setitem(FAMILIES, "big_bird", ("BigBirdConfig", BIG_BIRD))
    model, ids = build("big_bird"), tokens()
    axes = discover(model)
    blocks = axes.of_kind("attention", "mlp")
    with pytest.warns(UserWarning, match=r"does not depend on \['bert.pooler.weight'\]"):
        scores = estimate(model, axes, ids, **how)
    alone = estimate(model, blocks, ids, **how)
    assert len(alone) == 4 and all(torch.equal(scores[name], alone[name]) for name in alone)
    assert select(axes, scores, ratio=0.5).cut.keys() == alone.keys()
    with pytest.raises(ValueError, match="scores of hidden are not all finite; .*the warning of estimate"):
        select(axes, scores, ratio=0.5, granularity="channel")
    first = model.bert.encoder.layer[0].intermediate
    first.forward = lambda x: torch.nn.functional.linear(x, first.dense.weight, first.dense.bias).relu()
    with pytest.raises(ValueError, match="no gradient reached .*intermediate.dense.* or only a part of it"):
        estimate(model, blocks, ids, **how)  # lost, not absent


def test_the_model_is_left_as_it_was():
    model = build("llama-tied").train()
    model.model.norm.weight.requires_grad_(False)
    before = {n: (p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    axes = discover(model)
    estimate(model, axes, tokens(3, 8), criterion="mixed")
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) and p.requires_grad == before[name][1] and p.grad is None
    assert model.training and not any(m._forward_hooks for m in model.modules())


@pytest.mark.slow
def test_a_pruned_model_can_be_scored_and_pruned_again():
    model = build("qwen2", num_key_value_heads=6)
    for _ in range(2):
        axes = discover(model)
        prune_(model, select(axes, estimate(model, axes, tokens(3, 8)), ratio=0.25, protect_first=1))
    assert [layer.mlp.gate_proj.out_features for layer in model.model.layers] == [40, 22, 22]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_scores_of_other_dtypes_are_float32(dtype):
    model = build("llama-mha").to(dtype)
    scores = estimate(model, discover(model), tokens(3, 8), criterion="element2")
    assert all(s.dtype == torch.float32 and torch.isfinite(s).all() for s in scores.values())


WITH_POSITIONS = {  # rows of a parameter, or of a table that is computed once
    "gpt2": FAMILIES["gpt2"],
    "gptj": MORE_FAMILIES["gptj"],
    "codegen": IN_BLOCKS["codegen"],
    "ctrl": ("CTRLConfig", dict(vocab_size=64, n_embd=24, n_layer=1, n_head=6, dff=40, n_positions=256)),
}


@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_a_text_longer_than_the_table_of_positions_is_refused(family, monkeypatch):
    monkeypatch.setitem(FAMILIES, family, WITH_POSITIONS[family])
    model = build(family, n_positions=16)
    axes = discover(model)
    with pytest.raises(ValueError, match="17 tokens are too long for .*, which has 16 positions"):
        estimate(model, axes, tokens(2, 17), criterion="vector")
    estimate(model, axes, tokens(2, 16), criterion="vector")


def test_positions_that_are_computed_on_the_way_have_no_end():
    """Cosines and sines of old model classes are buffers, which their module makes longer."""
    model = build("llama-mha", max_position_embeddings=16)
    for name in ("cos_cached", "sin_cached"):
        model.model.rotary_emb.register_buffer(name, torch.zeros(16, 8))
    assert estimate(model, discover(model), tokens(2, 17), criterion="vector")


def test_loss_that_is_not_finite_is_refused():
    model = build("llama-mha")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="calibration loss is nan"):
        estimate(model, discover(model), tokens(3, 8))
