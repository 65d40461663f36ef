"""A record is made again and compared: equal here, near elsewhere, and what is neither is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pruner_lib.study import load_profile, reproduce
from pruner_lib.study.records import Metric, MetricName, record_path, write_record
from pruner_lib.study.settings import Recovery

TINY = load_profile("tiny")
SHORT = Recovery(corpus="tiny", samples=4, steps=2, batch_size=2, micro_batch_size=2, warmup_steps=1)
NAME = MetricName("perplexity", "tiny", 16)


@pytest.fixture
def place(study, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(study.folder.parent))
    return study.folder


def changed(record, factor, **more):
    """The same record with another perplexity."""
    metric = record.metrics[NAME]
    return replace(record, metrics={NAME: replace(metric, value=metric.value * factor)}, **more)


@pytest.mark.slow
def test_record_is_made_again_from_nothing_and_is_equal(study, place, capsys):
    record = study.run(TINY.experiment(recovery=SHORT))
    before = sorted(place.rglob("*"))
    assert reproduce.main([record.key]) == 0
    said = capsys.readouterr().out
    assert f"metrics {NAME} value" in said and "no value differs by more than the relative differ" in said
    assert sorted(place.rglob("*")) == before, "the results were touched"


def test_record_with_another_number_is_found_out(study, place, capsys):
    record = study.run(TINY.experiment(criterion="l2"))
    path = write_record(changed(record, 1 + 1e-5), place)
    assert reproduce.main([str(path)]) == 1
    said = capsys.readouterr().out
    assert "1 of " in said and "values differ by more than the relative difference 0, which" in said


@pytest.mark.slow
def test_numbers_of_another_machine_may_be_near_but_not_far(study):
    record = study.run(TINY.experiment(criterion="l2"))
    for other in ({"machine": record.machine | {"threads": 64}}, {"versions": {"torch": "0.1"}}):
        near, far = changed(record, 1 + 1e-4, **other), changed(record, 1.01, **other)
        allowed = reproduce.tolerance(record, near)
        assert allowed == reproduce.NEAR > reproduce.compared(record, near).difference.max() > 0
        assert reproduce.compared(record, far).difference.max() > allowed
    assert reproduce.tolerance(record, changed(record, 2)) == 0


@pytest.mark.slow
def test_plan_protocol_and_history_count_and_circumstances_do_not(study):
    record = study.run(TINY.experiment(criterion="l2"))
    metric = record.metrics[NAME]
    same = replace(record, seconds={}, peak_memory_mb=1.0, created="never", git_revision=None)
    assert (reproduce.compared(record, same).difference == 0).all()
    for other in (
        replace(record, plan=record.plan | {"layers_kept": [1]}),
        replace(record, metrics={NAME: replace(metric, protocol=metric.protocol | {"bos": "other"})}),
        replace(record, metrics={NAME: metric, MetricName("accuracy", "boolq"): Metric(0.5)}),
        replace(record, history=({"step": 1, "loss": 2.0},)),
    ):
        assert (reproduce.compared(record, other).difference == float("inf")).any()


def test_what_can_not_be_made_again_is_said_in_a_sentence(study, place, capsys):
    record = study.run(TINY.dense())
    data = replace(record, machine=record.machine | {"inputs_hash": "0123"})
    for words, message in (
        ([], "give the path or the key of one record"),
        (["000000000000"], "0 records in "),
        ([str(write_record(data, place))], "have changed (hash"),
    ):
        assert reproduce.main(words) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    path = record_path(place, record.key)
    path.write_text(path.read_text()[:-10])
    assert reproduce.main([record.key]) == 2 and "is not valid JSON" in capsys.readouterr().err


@pytest.mark.slow
def test_adapter_names_its_modules_in_order(study):
    study.run(TINY.experiment(recovery=SHORT))
    (path,) = study.folder.glob("cache/recovery-*/adapter/adapter_config.json")
    modules = json.loads(path.read_text())["target_modules"]
    assert len(modules) > 3 and modules == sorted(modules)
