"""Every family of decoders: the groups that a person would draw, and a cut that is right in every use.

`pytest tests/method/test_architectures.py --write-tables` writes `results/architectures/architectures.csv`.
"""

from __future__ import annotations

import copy
import csv
import math
import re
from pathlib import Path

import pytest
import torch
from families import DRAWN as FAMILIES_DRAWN
from families import FAMILIES, MORE_FAMILIES, logits, random_scores
from families import build as build_family
from families import tokens as random_tokens
from remote_family import build_remote, prompts, remote_tokenizer

from pruner_lib import discover, estimate, load_model, mask_, prune_, recover, save_model, select
from pruner_lib.method.norms import norm_members
from pruner_lib.models.load import tiny_tokenizer

TABLE = Path(__file__).parents[2] / "results" / "architectures" / "architectures.csv"
REMOTE = "code of its own"  # fused and interleaved rows, tokens first, two-dimensional rotary positions
DRAWN = FAMILIES_DRAWN | {REMOTE: {"attention": (6, 4), "mlp": (96, 1)}}
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
    assert set(DRAWN) == set(FAMILIES) | set(MORE_FAMILIES) | {REMOTE}
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["family"] for row in rows] == list(DRAWN)
    assert all(row[column] for row in rows for column in COLUMNS)


@pytest.fixture
def build(tmp_path):
    """Build a random model of a family."""

    def made(family: str, **changes):
        if family == REMOTE:
            return build_remote(tmp_path / "remote", hidden_size=24, inner_hidden_size=96)
        return build_family(family, **changes)

    return made


def _tokens(family: str, *shape: int) -> torch.Tensor:
    return prompts(*(shape and (shape[0], shape[1] + 3))) if family == REMOTE else random_tokens(*shape)


def _tokenizer(family: str):
    return remote_tokenizer() if family == REMOTE else tiny_tokenizer()


def _load(folder):
    return load_model(folder, trust_remote_code="dense_class" in (folder / "config.json").read_text())[0]


def _pruned(model, seed=0, axes=None, **options):
    axes = axes or discover(model)
    plan = select(axes, random_scores(axes, seed), **(UNEVEN | options))
    return prune_(copy.deepcopy(model), plan), plan, axes


def _aligned(model):
    """A copy whose weights lie where torch puts them: a file's offsets change the last bit of products."""
    return copy.deepcopy(model)


def _drawn(axes, layer: int) -> dict[str, tuple[int, int]]:
    prefix = f"layers.{layer}."
    return {
        name.removeprefix(prefix): (a.n_groups, a.width)
        for name, a in axes.items()
        if name.startswith(prefix)
    }


def _decade(difference: float) -> str:
    return "0" if difference == 0 else f"< 1e{math.floor(math.log10(difference)) + 1:+03d}"


def _short(drawn: dict[str, tuple[int, int]], kind: str) -> str:
    found: dict[str, list[tuple[int, int]]] = {}
    for name, size in drawn.items():
        if name.split(".")[0] == kind or (kind == "mlp" and name.startswith("mlp")):
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


@pytest.mark.parametrize("family", DRAWN)
def test_axes_are_those_a_person_would_draw(family, build, table):
    model = build(family)
    axes = discover(model)
    for layer in range(1, 3):
        assert _drawn(axes, layer) == DRAWN[family]
    assert axes["hidden"].n_groups == 24 and axes["hidden"].kind == "hidden"
    assert all(axis.kind == name.split(".")[2] for name, axis in axes.items() if axis.layer is not None)
    drawn = _drawn(axes, 1)
    table[family] |= {"class": type(model).__name__, "hidden": "24x1"} | {
        kind: _short(drawn, kind) for kind in ("attention", "mlp")
    }


@pytest.mark.parametrize("family", DRAWN)
def test_cut_equals_mask_and_removes_what_the_formula_says(family, build, table):
    model, ids, worst = build(family), _tokens(family), 0.0
    axes = discover(model)
    for seed, options in enumerate((UNEVEN, dict(ratio=0.4, scope="global"))):
        cut, plan, _ = _pruned(model, seed, axes, **options)
        masked = mask_(copy.deepcopy(model), plan)
        worst = max(worst, (logits(cut, ids) - logits(masked, ids)).abs().max().item())
        assert (logits(model, ids) - logits(masked, ids)).abs().max() > 1e-2  # the mask does something
        gone = sum(
            (plan.n_groups[name] - len(kept)) * axes[name].group_parameters
            for name, kept in plan.keep.items()
        )
        assert gone > 0
        assert sum(p.numel() for p in cut.parameters()) == axes.n_parameters - gone
    assert worst < 1e-4
    table[family] |= {"cut_is_mask": _decade(worst), "parameters": "as counted"}


@pytest.mark.parametrize("family", DRAWN)
def test_pruned_model_generates_and_learns(family, build, table, tmp_path):
    model, ids = build(family), _tokens(family, 1, 5)
    pruned, *_ = _pruned(model)
    options = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    with_cache = pruned.generate(ids, use_cache=True, **options)
    assert torch.equal(with_cache, pruned.generate(ids, use_cache=False, **options))
    loss = pruned(_tokens(family), labels=_tokens(family)).loss
    loss.backward()
    learned = [n for n, p in pruned.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert torch.isfinite(loss) and len(learned) > len(list(pruned.parameters())) / 2
    table[family] |= {"generation": "cache = no cache", "backward": "yes"}


@pytest.mark.parametrize("family", DRAWN)
def test_pruned_model_takes_any_attention(family, build):
    """Discovery traces plain attention; what is cut runs with whatever the class offers."""
    pruned, *_ = _pruned(build(family))
    ids, found = _tokens(family), {}
    for attention in ("eager", "sdpa"):
        try:
            pruned.set_attn_implementation(attention)
        except ValueError:
            assert not type(pruned)._supports_sdpa and attention == "sdpa"
            continue
        found[attention] = logits(pruned, ids)
    assert "eager" in found
    for other in found.values():
        torch.testing.assert_close(other, found["eager"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", DRAWN)
def test_pruned_model_is_recovered_and_merged(family, build, table, tmp_path):
    pruned, *_ = _pruned(build(family, vocab_size=260))
    before = logits(pruned, _tokens(family))
    examples = [{"instruction": "Say a.", "output": "a"}, {"instruction": "Say b.", "output": "b"}]
    result = recover(
        pruned, _tokenizer(family), examples, output_dir=tmp_path / "r", steps=2, batch_size=2,
        micro_batch_size=2, warmup_steps=0, learning_rate=1e-2, merge=True,
    )  # fmt: skip
    after = logits(result.model, _tokens(family))
    assert torch.isfinite(after).all() and not torch.allclose(after, before)
    table[family] |= {"lora": "trains, merges"}


@pytest.mark.parametrize("family", DRAWN)
def test_saved_and_loaded_logits_are_the_same_bits(family, build, table, tmp_path):
    pruned, *_ = _pruned(build(family))
    save_model(pruned, _tokenizer(family), tmp_path / "m")
    again = _load(tmp_path / "m")
    assert torch.equal(logits(_aligned(again), _tokens(family)), logits(pruned, _tokens(family)))
    table[family] |= {"saved_and_loaded": "same bits"}


@pytest.mark.parametrize("family", DRAWN)
def test_channel_cut_is_exact_but_for_the_norms(family, build, table, tmp_path):
    """The dense model, gone channels at zero and its norms over the others alone, gives the same logits.

    So every scale, table of positions and residual sum is the one that the model was trained with.
    """
    model, ids = build(family), _tokens(family)
    pruned, plan, axes = _pruned(model, granularity="channel", ratio=0.3, protect_first=0)
    kept = plan.keep["hidden"]
    assert len(kept) == 16
    masked = mask_(copy.deepcopy(model), plan)
    for member in norm_members(masked, axes["hidden"].members):
        whole, small = (m.get_submodule(member.structure) for m in (masked, pruned))
        whole.forward = lambda x, small=small: torch.zeros_like(x).index_copy(-1, kept, small(x[..., kept]))
    assert torch.allclose(logits(pruned, ids), logits(masked, ids), atol=1e-4, rtol=1e-4)
    options = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(
        pruned.generate(ids, use_cache=True, **options), pruned.generate(ids, use_cache=False, **options)
    )
    save_model(pruned, None, tmp_path / "m")
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True).eval()
    assert torch.equal(logits(_aligned(again), ids), logits(pruned, ids))
    table[family] |= {"channel_cut": "exact, " + ("layout" if pruned.pruning_layout else "plain folder")}


@pytest.mark.parametrize("family", DRAWN)
def test_query_heads_go_alone_within_their_key_and_value_head(family, build, table, tmp_path):
    model, ids = build(family), _tokens(family)
    axes = discover(model, query_heads=True)
    whole = discover(model)["layers.1.attention"]
    mine = {n: a for n, a in axes.items() if a.layer == 1 and a.kind == "attention"}
    queries = model.config.num_attention_heads
    table[family] |= {"query_heads": f"{whole.n_groups} x {queries // whole.n_groups}"}
    if whole.n_groups == queries:  # nothing is shared: a head is a group either way
        assert list(mine) == ["layers.1.attention"]
        return
    assert len(mine) == whole.n_groups
    assert {a.n_groups for a in mine.values()} == {queries // whole.n_groups}
    plan = select(axes, random_scores(axes), ratio=0.4, protect_first=1)
    assert len({len(plan.keep[n]) for n in mine}) == 1 and len(plan.keep[next(iter(mine))]) < 3 + 3
    pruned, masked = prune_(copy.deepcopy(model), plan), mask_(copy.deepcopy(model), plan)
    assert (logits(pruned, ids) - logits(masked, ids)).abs().max() < 1e-4
    assert (logits(model, ids) - logits(masked, ids)).abs().max() > 1e-2
    options = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(
        pruned.generate(ids, use_cache=True, **options), pruned.generate(ids, use_cache=False, **options)
    )
    save_model(pruned, _tokenizer(family), tmp_path / "m")
    assert torch.equal(logits(_aligned(_load(tmp_path / "m")), ids), logits(pruned, ids))


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen2_moe", "deepseek_v3", "olmo2", "falcon-new", "gpt_bigcode", REMOTE]
)
def test_scores_come_from_one_pass(family, build):
    model = build(family)
    axes = discover(model)
    scores = estimate(model, axes.of_kind("attention", "mlp"), _tokens(family, 4, 8), criterion="element1")
    assert all(torch.isfinite(s).all() and s.min() >= 0 and s.max() > 0 for s in scores.values())
