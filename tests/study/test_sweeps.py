"""Sweeps ask for what they say, and their records are read rightly: against numbers known beforehand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_records import dense, draws, record, short

from pruner_lib.study.compare import contrasts
from pruner_lib.study.questions import (
    DESIGNS,
    damage_of,
    largest_share,
    layers_of,
    only_layer,
    published_designs,
    published_points,
    set_gap,
    share_at,
    sideways,
    tell,
    tell_sideways,
    widths_frame,
)
from pruner_lib.study.records import Metric
from pruner_lib.study.run import load_profile, plan_of, run, run_all

TINY = load_profile("tiny")
ASK = TINY.experiment(evaluation=TINY.short_evaluation)
TEXT = short(tasks=())


def plan(**kept):
    return {"kept": {name.replace("_", "."): list(sizes) for name, sizes in kept.items()}}


def test_largest_share_is_reached_and_no_more_can_be_asked_for(tmp_path):
    place = {"profile": "tiny", "results_dir": tmp_path}
    most = largest_share(ASK, **place)
    by_parameters = replace(ASK, criterion="l2", target="parameters")
    emptied = plan_of(replace(by_parameters, ratio=most), **place)
    assert all(len(kept) == 1 for kept in emptied.keep.values())
    with pytest.raises(ValueError, match="no plan removes"):
        plan_of(replace(by_parameters, ratio=most + 0.02), **place)
    assert largest_share(replace(ASK, protect_first=1), **place) == pytest.approx(most / 2)


def test_largest_share_is_remembered(tmp_path, monkeypatch):
    place = {"profile": "tiny", "results_dir": tmp_path}
    most = largest_share(ASK, **place)
    monkeypatch.setattr(
        "pruner_lib.study.stages.load_dense", None
    )  # would fail if the model were needed again
    assert largest_share(ASK, **place) == most


def test_only_one_layer_loses_groups(tmp_path):
    for layer in (0, 1):
        alone = plan_of(only_layer(ASK, layer, 2), profile="tiny", results_dir=tmp_path)
        assert {name.split(".")[1] for name in alone.cut} == {str(layer)}
    with pytest.raises(ValueError, match="no layer 2; the model has the layers 0 to 1"):
        only_layer(ASK, 2, 2)


def test_layers_are_counted_from_a_plan():
    blocks = plan(layers_0_attention=(1, 2), layers_11_mlp=(4, 9))
    assert layers_of(record(plan=blocks)) == 12
    with pytest.raises(ValueError, match="names no layers"):
        layers_of(record(plan=plan(hidden=(3, 4)), granularity="channel"))


def test_widths_of_each_design(tmp_path):
    place = {"profile": "tiny", "results_dir": tmp_path}
    asked = [replace(ASK, ratio=0.5, target="parameters", **way) for way in DESIGNS.values()]
    found = dict(zip(DESIGNS, ([one] for one in run_all(asked, progress=False, **place)), strict=True))
    frame = widths_frame(found, 2).set_index(["design", "layer", "kind"]).kept
    block = found["block"][0].plan["kept"]["layers.1.mlp"]
    assert frame["block", 1, "mlp"] == block[0] / block[1] < 1
    hidden = found["channel"][0].plan["kept"]["hidden"]
    assert set(frame["channel"]) == {hidden[0] / hidden[1]}
    assert sorted(frame["layer"].unstack().mlp) == [0, 1] and sorted(frame["layer"].unstack().attention) == [
        0,
        1,
    ]


def test_damage_is_the_loss_added_on_the_same_windows():
    named = {"dense": [dense(2.8, evaluation=TEXT)], 3: draws(3.0, evaluation=TEXT)}
    harm = damage_of(named, 3, "perplexity/wiki@128")
    whole, second = (
        np.array(one.metrics["perplexity/wiki@128"].values) for one in (named["dense"][0], named[3][1])
    )
    assert harm.shape == (3, 64) and np.array_equal(harm[1], second - whole)
    assert not damage_of(named, "dense", "perplexity/wiki@128").any()


def test_sensitive_layers_are_told_from_the_others_and_equal_ones_are_not():
    harm = {0: 4.0, 1: 4.1, 2: 3.0, 3: 3.02, 4: 3.0, 5: 3.02}
    named = {n: draws(nll, protect_first=n, evaluation=TEXT) for n, nll in harm.items()}
    named |= {"dense": [dense(2.8, evaluation=TEXT)]}
    apart = set_gap(named, [0, 1], [2, 3, 4, 5]).iloc[0]
    assert apart.sign == 1 and apart.difference == pytest.approx(1.04, abs=0.04)
    assert (
        apart.inside - apart.outside == pytest.approx(apart.difference)
        and apart.low < apart.difference < apart.high
    )
    assert set_gap(named, [2, 3], [4, 5]).sign.tolist() == [0]
    assert set_gap(named, [], [4, 5]).empty and set_gap(named, [4], []).empty


def test_share_at_a_level_lies_between_two_points_by_the_logarithm():
    shares, heights = [0.0, 0.2, 0.4], [10.0, 100.0, 10_000.0]
    assert share_at(shares, heights, 100) == pytest.approx(0.2)
    assert share_at(shares, heights, 1000) == pytest.approx(0.3)
    assert share_at(shares, heights, 5) == 0
    assert math.isnan(share_at(shares, heights, 20_000))
    assert share_at(shares, [10.0, 500.0, 50.0], 100) < 0.2  # where the curve first gets there


def test_reading_sideways_finds_the_share_of_equal_perplexity():
    curve = {share: draws(2.8 + 4 * share, ratio=share, evaluation=TEXT) for share in (0.1, 0.3, 0.5)}
    wall = [record(2.8 + 4 * 0.4, criterion="l2", ratio=0.2, evaluation=TEXT)]
    found = sideways(curve, wall, dense(2.8, evaluation=TEXT))
    assert found.draw.tolist() == [0, 1, 2] and found.share.tolist() == pytest.approx([0.4] * 3, abs=0.02)
    assert found.level.tolist() == pytest.approx([wall[0].perplexity["wiki"]] * 3)
    told = tell_sideways(found.assign(start=0.2), "element1", "l2")
    assert "when 20% is gone; element1 at" in told and "draws" not in told
    far = sideways(curve, [record(9.0, criterion="l2", evaluation=TEXT)], dense(2.8, evaluation=TEXT))
    assert far.share.isna().all()
    assert "nowhere in the sweep (0 of 3 draws)" in tell_sideways(far.assign(start=0.2), "element1", "l2")


def right(name):
    """The answers of a model that is always right if it is called "a", and else never."""
    return {
        "accuracy/piqa": Metric(float(name == "a"), 0.0, 40, {"metric": "acc"}, (float(name == "a"),) * 40)
    }


def test_sentence_says_who_is_better_where_and_no_more_than_the_intervals_do():
    pair = {"a": draws(3.0, evaluation=TEXT), "b": draws(3.5, criterion="vector", evaluation=TEXT)}
    clear = contrasts(pair, [("a", "b")]).assign(share=0.2)
    same = contrasts({"a": pair["a"], "b": pair["a"]}, [("a", "b")]).assign(share=0.1)
    told = tell(pd.concat([same, clear]), "share")
    assert told == "a against b: a is better at 20% (wiki); they can't be told apart at 10% (wiki)."
    quizzed = {
        name: [replace(one, metrics=one.metrics | right(name)) for one in found]
        for name, found in pair.items()
    }
    assert "a is better at 20% (wiki, accuracy)" in tell(
        contrasts(quizzed, [("a", "b")]).assign(share=0.2), "share"
    )
    back = contrasts({"a": pair["b"], "b": pair["a"]}, [("a", "b")]).assign(share=0.2)
    assert tell(back, "share") == "a against b: b is better at 20% (wiki)."
    many = pd.concat([clear, clear.assign(b="c")])
    assert tell(many, "b", link="beside") == "a against the other: a is better beside b (wiki), c (wiki)."


def test_published_designs_are_the_papers_numbers():
    fifth, half = (
        published_designs(share).set_index(["name", "stage", "metric"]).value for share in (0.2, 0.5)
    )
    wiki, mean = "perplexity/wikitext2@128", "accuracy/mean"
    assert fifth["block", "pruned", wiki] == 19.09 and fifth["global", "pruned", wiki] == 20.84
    assert fifth["dense", "dense", wiki] == half["dense", "dense", wiki] == 12.62
    assert half["layer", "recovered", mean] == pytest.approx(0.4464)
    assert half["block", "recovered", mean] == pytest.approx(0.4888)  # of Table 8, where the two are compared
    assert half["channel", "pruned", wiki] == 13891.92
    assert published_designs(0.3) is None


def test_published_points_are_those_of_the_methods_asked_for_before_recovery():
    from pruner_lib.study.paper import published_methods

    points = published_points({0.2: published_methods("Table 1")}, ["l2", "element1"])
    assert dict(zip(points.method, points.value, strict=True)) == {"l2": 582.41, "element1": 19.09}
    assert set(points.share) == {0.2} and set(points.source) == {"paper"}
    assert published_points({}, ["l2"]).empty


def test_dropped_layers_are_named_in_the_record(tmp_path):
    layers = replace(ASK, granularity="layer", ratio=0.5)
    found = run(layers, profile="tiny", results_dir=tmp_path)
    assert len(found.plan["layers_kept"]) == 1 and found.plan["kept"]["layers"] == [1, 2]
    assert "layers_kept" not in run(ASK, profile="tiny", results_dir=tmp_path).plan
    assert np.isfinite(list(found.perplexity.values())).all()
