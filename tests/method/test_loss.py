"""The loss in pieces is the loss, and what takes the place of the logits is its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pruner_lib.method import gradients as module
from pruner_lib.method.gradients import loss_and_gradient_


def _both(hidden, head, ids):
    logits = hidden @ head
    wanted = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    return wanted, torch.autograd.grad(wanted, logits, retain_graph=True)[0]


@pytest.mark.parametrize("piece", [1, 60, 2**20])
def test_pieces_of_any_size_give_the_loss_and_its_gradient(monkeypatch, piece):
    monkeypatch.setattr(module, "PIECE", piece)
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, 11).double()
    ids = torch.randint(0, 11, (3, 7))
    wanted, gradient = _both(hidden, head, ids)
    logits = hidden @ head
    before = logits.data_ptr()
    found, made = loss_and_gradient_(logits, ids)
    assert found == pytest.approx(wanted.item(), rel=1e-12)
    torch.testing.assert_close(made, gradient)
    assert made.data_ptr() == before  # no second tensor of their size
    logits.backward(made)
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(wanted, hidden)[0])


def test_logits_that_their_own_backward_needs_are_left_alone():
    torch.manual_seed(0)
    raw, ids = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True), torch.randint(0, 6, (2, 4))
    capped = raw.tanh()
    _, made = loss_and_gradient_(capped, ids)
    capped.backward(made)
    again = functional.cross_entropy(raw.tanh()[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(raw.grad, torch.autograd.grad(again, raw)[0])


def test_a_view_keeps_its_hooks():
    hidden = torch.randn(6, 5, requires_grad=True)
    logits, seen = (hidden @ torch.randn(5, 4)).view(2, 3, 4), []
    logits.register_hook(lambda grad: seen.append(grad))
    _, gradient = loss_and_gradient_(logits, torch.randint(0, 4, (2, 3)))
    torch.autograd.backward(logits, gradient)
    assert len(seen) == 1


def test_uniform_logits_lose_the_logarithm_of_the_vocabulary():
    logits = torch.zeros(1, 3, 8, dtype=torch.bfloat16, requires_grad=True) * 1
    found, made = loss_and_gradient_(logits, torch.tensor([[1, 2, 3]]))
    assert found == pytest.approx(2 * torch.tensor(8.0).log().item(), rel=1e-6)
    assert made.dtype == torch.bfloat16 and made[0, 2].abs().sum() == 0
    assert made[0, 0].tolist() == [0.125, 0.125, -0.875, *[0.125] * 5]
