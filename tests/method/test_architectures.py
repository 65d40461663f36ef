"""Every family of decoders: the groups that a person would draw, and a cut that is right in every use.

`pytest tests/method/test_architectures.py --write-tables` writes `results/architectures/architectures.csv`.
"""

from __future__ import annotations

import copy
import csv
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from families import (
    DIFFERENT,
    FAMILIES,
    HYBRIDS,
    HYBRIDS_DRAWN,
    IN_BLOCKS,
    MORE_FAMILIES,
    build,
    generates_alike_with_cache,
    logits,
    random_scores,
    tokens,
)
from families import DRAWN as FAMILIES_DRAWN
from remote_family import build_remote, prompts, remote_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from pruner_lib import Axes, Plan, discover, load_model, mask_, prune_, recover, save_model, select
from pruner_lib.method.norms import norm_members
from pruner_lib.models.tiny import tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.families]
TABLE = Path(__file__).parents[2] / "results" / "architectures" / "architectures.csv"
REMOTE = "code of its own"  # fused and interleaved rows, tokens first, two-dimensional rotary positions
DRAWN = FAMILIES_DRAWN | HYBRIDS_DRAWN | {REMOTE: {"attention": (6, 4), "mlp": (96, 1)}}
NO_CHANNELS = {  # family -> why its hidden channels can't be cut
    "falcon_h1": "channels_attn is 40 for 24 groups of hidden, 0 for 2: not in proportion",
    "llama4_text": "no axis of granularity 'channel'",  # the router scatters its scores: a note says so
}
UNEVEN = dict(ratio=0.5, protect_first=1)
COLUMNS = [
    "family", "class", "attention", "mlp", "hidden", "cut_is_mask", "parameters", "generation",
    "backward", "lora", "saved_and_loaded", "channel_cut", "query_heads",
]  # fmt: skip


@pytest.fixture(scope="module")
def table(request):
    """Rows that the tests fill in, one a family; written to the results where that was asked for."""
    rows: dict[str, dict[str, str]] = {family: {} for family in DRAWN}
    yield rows
    if request.config.getoption("--write-tables"):
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({"family": family} | row for family, row in rows.items())


def test_every_family_is_in_the_table():
    assert set(DRAWN) == set(FAMILIES) | set(MORE_FAMILIES) | set(HYBRIDS) | set(IN_BLOCKS) | {REMOTE}
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["family"] for row in rows] == list(DRAWN)
    assert all(row[column] for row in rows for column in COLUMNS)


@dataclass(frozen=True)
class Case:
    """A random model of a family, and half of its groups cut from all layers but the first; copied, never
    changed."""

    family: str
    model: torch.nn.Module
    axes: Axes
    plan: Plan
    pruned: torch.nn.Module
    ids: torch.Tensor
    tokenizer: PreTrainedTokenizerBase


def pytest_generate_tests(metafunc):
    """What is cut is checked for every family, what follows from it for those that differ in kind; all of it
    where the table is written."""
    if "case" in metafunc.fixturenames:
        every = metafunc.function in (test_axes_are_those_a_person_would_draw, test_cut_equals_mask)
        every = every or metafunc.config.getoption("--write-tables")
        metafunc.parametrize(
            "case",
            DRAWN if every else [*DIFFERENT, *HYBRIDS, *IN_BLOCKS, REMOTE],
            indirect=True,
            scope="module",
        )


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """One family after the other: all tests of a family, then the next."""
    remote = request.param == REMOTE
    if remote:
        folder = tmp_path_factory.mktemp("remote")
        model = build_remote(folder, hidden_size=24, inner_hidden_size=96)
    else:
        model = build(request.param, vocab_size=260)
    axes = discover(model)
    pruned, plan = _pruned(model, axes, **UNEVEN)
    ids, tokenizer = (prompts(), remote_tokenizer()) if remote else (tokens(), tiny_tokenizer())
    return Case(request.param, model, axes, plan, pruned, ids, tokenizer)


def _pruned(model, axes, seed=0, **options):
    plan = select(axes, random_scores(axes, seed), **options)
    if model.config.model_type in IN_BLOCKS:
        even = {name: [0, 3, 4, 7] for name in plan.cut if name.endswith("attention")}
        plan = Plan(plan.keep | even, plan.n_groups)
    return prune_(copy.deepcopy(model), plan, axes=axes), plan


def _load(folder):
    """Load what was saved; a copy, whose weights lie where torch puts them: a file's offsets change the last
    bit of products."""
    trusted = "dense_class" in (folder / "config.json").read_text()
    return copy.deepcopy(load_model(folder, trust_remote_code=trusted)[0])


def _drawn(axes, layer: int) -> dict[str, tuple[int, int]]:
    """Axis -> (groups, channels of a group) in a layer."""
    prefix = f"layers.{layer}."
    here = {name.removeprefix(prefix): axis for name, axis in axes.items() if name.startswith(prefix)}
    return {name: (axis.n_groups, axis.width) for name, axis in here.items()}


def _decade(difference: float) -> str:
    return "0" if difference == 0 else f"< 1e{math.floor(math.log10(difference)) + 1:+03d}"


def _short(drawn: dict[str, tuple[int, int]], kind: str) -> str:
    found: dict[str, list[tuple[int, int]]] = {}
    for name, size in drawn.items():
        if (name == "attention") == (kind == "attention"):
            found.setdefault(re.sub(r"\.\d+$", "", name), []).append(size)
    return "; ".join(
        (f"{len(sizes)} experts of " if len(sizes) > 1 else "")
        + (
            f"shared expert of {sizes[0][0]} x {sizes[0][1]}"
            if "shared" in name
            else "x".join(map(str, sizes[0]))
        )
        for name, sizes in found.items()
    )


def _in_words(layers: list[dict[str, tuple[int, int]]], kind: str) -> str:
    """What layers have of a kind; where they differ, how many of them have it."""
    counts = Counter(_short(drawn, kind) for drawn in layers)
    return "; ".join(
        f"{text} in {n} of {len(layers)} layers" if n < len(layers) else text
        for text, n in counts.items()
        if text
    )


def test_axes_are_those_a_person_would_draw(case, table):
    hybrid = case.family in HYBRIDS
    drawn = DRAWN[case.family] if hybrid else [DRAWN[case.family]] * 2
    found = [_drawn(case.axes, layer + (not hybrid)) for layer in range(len(drawn))]
    assert found == drawn
    inner = {name: axis for name, axis in case.axes.items() if axis.layer is not None}
    assert all(axis.kind == name.split(".")[2].replace("feed_forward", "mlp") for name, axis in inner.items())
    if case.family in FAMILIES:
        assert len(case.axes) == 7 and not case.axes.notes
    width, hidden = case.model.config.hidden_size, case.axes.get("hidden")
    if case.family == "llama4_text":
        assert hidden is None
    else:
        assert (hidden.n_groups, hidden.width, hidden.kind) == (width, 1, "hidden")
    table[case.family] |= {"class": type(case.model).__name__} | {
        kind: _in_words(found, kind) for kind in ("attention", "mlp")
    }
    table[case.family]["hidden"] = f"{width}x1" if hidden else "left whole: its router scatters the scores"


def test_cut_equals_mask(case, table):
    dense, worst = logits(case.model, case.ids), 0.0
    together = _pruned(case.model, case.axes, 1, ratio=0.4, scope="global")
    for cut, plan in ((case.pruned, case.plan), together):
        masked = logits(mask_(copy.deepcopy(case.model), plan, axes=case.axes), case.ids)
        worst = max(worst, (logits(cut, case.ids) - masked).abs().max().item())
        assert (dense - masked).abs().max() > 1e-2  # the mask does something
        gone = sum(
            (plan.n_groups[name] - len(kept)) * case.axes[name].group_parameters
            for name, kept in plan.keep.items()
        )
        assert gone > 0
        assert sum(p.numel() for p in cut.parameters()) == case.axes.n_parameters - gone
    assert worst < 1e-4
    table[case.family] |= {"cut_is_mask": _decade(worst), "parameters": "as counted"}


@pytest.mark.parametrize("family", HYBRIDS)
def test_in_hybrid_models_attention_and_mlps_are_offered_and_the_rest_is_named(family):
    axes = discover(build(family))
    assert {axis.kind for axis in axes.values()} >= {"attention", "mlp"}
    assert axes.notes and all("left whole" in note for note in axes.notes)


def test_pruned_model_generates_and_learns_with_any_attention(case, table):
    """Discovery traces plain attention; what is cut runs with whatever the class offers."""
    pruned, found = copy.deepcopy(case.pruned), {}
    assert generates_alike_with_cache(pruned, case.ids[:1])
    loss = pruned(case.ids, labels=case.ids).loss
    loss.backward()
    learned = [n for n, p in pruned.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert torch.isfinite(loss) and len(learned) > len(list(pruned.parameters())) / 2
    for attention in ("eager", "sdpa") if type(pruned)._supports_sdpa else ("eager",):
        pruned.set_attn_implementation(attention)
        found[attention] = logits(pruned, case.ids)
    for other in found.values():
        torch.testing.assert_close(other, found["eager"], atol=1e-4, rtol=1e-4)
    table[case.family] |= {"generation": "cache = no cache", "backward": "yes"}


def test_pruned_model_is_recovered_and_merged(case, table, tmp_path):
    before = logits(case.pruned, case.ids)
    examples = [{"instruction": "Say a.", "output": "a"}, {"instruction": "Say b.", "output": "b"}]
    result = recover(
        copy.deepcopy(case.pruned), case.tokenizer, examples, output_dir=tmp_path / "r", steps=2,
        batch_size=2, micro_batch_size=2, warmup_steps=0, learning_rate=1e-2, merge=True,
    )  # fmt: skip
    after = logits(result.model, case.ids)
    assert torch.isfinite(after).all() and not torch.allclose(after, before)
    table[case.family] |= {"lora": "trains, merges"}


def test_saved_and_loaded_logits_are_the_same_bits(case, table, tmp_path):
    save_model(case.pruned, case.tokenizer, tmp_path / "m")
    assert torch.equal(logits(_load(tmp_path / "m"), case.ids), logits(case.pruned, case.ids))
    table[case.family] |= {"saved_and_loaded": "same bits"}


def test_channel_cut_is_exact_but_for_the_norms(case, table, tmp_path):
    """The dense model, gone channels at zero and its norms over the others alone, gives the same logits.

    So every scale, table of positions and residual sum is the one that the model was trained with.
    """
    if case.family in NO_CHANNELS:
        with pytest.raises(ValueError, match=re.escape(NO_CHANNELS[case.family])):
            _pruned(case.model, case.axes, granularity="channel", ratio=0.3)
        table[case.family]["channel_cut"] = f"refused: {NO_CHANNELS[case.family]}"
        return
    pruned, plan = _pruned(case.model, case.axes, granularity="channel", ratio=0.3)
    kept = plan.keep["hidden"]
    assert len(kept) == int(0.7 * case.model.config.hidden_size)
    masked = mask_(copy.deepcopy(case.model), plan, axes=case.axes)
    norms = [member.structure for member in norm_members(masked, case.axes["hidden"].members)]
    bare = [n for n, m in masked.named_modules() if hasattr(m, "normalized_shape") and not m._parameters]
    for name in norms + bare:  # OLMo's have no weights
        whole, small = (m.get_submodule(name) for m in (masked, pruned))
        whole.forward = lambda x, small=small: torch.zeros_like(x).index_copy(-1, kept, small(x[..., kept]))
    assert torch.allclose(logits(pruned, case.ids), logits(masked, case.ids), atol=1e-4, rtol=1e-4)
    assert generates_alike_with_cache(pruned, case.ids[:1])
    save_model(pruned, None, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True).eval()
    assert torch.equal(logits(copy.deepcopy(again), case.ids), logits(pruned, case.ids))
    table[case.family] |= {"channel_cut": "exact, " + ("layout" if pruned.pruning_layout else "plain folder")}


def test_query_heads_go_alone_within_their_key_and_value_head(case, table, tmp_path):
    axes = discover(case.model, query_heads=True)
    whole = next(a for a in case.axes.values() if a.layer and a.kind == "attention")
    mine = {n: a for n, a in axes.items() if a.layer == whole.layer and a.kind == "attention"}
    queries = case.model.config.num_attention_heads
    table[case.family] |= {"query_heads": f"{whole.n_groups} x {queries // whole.n_groups}"}
    if whole.n_groups == queries:  # nothing is shared: a head is a group either way
        assert list(mine) == [whole.name]
        return
    assert len(mine) == whole.n_groups
    assert {a.n_groups for a in mine.values()} == {queries // whole.n_groups}
    pruned, plan = _pruned(case.model, axes, ratio=0.4, protect_first=1)
    assert len({len(plan.keep[n]) for n in mine}) == 1 and len(plan.keep[next(iter(mine))]) < 3 + 3
    masked = mask_(copy.deepcopy(case.model), plan, axes=axes)
    assert (logits(pruned, case.ids) - logits(masked, case.ids)).abs().max() < 1e-4
    assert (logits(case.model, case.ids) - logits(masked, case.ids)).abs().max() > 1e-2
    assert generates_alike_with_cache(pruned, case.ids[:1])
    save_model(pruned, case.tokenizer, tmp_path / "m")
    assert torch.equal(logits(_load(tmp_path / "m"), case.ids), logits(pruned, case.ids))
