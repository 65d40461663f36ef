"""A user's file changes profiles and adds some; the built-in ones stay as they are without it."""

from __future__ import annotations

import pytest

from pruner_lib.study.profiles import load_profile, profile_names
from pruner_lib.study.results import results_dir


@pytest.fixture
def own(tmp_path, monkeypatch):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        monkeypatch.setenv("PRUNER_LIB_PROFILES", str(path))

    return write


def test_named_settings_are_changed_and_all_others_stay(own):
    usual = load_profile("quick")
    own("quick:\n  ratio: 0.4\n  evaluation: {windows: 7}\n")
    changed = load_profile("quick")
    assert (changed.ratio, changed.evaluation.windows) == (0.4, 7)
    assert changed.evaluation.tasks == usual.evaluation.tasks and changed.recovery == usual.recovery
    assert profile_names() == ["decide", "paper", "quick", "tiny"]


def test_new_profile_is_like_another_and_has_results_of_its_own(own):
    own("mine: {like: tiny, draws: 4}\n")
    mine, tiny = load_profile("mine"), load_profile("tiny")
    assert (mine.name, mine.draws, mine.model) == ("mine", 4, "tiny") and tiny.draws == 3
    assert results_dir("mine").name == "mine" and "mine" in profile_names()


def test_without_the_file_there_are_the_built_in_profiles_alone(own, monkeypatch):
    own("mine: {like: tiny}\n")
    monkeypatch.delenv("PRUNER_LIB_PROFILES")
    with pytest.raises(ValueError, match="unknown profile 'mine'; there .*; see PRUNER_LIB_PROFILES"):
        load_profile("mine")


@pytest.mark.parametrize("text", ["1e-3", "+1e-3", "1E-3", "1.0e-3", "10.e-4", ".1e-2", "100000e-8"])
def test_number_with_an_exponent_is_one_with_and_without_a_point(own, text):
    own(f"mine: {{like: tiny, recovery: {{learning_rate: {text}}}, model: 1e-3x, draws: 12}}")
    mine = load_profile("mine")
    assert (mine.recovery.learning_rate, mine.model, mine.draws) == (0.001, "1e-3x", 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {like: tyni}", "is like 'tyni'; name a built-in one: tiny, quick, decide, paper"),
        ("mine: {ratio: 0.5}", "profile 'mine' without `like` has no value for"),
        ("tiny: {ration: 0.5}", "no setting ration"),
        ("tiny: 3", "profile 'tiny' .* is 3, but should hold settings"),
        ("3: {like: tiny}", "name is '3', but should match pattern"),
        ("- tiny", "should hold names of profiles"),
        ("../tiny: {like: tiny}", r"'../tiny': .*name is '../tiny', but should match"),
        ("a: [", "can't be read"),
        ("a: 2020-99-99", "can't be read: month must be"),
        ("mine: {like: [tiny]}", r"is like \['tiny'\]; name a built-in"),
        ("mine: {like: tiny, name: ../../escape}", "sets its name to '../../escape'"),
        ("mine: {like: tiny, dtype: float15}", "dtype is 'float15', but should be 'float32', 'float16' or"),
        ("mine: {like: tiny, prompts: -1}", "prompts is -1, but should be greater than or equal to 1"),
        ("mine: {like: tiny, ratio: 1}", "ratio is 1, but should be less than 1"),
        ("mine: {like: tiny, ratio: .nan}", "ratio is nan, but should be"),
        ("mine: {like: tiny, draws: 2.5}", "draws is 2.5, but should be a valid integer"),
        ("mine: {like: tiny, draws: yes}", "draws is True, but should be a valid integer"),
        ("mine: {like: tiny, model: ''}", "model is '', but should have at least 1 character"),
        ("mine: {like: tiny, model: <svg onload=x>}", "model is '<svg onload=x>', but should match"),
        ("mine: {like: tiny, sweep: {shares: x}}", "sweep.shares is 'x', but should be a list"),
        ("mine: {like: tiny, sweep: [1]}", r"sweep is \[1\], but should be a mapping"),
        ("mine: {like: tiny, calibration_study: {samples: [0]}}", "calibration_study.samples.0 is 0, but"),
        (
            "mine: {like: tiny, evaluation: {windos: 3}}",
            "no setting evaluation.windos; it has texts, windows",
        ),
        ("mine: {like: tiny, recovery: {batch_size: 3}}", "recovery: .*micro_batch_size"),
        ("mine: {like: tiny, method_study: {models: [a]}}", "1, 0 and 0 values; give as many of each"),
    ],
)
def test_file_that_makes_no_sense_is_refused(own, text, message):
    own(text)
    with pytest.raises(ValueError, match=message):
        load_profile(text.partition(":")[0])


def test_missing_file_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNER_LIB_PROFILES", str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match=r"none\.yaml.*can't be read"):
        load_profile("tiny")


def test_bad_profile_of_the_users_leaves_the_others_usable(own):
    own("mine: {like: tiny, draws: -1}\n3: 4\nother: {like: tiny, draws: 4}\n")
    assert load_profile("tiny").draws == 3 and load_profile("other").draws == 4
    with pytest.raises(ValueError, match="draws is -1") as caught:
        load_profile("mine")
    assert "\n" not in str(caught.value)
