"""What is computed over the channels of a group and their neighbours: cut is mask, or it is not offered.

A mean over n channels is another number where half of them are gone than where half of them are zero; a sum
and a length are the same.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from families import build, first_of, logits, random_scores, tokens
from torch.nn import functional
from transformers.models.llama import modeling_llama

from pruner_lib import discover, mask_, prune_, select

WIDTHS = (24, 40)  # the residual stream and an MLP before the cut, all heads after it
PLACES = {"mlp": "mlp.down_proj", "attention": "self_attn.o_proj"}
STREAM = {"hidden": "mlp"}  # the residual stream, as the MLP reads it


def _mean_square(h):
    return h.pow(2).mean(-1, keepdim=True)


def _with_a_half_added(h):
    n, sums = h.shape[-1] // 2, torch.zeros_like(h)
    sums[..., :n].add_(h[..., :n])
    return sums + h


def _random(h):
    torch.manual_seed(0)
    return torch.rand(h.shape[-1:], device=h.device)


LEFT_WHOLE = {  # what stands before the output matrix -> the operator that the note names
    "an RMSNorm": (lambda h: h * torch.rsqrt(_mean_square(h) + 1e-5), "mean"),
    "less its mean": (lambda h: h - h.mean(-1, keepdim=True), "mean"),
    "the mean of all": (lambda h: h - h.mean(), "mean"),
    "how many are positive": (lambda h: h + (h > 0).float().mean(-1, keepdim=True), "mean"),
    "pooled": (lambda h: h + functional.adaptive_avg_pool1d(h, 1), "mean"),
    "variance": (lambda h: h * h.var(-1, keepdim=True), "var"),
    "variance with mean": (lambda h: h * torch.var_mean(h, -1, keepdim=True)[0], "var_mean"),
    "deviation": (lambda h: h / (h.std(-1, keepdim=True) + 1), "std"),
    "layer_norm": (lambda h: functional.layer_norm(h, h.shape[-1:]), "native_layer_norm"),
    "rms_norm": (lambda h: functional.rms_norm(h, h.shape[-1:]), "mean"),
    "softmax": (lambda h: h.softmax(-1), "_softmax"),
    "times softmax": (lambda h: h * h.softmax(-1), "_softmax"),
    "log_softmax": (lambda h: h.log_softmax(-1), "_log_softmax"),
    "logsumexp": (lambda h: h - h.logsumexp(-1, keepdim=True), "logsumexp"),
    "sum so far": (lambda h: h.cumsum(-1), "cumsum"),
    "product": (lambda h: h + h.prod(-1, keepdim=True), "prod"),
    "largest": (lambda h: h - h.amax(-1, keepdim=True), "amax"),
    "largest with its place": (lambda h: h - h.max(-1, keepdim=True)[0], "max"),
    "smallest": (lambda h: h - h.amin(-1, keepdim=True), "amin"),
    "smallest length": (lambda h: h / (1 + h.norm(-float("inf"), -1, keepdim=True)), "linalg_vector_norm"),
    "median": (lambda h: h - h.median(-1, keepdim=True)[0], "median"),
    "second largest": (lambda h: h - h.topk(2, -1)[0][..., 1:], "topk"),
    "place of the largest": (lambda h: h + h.argmax(-1, keepdim=True), "argmax"),
    "place of the smallest": (lambda h: h + h.argmin(-1, keepdim=True), "argmin"),
    "sum of exponentials": (lambda h: h / h.exp().sum(-1, keepdim=True), "sum"),
    "sum of sigmoids": (lambda h: h * h.sigmoid().sum(-1, keepdim=True), "sum"),
    "sum of one more": (lambda h: h * (h + 1).sum(-1, keepdim=True), "sum"),
    "sum where not positive": (lambda h: h * h.where(h > 0, torch.ones_like(h)).sum(-1, keepdim=True), "sum"),
    "how many are not negative": (lambda h: h * (h >= 0).sum(-1, keepdim=True), "sum"),
    "how many there are": (lambda h: h + torch.ones_like(h).sum(-1, keepdim=True), "sum"),
    "length of one more": (lambda h: h / (h.abs() + 1).norm(dim=-1, keepdim=True), "linalg_vector_norm"),
    "sum over turned exponentials": (lambda h: h * h.exp().transpose(1, 2).sum(1)[..., None], "sum"),
    "exponentials by ones": (lambda h: h * (h.exp() @ h.new_ones(h.shape[-1], 1)), "mm"),
}
EXACT = {
    "nothing": lambda h: h,
    "sum": lambda h: h + h.sum(-1, keepdim=True),
    "length": lambda h: h / h.norm(dim=-1, keepdim=True),
    "largest length": lambda h: h / torch.linalg.vector_norm(h, torch.inf, -1, keepdim=True),
    "normalize": lambda h: functional.normalize(h, dim=-1),
    "cosine": lambda h: h * functional.cosine_similarity(h, 2 * h, dim=-1)[..., None],
}
BY_PLACE = {
    "halves": lambda h: torch.cat([h.chunk(2, -1)[0].relu(), h.chunk(2, -1)[1].tanh()], -1),
    "the first eight": lambda h: torch.cat([h[..., :8] * 2, h[..., 8:] * 3], -1),
    "the last eight are lost": lambda h: torch.cat([h[..., :-8], torch.zeros_like(h[..., -8:])], -1),
    "gate of the first": lambda h: h * h[..., :1].sigmoid(),
    "gate of the last": lambda h: h * h[..., -1:].sigmoid(),
    "a half is added in place": lambda h: _with_a_half_added(h),
    "a half is turned": lambda h: torch.cat([h.chunk(2, -1)[0].roll(1, 1), h.chunk(2, -1)[1]], -1),
}
COUNTED = {  # a number that is read off a shape while the model runs
    "sum by width": lambda h: h + h.sum(-1, keepdim=True) / h.shape[-1],
    "root of the width": lambda h: h + h.sum(-1, keepdim=True) * h.shape[-1] ** -0.5,
    "width as a tensor": lambda h: h + h.sum(-1, keepdim=True) / torch.tensor(h.shape[-1]),
    "power": lambda h: h.abs().pow(1 + 1 / h.shape[-1]),
    "ramp": lambda h: h * torch.linspace(0, 1, h.shape[-1], device=h.device),
    "in place": lambda h: h.clone().div_(h.shape[-1] ** 0.5),
    "power in place": lambda h: h.abs().pow_(1 + 1 / h.shape[-1]),
    "filled": lambda h: h * torch.ones(1, device=h.device).fill_(1 / h.shape[-1]),
    "added a share of": lambda h: torch.add(h, h.sum(-1, keepdim=True), alpha=1 / h.shape[-1]),
    "between": lambda h: torch.lerp(h, h.sum(-1, keepdim=True), 1 / h.shape[-1]),
    "bounded": lambda h: h.clamp(max=1.6 / h.shape[-1]),
    "by number": lambda h: h + torch.arange(h.shape[-1], device=h.device),
    "list": lambda h: h * torch.tensor([0.5**i for i in range(h.shape[-1])], device=h.device),
    "list on the CPU": lambda h: h * torch.as_tensor([[0.5**i] for i in range(h.shape[-1])]).T.to(h.device),
    "list of its kind": lambda h: h * h.new_tensor([0.5**i for i in range(h.shape[-1])]),
    "list by the class": lambda h: h * torch.Tensor([0.5**i for i in range(h.shape[-1])]).to(h.device),
    "array": lambda h: h * torch.from_numpy(np.geomspace(0.5, 1, h.shape[-1], dtype="f")).to(h.device),
    "random": lambda h: h * torch.rand(h.shape[-1], generator=torch.manual_seed(0)).to(h.device),
    "random where it is used": lambda h: _random(h) * h,
    "product with ones": lambda h: h + h @ torch.full((h.shape[-1], 1), 1 / h.shape[-1], device=h.device),
    "added": lambda h: h + h.shape[-1],
    "one function or another": lambda h: h.relu() if h.shape[-1] in WIDTHS else h.tanh(),
    "a function or none": lambda h: h.relu() if h.shape[-1] in WIDTHS else h,
    "as much of a table": lambda h: h * torch.linspace(0.5, 1.5, 64, device=h.device)[: h.shape[-1]],
}
WITHIN_A_HEAD = {
    "norm": lambda h: h * torch.rsqrt(_mean_square(h) + 1e-5),
    "softmax": lambda h: h.softmax(-1),
    "largest": lambda h: h / (1 + h.abs().amax(-1, keepdim=True)),
    "logsumexp": lambda h: h - h.logsumexp(-1, keepdim=True),
}


def _with(function, kind):
    """A llama in which a function stands before the output matrix of each MLP or attention, or before each
    MLP."""
    model = build("llama-mha", num_hidden_layers=1)
    for layer in model.model.layers:
        before = lambda module, args: (function(args[0]),)  # noqa: E731
        layer.get_submodule((PLACES | STREAM)[kind]).register_forward_pre_hook(before)
    return model


def _plan(axes, kind, ratio=0.5):
    others = [name for name, axis in axes.items() if axis.kind not in (kind, "hidden")]
    granularity, others = ("channel", ()) if kind in STREAM else ("block", others)
    return select(axes, random_scores(axes), ratio=ratio, ignore=others, granularity=granularity)


def _assert_cut_is_mask(model, kind):
    axes = discover(model)
    plan = _plan(axes, kind)
    assert len(plan.cut) == 1
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4
    assert (logits(model, tokens()) - logits(masked, tokens())).abs().max() > 1e-2


@pytest.mark.parametrize("kind", first_of(PLACES))
@pytest.mark.parametrize("name", LEFT_WHOLE)
def test_what_counts_zeros_leaves_its_channels_whole_and_is_named(name, kind):
    function, operator = LEFT_WHOLE[name]
    axes = discover(_with(function, kind))
    other = {"mlp": "attention", "attention": "mlp"}[kind]
    assert set(axes) == {f"layers.0.{other}", "hidden"}
    assert any(f"aten.{operator}" in note and "left whole" in note for note in axes.notes)


@pytest.mark.parametrize("kind", first_of(PLACES))
@pytest.mark.parametrize("name", BY_PLACE)
def test_what_is_used_by_its_place_is_left_whole_and_said_so(name, kind):
    """Where others go, what stays moves to other places."""
    axes = discover(_with(BY_PLACE[name], kind))
    other = {"mlp": "attention", "attention": "mlp"}[kind]
    assert set(axes) == {f"layers.0.{other}", "hidden"}
    assert any("left whole" in note and "by their places" in note for note in axes.notes)


GAINS = {  # of six heads, from a buffer
    "all": lambda table: table,
    "as many as there are": lambda table: table[:6],
    "one by one": lambda table: torch.stack([table[i] for i in range(6)]),
}


@pytest.mark.parametrize("gains", GAINS)
def test_what_a_buffer_has_entries_of_is_left_whole_and_the_buffer_is_named(gains):
    model = build("llama-mha")
    for layer in model.model.layers:
        output = layer.self_attn.o_proj
        output.register_buffer("gain", torch.linspace(0.5, 1.5, 6))
        scale = lambda m, x: (x[0].unflatten(-1, (6, -1)) * GAINS[gains](m.gain)[:, None]).flatten(-2)  # noqa: E731
        output.register_forward_pre_hook(scale)
    axes = discover(model)
    assert {axis.kind for axis in axes.values()} == {"mlp", "hidden"}
    assert any("q_proj" in note and "the buffer" in note and "gain" in note for note in axes.notes)


def _with_a_mask_embedding():
    model = build("llama-mha")
    model.model.mask_embedding = torch.nn.Parameter(torch.zeros(model.config.hidden_size))
    return model


def _with_gains_for_long_texts(place: str, size: int):
    model = build("llama-mha")
    for layer in model.model.layers:
        part = layer.get_submodule(place)
        part.gain = torch.nn.Parameter(torch.ones(size))

        def scale(m, x, gain=part.gain):
            parts = x[0].unflatten(-1, (len(gain), -1))
            return x[0] if x[0].shape[1] < 8 else (parts * gain[:, None]).flatten(-2)

        part.register_forward_pre_hook(scale)
    return model


WAITING = {  # decoders with weights that a few tokens alone do not reach -> one of these, what is left to cut
    "other attention": (
        lambda: build("gpt2", add_cross_attention=True),
        "crossattention",
        {"attention", "mlp"},
    ),
    "a mask embedding": (_with_a_mask_embedding, "mask_embedding", {"attention", "mlp"}),
    "of heads": (lambda: _with_gains_for_long_texts("self_attn.o_proj", 6), "o_proj.gain", {"mlp", "hidden"}),
    "of an MLP": (
        lambda: _with_gains_for_long_texts("mlp.down_proj", 40),
        "down_proj.gain",
        {"attention", "hidden"},
    ),
}


@pytest.mark.parametrize("kind", WAITING)
def test_groups_stay_where_weights_as_wide_wait_for_other_input(kind):
    """The trace does not reach them, so a cut would leave them as wide as they were."""
    make, waiting, left = WAITING[kind]
    axes = discover(make())
    assert {axis.kind for axis in axes.values()} == left
    advice = "is not used when the model reads only a few tokens; to cut them, remove it"
    assert any(waiting in note and advice in note for note in axes.notes)
    if "hidden" not in left:
        with pytest.raises(ValueError, match="no axis of granularity 'channel' .* notes"):
            select(axes, random_scores(axes), ratio=0.5, granularity="channel")


@pytest.mark.slow
def test_channels_are_cut_once_what_no_text_reaches_is_taken_out():
    model = _with_a_mask_embedding()
    del model.model.mask_embedding
    axes = discover(model)
    plan = select(axes, random_scores(axes), ratio=0.5, granularity="channel")
    assert logits(prune_(model, plan), tokens()).isfinite().all()


def test_channels_whose_weights_are_changed_so_that_zeros_count_are_left_whole():
    model = build("llama-gqa", num_hidden_layers=1)
    model.model.layers[0].mlp.down_proj.__class__ = _OneMore
    axes = discover(model)
    assert set(axes) == {"layers.0.attention", "hidden"}
    assert any("gate_proj" in note and "its masked entries are not zero" in note for note in axes.notes)


class _OneMore(torch.nn.Linear):
    def forward(self, x):
        return functional.linear(x.sigmoid(), self.weight + 1)


def test_heads_of_the_attention_of_torch_are_cut_as_they_are_masked(monkeypatch):
    def attend(module, query, key, value, *args, **kwargs):
        how = {"is_causal": True, "enable_gqa": True}
        return functional.scaled_dot_product_attention(query, key, value, **how).transpose(1, 2), None

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", attend)
    _assert_cut_is_mask(build("llama-gqa", num_hidden_layers=1), "attention")


def test_what_a_module_of_torch_ties_to_the_width_of_its_input_is_left_whole_and_named():
    model = build("llama-mha", num_hidden_layers=2, head_dim=4)
    for layer in model.model.layers:
        layer.self_attn = _OfTorch(24, 6, batch_first=True)
    axes = discover(model)
    assert set(axes) == {"layers.0.mlp", "layers.1.mlp"}
    assert sum("self_attn is a torch.nn.MultiheadAttention" in note for note in axes.notes) == 3
    plan = select(axes, random_scores(axes), ratio=0.5)
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, tokens()) - logits(masked, tokens())).abs().max() < 1e-4


class _OfTorch(torch.nn.MultiheadAttention):
    def forward(self, hidden_states, **kwargs):
        return super().forward(hidden_states, hidden_states, hidden_states, need_weights=False)


def test_heads_that_would_move_to_the_places_of_others_are_refused(monkeypatch):
    plain = modeling_llama.eager_attention_forward

    def attend(module, query, key, value, *args, **kwargs):
        out, weights = plain(module, query[:, :2], key[:, :2], value[:, :2], *args, **kwargs)
        return torch.cat([out, value[:, 2:].transpose(1, 2)], 2), weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", attend)
    model = build("llama-mha", num_hidden_layers=1)
    axes = discover(model)
    assert axes["layers.0.attention"].n_groups == 2
    plan = select(axes, random_scores(axes), ratio={"layers.0.attention": 0.5})
    with pytest.raises(ValueError, match="would mix the groups of .*nothing was cut"):
        prune_(model, plan)


def test_an_operator_without_a_rule_that_meets_only_scores_of_attention_is_named(monkeypatch):
    plain = modeling_llama.eager_attention_forward

    def attend(module, query, key, value, *args, **kwargs):
        scores = query @ value.transpose(2, 3).repeat_interleave(module.num_key_value_groups, 1)
        out, weights = plain(module, query, key, value, *args, **kwargs)
        return out * scores.median(-1)[0].transpose(1, 2)[..., None], weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", attend)
    axes = discover(build("llama-gqa"))
    assert {axis.kind for axis in axes.values()} == {"mlp", "hidden"}
    assert any("q_proj" in note and "aten.median" in note for note in axes.notes)


@pytest.mark.parametrize("kind", first_of(PLACES))
@pytest.mark.parametrize("name", EXACT)
def test_what_passes_over_zeros_is_cut_as_it_is_masked(name, kind):
    _assert_cut_is_mask(_with(EXACT[name], kind), kind)


@pytest.mark.parametrize("kind", first_of(PLACES | STREAM))
@pytest.mark.parametrize("name", COUNTED)
def test_a_number_that_follows_the_width_is_refused_and_nothing_is_cut(name, kind):
    model = _with(COUNTED[name], kind)
    before, axes = logits(model, tokens()), discover(model)
    with pytest.raises(ValueError, match="would compute with .* follows the width.*nothing was cut"):
        prune_(model, _plan(axes, kind), axes=axes)
    assert torch.equal(logits(model, tokens()), before)


@pytest.mark.parametrize("kind", PLACES)
def test_of_all_that_a_plan_cuts_the_axes_around_the_number_alone_are_advised_to_stay(kind):
    model = _with(COUNTED["root of the width"], kind)
    axes = discover(model)
    plan = select(axes, random_scores(axes), ratio=0.5)
    assert {axes[name].kind for name in plan.cut} == {"mlp", "attention"}
    with pytest.raises(ValueError, match=rf"layers.0.\w+ of .* ignore=\['layers.\*.{kind}'\]"):
        prune_(model, plan)


def test_a_number_that_the_attention_uses_too_is_still_one_more():
    """An MLP as wide as a head: its root of the width is the attention's own scale."""
    model = _with(COUNTED["root of the width"], "mlp")
    plan = _plan(discover(model), "mlp", ratio=0.78)
    assert len(plan.keep["layers.0.mlp"]) == model.model.layers[0].self_attn.head_dim
    with pytest.raises(ValueError, match="follows the width.*nothing was cut"):
        prune_(model, plan)


@pytest.mark.parametrize("name", WITHIN_A_HEAD)
def test_what_stays_within_a_head_goes_with_it(name):
    """Heads of 8 channels each: the function sees one head after the other."""
    function = WITHIN_A_HEAD[name]
    _assert_cut_is_mask(
        _with(lambda h: function(h.unflatten(-1, (-1, 8))).flatten(-2), "attention"), "attention"
    )


def test_norms_written_by_hand_over_the_residual_stream_are_norms():
    """Hidden channels are cut with the norms over them, which is the paper's approximation."""
    model = build("llama-gqa")
    for norm in [n for n, m in model.named_modules() if n.endswith("layernorm")]:
        model.set_submodule(norm, _NormByHand())
    assert "hidden" in discover(model)
    model.set_submodule(norm, _Softmax())
    axes = discover(model)
    assert "hidden" not in axes and any("hidden" not in n and "_softmax" in n for n in axes.notes)


class _NormByHand(torch.nn.Module):
    def forward(self, x):
        return LEFT_WHOLE["an RMSNorm"][0](x)


class _Softmax(torch.nn.Module):
    def forward(self, x):
        return x.softmax(-1)


def test_a_norm_over_two_parts_of_an_mlp_is_left_whole():
    """Its weight is longer than either part: no factor of one part makes up for what goes."""
    model = build("llama-gqa")
    for layer in model.model.layers:
        layer.mlp = _TwoParts()
    axes = discover(model)
    assert {axis.kind for axis in axes.values()} == {"attention", "hidden"}


class _TwoParts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = (torch.nn.Linear(24, n, bias=False) for n in (16, 8))
        self.norm, self.down = torch.nn.LayerNorm(24), torch.nn.Linear(24, 24, bias=False)

    def forward(self, x):
        both = torch.cat([self.one(x).relu(), self.two(x).tanh()], -1)
        return self.down(self.norm(both))
