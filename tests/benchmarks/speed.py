"""Benchmark, part c: latency of dense and pruned models, reading a prompt and writing after it.

All models take turns within one process, so that a slow moment of the machine strikes all of them: the
speed-up is the median over rounds of dense time / pruned time in the same round. Ideal is what the share of
parameters that remain in the blocks would give. Reading a prompt ends as in generation, with the logits of
the last position; scores are L1 norms, since time does not depend on which groups go.

Benchmark, part d: tokens a second of the perplexity evaluation, beside the model's bare forward pass.

Both see the same batches, in turn within one process; the share is the median over rounds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruner_lib.evaluation.meters import in_turn, quartiles
from pruner_lib.evaluation.perplexity import automatic_batch, evaluating, perplexity_result, vocabulary_size
from pruner_lib.method.decoder import decoder_layers
from pruner_lib.method.discover import discover
from pruner_lib.method.groups import Axes, Plan
from pruner_lib.method.importance import estimate
from pruner_lib.method.select import select
from pruner_lib.models.load import load_model
from pruner_lib.models.prune import prune_
from tests.benchmarks.rows import Part

SHARES = (0.2, 0.5)  # of the parameters in the blocks that go
MULTIPLES = (1, 8, 64)  # to which the widths of the MLPs are rounded
DENSE = "dense"
PROMPT = 32  # tokens before those that are written


def latency_cases(options) -> list[dict[str, Any]]:
    """List the settings of the one case: all its rows come from one process."""
    shared = {"device": options.device, "rounds": options.rounds}
    return [{"model": options.model, "prefill": options.prefill, "new_tokens": options.new_tokens, **shared}]


def measure_latency(
    model: str, *, prefill: int, new_tokens: int, device: str, rounds: int
) -> list[dict[str, Any]]:
    """Time the dense model and its pruned forms in turn.

    Args:    prefill: tokens of the prompt that is read.    new_tokens: written after a short prompt.
    Returns: a row a model and phase ("prefill" or "decoding").
    """
    dense = load_model(model, device=device)[0]
    models, facts = _variants(dense)
    rows = []
    with _all_evaluating(list(models.values())):
        for phase, once, tokens in (
            ("prefill", _reader(dense, prefill), prefill),
            ("decoding", _writer(dense, new_tokens), new_tokens),
        ):
            calls = {name: partial(once, each) for name, each in models.items()}
            seconds = in_turn(calls, rounds, device)
            for name in models:
                rows.append(
                    {"phase": phase, **facts[name], **_summary(seconds[name], seconds[DENSE], tokens)}
                )
    for row in rows:
        row["of_ideal"] = round(row["speedup"] / row["ideal"], 3)
    return rows


def _variants(dense: nn.Module) -> tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]:
    """Prune copies of a model; name -> model, name -> what is known of it before any timing."""
    axes = discover(dense)
    scores = estimate(dense, axes, criterion="l1")
    total, blocks = axes.n_parameters, sum(axes.layer_parameters)
    models = {DENSE: dense}
    whole = {axis.n_groups for axis in axes.values() if axis.kind == "mlp"}
    facts = {DENSE: {"removed": 0.0, "multiple_of": 1} | _sizes(dense, whole, blocks, total)}
    for share in SHARES:
        exact = select(axes, scores, ratio=share * blocks / total, target="parameters")
        for multiple in MULTIPLES:
            plan = _rounded(exact, axes, scores, multiple)
            name = f"{share:g}, {multiple}"
            models[name] = prune_(copy.deepcopy(dense), plan, axes=axes)
            widths = {len(kept) for axis, kept in plan.keep.items() if axes[axis].kind == "mlp"}
            known = _sizes(models[name], widths, blocks, total)
            facts[name] = {"removed": share, "multiple_of": multiple} | known
    return models, facts


def _rounded(plan: Plan, axes: Axes, scores: dict[str, torch.Tensor], multiple_of: int) -> Plan:
    """The plan with the widths of its MLPs rounded, all layers alike: its share is met in steps of theirs."""
    if multiple_of == 1:
        return plan
    inner = axes.of_kind("mlp")
    width = next(iter(inner))
    ratio = 1 - len(plan.keep[width]) / plan.n_groups[width]
    again = select(inner, scores, ratio=ratio, multiple_of=multiple_of)
    return Plan(plan.keep | again.keep, plan.n_groups, plan.settings | {"multiple_of": multiple_of})


def _sizes(model: nn.Module, widths: set[int], dense_blocks: int, dense_total: int) -> dict[str, Any]:
    blocks = sum(p.numel() for p in decoder_layers(model)[1].parameters())
    total = sum(p.numel() for p in model.parameters())
    return {
        "mlp_widths": " ".join(str(width) for width in sorted(widths)),
        "parameters": total,
        "blocks_left": round(blocks / dense_blocks, 4),
        "ideal": round(dense_blocks / blocks, 3),
        "ideal_all": round(dense_total / total, 3),
    }


def _reader(model: nn.Module, tokens: int) -> Callable[[nn.Module], object]:
    """Read a prompt into a fresh cache, up to the logits of its last position."""
    ids = _ids(model, tokens)
    return lambda each: each(input_ids=ids, use_cache=True, logits_to_keep=1)


def _writer(model: nn.Module, new_tokens: int) -> Callable[[nn.Module], object]:
    """Write greedily after a short prompt, with the cache; the end token does not end it."""
    ids = _ids(model, PROMPT)
    counts = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    mask = torch.ones_like(ids)
    return lambda each: each.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **counts
    )


def _ids(model: nn.Module, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    device = model.get_input_embeddings().weight.device
    return torch.randint(vocabulary_size(model), (1, tokens), generator=generator).to(device)


def _summary(seconds: Sequence[float], dense: Sequence[float], tokens: int) -> dict[str, Any]:
    """Quartiles of the time and of the speed-up round by round."""
    low, middle, high = quartiles(seconds)
    slow, usual, fast = quartiles([d / s for d, s in zip(dense, seconds, strict=True)])
    return {
        "tokens": tokens,
        "seconds": round(middle, 5),
        "seconds_q1": round(low, 5),
        "seconds_q3": round(high, 5),
        "tokens_per_s": round(tokens / middle, 2),
        "speedup": round(usual, 3),
        "speedup_q1": round(slow, 3),
        "speedup_q3": round(fast, 3),
    }


def _all_evaluating(models: Sequence[nn.Module]) -> ExitStack:
    stack = ExitStack()
    for model in models:
        stack.enter_context(evaluating(model))
    return stack


LATENCY = Part(
    "latency",
    "How much of the ideal speed-up do pruned models reach, and what do hardware-friendly widths give?",
    "tests.benchmarks.speed:measure_latency",
    (
        "pruner_lib.method.prune",
        "pruner_lib.method.select",
        "pruner_lib.evaluation.meters",
        "tests.benchmarks.speed",
    ),
    latency_cases,
)


LENGTHS = (128, 1024)  # tokens a window: the paper's, and a long one


def evaluation_cases(options) -> list[dict[str, Any]]:
    """List the settings: one case for each length of a window and type of the weights."""
    shared = {"model": options.model, "device": options.device, "rounds": options.rounds}
    total = options.eval_tokens
    return [
        {"window": window, "windows": max(1, total // window), "dtype": dtype, **shared}
        for dtype in ("float32", "bfloat16")
        for window in LENGTHS
        if window <= total
    ]


def measure_evaluation(
    model: str, *, window: int, windows: int, dtype: str, device: str, rounds: int
) -> dict[str, Any]:
    """Time both on random tokens.

    Args:    window: tokens a window.    windows: how many.
    Returns: a row: tokens a second of each at the median, and the share with its quartiles.
    """
    subject = load_model(model, device=device, dtype=getattr(torch, dtype))[0]
    vocabulary = vocabulary_size(subject)
    ids = torch.randint(vocabulary, (windows, window), generator=torch.Generator().manual_seed(0))
    place = subject.get_input_embeddings().weight.device
    batch = automatic_batch(window, vocabulary, place.type)
    calls = {
        "bare": lambda: _bare(subject, ids, batch),
        "perplexity": lambda: perplexity_result(subject, ids, batch_size=batch),
    }
    times = in_turn(calls, rounds, place)
    shares = [bare / ours for bare, ours in zip(times["bare"], times["perplexity"], strict=True)]
    low, share, high = quartiles(shares)
    tokens = windows * window
    return {
        "batch": batch,
        "bare_tokens_per_s": round(tokens / quartiles(times["bare"])[1], 1),
        "tokens_per_s": round(tokens / quartiles(times["perplexity"])[1], 1),
        "share": round(share, 3),
        "share_q1": round(low, 3),
        "share_q3": round(high, 3),
    }


def _bare(model: nn.Module, ids: Tensor, batch: int) -> None:
    """Run the forward pass over all windows, and keep nothing."""
    place = model.get_input_embeddings().weight.device
    with evaluating(model):
        for part in ids.split(batch):
            model(input_ids=part.to(place), use_cache=False)


EVALUATION = Part(
    "evaluation",
    "What does measuring perplexity cost beside the forward pass?",
    "tests.benchmarks.speed:measure_evaluation",
    ("pruner_lib.evaluation.perplexity", "pruner_lib.evaluation.meters", "tests.benchmarks.speed"),
    evaluation_cases,
)
