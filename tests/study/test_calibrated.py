"""What is measured on calibration samples is what the plain calls give, once, and is then read."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from notebook_functions import functions_of

from pruner_lib import load_model
from pruner_lib.data.windows import calibration_ids
from pruner_lib.study import load_profile, stages
from pruner_lib.study.cache import calibration_key

OF_17 = functions_of("17_criteria")
ASKED = load_profile("tiny").experiment()


def test_what_is_measured_on_the_calibration_samples_depends_on_them_alone():
    longer = replace(ASKED, calibration=replace(ASKED.calibration, length=8))
    other = replace(ASKED, criterion="l2", evaluation=replace(ASKED.evaluation, windows=2))
    key = calibration_key(ASKED)
    assert calibration_key(other) == key != calibration_key(longer)


def test_calibrated_model_comes_with_the_samples_of_the_public_call(study):
    model, tokenizer = load_model("tiny")
    dense, ids = study.calibrated(ASKED)
    assert torch.equal(ids.cpu(), calibration_ids("tiny", tokenizer, samples=4, length=16))
    assert all(map(torch.equal, dense.model.cpu().parameters(), model.parameters()))


@pytest.mark.slow
def test_costs_have_a_row_for_every_run_and_hold_the_weights(study):
    costs = pd.DataFrame(OF_17.pass_costs(study, ASKED, repeats=2))
    assert costs.passes.tolist() == [*OF_17.PASSES, *OF_17.PASSES]
    assert (costs.seconds > 0).all() and (costs.memory_mb >= costs.weights_mb).all()


def test_scores_of_an_experiment_come_from_one_pass_and_then_from_the_cache(study, monkeypatch):
    found = study.scores(ASKED, ["element1", "l2"])
    monkeypatch.setattr(stages, "estimate_members", lambda *_, **__: pytest.fail("a second pass"))
    again = study.scores(ASKED, ["l2", "element1"])
    assert all((again[c][name] == found[c][name]).all() for c in found for name in found[c])
    assert found["element1"]["layers.0.mlp"].shape == (96,)
    with pytest.raises(pytest.fail.Exception, match="a second pass"):
        study.scores(ASKED, ["l2", "vector"])


@pytest.mark.parametrize("above, recomputed", [(64, False), (63, True)])
def test_many_tokens_are_scored_with_activations_recomputed(study, monkeypatch, above, recomputed):
    plain, asked, made = study.scores(ASKED, ["element1"]), [], stages.estimate_members
    monkeypatch.setattr(
        stages, "estimate_members", lambda *given, **how: asked.append(how) or made(*given, **how)
    )
    for path in study.folder.glob("cache/members-*.safetensors"):
        path.unlink()
    study.profile = replace(study.profile, checkpoint_above=above)  # the samples have 64 tokens
    other = study.scores(ASKED, ["element1"])
    assert [how["checkpointing"] for how in asked] == [recomputed]
    assert all(torch.equal(plain["element1"][name], other["element1"][name]) for name in plain["element1"])
