"""The true loss change is that of a masked model, and fading gives every weight back."""

from __future__ import annotations

import pytest
import torch
from families import build, discovered, tokens
from notebook_functions import functions_of

from pruner_lib import discover, estimate, mask_
from pruner_lib.method.groups import Plan

OF_17 = functions_of("17_criteria")
faded, loss_changes, loss_of = OF_17.faded, OF_17.loss_changes, OF_17.loss_of


@pytest.fixture(scope="module")
def llama():
    model = build("llama-gqa")
    return model, discover(model), tokens(3, 8)


def mlp_of(axes):
    return next(axis for axis in axes.values() if axis.kind == "mlp")


def test_loss_is_the_mean_over_all_predicted_tokens(llama):
    model, _, ids = llama
    assert loss_of(model, ids) == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_change_is_that_of_the_masked_model(llama, kind):
    model, axes, ids = llama
    axis = next(iter(axes.of_kind(kind).values()))
    found = loss_changes(model, axes, [(axis.name, 0), (axis.name, 1)], ids)
    for group, change in enumerate(found):
        kept = torch.tensor([k for k in range(axis.n_groups) if k != group])
        masked = mask_(build("llama-gqa"), Plan({axis.name: kept}, {axis.name: axis.n_groups}))
        assert change == pytest.approx(loss_of(masked, ids) - loss_of(model, ids), abs=1e-6)
    assert abs(found[0] - found[1]) > 1e-6  # another group is another change


def test_expert_fades_alone():
    model, axes = build("mixtral"), discovered("mixtral")[1]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    axis = axes["layers.0.mlp.experts.1"]
    with faded(model, axis, 3):
        for m in axis.members:
            zero = model.get_parameter(m.parameter).index_select(m.dim, m.indices[3]) == 0
            assert zero[m.expert].all() and not zero[[0, 2, 3]].any()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_weights_come_back_bit_for_bit_even_after_an_error(llama):
    model, axes, _ = llama
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="on purpose"), faded(model, mlp_of(axes), 0, share=0.3):
        assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
        raise RuntimeError("on purpose")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_small_step_goes_down_the_gradient_and_the_whole_step_does_not(llama):
    model, axes, ids = llama
    axis = mlp_of(axes)
    vector = estimate(model, axes, ids, criterion="vector", aggregation="none")[
        axis.name
    ]  # (structures, groups)
    last = axis.structures.index(axis.last)
    group, losses = int(vector[last].argmax()), {}
    for share in (-0.02, 0.02, 1.0):
        with faded(model, axis, group, share=share, structures=[axis.last]):
            losses[share] = loss_of(model, ids)
    slope = abs(losses[0.02] - losses[-0.02]) / 0.04
    assert slope == pytest.approx(vector[last, group].item(), rel=0.02)
    assert abs(losses[1.0] - loss_of(model, ids)) != pytest.approx(slope, rel=0.02)


def test_one_silent_matrix_silences_the_channel_and_half_of_it_does_not(llama):
    model, axes, ids = llama
    axis, found = mlp_of(axes), {}
    for share in (0.5, 1.0):
        for name, structures in {"all": None, "last": [axis.last]}.items():
            with faded(model, axis, 0, share=share, structures=structures):
                found[share, name] = loss_of(model, ids)
    assert found[1.0, "all"] == pytest.approx(found[1.0, "last"], abs=1e-6)
    assert found[0.5, "all"] != pytest.approx(found[0.5, "last"], abs=1e-6)
