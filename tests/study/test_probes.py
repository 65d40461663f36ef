"""Probes measure what the plain calls give, once, and then read it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pruner_lib import discover, load_model
from pruner_lib.data.windows import calibration_ids
from pruner_lib.study import probes
from pruner_lib.study.probes import loss_changes
from pruner_lib.study.run import load_profile, scores_of

ASKED = load_profile("tiny").experiment()
GROUPS = [("layers.0.mlp", 3), ("layers.1.attention", 1)]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    return tmp_path / "tiny" / "cache"


def test_true_changes_are_those_of_the_public_calls():
    model, tokenizer = load_model("tiny")
    ids = calibration_ids("tiny", tokenizer, samples=4, length=16)
    found = probes.true_changes(ASKED, GROUPS, profile="tiny", progress=False)
    assert list(zip(found.axis, found.group, strict=True)) == GROUPS
    assert found.change.tolist() == pytest.approx(loss_changes(model, discover(model), GROUPS, ids), abs=1e-7)


def test_second_time_nothing_is_measured_and_other_settings_are(monkeypatch):
    first = probes.true_changes(ASKED, GROUPS, profile="tiny", progress=False)
    calls = []
    monkeypatch.setattr(
        "pruner_lib.study.probes.loss_changes", lambda *given, **named: calls.append(1) or [0.0, 0.0]
    )
    assert probes.true_changes(ASKED, GROUPS, profile="tiny", progress=False).equals(first) and not calls
    longer = replace(ASKED, calibration=replace(ASKED.calibration, length=8))
    probes.true_changes(longer, GROUPS, profile="tiny", progress=False)
    assert calls


def test_costs_have_a_row_for_every_run_and_hold_the_weights():
    costs = probes.pass_costs(ASKED, repeats=2, profile="tiny")
    assert costs.passes.tolist() == [*probes.PASSES, *probes.PASSES]
    assert (costs.seconds > 0).all() and (costs.memory_mb >= costs.weights_mb).all()
    assert probes.pass_costs(ASKED, repeats=2, profile="tiny").equals(costs)


def test_scores_of_an_experiment_come_from_one_pass_and_then_from_the_cache(monkeypatch):
    found = scores_of(ASKED, ["element1", "l2"], profile="tiny")
    monkeypatch.setattr(
        "pruner_lib.study.probes.estimate_members", lambda *given, **named: pytest.fail("a second pass")
    )
    again = scores_of(ASKED, ["l2", "element1"], profile="tiny")
    assert all((again[c][name] == found[c][name]).all() for c in found for name in found[c])
    assert found["element1"]["layers.0.mlp"].shape == (96,)
