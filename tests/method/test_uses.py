"""Samples are separated by the shapes of what a module sees, or the module is named."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from by_hand import gradients
from torch import nn

from pruner_lib.method.gradients import visit_gradients

VOCABULARY, HIDDEN = 13, 6


class Scale(nn.Module):
    """A module that is called again for its gradient; it takes a keyword."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(HIDDEN) + 0.5)

    def forward(self, x, *, shift):
        return (x * self.weight).tanh() + shift * self.weight.square()


class Router(nn.Module):
    """Several outputs, one of which is made from another; both are looked at by the model."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, HIDDEN))

    def forward(self, x):
        raw = x.reshape(-1, HIDDEN) @ self.weight.T  # (tokens, 2)
        return raw, raw.softmax(-1), raw.argmax(-1)


class Experts(nn.Module):
    """Stacked experts on flattened tokens; what they see belongs together, by position and by keyword."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, HIDDEN, HIDDEN) / 2)

    def forward(self, x, index, *, shares):
        return torch.einsum("ti,tio->to", x, self.weight[index]) * shares[:, :1]


class Toy(nn.Module):
    """A decoder of one layer; its activations are (samples, tokens, hidden), or (tokens, samples, hidden)."""

    def __init__(self, sequence_first: bool = False, positions: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.sequence_first = sequence_first
        self.embed = nn.Embedding(VOCABULARY, HIDDEN, padding_idx=3)
        self.positions = nn.Embedding(32, HIDDEN) if positions else None
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.scale, self.router, self.experts = Scale(), Router(), Experts()
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.double()

    def forward(self, input_ids, use_cache):
        x = self.embed(input_ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(input_ids.shape[1]))
        x = x.transpose(0, 1) if self.sequence_first else x
        x = x + self.mix(x).sin()
        x = self.scale(x, shift=x.cos())
        if not self.sequence_first:
            raw, shares, index = self.router(x)
            x = x + self.experts(x.flatten(0, 1), index, shares=shares).view_as(x)
            x = x + raw.sum(-1).view(*x.shape[:2], 1)
        x = self.head(x)
        return SimpleNamespace(logits=x.transpose(0, 1) if self.sequence_first else x)


def _ids(samples, tokens):
    return torch.randint(0, VOCABULARY, (samples, tokens), generator=torch.Generator().manual_seed(0))


def _seen(model, ids, **settings):
    g, a = {}, {}
    unused = ("router", "experts") if model.sequence_first else ()
    used = {n for n, _ in model.named_parameters() if not n.startswith(unused)}

    def visit(name, row, part, squares):
        g.setdefault(name, []).append(part.clone())
        a.setdefault(name, []).append(squares.clone())

    visit_gradients(model, ids, used, visit, per_sample=True, **settings)
    return {n: torch.cat(p) for n, p in g.items()}, {n: torch.cat(p) for n, p in a.items()}


def _assert_same(model, ids, **settings):
    wanted, found = gradients(model, ids), _seen(model, ids, **settings)
    assert found[0] and "scale.weight" in found[0]
    for by_hand, shown in zip(wanted, found, strict=True):
        for name in shown:
            torch.testing.assert_close(shown[name], by_hand[name], msg=name)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_routers_and_experts_on_flattened_tokens_are_separated(micro_batch):
    model = Toy()
    wanted = {n for n, _ in model.named_parameters()}
    assert set(_seen(model, _ids(3, 5))[0]) == wanted
    _assert_same(model, _ids(3, 5), micro_batch=micro_batch)


@pytest.mark.parametrize("shape", [(3, 5), (4, 8), (8, 4), (5, 5), (2, 2)])
def test_tokens_may_come_before_samples(shape):
    """With as many samples as tokens the shapes alone would not say which is which."""
    _assert_same(Toy(sequence_first=True), _ids(*shape))


@pytest.mark.parametrize("shape", [(4, 8), (4, 7)])
def test_a_module_whose_samples_cant_be_separated_is_named(shape):
    """One row of positions serves all samples; 8 positions could be taken for 4 samples of 2."""
    model = Toy(positions=True)
    with pytest.raises(ValueError, match=r"Embedding\(32, 6\) sees tensors of shape .* for 4 samples"):
        _seen(model, _ids(*shape))
    assert "positions.weight" in _seen(model, _ids(*shape), micro_batch=1)[0]


class Stateful(Toy):
    """It scales its embeddings in place, keeps its activations, and uses one of two biases of a module."""

    def __init__(self):
        super().__init__()
        self.biased = Biased().double()

    def forward(self, input_ids, use_cache):
        x = self.embed(input_ids)
        x *= 2
        y, bias, _ = self.biased(x)
        self.state = x + y.sin() + bias.cos()
        return SimpleNamespace(logits=self.head(self.state))


class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(HIDDEN)) for _ in range(2))
        self.unseen = nn.Parameter(torch.randn(HIDDEN))
        self.register_parameter("none", None)

    def forward(self, x):
        with torch.no_grad():
            start = x + self.unseen
        return self.weight * start * x, self.bias, self.none


def test_returned_parameter_state_and_embeddings_in_place_have_the_gradients_of_autograd():
    model, ids, found = Stateful(), _ids(3, 5), {}
    used = ("embed.weight", "biased.weight", "biased.bias", "biased.unseen")

    def visit(name, row, g, a):
        found.setdefault(name, []).append(g.clone())

    visit_gradients(model, ids, set(used), visit, per_sample=False)
    wanted, _ = gradients(Stateful(), ids)
    for name in used:
        by_hand = torch.zeros(HIDDEN).double() if name == "biased.unseen" else wanted[name]
        torch.testing.assert_close(torch.cat(found[name]), by_hand, msg=name)
    assert wanted["biased.bias"].abs().max() > 0 and copy.deepcopy(model).state.grad_fn is None


def test_call_without_gradients_counts_for_nothing():
    class Started(Toy):
        def forward(self, input_ids, use_cache):
            with torch.no_grad():
                start = self.mix(self.embed(input_ids))
            return SimpleNamespace(logits=self.head(self.embed(input_ids) + start))

    ids, found = _ids(3, 5), []
    visit = lambda name, row, g, a: found.append(g.clone())  # noqa: E731
    visit_gradients(Started(), ids, {"embed.weight"}, visit, per_sample=False)
    torch.testing.assert_close(torch.cat(found), gradients(Started(), ids)[0]["embed.weight"])
    with pytest.raises(ValueError, match="no gradient reached .*mix.bias"):
        visit_gradients(Started(), ids, {"mix.bias"}, visit, per_sample=False)


def test_an_embedding_may_return_more_than_its_rows():
    class Rows(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids), ids

    class More(Toy):
        def __init__(self):
            super().__init__()
            self.more = Rows(VOCABULARY, HIDDEN).double()

        def forward(self, input_ids, use_cache):
            rows, _ = self.more(input_ids)
            return SimpleNamespace(logits=self.head(self.mix(self.embed(input_ids) + rows)))

    torch.manual_seed(1)
    model, ids, found = More(), _ids(3, 5), []
    visit = lambda name, row, g, a: found.append(g.clone())  # noqa: E731
    visit_gradients(model, ids, {"mix.weight"}, visit, per_sample=False)
    torch.testing.assert_close(torch.cat(found), gradients(model, ids)[0]["mix.weight"])
