"""Measure perplexity and generate text (paper, section 4.1 and appendix D).

Models and data are loaded elsewhere (`models`, `data`); `zero_shot` evaluates multiple-choice questions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from pruner_lib.data.windows import adds_bos
from pruner_lib.evaluation.meters import in_fitting_batches
from pruner_lib.method.checks import require
from pruner_lib.method.decoder import check_reads
from pruner_lib.method.offload import evaluating, input_device
from pruner_lib.method.options import check_ids

CPU_BATCH_TOKENS = 512  # per forward pass; more is no faster on a CPU
GPU_BATCH_TOKENS = 8192
LOGITS_MB = 512  # limit for the logits of one batch, MiB
CHUNK_MB = {"cpu": 4, "cuda": 256}  # float32 logits whose log-probabilities are computed at a time, MiB

PROMPTS = (
    "The reason people look for a purpose in life is",
    "Gravity, in simple words, is",
    "Starting a small vegetable garden takes five steps:\n1.",
    "Review: The soup was cold.\nMood: bad\n\nReview: We laughed all evening.\nMood: good\n\n"
    "Review: I would gladly come again.\nMood:",
    "English: good morning\nFrench: bonjour\n\nEnglish: thank you\nFrench: merci\n\nEnglish: cheese\nFrench:",
)
SAMPLING = {"do_sample": True, "top_k": 50, "top_p": 0.95, "temperature": 1.0}  # as in the paper's code
REPETITION_N = 4  # length of the n-grams whose repetition is counted
DISTINCT_N = 2  # length of the n-grams whose variety is counted


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a model on windows of text, with the NLL of each window for paired statistics."""

    nll: np.ndarray  # (windows,) float64: mean negative log-likelihood of each window, nats per token
    n_tokens: int  # predicted positions: windows x (tokens - 1)

    @property
    def value(self) -> float:
        """The exponential of the mean NLL."""
        return math.exp(self.nll.mean())

    @property
    def stderr(self) -> float:
        """Standard error of the value over windows (delta method); nan for one window."""
        n = len(self.nll)
        return self.value * self.nll.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan


@dataclass(frozen=True)
class Sample:
    """One generated continuation."""

    prompt: str
    text: str  # without the prompt
    repetition_rate: float  # share of 4-grams of tokens that occurred earlier in the text, in [0, 1]
    distinct: float  # share of distinct 2-grams among all 2-grams of tokens, in [0, 1]


def automatic_batch(tokens: int, vocabulary: int, device: str) -> int:
    """Choose the number of windows per forward pass: enough to be fast, few enough to limit the logits."""
    enough = CPU_BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS
    fitting = LOGITS_MB * 2**20 // (4 * vocabulary)  # rows of float32 logits
    return max(1, min(enough, fitting) // tokens)


def chunk_rows(vocabulary: int, device: str) -> int:
    """Choose the number of positions per chunk of log-probabilities; a CPU's caches hold one chunk."""
    return max(1, int(CHUNK_MB.get(device, CHUNK_MB["cuda"]) * 2**20) // (4 * vocabulary))


def window_nll(logits: Tensor, ids: Tensor) -> Tensor:
    """Average -log p(next token) over one window, in float32 and in chunks.

    Args:    logits: `(tokens, vocabulary)`, any float type.    ids: `(tokens,)` int64.
    Returns: float64 scalar, nats per token, over the tokens - 1 predicted positions.
    """
    step = chunk_rows(logits.shape[-1], logits.device.type)
    parts = zip(logits[:-1].split(step), ids[1:].split(step), strict=True)
    losses = [F.cross_entropy(part.float(), next_ids, reduction="none") for part, next_ids in parts]
    return torch.stack([loss.double().sum() for loss in losses]).sum() / (len(ids) - 1)


def perplexity_result(model: nn.Module, ids: Tensor, *, batch_size: int | None = None) -> Perplexity:
    """Measure the perplexity of a model on non-overlapping windows.

    PPL = exp(mean over windows and positions t >= 1 of -log p(x_t | x_0 .. x_{t-1})), within each window.

    Args:    ids: `(windows, tokens)` int64.    batch_size: windows per forward pass; None chooses by device
             and memory. If memory runs out, it is halved, with a warning.
    Raises:  ValueError: ids have the wrong type, shape or range, logits are NaN or infinite, or there is too
             little memory for a single window.
    Source:  paper, section 4.1 (windows of 128 tokens are its code's default). No difference known.
    """
    check_ids(model, ids, "token ids")
    require("1.. or None", batch_size=batch_size)
    device, vocabulary = input_device(model), model.get_input_embeddings().weight.shape[0]
    batch_size = batch_size or automatic_batch(ids.shape[1], vocabulary, device.type)
    nll: list[Tensor] = []

    def measure(size: int) -> None:
        while len(nll) < len(ids):  # continues here after running out of memory
            batch = ids[len(nll) : len(nll) + size].to(device)
            logits = model(input_ids=batch, use_cache=False).logits  # (batch, tokens, vocabulary)
            # the logits of a distributed model may be on another device than its ids
            pairs = zip(logits, batch.to(logits.device), strict=True)
            nll.extend([window_nll(window, row) for window, row in pairs])

    with evaluating(model):
        in_fitting_batches(measure, min(batch_size, len(ids)), "perplexity")
    values = torch.stack(nll).cpu().numpy()
    if (bad := np.flatnonzero(~np.isfinite(values))).size:
        message = f"window {bad[0]} has a loss of {values[bad[0]]}: the model gives NaN or infinite logits"
        raise ValueError(f"{message}; check its weights, or evaluate in float32")
    return Perplexity(values, ids.shape[0] * (ids.shape[1] - 1))


def perplexity(model: nn.Module, ids: Tensor, *, batch_size: int | None = None) -> float:
    """Measure perplexity as one number; see `perplexity_result`, which also keeps each window's NLL."""
    return perplexity_result(model, ids, batch_size=batch_size).value


def repetition_rate(tokens: Sequence[int], n: int = REPETITION_N) -> float:
    """Compute how repetitive a text is: 1 - (distinct n-grams) / (n-grams); 0 if there is no n-gram.

    Args:    tokens: ids or words of one text, in order.    n: length of an n-gram.
    Returns: in [0, 1); 0 if no n-gram occurs twice.
    """
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _until_end(tokens: list[int], ends: list[int] | int | None) -> list[int]:
    """Drop the padding after the first end token."""
    ends = ends if isinstance(ends, list) else [ends]
    return tokens[: next((i for i, token in enumerate(tokens, 1) if token in ends), len(tokens))]


def generate_samples(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str] = PROMPTS,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    draws: int = 1,
    **sampling: Any,
) -> list[Sample]:
    """Continue each prompt with a separate seed, so that its text does not depend on the other prompts.

    Args:    prompts: texts; BOS comes first if the tokenizer adds it.    max_new_tokens: limit per text.
             seed: prompt i uses seed + i.    draws: texts per prompt.    sampling: arguments of
             `model.generate` that override SAMPLING. The model's own generation settings are not used.
    Returns: the samples in the order of the prompts, with those of one prompt next to each other.
    Raises:  ValueError: no prompt or an empty one, a number below 1, or `check_reads` or generate refuses.
    Source:  paper, appendix D; its code samples with the same three settings. Differs: other prompts; the
             length counts only new tokens, in the paper's code also those of the prompt.
    """
    require(nn.Module, model=model)
    require(PreTrainedTokenizerBase, tokenizer=tokenizer)
    require([str], prompts=prompts)
    require("1..", max_new_tokens=max_new_tokens, draws=draws)
    require("0..", seed=seed)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    settings = {"max_new_tokens": max_new_tokens, "num_return_sequences": draws, "pad_token_id": pad}
    settings |= SAMPLING | sampling
    require(bool, do_sample=settings["do_sample"])
    require("(0, 1] or None", top_p=settings["top_p"])
    texts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    if not all(texts):
        raise ValueError(f"prompt {texts.index([])} of {[*prompts]} has no token; none of them may be empty")
    first = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    texts = [first + ids + getattr(tokenizer, "prompt_end_ids", []) for ids in texts]
    check_reads(model, max(map(len, texts)) + settings["max_new_tokens"], max(pad or 0, *map(max, texts)))
    config, device, samples = model.generation_config, input_device(model), []
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    kept = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "use_cache")}
    # the global generator is not changed, and the model's generation_config only within the block
    with forked, evaluating(model), patch.dict(vars(config), vars(GenerationConfig(**kept)), clear=True):
        for number, (prompt, start) in enumerate(zip(prompts, texts, strict=True)):
            torch.manual_seed(seed + number)
            ids = torch.tensor([start], device=device)
            try:
                output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
                rows = output[:, len(start) :].tolist()
            except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
                message = " ".join(f"model.generate can't take {sampling!r:.99}: {error}".split())
                raise ValueError(f"{message}; check these arguments, or the model's weights") from error
            for row in rows:
                new = _until_end(row, config.eos_token_id)
                text = tokenizer.decode(new, skip_special_tokens=True)
                rates = repetition_rate(new), 1 - repetition_rate(new, DISTINCT_N)
                samples.append(Sample(prompt, text, *rates))
    return samples
