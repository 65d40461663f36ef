"""Benchmark: latency of dense and pruned models, for prefill and decoding.

    python -m tests.benchmarks.speed [--set model=smollm2-135m rounds=7] [--again]

All models run alternately in one process, so that a slow moment of the machine affects all of them: the
speed-up is the median over rounds of dense time / pruned time in the same round. The ideal speed-up follows
from the share of parameters that remain in the blocks. Prefill computes the logits of the last position only,
as in generation. The criterion is the L1 norm, since time does not depend on which groups are removed.
"""

from __future__ import annotations

import copy
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from pruner_lib.evaluation.meters import in_turn, quartiles
from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.discover import discover
from pruner_lib.method.groups import Plan
from pruner_lib.method.importance import estimate
from pruner_lib.method.offload import evaluating
from pruner_lib.method.select import select
from pruner_lib.models.load import load_model
from pruner_lib.models.prune import prune_
from tests.benchmarks.rows import DEVICE, Cases, run

SHARES = (0.2, 0.5)  # of the blocks' parameters that are removed
MULTIPLES = (1, 8, 64)  # to which the widths of the MLPs are rounded
DENSE = (0.0, 1)  # share removed, multiple
PROMPT = 32  # tokens before the generated ones


def cases() -> Cases:
    """List the settings of the only case, whose rows all come from one process."""
    return [{"model": "smollm2-135m", "prefill": 512, "new_tokens": 32, "device": DEVICE, "rounds": 7}]


def measure(model: str, *, prefill: int, new_tokens: int, device: str, rounds: int) -> list[dict[str, Any]]:
    """Time the dense model and its pruned forms alternately.

    Args:    prefill: tokens of the prompt.    new_tokens: number of tokens generated after a short prompt.
    Returns: one row per model and phase ("prefill" or "decoding").
    """
    models = pruned_forms(load_model(model, device=device)[0])
    generator = torch.Generator().manual_seed(0)
    vocabulary = models[DENSE].get_input_embeddings().num_embeddings
    prompt = torch.randint(vocabulary, (1, prefill), generator=generator).to(device)
    start = prompt[:, :PROMPT]
    writing = {
        "min_new_tokens": new_tokens,
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }
    writing["attention_mask"] = torch.ones_like(start)
    phases = {
        "prefill": (lambda each: each(input_ids=prompt, use_cache=True, logits_to_keep=1), prefill),
        "decoding": (lambda each: each.generate(input_ids=start, **writing), new_tokens),
    }
    rows = []
    with ExitStack() as stack:
        for each in models.values():
            stack.enter_context(evaluating(each))
        for phase, (once, tokens) in phases.items():
            times = in_turn({key: partial(once, each) for key, each in models.items()}, rounds, device)
            for key, each in models.items():
                row = {"phase": phase, "removed": key[0], "multiple_of": key[1]} | sizes(each, models[DENSE])
                low, middle, high = quartiles(times[key])
                ratios = [dense / pruned for dense, pruned in zip(times[DENSE], times[key], strict=True)]
                slow, usual, fast = (round(ratio, 3) for ratio in quartiles(ratios))
                row |= {"tokens": tokens, "seconds": round(middle, 5), "seconds_q1": round(low, 5)}
                row |= {"seconds_q3": round(high, 5), "tokens_per_s": round(tokens / middle, 2)}
                row |= {"speedup": usual, "speedup_q1": slow, "speedup_q3": fast}
                rows.append(row | {"of_ideal": round(usual / row["ideal"], 3)})
    return rows


def pruned_forms(dense: nn.Module) -> dict[tuple[float, int], nn.Module]:
    """Prune copies of a model: (share removed from the blocks, multiple of the MLP widths) -> model."""
    axes = discover(dense)
    scores = estimate(dense, axes, criterion="l1")
    share_of_blocks = sum(axes.layer_parameters) / axes.n_parameters
    inner = axes.of_kind("mlp")
    width = next(iter(inner))
    models = {DENSE: dense}
    for share in SHARES:
        exact = select(axes, scores, ratio=share * share_of_blocks, target="parameters")
        ratio = 1 - len(exact.keep[width]) / exact.n_groups[width]
        for multiple in MULTIPLES:
            keep = select(inner, scores, ratio=ratio, multiple_of=multiple).keep if multiple > 1 else {}
            plan = Plan({**exact.keep, **keep}, exact.n_groups, exact.settings)
            models[share, multiple] = prune_(copy.deepcopy(dense), plan, axes=axes)
    return models


def sizes(model: nn.Module, dense: nn.Module) -> dict[str, Any]:
    """Return the widths of the MLPs, the number of parameters, and the ideal speed-ups."""
    blocks, all_blocks = (decoder_layers(each)[1] for each in (model, dense))
    left, total, dense_total = (sum(p.numel() for p in each.parameters()) for each in (blocks, model, dense))
    whole = sum(p.numel() for p in all_blocks.parameters())
    widths = {axis.n_groups for axis in discover(model).of_kind("mlp").values()}
    return {
        "mlp_widths": " ".join(str(width) for width in sorted(widths)),
        "parameters": total,
        "blocks_left": round(left / whole, 4),
        "ideal": round(whole / left, 3),
        "ideal_all": round(dense_total / total, 3),
    }


if __name__ == "__main__":
    sys.exit(run("speed", cases()))
