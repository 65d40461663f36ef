"""Functions that notebooks define find the true effects of made-up records, and numbers known beforehand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from families import discovered
from made_records import TASKS, dense, draws, record, short
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from notebook_functions import functions_of

from pruner_lib import discover, load_model, select
from pruner_lib.method.groups import Plan
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.records import MetricName
from pruner_lib.study.settings import Recovery
from pruner_lib.study.statistics import Interval

TEXT, WIKI = short(tasks=()), MetricName("perplexity", "wiki", 128)


CASES = {
    "forward": [("I", "J", "Eq. 1"), ("I", "X", "")],
    "backward": [("I", "J", "Eq. 2"), ("L", "J", ""), ("M", "J", "")],
    "not at all": [("J", "K", "none"), ("L", "K", "")],
}


@pytest.mark.parametrize(
    ("case", "said", "fills"),
    [
        ("forward", "I is removed\nDeg⁻(J) = 1,\nEq. 1: J must follow", {"I": "#D55E00", "J": "#F7C6A3"}),
        ("backward", "J is removed\nDeg⁺(I) = 1,\nEq. 2: I must follow", {"J": "#D55E00", "I": "#F7C6A3"}),
        ("not at all", "J is removed\nDeg⁻(K) = 2,\nno equation: K is kept", {"J": "#D55E00", "K": "white"}),
    ],
)
def test_cases_of_figure_6_say_the_degree_that_decides_and_who_follows(case, said, fills):
    ax = plt.subplots()[1]
    part = pd.DataFrame(CASES[case], columns=["source", "target", "rule"])
    functions_of("16_equations", sizes={}).draw_case(ax, case, part)
    assert ax.get_title() == f"{case}: {said}"
    drawn = {t.get_text(): t.get_bbox_patch().get_facecolor() for t in ax.texts if t.get_text()}
    assert set(drawn) == {*part.source, *part.target}
    grey = dict.fromkeys(drawn, "#DDDDDD")
    assert drawn == {name: to_rgba(color) for name, color in (grey | fills).items()}


def test_steps_are_counted_by_position():
    """gate keeps 0 1 3, up 0 2 3, down 0 1 3: of three positions the middle one is out of step."""
    rows = {"gate": [0, 1, 3], "up": [0, 2, 3], "down": [0, 1, 3]}
    keep = {f"layers.0.mlp/{name}": torch.tensor(kept) for name, kept in rows.items()}
    keep["layers.1.mlp/gate"] = torch.arange(4)  # whole: not counted
    aligned = functions_of("04_dependency").aligned
    assert aligned(Plan(keep, dict.fromkeys(keep, 4))) == {"layers.0.mlp": pytest.approx(2 / 3)}
    assert aligned(Plan({"layers.0.mlp": torch.tensor([0, 2])}, {"layers.0.mlp": 4})) == {"layers.0.mlp": 1.0}


@pytest.fixture(scope="module")
def ratio_06():
    axes = discover(load_model("tiny")[0])
    settings = SimpleNamespace(protect_first=0, protect_last=0)
    study = SimpleNamespace(dense=lambda model: SimpleNamespace(axes=axes))
    return functions_of("06_pruning_ratio", study=study, settings=settings, axes=axes)


def test_largest_share_is_reached_and_no_more_can_be_removed(ratio_06):
    axes, most = ratio_06.axes, ratio_06.largest_share("tiny")
    scores = {name: torch.arange(axis.n_groups) * 1.0 for name, axis in axes.items()}
    emptied = select(axes, scores, ratio=most, target="parameters")
    assert all(len(kept) == 1 for kept in emptied.keep.values())
    with pytest.raises(ValueError, match="no plan removes"):
        select(axes, scores, ratio=most + 0.02, target="parameters")
    ratio_06.settings.protect_first = 1
    assert ratio_06.largest_share("tiny") == pytest.approx(most / 2)
    ratio_06.settings.protect_first = 0


def test_share_at_a_level_lies_between_two_points_by_the_logarithm(ratio_06):
    share_at, shares, heights = ratio_06.share_at, [0.0, 0.2, 0.4], [10.0, 100.0, 10_000.0]
    assert share_at(shares, heights, 100) == pytest.approx(0.2)
    assert share_at(shares, heights, 1000) == pytest.approx(0.3)
    assert share_at(shares, heights, 5) == 0
    assert math.isnan(share_at(shares, heights, 20_000))
    assert share_at(shares, [10.0, 500.0, 50.0], 100) < 0.2  # where the curve first gets there


def test_reading_sideways_finds_the_share_of_equal_perplexity(ratio_06):
    curve = {share: draws(2.8 + 4 * share, ratio=share, evaluation=TEXT) for share in (0.1, 0.3, 0.5)}
    rival, whole = [record(2.8 + 4 * 0.4, criterion="l2", ratio=0.2, evaluation=TEXT)], dense(evaluation=TEXT)
    found = ratio_06.sideways(curve, rival, whole)
    assert found.draw.tolist() == [0, 1, 2] and found.share.tolist() == pytest.approx([0.4] * 3, abs=0.02)
    assert found.level.tolist() == pytest.approx([rival[0].perplexity["wiki"]] * 3)
    far = ratio_06.sideways(curve, [record(9.0, criterion="l2", evaluation=TEXT)], whole)
    assert far.share.isna().all()


@pytest.fixture(scope="module")
def layers_07():
    return functions_of("07_layer_sensitivity", n_layers=2)


def test_damage_is_the_loss_added_on_the_same_windows(layers_07):
    named = {"dense": [dense(2.8, evaluation=TEXT)], 3: draws(3.0, evaluation=TEXT)}
    harm = layers_07.damage_of(named, 3, WIKI)
    whole, second = (np.array(one.metrics[WIKI].values) for one in (named["dense"][0], named[3][1]))
    assert harm.shape == (3, 64) and np.array_equal(harm[1], second - whole)
    assert not layers_07.damage_of(named, "dense", WIKI).any()


def test_more_sensitive_layers_are_found_and_equal_ones_are_not(layers_07):
    harm = {0: 4.0, 1: 4.1, 2: 3.0, 3: 3.02, 4: 3.0, 5: 3.02}
    named = {n: draws(nll, protect_first=n, evaluation=TEXT) for n, nll in harm.items()}
    named |= {"dense": [dense(2.8, evaluation=TEXT)]}
    apart = layers_07.set_gap(named, [0, 1], [2, 3, 4, 5]).iloc[0]
    assert apart.sign == 1 and apart.difference == pytest.approx(1.04, abs=0.04)
    assert apart.inside - apart.outside == pytest.approx(apart.difference)
    assert apart.low < apart.difference < apart.high
    assert layers_07.set_gap(named, [2, 3], [4, 5]).sign.tolist() == [0]
    assert layers_07.set_gap(named, [], [4, 5]).empty and layers_07.set_gap(named, [4], []).empty


def test_all_layers_but_one_are_protected(layers_07):
    experiment = load_profile("tiny").experiment()
    alone = [layers_07.only_layer(experiment, layer) for layer in (0, 1)]
    assert [(one.protect_first, one.protect_last) for one in alone] == [(0, 1), (1, 0)]


@pytest.fixture(scope="module")
def designs_08():
    return functions_of("08_granularity")


def test_widths_are_shares_of_the_groups_that_stay(designs_08):
    plans = {
        "block": {"kept": {f"layers.{n}.{kind}": [3, 4] for n in (0, 1) for kind in ("attention", "mlp")}},
        "channel": {"kept": {"hidden": [6, 8]}},
        "layer": {"kept": {"layers": [1, 2]}, "layers_kept": [1]},
    }
    assert set(plans) < set(designs_08.DESIGNS)
    groups = {design: [record(plan=plan)] for design, plan in plans.items()}
    axes = discover(load_model("tiny")[0])
    kept = designs_08.widths_frame(groups, axes).set_index(["design", "layer", "kind"]).kept
    axes = discovered("mixtral")[1]  # a layer's experts count together
    counts = {name: [n, 8] for n, name in enumerate(axes.of_kind("attention", "mlp"))}
    of_experts = designs_08.widths_frame({"block": [record(plan={"kept": counts})]}, axes)
    assert of_experts.kind.tolist() == ["attention", "mlp"] * axes.n_layers
    assert of_experts.kept[1] == pytest.approx((1 + 2 + 3 + 4) / 4 / 8)
    assert len(kept) == 12 and set(kept["block"]) == set(kept["channel"]) == {0.75}
    assert kept["layer", 0, "mlp"] == 0 and kept["layer", 1, "attention"] == 1


def test_published_designs_are_the_papers_numbers(designs_08):
    places = ["name", "stage", "metric"]
    fifth, half = (designs_08.published_designs(share).set_index(places).value for share in (0.2, 0.5))
    wiki, mean = "perplexity/wikitext2@128", "accuracy/mean"
    assert fifth["block", "pruned", wiki] == 19.09 and fifth["global", "pruned", wiki] == 20.84
    assert fifth["dense", "dense", wiki] == half["dense", "dense", wiki] == 12.62
    assert half["every second layer", "recovered", mean] == pytest.approx(0.4464)
    assert half["block", "recovered", mean] == pytest.approx(0.4888)  # of Table 8, where the two are compared
    assert half["channel", "pruned", wiki] == 13891.92
    assert designs_08.published_designs(0.3) is None


RUN = Recovery(corpus="instructlab", steps=20, batch_size=8, micro_batch_size=4, keep_at=(5, 10))
CURVE = {0: 3.5, 5: 3.3, 10: 3.15, 20: 3.1}


def history(step):
    return [{"step": s, "tokens": 1000 * s, "seconds": 6.0 * s, "loss": None} for s in range(step + 1)]


def after(step, nll, run=RUN, accuracy=0.6, **settings):
    """The record of a recovery after some steps."""
    recovery = replace(run, at=step if step in run.keep_at else None) if step else None
    return record(nll, accuracy, recovery=recovery, history=history(step) if step else (), **settings)


STEPS = {step: [after(step, nll)] for step, nll in CURVE.items()}


@pytest.fixture(scope="module")
def recovery_09():
    return functions_of("09_recovery")


def test_effort_counts_what_was_trained(recovery_09):
    effort = recovery_09.effort
    assert effort(STEPS[10][0]) == {"step": 10, "samples": 80, "tokens": 10_000, "seconds": 60.0}
    assert effort(STEPS[0][0]) == {"step": 0, "samples": 0, "tokens": 0, "seconds": 0.0}


def test_frame_has_a_row_a_group_and_text(recovery_09):
    frame = recovery_09.times_frame(STEPS, STEPS[0], "step")
    assert frame.step.tolist() == [0, 5, 10, 20] and set(frame.dataset) == {"wiki"}
    assert frame.times.tolist() == pytest.approx(np.exp(np.array(list(CURVE.values())) - 3.5), rel=0.06)
    assert frame.times[0] == frame.low[0] == frame.high[0] == 1.0
    assert frame.samples.tolist() == [0, 40, 80, 160] and frame.seconds.tolist() == [0, 30, 60, 120]


def test_paper_stands_beside_at_the_same_share_of_the_steps(recovery_09):
    frame = recovery_09.beside_steps(recovery_09.times_frame(STEPS, STEPS[0], "step"))
    at_350, at_700 = 18.10 + (17.69 - 18.10) * 0.75, (17.69 + 17.64) / 2
    wanted = [1, at_350 / 19.09, at_700 / 19.09, 17.88 / 19.09]
    assert frame.paper.tolist() == pytest.approx(wanted)
    assert frame.difference.tolist() == pytest.approx((frame.times - frame.paper).tolist())
    paper = recovery_09.beside_steps(frame.assign(step=[0, 200, 1400, 1600])).paper
    assert paper[1] == pytest.approx(18.10 / 19.09) and paper[2] == pytest.approx(17.88 / 19.09)
    assert math.isnan(paper[3])  # beyond the paper's table
    second = recovery_09.beside_steps(frame.assign(dataset=["other", "wiki", "wiki", "wiki"]))
    assert second.paper[3] == pytest.approx(30.85 / 34.21)  # the second text stands beside PTB


def test_share_of_the_gain_is_found_between_two_steps(recovery_09):
    at = np.array([0.0, 5, 10, 20])
    losses = np.array([[4.0, 4.0, 4.0], [3.0, 4.0, 5.0], [2.0, 3.0, 6.0], [2.5, 2.0, 7.0]])
    assert recovery_09.reach(at, losses, 0.5).tolist() == pytest.approx([5.0, 10.0, 1e12])
    assert recovery_09.reach(at, losses, 0.75)[0] == pytest.approx(7.5)
    assert recovery_09.reach(at, losses, 1.0)[0] == 10


def test_steps_needed_are_the_true_ones_and_fewer_windows_are_less_sure(recovery_09):
    found = recovery_09.steps_needed(STEPS, WIKI, 0.9)
    means = np.array([[math.log(STEPS[step][0].perplexity["wiki"])] for step in CURVE])
    assert found.mean == pytest.approx(recovery_09.reach(np.array(list(CURVE), dtype=float), means, 0.9)[0])
    assert found.low < found.mean < found.high and found.low > 5 and found.high < 20
    few = {step: [after(step, nll, evaluation=short(windows=8))] for step, nll in CURVE.items()}
    unsure = recovery_09.steps_needed(few, WIKI, 0.9)
    assert unsure.high - unsure.low > 1.5 * (found.high - found.low)
    risen = {0: [after(0, 3.5)], 5: [after(5, 3.6)], 20: [after(20, 3.7)]}
    assert math.isinf(recovery_09.steps_needed(risen, WIKI, 0.9).mean)


def test_paper_has_nine_tenths_of_its_gain_within_a_few_hundred_steps(recovery_09):
    needed, gain = recovery_09.paper_steps_needed, 0.9 * math.log(19.09 / 17.64)
    between = (gain - math.log(19.09 / 18.10)) / math.log(18.10 / 17.69)
    assert needed(0.9) == pytest.approx(200 + 200 * between)
    assert needed(0.9, "ptb") < 400 < needed(1.0) == 800


def test_modules_are_compared_with_all_of_them_draw_by_draw(recovery_09):
    words = {"all-linear": 0.0, "without-mlp": 0.03, "without-attention": 0.01}
    luck = (-0.2, 0.0, 0.2)  # of the instructions, the same for all
    groups = {
        word: [after(20, 3.1 + worse + luck[n], replace(RUN, seed=n, target_modules=word)) for n in range(3)]
        for word, worse in words.items()
    }
    frame = recovery_09.modules_frame(groups).set_index("modules")
    assert list(frame.index) == ["without-mlp", "without-attention"]
    assert frame.times["without-mlp"] == pytest.approx(math.exp(0.03), abs=0.04)
    assert frame.high["without-mlp"] - frame.low["without-mlp"] < 0.3  # the luck of the draws cancels
    assert frame.paper.tolist() == pytest.approx([17.64 / 17.36, 17.62 / 17.36])


def test_accuracy_on_the_way_is_a_share_of_the_dense_one(recovery_09):
    stops = [after(0, 3.5, accuracy=0.4), after(10, 3.15, accuracy=0.5), after(20, 3.1, accuracy=0.6)]
    frame = recovery_09.accuracy_frame(dense(accuracy=0.8), stops)
    assert frame.samples.tolist() == [0, 80, 160, 2.59e6]
    assert frame.ours[:3].is_monotonic_increasing and (frame.low <= frame.ours)[:3].all()
    chance = 100 * (3 * 0.5 + 4 * 0.25) / 7
    wanted = [(share - chance) / (63.25 - chance) for share in (56.69, (59.68 + 59.31) / 2, 59.23, 62.36)]
    assert frame.paper.tolist() == pytest.approx(wanted)
    assert math.isnan(frame.ours[3]) and frame.n.tolist() == [60 * len(TASKS)] * 3 + [0]
    untested = after(10, 3.0, evaluation=short(tasks=()))
    assert recovery_09.accuracy_frame(dense(), [untested]).empty


@pytest.fixture(scope="module")
def savings_10():
    return functions_of("10_efficiency")


@pytest.mark.slow
def test_a_cut_without_weights_is_counted_like_the_shapes_that_are_left(savings_10):
    block = {"ratio": 0.25, "protect_first": 1}
    whole, cut = savings_10.count({savings_10.BASE: {}, "Block 20%": block}, layers=4)
    parameters = sum(p.numel() for p in savings_10.without_weights(4).parameters())
    assert whole["parameters"] * 1e9 == parameters
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    gone = 3 * (4 * 4096 * 8 * 128 + 3 * 4096 * 2752)
    assert (whole["parameters"] - cut["parameters"]) * 1e9 == pytest.approx(gone)
    linear = 4 * layer / 2**20  # MiB in 8 bits
    assert whole["memory"] - whole["memory_int8"] == pytest.approx(linear + 32, rel=0.02)


def in_8_bits(one):
    metrics = {
        name: replace(metric, protocol=metric.protocol | {"dtype": "int8"})
        for name, metric in one.metrics.items()
    }
    return replace(one, metrics=metrics, experiment=replace(one.experiment, int8=True))


def test_quality_is_relative_to_the_whole_model_whatever_the_format(savings_10):
    quality, whole, small = savings_10.quality, dense(2.8, 0.7), in_8_bits(dense(2.81, 0.65))
    found = quality([small], [whole], "perplexity")
    assert found.mean == pytest.approx(small.perplexity["wiki"] / whole.perplexity["wiki"])
    assert found.low < found.mean < found.high
    kept = quality([small], [whole], "accuracy")
    assert kept.mean == pytest.approx(sum(small.accuracy.values()) / sum(whole.accuracy.values()))
    assert quality([dense(evaluation=short(tasks=()))], [whole], "accuracy") is None
    with pytest.raises(ValueError, match="corpus_hash"):
        quality([dense(evaluation=short(windows=32))], [whole], "perplexity")


def test_frame_puts_every_number_beside_the_papers(savings_10):
    keys = [("dense", False), ("dense", True), ("recovered", False), ("recovered", True)]
    plain, one = {"dense": dense(2.8, 0.7), "recovered": record(3.0, 0.6)}, Interval(1.0, 1.0, 1.0, 1)
    measured = {(m, small): [in_8_bits(plain[m]) if small else plain[m]] for m, small in keys}
    size = dict(zip(keys, (100.0, 40.0, 80.0, 34.0), strict=True))
    frame = savings_10.int8_frame(measured, size, dict.fromkeys(keys, one))
    table = frame.set_index(["model", "int8", "number"])
    assert len(frame) == 16 and table.ours["recovered", True, "bytes"] == 0.34
    assert table.ours["dense", True, "accuracy"] == 1 and table.ours["recovered", False, "accuracy"] < 1
    assert table.paper["dense", True, "bytes"] == pytest.approx(6777.7 / 12884.5)
    assert table.paper["dense", True, "seconds"] == pytest.approx(76.20 / 69.32)
    assert table.paper["recovered", True, "accuracy"] == pytest.approx(62.30 / 63.25)
    assert math.isnan(table.paper["dense", True, "perplexity"])  # Table 13 has none
    few = {keys[0]: [dense(evaluation=short(tasks=()))]}
    assert set(savings_10.int8_frame(few, size, {keys[0]: one}).number) == {"bytes", "seconds", "perplexity"}
