"""Probes measure what the plain calls give, once, and then read it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pruner_lib import discover, load_model
from pruner_lib.data.windows import calibration_ids
from pruner_lib.study import Study, load_profile, probes, stages
from pruner_lib.study.probes import loss_changes

ASKED = load_profile("tiny").experiment()
GROUPS = [("layers.0.mlp", 3), ("layers.1.attention", 1)]


@pytest.fixture
def study(tmp_path):
    return Study("tiny", tmp_path)


def test_true_changes_are_those_of_the_public_calls(study):
    model, tokenizer = load_model("tiny")
    ids = calibration_ids("tiny", tokenizer, samples=4, length=16)
    found = probes.true_changes(study, ASKED, GROUPS, progress=False)
    assert list(zip(found.axis, found.group, strict=True)) == GROUPS
    assert found.change.tolist() == pytest.approx(loss_changes(model, discover(model), GROUPS, ids), abs=1e-7)


def test_second_time_nothing_is_measured_and_other_settings_are(study, monkeypatch):
    first = probes.true_changes(study, ASKED, GROUPS, progress=False)
    calls = []
    monkeypatch.setattr(
        "pruner_lib.study.probes.loss_changes", lambda *given, **named: calls.append(1) or [0.0, 0.0]
    )
    assert probes.true_changes(study, ASKED, GROUPS, progress=False).equals(first) and not calls
    longer = replace(ASKED, calibration=replace(ASKED.calibration, length=8))
    probes.true_changes(study, longer, GROUPS, progress=False)
    assert calls


def test_costs_have_a_row_for_every_run_and_hold_the_weights(study):
    costs = probes.pass_costs(study, ASKED, repeats=2)
    assert costs.passes.tolist() == [*probes.PASSES, *probes.PASSES]
    assert (costs.seconds > 0).all() and (costs.memory_mb >= costs.weights_mb).all()
    assert probes.pass_costs(study, ASKED, repeats=2).equals(costs)


def test_scores_of_an_experiment_come_from_one_pass_and_then_from_the_cache(study, monkeypatch):
    found = study.scores(ASKED, ["element1", "l2"])
    monkeypatch.setattr(stages, "estimate_members", lambda *_, **__: pytest.fail("a second pass"))
    again = study.scores(ASKED, ["l2", "element1"])
    assert all((again[c][name] == found[c][name]).all() for c in found for name in found[c])
    assert found["element1"]["layers.0.mlp"].shape == (96,)
    with pytest.raises(pytest.fail.Exception, match="a second pass"):
        study.scores(ASKED, ["l2", "vector"])
