"""Records come back as they were, and tables refuse to mix protocols."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest

from pruner_lib.files import read_json, write_json
from pruner_lib.study.records import (
    Metric,
    MetricName,
    Record,
    load_records,
    read_kept,
    read_record,
    records_frame,
    write_kept,
    write_record,
)
from pruner_lib.study.results import project_root
from pruner_lib.study.settings import Calibration, Evaluation, Experiment, Recovery, settings_key

BASE = Experiment("tiny", calibration=Calibration("tiny", 4, 16), evaluation=Evaluation(("tiny",), 4, 16))
PROTOCOL = {"metric": "perplexity", "corpus_hash": "aa", "window": 16}


def record(experiment=BASE, value=20.0, **protocol):
    metrics = {
        MetricName("perplexity", "tiny", 16): Metric(value, 1.0, 4, PROTOCOL | protocol, (2.9, 3.1)),
        MetricName("accuracy", "boolq"): Metric(0.5, 0.1, 4, {"metric": "acc", "limit": 4}, (1, 0)),
    }
    plan = {"parameters": 75, "parameters_dense": 100, "sparsity": 0.25, "kept": {"layers.0.mlp": [3, 4]}}
    return Record(experiment, plan, metrics, ({"step": 0, "loss": 1.5},), {"load": 0.1}, 10.0, created="now")


def test_record_comes_back_from_disk_as_it_was(tmp_path):
    for ours in (record(), record(replace(BASE, recovery=Recovery(corpus="tiny")), value=math.inf)):
        back = read_record(write_record(ours, tmp_path))
        assert back.reused and not ours.reused
        assert replace(back, reused=False) == ours
    assert {one.key for one in load_records(tmp_path)} == {
        BASE.key,
        replace(BASE, recovery=Recovery(corpus="tiny")).key,
    }


def test_half_of_a_record_left_by_a_kill_is_not_read(tmp_path):
    path = write_record(record(), tmp_path)
    path.with_name(f".{path.name}.x1.tmp").write_text('{"format": 1, "key": ')
    assert [one.key for one in load_records(tmp_path)] == [BASE.key]


def test_damaged_or_renamed_record_is_refused(tmp_path):
    path = write_record(record(), tmp_path)
    other = path.rename(path.with_name("000000000000.json"))
    with pytest.raises(ValueError, match="does not hold the settings of its name"):
        read_record(other)
    data = json.loads(other.read_text())
    data["experiment"]["ratio"] = 7
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="is not a valid record .*ratio is 7.*delete it"):
        read_record(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["metrics"]["perplexity/tiny@16"].update(value=3.14),
        lambda data: data["metrics"]["accuracy/boolq"]["protocol"].update(limit=5),
        lambda data: data["metrics"].clear(),
        lambda data: data["machine"].update(inputs_hash="0" * 12),
    ],
    ids=["value", "protocol", "metrics", "inputs"],
)
def test_record_that_was_edited_is_refused_by_name(tmp_path, edit):
    path = write_record(record(), tmp_path)
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"{BASE.key}.json was changed after it was written.*run again"):
        load_records(tmp_path)
    del data["digest"]  # so that nothing says that it was edited
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="was changed after it was written"):
        load_records(tmp_path)


@pytest.mark.parametrize("data", [[1.5, 2.0], {"a": 1, "infinite": float("inf")}])
@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace("1", "3"), lambda _: ""]
)
def test_what_is_kept_comes_back_and_a_damaged_file_counts_as_not_there(tmp_path, data, damage):
    path = write_kept(tmp_path / "kept.json", data)
    assert read_kept(path) == ([1.5, 2.0] if isinstance(data, list) else {"a": 1, "infinite": "inf"})
    path.write_text(damage(path.read_text()))
    with pytest.warns(UserWarning, match="kept.json is damaged .*renamed to kept.json.damaged"):
        assert read_kept(path) is None
    assert read_kept(path) is None and (tmp_path / "kept.json.damaged").exists()


@pytest.mark.parametrize("data", [[1.5], {"a": 1}])
def test_what_was_written_as_another_file_counts_as_not_there(tmp_path, data):
    """As a claim's answer that is copied over another's; what an earlier version wrote carries no name."""
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    shutil.copy(write_kept(one, data), other)
    assert read_kept(one) == data
    with pytest.warns(UserWarning, match=r"other.json is damaged \(it was written as one.json\)"):
        assert read_kept(other) is None
    plain = {"kept": data} if isinstance(data, list) else data
    write_json(other, plain | {"digest": settings_key(plain)})
    assert read_kept(other) == data


def test_hidden_file_beside_records_is_none_of_them(tmp_path):
    path = write_record(record(), tmp_path)
    path.with_name(f"._{path.name}").write_bytes(b"\0")  # as some systems put beside each file
    assert [one.key for one in load_records(tmp_path)] == [BASE.key]


@pytest.mark.parametrize("text", ["[1.5, 2.0]", '{"a": 1}'])
def test_what_carries_no_digest_counts_as_not_there(tmp_path, text):
    (tmp_path / "kept.json").write_text(text)
    with pytest.warns(UserWarning, match="kept.json is damaged"):
        assert read_kept(tmp_path / "kept.json") is None


@pytest.mark.parametrize("profile", ["quick", "decide"])
def test_what_is_committed_carries_its_digest(profile):
    folder = project_root() / "results" / profile
    paths = [path for path in folder.glob("*/*.json") if path.parent.name != "cache"]
    kept = {path: read_json(path) for path in paths}
    assert len(kept) > 200
    assert [path for path, data in kept.items() if data.pop("digest", None) != settings_key(data)] == []


@pytest.mark.parametrize("profile", ["tiny", "records"])
def test_records_are_those_of_the_profile_or_of_its_folder_of_records(tmp_path, profile):
    write_record(record(), tmp_path / profile)
    for folder in (tmp_path / profile, tmp_path / profile / "records"):
        assert [found.key for found in load_records(folder)] == [record().key]


def test_frame_has_a_row_for_each_metric_of_each_record():
    frame = records_frame([record(), record(BASE.dense, 10.0), record()])
    assert len(frame) == 4  # two records, the repeated one once
    dense = frame[(frame.method == "dense") & (frame.metric == "perplexity")].iloc[0]
    assert (dense.value, dense.dataset, dense.length, dense.stage) == (10.0, "tiny", 16, "dense")
    assert dense.calibration_length is None or math.isnan(dense.calibration_length)
    assert set(frame[frame.method == "element1"].calibration_length) == {16}
    assert set(frame[frame.metric == "accuracy"].dataset) == {"boolq"}


def test_frame_refuses_to_mix_protocols_and_names_the_field():
    mixed = [record(), record(BASE.dense, corpus_hash="bb")]
    with pytest.raises(ValueError, match="perplexity/tiny@16 .*corpus_hash is 'bb' .* but 'aa'"):
        records_frame(mixed)
    with pytest.raises(ValueError, match="window"):
        records_frame([record(), record(BASE.dense, window=32)], allow=("corpus_hash",))
    both = [record(), record(BASE.dense, window=32, corpus_hash="bb")]
    with pytest.raises(ValueError, match=r"pass allow=\('corpus_hash', 'window'\) to show"):
        records_frame(both)
    shown = records_frame(mixed, allow=("corpus_hash",))
    assert set(shown[shown.metric == "perplexity"].corpus_hash) == {"aa", "bb"}


def test_record_says_in_a_line_what_it_is():
    assert str(record()) == f"{BASE.key} tiny element1 pruned, 25.0% cut, tiny 20.00, boolq 50.0%"
    assert str(replace(record(), reused=True)).endswith("(reused)")
    assert record().perplexity == {"tiny": 20.0} and record().accuracy == {"boolq": 0.5}


@pytest.mark.parametrize(
    "text", ["perplexity/wiki@128", "accuracy/boolq", "accuracy/mean", "perplexity/a/b@c@16"]
)
def test_name_of_a_metric_is_read_as_it_is_written(text):
    name = MetricName.parse(text)
    assert str(name) == text and (name.length is None) == (name.kind == "accuracy")
    assert MetricName.parse("perplexity/a/b@c@16") == ("perplexity", "a/b@c", 16)


@pytest.mark.parametrize(
    "text", ["perplexity/wiki", "perplexity/wiki@x", "loss/wiki@128", "boolq", "accuracy/", ""]
)
def test_text_that_names_no_metric_is_refused(text):
    with pytest.raises(ValueError, match="names no metric; write it as 'perplexity/wiki@128'"):
        MetricName.parse(text)


def test_file_holds_the_names_as_text(tmp_path):
    data = json.loads(write_record(record(), tmp_path).read_text())
    assert list(data["metrics"]) == ["perplexity/tiny@16", "accuracy/boolq"]
    path = tmp_path / "records" / f"{BASE.key}.json"
    path.write_text(path.read_text().replace("accuracy/boolq", "boolq"))
    with pytest.raises(ValueError, match="is not a valid record .*'boolq' names no metric"):
        read_record(path)
