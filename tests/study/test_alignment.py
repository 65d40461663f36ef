"""Groups keep the matrices in step; matrices that choose alone do not, and their blocks say other things."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
import torch
from families import build, first_of, tokens
from notebook_functions import functions_of

from pruner_lib import discover, load_model, prune_, select
from pruner_lib.study import load_profile
from pruner_lib.study.paper import Compared
from pruner_lib.study.records import MetricName

TINY = load_profile("tiny")
ONE = Compared("tiny", 0.3)
NAME = MetricName("perplexity", "tiny", 16)
PAIR = {"groups": ONE.ask(TINY, "element1"), "alone": ONE.ask(TINY, "element1", dependency=False)}
OF_04 = functions_of("04_dependency")


def test_correlation_knows_scale_shift_and_nothing():
    correlation, a = OF_04.correlation, torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert correlation(a, 3 * a + 2) == pytest.approx(1) and correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, torch.ones_like(a)) == 0.0
    noise = torch.randn(100, 100, generator=torch.Generator().manual_seed(1))
    assert abs(correlation(noise, noise.flip(0))) < 0.05


@pytest.mark.parametrize(
    "family", first_of(["llama-gqa", "gpt_neox", "gpt2", "opt"])
)  # of opt the MLP is no module
def test_blocks_are_called_as_before_and_heard_at_their_last_matrix(family):
    """Pruning layer 0 changes what it says; layer 1, called as before, says what it said."""
    model, ids = build(family), tokens(2, 6)
    axes = {name: axis for name, axis in discover(model).items() if axis.layer is not None}
    paths, hooks = OF_04.paths_of(model, axes), n_hooks(model)
    run = partial(model, input_ids=ids, use_cache=False)
    calls, ends = OF_04.calls_of(model, paths[0], run), OF_04.calls_of(model, paths[1], run)
    before = OF_04.alone_and_running(model, calls, paths, ids)
    assert all(torch.allclose(before[name], ends[name][2], atol=1e-6) for name in axes)
    scores = {name: torch.rand(axis.n_groups) for name, axis in axes.items()}
    prune_(model, select(discover(model), scores, ratio=0.5, protect_last=2))
    after = OF_04.alone_and_running(model, calls, paths, ids)
    assert n_hooks(model) == hooks
    for name, axis in axes.items():
        same = torch.allclose(after[name], before[name], rtol=1e-4, atol=1e-5)
        assert same == (axis.layer > 0), name
    assert not torch.allclose(after["layers.1"], before["layers.1"], rtol=1e-3, atol=1e-4)


def n_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_groups_follow_and_matrices_alone_do_not(study):
    rows = functions_of("04_dependency", study=study).block_correlations(PAIR)
    found = pd.DataFrame(rows, columns=["name", "kind", "layer", "correlation"])
    found = found.groupby(["name", "kind"]).correlation.mean()
    assert found["groups", "mlp"] > 0.8 > 0.3 > found["alone", "mlp"]
    assert set(found.index.get_level_values("kind")) == {"attention", "mlp", "layer"}


def test_zero_equals_cut_for_groups_and_not_for_matrices_alone(study):
    cut = {name: study.run(asked) for name, asked in PAIR.items()}
    at_zero = functions_of("04_dependency", study=study).at_zero
    zero = {name: at_zero(record) for name, record in cut.items()}
    assert zero["groups"].perplexity["tiny"] == pytest.approx(cut["groups"].perplexity["tiny"], rel=1e-4)
    assert zero["alone"].perplexity["tiny"] != pytest.approx(cut["alone"].perplexity["tiny"], rel=1e-2)
    assert zero["alone"].metrics[NAME].n == cut["alone"].metrics[NAME].n


@pytest.mark.slow
def test_dense_model_is_left_as_it_was(study):
    dense = load_model("tiny")[0].state_dict()
    of_04 = functions_of("04_dependency", study=study)
    of_04.block_correlations(PAIR)
    of_04.at_zero(study.run(PAIR["alone"]))
    now = study.model(PAIR["groups"].dense)[0].state_dict()
    assert all(torch.equal(now[name], weight) for name, weight in dense.items())
