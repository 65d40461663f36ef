"""One pass gives what a pass for each sample gives: whole, in micro-batches, and with layers recomputed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from by_hand import GRADIENT, gradients, in_float64, member_scores
from families import DIFFERENT, build, discovered, first_of, tokens
from remote_family import build_remote, prompts
from torch.nn.utils.parametrize import register_parametrization
from transformers import RobertaConfig, RobertaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from pruner_lib import discover
from pruner_lib.method.gradients import batch_sizes, visit_gradients
from pruner_lib.method.importance import estimate_members
from pruner_lib.method.module_gradients import Use, gradient_slices

LAYERS = ("layers.0.attention", "layers.2.mlp", "hidden")


def _looked_at(axes):
    experts = [name for name in axes if name.startswith("layers.2.") and "mlp" in name]
    return {name: axes[name] for name in dict.fromkeys([*LAYERS, *experts]) if name in axes}


def _worst(found, model, axes, by_hand):
    """Largest difference of a channel's scores, relative to its size.

    What has signs inside may cancel to nothing; then its size is that of its terms.
    """
    terms = {"vector": {"element1": 1}, "mixed": {"element1": 1, "element2": 0.5}}
    differences = {}
    for criterion in GRADIENT:
        for name, axis in axes.items():
            wanted = member_scores(model, axis, by_hand, criterion)
            parts = terms.get(criterion, {criterion: 1}).items()
            size = sum(share * member_scores(model, axis, by_hand, c) for c, share in parts)
            difference = (found[criterion][name].double() - wanted).abs() / size.clamp_min(1e-30)
            differences[criterion, name] = difference.max().item()
            assert wanted.max() > 0
    return max(differences.values()), differences


@pytest.mark.parametrize("family", first_of(DIFFERENT, 2))
def test_one_pass_equals_a_pass_for_each_sample(family):
    """In float64, so that a difference is an error and not the order of summation."""
    axes, model, ids = _looked_at(discovered(family)[1]), in_float64(build(family)), tokens(4, 7)
    found = estimate_members(model, axes, ids, criteria=GRADIENT)
    worst, differences = _worst(found, model, axes, gradients(model, ids))
    assert len(axes) >= 2 and worst < 1e-6, differences


def test_one_pass_of_a_model_with_tokens_before_samples_and_code_of_its_own(tmp_path):
    model, ids = build_remote(tmp_path / "remote"), prompts(4, 12)
    axes = discover(model).of_kind("attention", "mlp")
    model = in_float64(model)
    found = estimate_members(model, axes, ids, criteria=GRADIENT)
    worst, differences = _worst(found, model, axes, gradients(model, ids))
    assert worst < 1e-6, differences


def test_positions_are_those_that_the_model_counts():
    """RoBERTa counts from its padding id on, and each sample for itself."""
    sizes = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=6)
    config = RobertaConfig(vocab_size=64, max_position_embeddings=64, is_decoder=True, **sizes)
    torch.manual_seed(0)
    model, ids = RobertaForCausalLM(config).eval(), tokens(4, 7)
    torch.nn.init.normal_(model.roberta.embeddings.position_embeddings.weight)
    axes = discover(model)
    model = in_float64(model)
    found = estimate_members(model, axes, ids, criteria=GRADIENT)
    worst, differences = _worst(found, model, axes, gradients(model, ids))
    assert "layers.0.mlp" in axes and worst < 1e-6, differences


def test_gradient_that_samples_share_is_not_split():
    module, x = torch.nn.Linear(3, 2), torch.randn(1, 5, 3)
    use = Use(module, "weight", [x], None, [torch.randn(1, 5, 2)], [0], samples=2, tokens=5, batch=0)
    [(_, g, a)] = gradient_slices([use], 2, 1.0, per_sample=False)
    assert g.shape == (2, 3) and a is None
    for grad in (use.grads[0], torch.randn(2)):  # of a row that all share, of a bias that is returned
        with pytest.raises(ValueError, match="can't be split by sample: use micro_batch=1, or vector"):
            list(gradient_slices([replace(use, grads=[grad])], 2, 1.0, per_sample=True))


def test_a_weight_made_by_a_module_of_its_own_is_not_split_by_sample():
    model, ids = build("llama-gqa", num_hidden_layers=1), tokens(3, 7)
    register_parametrization(model.model.layers[0].mlp.down_proj, "weight", _Doubled())
    axes = discover(model)
    with pytest.raises(ValueError, match=r"\(24, 40\), so its gradient can't be split by sample"):
        estimate_members(model, axes, ids, criteria=GRADIENT)
    model = in_float64(model)
    found = estimate_members(model, axes, ids, criteria=GRADIENT, micro_batch=1)
    worst, differences = _worst(found, model, axes, gradients(model, ids))
    assert worst < 1e-6, differences


class _Doubled(torch.nn.Module):
    def forward(self, weight):
        return weight * 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_weight_that_is_also_used_without_its_module_is_refused(checkpointing):
    model, ids = build("llama-gqa"), tokens(3, 7)
    model.model.layers[1].mlp.__class__ = _UsedBothWays
    axes = discover(model)
    with pytest.raises(ValueError, match="reached .*layers.1.mlp.down_proj.*only a part .* by calls of the"):
        estimate_members(model, axes, ids, criteria=["element1"], checkpointing=checkpointing)


def test_a_weight_whose_form_alone_is_read_elsewhere_is_scored():
    model, ids = build("llama-gqa", num_hidden_layers=1), tokens(3, 7)
    wanted = estimate_members(model, discover(model), ids, criteria=["element1"])["element1"]
    model.model.layers[0].mlp.__class__ = _OfTheForm
    found = estimate_members(model, discover(model), ids, criteria=["element1"])["element1"]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class _UsedBothWays(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x)) + self.up_proj(x) @ self.down_proj.weight.T


class _OfTheForm(LlamaMLP):
    def forward(self, x):
        weight = self.down_proj.weight
        return super().forward(x.to(weight).type_as(weight)) + weight.new_zeros(len(weight))


class _Handed(torch.nn.Module):
    """A matrix that is handed a vector of each kind, as routers are handed the biases of their experts."""

    def __init__(self, mlp):
        super().__init__()
        self.scaled, self.mlp, self.kind = _Scaled(), mlp, "none"
        self.register_buffer("bias", torch.rand(24))

    def forward(self, x):
        vectors = {
            "none": lambda: 1.0,
            "buffer": lambda: self.bias,
            "made of a buffer": lambda: self.bias * 2,
        }
        return self.mlp(self.scaled(x, vectors[self.kind]()))


class _Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(24))

    def forward(self, x, vector):
        return x * self.weight * vector


@pytest.mark.parametrize("kind", ["buffer", "made of a buffer"])
@pytest.mark.parametrize("samples", [4, 24])
def test_vector_that_is_handed_over_belongs_to_every_sample(kind, samples):
    """It has 24 entries: 6 for each of 4 samples, one for each of 24."""
    model, ids = build("llama-gqa", num_hidden_layers=1), tokens(samples, 7)
    model.model.layers[0].mlp = _Handed(model.model.layers[0].mlp)
    axes = discover(model)  # with a vector that has no entries
    model.model.layers[0].mlp.kind = kind
    model = in_float64(model)
    found = estimate_members(model, axes, ids, criteria=GRADIENT)
    worst, differences = _worst(found, model, axes, gradients(model, ids))
    assert any("scaled" in m.parameter for m in axes["hidden"].members)
    assert worst < 1e-6, differences


@pytest.mark.parametrize("family", ["llama-gqa", "mixtral"])
def test_in_float32_channels_differ_by_a_hundred_thousandth_at_most(family):
    model, ids = build(family), tokens(4, 7)
    axes = {name: axis for name, axis in _looked_at(discover(model)).items() if name != "hidden"}
    found = estimate_members(model, axes, ids, criteria=GRADIENT)
    model = in_float64(model)
    worst, differences = _worst(found, model, axes, gradients(model, ids))
    assert worst < 1e-5, differences


@pytest.mark.parametrize("family", first_of(["llama-tied", "gpt2", "mixtral"]))
@pytest.mark.parametrize("criteria", first_of([[*GRADIENT], ["vector", "element2"], ["element1"]]), ids=len)
def test_micro_batches_and_recomputed_layers_give_the_same_scores(family, criteria):
    axes, model, ids = _looked_at(discovered(family)[1]), in_float64(build(family)), tokens(5, 7)
    before = [m.__dict__.get("forward") for m in model.modules()]
    whole = estimate_members(model, axes, ids, criteria=criteria)
    for micro_batch, checkpointing in ((1, False), (2, True), (3, False), (None, True)):
        parts = estimate_members(
            model, axes, ids, criteria=criteria, micro_batch=micro_batch, checkpointing=checkpointing
        )
        for criterion in criteria:
            for name in axes:
                torch.testing.assert_close(parts[criterion][name], whole[criterion][name], rtol=1e-6, atol=0)
    assert before == [m.__dict__.get("forward") for m in model.modules()]


def test_as_many_samples_as_tokens_are_separated():
    assert batch_sizes(10, 64, None, True) == [10] and batch_sizes(10, 64, 4, True) == [4, 4, 2]
    assert batch_sizes(8, 8, None, True) == [7, 1] and batch_sizes(8, 8, None, False) == [8]
    assert batch_sizes(13, 3, 5, True) == [5, 5, 2, 1]
    model, ids = build("llama-gqa"), tokens(6, 6)
    axes = _looked_at(discover(model))
    model = in_float64(model)
    found = estimate_members(model, axes, ids, criteria=["mixed"])["mixed"]
    by_hand = gradients(model, ids)
    for name, axis in axes.items():
        wanted = member_scores(model, axis, by_hand, "mixed")
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-6, atol=0)


def test_gradients_of_a_weight_are_shown_in_slices_once_each(monkeypatch):
    from pruner_lib.method import module_gradients

    monkeypatch.setitem(module_gradients.SLICE, "cpu", 100)
    model, ids = in_float64(build("llama-tied")), tokens(3, 7)
    g, a = gradients(model, ids)
    seen = {}

    def visit(name, row, part, squares):
        seen.setdefault(name, []).append((row, part.clone(), squares.clone()))

    visit_gradients(model, ids, {n for n, _ in model.named_parameters()}, visit, per_sample=True)
    assert set(seen) == set(g) and len(seen["lm_head.weight" if "lm_head.weight" in g else next(iter(g))]) > 3
    for name, parts in seen.items():
        assert [row for row, *_ in parts] == sorted({row for row, *_ in parts})
        torch.testing.assert_close(torch.cat([part for _, part, _ in parts]), g[name])
        torch.testing.assert_close(torch.cat([squares for *_, squares in parts]), a[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_near_those_of_the_same_weights_in_float32(dtype):
    """bfloat16 has 8 bits: two percent of an axis's scores; float16 has 11: half a percent."""
    model, ids = build("llama-gqa").to(dtype), tokens(4, 7)
    axes = _looked_at(discover(model))
    half = estimate_members(model, axes, ids, criteria=GRADIENT)
    full = estimate_members(model.float(), axes, ids, criteria=GRADIENT)
    tolerance = {torch.bfloat16: 0.02, torch.float16: 0.005}[dtype]
    for criterion in ("element1", "element2", "mixed"):
        for name in axes:
            error = (half[criterion][name] - full[criterion][name]).norm() / full[criterion][name].norm()
            assert error < tolerance, (criterion, name)


def test_float16_scores_of_a_small_gradient_do_not_vanish():
    """Divided by the tokens of the batch before backward, these gradients would be zero in float16."""
    model, ids = build("llama-gqa"), tokens(40, 9)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-4)
    axes = _looked_at(discover(model))
    half = estimate_members(model.half(), axes, ids, criteria=["element1"])["element1"]["layers.2.mlp"]
    full = estimate_members(model.float(), axes, ids, criteria=["element1"])["element1"]["layers.2.mlp"]
    assert (half - full).norm() / full.norm() < 0.02
