"""Each row of the paper's tables is an experiment of ours, and is found among the printed ones."""

from __future__ import annotations

import pytest
from notebook_functions import functions_of

from pruner_lib.study.paper import Compared, compared, published_choices, published_methods
from pruner_lib.study.profiles import load_profile, profile_names

TINY = load_profile("tiny")
ONE = Compared("tiny", 0.3)


def test_methods_of_a_draw_differ_in_nothing_but_how_groups_are_chosen():
    vector, element = ONE.ask(TINY, "vector", 2), ONE.ask(TINY, "element1", 2)
    assert (vector.criterion, element.criterion) == ("vector", "element1")
    assert vector.calibration == element.calibration and vector.calibration.seed == 2
    assert vector.ratio == element.ratio == 0.3 and vector.target == "parameters"
    assert element.calibration != ONE.ask(TINY, "element1", 1).calibration
    assert ONE.ask(TINY, "element1", 9).calibration.seed == 9  # more draws than the profile has


def test_random_has_a_seed_a_draw_and_magnitudes_have_one_experiment_for_all():
    assert len({ONE.ask(TINY, "random", draw).key for draw in range(3)}) == 3
    assert len({ONE.ask(TINY, "l2", draw).key for draw in range(3)}) == 1


def test_a_draw_numbers_the_instructions_of_its_recovery_too():
    tune = {"recovery": TINY.short_recovery}
    asked = [ONE.ask(TINY, "l2", draw, **tune) for draw in (0, 7)]
    assert [one.recovery.seed for one in asked] == [0, 7] and len({one.key for one in asked}) == 2
    assert ONE.ask(TINY, "l2", 7).recovery is None and tune["recovery"].seed == 0


def test_channel_and_dense_are_methods_too():
    channel = ONE.ask(TINY, "channel")
    assert (channel.method, channel.protect_first, channel.protect_last) == ("channel", 0, 0)
    assert ONE.ask(TINY, "dense").stage == "dense"
    rows = functions_of("03_compare_methods", settings=TINY).rows_of(
        ONE, ["l2", "channel"], range(1, 3), aggregation="max"
    )
    assert list(rows) == ["dense", "l2", "channel"] and [len(found) for found in rows.values()] == [2, 2, 2]
    assert rows["channel"][0].aggregation == "max" and rows["channel"][0].calibration.seed == 1


def test_models_come_with_their_share_and_table():
    paper = load_profile("paper")
    by_name = {one.model: one for one in compared(paper)}
    assert [one.table for one in by_name.values()] == ["Table 1", "Table 2", "Table 4", "Table 5"]
    assert by_name["THUDM/chatglm-6b"].share == 0.1
    assert compared(paper, ["THUDM/chatglm-6b"], 0.3) == [Compared("THUDM/chatglm-6b", 0.3, "Table 5")]
    assert compared(paper, ["my/model"]) == [Compared("my/model", paper.method_study.share)]
    for name in profile_names():
        study = load_profile(name).method_study
        assert len(study.models) == len(study.shares) == len(study.tables)
        assert set(study.recovered) <= set(study.methods)


def value(found, name, stage, metric):
    [number] = found.query("name == @name and stage == @stage and metric == @metric").value
    return number


def test_printed_rows_are_found_by_our_words():
    found = published_methods("Table 1")
    assert value(found, "element1", "pruned", "perplexity/wikitext2@128") == 19.09
    assert value(found, "element2", "recovered", "accuracy/mean") == pytest.approx(0.6007)
    assert value(found, "dense", "dense", "accuracy/boolq") == pytest.approx(0.7318)  # not the official 76.5
    assert value(found, "mixed", "pruned", "perplexity/ptb@128") == 34.09  # of the preprint
    assert value(published_methods("Table 2"), "element1", "pruned", "perplexity/ptb@128") == 29.28
    assert "mixed" not in set(published_methods("Table 5").name)
    assert not found.duplicated(["name", "stage", "metric"]).any()


def test_choices_stand_beside_the_whole_model_of_table_1():
    rows = {"Summation": ("sum", "pruned"), "Production": ("prod", "pruned")}
    found = published_choices("Table 7", rows)
    assert value(found, "prod", "pruned", "perplexity/ptb@128") == 192.88
    assert value(found, "dense", "dense", "perplexity/wikitext2@128") == 12.62
    assert set(found.name) == {"sum", "prod", "dense"}
    with pytest.raises(ValueError, match="unknown table 'Table 99'"):
        published_choices("Table 99", rows)
