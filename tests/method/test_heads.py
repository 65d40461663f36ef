"""Every family at several head counts: a key and value head takes its queries, and the cut is the mask."""

from __future__ import annotations

import copy

import pytest
from families import (
    DIFFERENT,
    DRAWN,
    FAMILIES,
    HYBRIDS,
    MORE_FAMILIES,
    build,
    logits,
    random_scores,
    tokens,
)

from pruner_lib import discover, mask_, prune_, select

pytestmark = [pytest.mark.slow, pytest.mark.families]
ALL = FAMILIES | MORE_FAMILIES | HYBRIDS
SHAPES = {  # query heads, key and value heads, hidden size
    "each its own": (4, 4, 32),
    "four share one": (8, 2, 32),
    "two share one": (4, 2, 32),
    "all share one": (4, 1, 32),
    "odd": (9, 3, 36),
    "as many heads as channels in one": (4, 2, 16),
    "the same in all sizes": (4, 4, 16),
}
ONE = ("gpt_bigcode", "falcon-mqa")  # keys and values of one head, whatever their config says
OWN = ("biogpt", "deepseek_v2", "deepseek_v3", "gpt_neox", "persimmon")  # of as many as there are queries
HEADS = ("num_attention_heads", "n_head", "num_heads")  # names in configs
SHARED = ("num_key_value_heads", "num_kv_heads")
INNER = ("intermediate_size", "ffn_dim")


def settings(family: str, heads: int, shared: int, hidden: int) -> tuple[dict[str, int], int]:
    """What to change in a family's config, and how many groups of heads a layer has then."""
    known = ALL[family][1]
    changes = {name: heads for name in HEADS if name in known}
    changes |= {name: hidden for name in ("hidden_size", "n_embd", "word_embed_proj_dim") if name in known}
    changes |= {"head_dim": hidden // heads} if "head_dim" in known else {}
    changes |= {name: heads if family in OWN else shared for name in SHARED if name in known}
    changes |= {name: hidden for name in INNER if name in known and hidden == 16}
    groups = shared if any(name in known for name in SHARED) and family not in OWN else heads
    return changes, 1 if family in ONE else groups


def shapes(family: str) -> list[str]:
    """Every shape where modules or dataflow differ in kind; else one that shares otherwise than the model of
    test_architectures, whose six heads share two or have each its own.

    A shape that gives a family the config of another is that one: where heads share nothing, "two share one"
    is "each its own".
    """
    names = SHAPES
    if family not in (*DIFFERENT, *HYBRIDS):
        names = ["odd" if DRAWN[family]["attention"][0] == 6 else "each its own"]
    return list({repr(settings(family, *SHAPES[name])): name for name in names}.values())


CASES = [(family, name) for family in ALL for name in shapes(family)]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_heads_are_cut_with_their_queries_at_any_ratio(family, name):
    changes, groups = settings(family, *SHAPES[name])
    model = build(family, **changes)
    axes = discover(model)
    layers = [name for name, axis in axes.items() if axis.kind == "attention" and name.endswith(".attention")]
    assert layers and {axes[name].n_groups for name in layers} == {groups}
    plan = select(axes, random_scores(axes), ratio=0.5, protect_first=1)
    masked = logits(mask_(copy.deepcopy(model), plan, axes=axes), tokens())
    cut = logits(prune_(copy.deepcopy(model), plan, axes=axes), tokens())
    assert (cut - masked).abs().max() < 1e-4
    assert (logits(model, tokens()) - masked).abs().max() > 1e-2
