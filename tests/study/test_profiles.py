"""Profiles are complete, and give experiments that can be named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from notebook_functions import functions_of

from pruner_lib.study import profiles
from pruner_lib.study.profiles import load_profile, profile_names


def test_there_are_four_profiles_and_each_makes_experiments():
    assert profile_names() == ["decide", "paper", "quick", "tiny"]
    for name in profile_names():
        profile = load_profile(name)
        asked = [profile.dense(), profile.experiment(), profile.experiment(recovered=True)]
        assert len({one.key for one in asked}) == 3, name
        assert asked[1].ratio == profile.ratio and asked[2].recovery == profile.recovery
        assert len({draw.seed for draw in profile.calibrations()}) == profile.draws >= 3
        assert profile.recovery.batch_size % profile.recovery.micro_batch_size == 0


def test_draws_are_numbered_from_the_first_one_of_the_profile():
    usual, later = load_profile("tiny"), replace(load_profile("tiny"), first_draw=100)
    assert [*usual.draw_numbers()] == [0, 1, 2] and [*usual.draw_numbers(2, start=1)] == [1, 2]
    assert [*later.draw_numbers(0)] == [100, 101, 102]  # 0: as many as in the profile
    assert [one.seed for one in later.calibrations(2)] == [100, 101]
    assert [one.seed for one in later.calibrations(2, start=1)] == [101, 102]
    for name in profile_names():  # single ones begin there too
        profile = load_profile(name)
        alone = profile.recovery.seed, profile.short_recovery.seed, profile.calibration.seed or 0
        assert set(alone) == {profile.first_draw}, name


def test_unknown_profile_is_told_which_there_are():
    with pytest.raises(ValueError, match="unknown profile 'quikc'; there are decide, paper, quick, tiny"):
        load_profile("quikc")


def test_change_of_a_field_is_taken_and_an_unknown_field_refused():
    profile = load_profile("tiny")
    assert profile.experiment(criterion="l2").criterion == "l2"
    with pytest.raises(ValueError, match="no setting criterium"):
        profile.experiment(criterium="l2")


def test_profile_with_a_hole_or_a_stranger_is_refused(tmp_path, monkeypatch):
    values = yaml.safe_load(profiles.PROFILES_FILE.read_text())
    del values["tiny"]["ratio"]
    values["quick"]["ration"] = 0.5
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(profiles, "PROFILES_FILE", tmp_path / "profiles.yaml")
    with pytest.raises(ValueError, match="profile 'tiny' has no value for ratio; add it"):
        load_profile("tiny")
    with pytest.raises(ValueError, match="no setting ration; it has name, model"):
        load_profile("quick")
    assert load_profile("decide").name == "decide"


def test_tiny_needs_no_download():
    profile = load_profile("tiny")
    sources = {profile.model, profile.calibration.corpus, profile.recovery.corpus, *profile.evaluation.texts}
    assert sources == {"tiny"} and profile.evaluation.tasks == ()
    assert load_profile("quick").model != "tiny"


def test_paper_has_the_settings_of_the_paper():
    profile = load_profile("paper")
    assert (profile.ratio, profile.protect_first, profile.protect_last) == (0.25, 4, 2)
    assert (profile.calibration.samples, profile.calibration.length) == (10, 64)
    recovery = profile.recovery
    assert (recovery.rank, recovery.alpha, recovery.dropout, recovery.cutoff) == (8, 16, 0.05, 256)
    assert (recovery.learning_rate, recovery.warmup_steps, recovery.batch_size, recovery.epochs) == (
        1e-4,
        100,
        64,
        2,
    )
    assert profile.evaluation.length == 128 and profile.evaluation.limit is None


def test_usual_calibration_is_among_those_that_are_tried_and_the_large_one_is_larger():
    for name in profile_names():
        usual, tried = load_profile(name).calibration, load_profile(name).calibration_study
        assert (
            usual.samples in tried.samples and usual.length in tried.lengths and usual.corpus in tried.corpora
        )
        assert tried.reference_samples > max(tried.samples), name


def test_recovery_study_fits_the_recovery_that_it_turns():
    for name in profile_names():
        profile = load_profile(name)
        study, own = profile.recovery_study, profile.recovery
        assert own.keep_at == study.keep_at and set(study.answer_at) <= set(study.keep_at), name
        assert own.steps is None or max(study.keep_at) < own.steps
        assert study.samples == tuple(sorted(study.samples)) and study.module_samples in study.samples
        learn = functions_of("09_recovery", trials=study, run=own).learn
        most = learn(study.samples[-1], draw=1, keep_at=study.watch)
        assert (most.samples, most.seed, most.keep_at) == (study.samples[-1], 1, study.watch)
        assert max(study.watch) < most.steps == -(-study.samples[-1] // study.batch_size)
        assert study.few < study.samples[-1] and most.evaluate_at == ()
