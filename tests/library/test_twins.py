"""Twins compute what their model does, whole and after the same groups were cut from both."""

from __future__ import annotations

import copy

import pytest
import torch
from families import build, discovered, first_of, logits, random_scores, tokens

from pruner_lib import Plan, discover, estimate, load_model, prune_, select
from pruner_lib.models.twins import as_glm, with_own_heads

LLAMAS = ["llama-gqa", "llama-mha", "llama-tied"]


@pytest.mark.parametrize("family", LLAMAS)
@pytest.mark.parametrize("twin_of", [as_glm, with_own_heads])
def test_twin_has_the_same_logits(twin_of, family):
    model = build(family)
    twin, whole = twin_of(model), logits(model, tokens())
    torch.testing.assert_close(logits(twin, tokens()), whole, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        twin.model.layers[1].self_attn.q_proj.weight[:1] *= 2
    assert (logits(twin, tokens()) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("family", first_of(LLAMAS))
def test_the_same_groups_cut_from_a_llama_and_its_glm_leave_the_same_logits(family):
    model, axes = discovered(family)
    glm = as_glm(model)
    same = discover(glm)
    assert {n: (a.n_groups, a.width) for n, a in same.items()} == {
        n: (a.n_groups, a.width) for n, a in axes.items()
    }
    plan = select(axes, random_scores(axes), ratio=0.5, scope="global", protect_first=1)
    cuts = [prune_(copy.deepcopy(one), plan, axes=found) for one, found in ((model, axes), (glm, same))]
    found = [logits(cut, tokens()) for cut in cuts]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert (found[0] - logits(model, tokens())).abs().max() > 1e-2
    names = sorted(n for n, kept in plan.keep.items() if 1 < len(kept) < axes[n].n_groups and "mlp" in n)
    other = {n: (k + 1) % axes[n].n_groups if n == names[0] else k for n, k in plan.keep.items()}
    shifted = prune_(glm, Plan({n: k.sort().values for n, k in other.items()}, plan.n_groups), axes=same)
    assert (logits(shifted, tokens()) - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize("criterion", ["l2", "element1", "element2"])
def test_a_glm_gives_its_groups_the_scores_of_the_llama(criterion):
    model, axes = discovered("llama-gqa")
    glm = as_glm(model)
    mine, theirs = (
        estimate(one, found, tokens(), criterion=criterion)
        for one, found in ((model, axes), (glm, discover(glm)))
    )
    for name in axes:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_glm_of_the_embedded_model_is_found_by_its_name():
    model, tokenizer = load_model("smollm2-135m")
    glm, own = load_model("smollm2-135m-glm")
    ids = torch.tensor([tokenizer("The moon is made of")["input_ids"]])
    assert own("The moon is made of")["input_ids"] == ids[0].tolist()
    assert type(glm).__name__ == "GlmForCausalLM" and glm.num_parameters() == model.num_parameters()
    torch.testing.assert_close(logits(glm, ids), logits(model, ids), atol=1e-3, rtol=1e-3)
