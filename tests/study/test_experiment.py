"""An experiment is plain data, and its key names what it would measure."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from pruner_lib.method import names
from pruner_lib.recovery.settings import RecoverySettings
from pruner_lib.study import settings
from pruner_lib.study.settings import Calibration, Evaluation, Experiment, Recovery, from_plain

BASE = Experiment("tiny", calibration=Calibration("tiny", 4, 16), evaluation=Evaluation(("tiny",), 4, 16))


def test_key_is_the_same_for_the_same_settings_and_another_for_others():
    again = Experiment("tiny", calibration=Calibration("tiny", 4, 16), evaluation=Evaluation(["tiny"], 4, 16))
    assert again == BASE and again.key == BASE.key and len(BASE.key) == 12
    others = [
        replace(BASE, model="other"),
        replace(BASE, criterion="l2"),
        replace(BASE, aggregation="max"),
        replace(BASE, aggregation="max", order="group"),
        replace(BASE, scope="global"),
        replace(BASE, granularity="channel"),
        replace(BASE, ratio=0.3),
        replace(BASE, target="parameters"),
        replace(BASE, dependency=False),
        replace(BASE, protect_first=1),
        replace(BASE, protect_last=1),
        replace(BASE, calibration=Calibration("tiny", 4, 16, seed=0)),
        replace(BASE, recovery=Recovery()),
        replace(BASE, evaluation=Evaluation(("tiny",), 4, 32)),
        replace(BASE, int8=True),
    ]
    assert len({one.key for one in [BASE, *others]}) == len(others) + 1


def test_settings_survive_json():
    asked = replace(
        BASE, recovery=Recovery(corpus="tiny", target_modules=("q_proj", "v_proj"), evaluate_at=(4, 2))
    )
    assert from_plain(Experiment, json.loads(json.dumps(asked.settings()))) == asked
    with pytest.raises(ValueError, match="no setting ration; it has model"):
        from_plain(Experiment, {"model": "tiny", "ration": 0.5})


def test_every_way_to_prune_nothing_is_the_same_dense_experiment():
    ways = [replace(BASE, ratio=0), replace(BASE, ratio=0.0, criterion="l2", seed=3), BASE.dense]
    assert len({way.key for way in ways}) == 1
    assert BASE.dense.key != BASE.key != replace(BASE, int8=True).dense.key != BASE.dense.key
    assert BASE.dense.key != replace(BASE, evaluation=Evaluation(("tiny",), 5, 16)).dense.key


def test_calibration_and_seed_count_only_where_they_are_used():
    other = replace(BASE, calibration=Calibration("tiny", 8, 16), seed=1)
    for criterion, same in {"l2": True, "random": False, "element1": False}.items():
        keys = {replace(one, criterion=criterion).key for one in (BASE, other)}
        assert (len(keys) == 1) is same, criterion
    assert replace(BASE, seed=1).key == BASE.key
    assert len({replace(BASE, criterion="random", seed=seed).key for seed in range(3)}) == 3


def test_order_counts_only_where_the_aggregation_depends_on_it():
    for aggregation, same in {"sum": True, "last": True, "prod": False, "max": False}.items():
        keys = {replace(BASE, aggregation=aggregation, order=order).key for order in names.ORDERS}
        assert (len(keys) == 1) is same, aggregation


def test_method_and_stage_name_the_row_of_the_paper():
    assert (BASE.method, BASE.stage) == ("element1", "pruned")
    assert (BASE.dense.method, BASE.dense.stage) == ("dense", "dense")
    assert replace(BASE, granularity="channel").method == "channel"
    assert replace(BASE, recovery=Recovery()).stage == "recovered"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("ratio", 1.0, "less than 1"),
        ("ratio", -0.1, "greater than or equal to 0"),
        ("ratio", "0.5", "a valid number"),
        ("ratio", True, "a valid number"),
        ("ratio", float("nan"), "should be"),
        ("criterion", "taylor", "element1"),
        ("criterion", "none", "element1"),
        ("aggregation", "median", "'sum', 'mean', 'prod', 'max' or 'last'"),
        ("order", "head", "'channel' or 'group'"),
        ("scope", "all", "'local', 'global' or 'joint'"),
        ("granularity", "head", "'block', 'channel' or 'layer'"),
        ("target", "params", "'groups' or 'parameters'"),
        ("protect_first", -1, "greater than or equal to 0"),
        ("protect_last", 1.0, "a valid integer"),
        ("dependency", 1, "a valid boolean"),
        ("model", "", "at least 1 character"),
        ("calibration", "c4", "an instance of Calibration"),
    ],
)
def test_setting_that_is_not_allowed_is_named(name, value, wanted):
    with pytest.raises(ValueError, match=f"{name} is .*{wanted}") as caught:
        replace(BASE, **{name: value})
    assert "\n" not in str(caught.value)


def test_parts_refuse_what_makes_no_sense_and_take_what_does():
    for kind, values, wanted in [
        (Calibration, {"samples": 0}, "samples is 0"),
        (Calibration, {"seed": -1}, "seed is -1"),
        (Recovery, {"dropout": 1.0}, "dropout.*1.0"),
        (Recovery, {"learning_rate": 0}, "learning_rate is 0"),
        (Recovery, {"at": 3, "keep_at": (2, 4)}, r"at is 3, but should be one of keep_at, \(2, 4\)"),
        (Evaluation, {"texts": "wiki"}, "texts is 'wiki', but should be a valid tuple"),
        (Evaluation, {"texts": ("wiki", "wiki")}, "twice"),
        (Evaluation, {"length": 1}, "length is 1"),
    ]:
        with pytest.raises(ValueError, match=wanted):
            kind(**values)
    assert Evaluation(windows=None, limit=None).windows is None
    with pytest.raises(FrozenInstanceError):
        BASE.ratio = 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("criterion", names.CRITERIA),
        ("aggregation", names.AGGREGATIONS),
        ("order", names.ORDERS),
        ("scope", names.SCOPES),
        ("granularity", list(names.GRANULARITIES)),
        ("target", names.TARGETS),
    ],
)
def test_words_are_those_of_the_method(name, words):
    assert [getattr(replace(BASE, **{name: word}), name) for word in words] == list(words)
    with pytest.raises(ValueError, match=f"{name} is 'none'"):
        replace(BASE, **{name: "none"})


def test_recovery_has_the_settings_of_the_library_and_hands_them_over():
    ours = Recovery(corpus="tiny", rank=4, target_modules=["q_proj"], keep_at=[2, 1])
    assert isinstance(ours, RecoverySettings) and ours.keep_at == (1, 2)
    assert RecoverySettings(**ours.training()) == RecoverySettings(rank=4, target_modules=("q_proj",))


def test_setting_added_later_counts_only_where_it_is_not_at_its_default(monkeypatch):
    longer = replace(BASE, recovery=Recovery(cutoff=128))
    usual, key = replace(BASE, recovery=Recovery()), longer.key
    assert "cutoff" in usual.settings()["recovery"]
    monkeypatch.setitem(settings.ADDED["recovery"], "cutoff", 256)
    assert "cutoff" not in usual.settings()["recovery"] and from_plain(Experiment, usual.settings()) == usual
    assert longer.key == key != usual.key


def test_sample_of_an_evaluation_counts_where_there_is_one():
    first = Evaluation(tasks=["boolq"], limit=4)
    assert (
        not {"seed", "right_answers_only"} & replace(BASE, evaluation=first).settings()["evaluation"].keys()
    )
    drawn = replace(BASE, evaluation=replace(first, seed=0))
    assert drawn.settings()["evaluation"]["seed"] == 0 and from_plain(Experiment, drawn.settings()) == drawn
    assert drawn.key != replace(BASE, evaluation=first).key


def test_committed_records_keep_their_keys():
    paths = sorted((Path(__file__).resolve().parents[2] / "results" / "quick" / "records").glob("*.json"))
    assert len(paths) > 100
    for path in paths:
        assert from_plain(Experiment, json.loads(path.read_text())["experiment"]).key == path.stem
