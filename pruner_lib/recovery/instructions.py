"""The text of recovery: instructions become prompts, token ids and batches in a fixed order.

Nothing here draws from the global random state, so the batches of a run can be rebuilt after a kill.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os.path import commonprefix
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from pruner_lib.method.checks import require

IGNORED = -100  # label of a token that the loss leaves out
PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
KINDS = ("messages", "instruction", "text")  # keys of the three kinds of examples; the first counts
ANSWERED = ("instruction", "output")
Row = dict[str, list[int]]  # input_ids and labels of one example, equally long


def encode(examples: Sequence[Mapping[str, Any]], tokenizer: Any, *, cutoff: int = 256) -> list[Row]:
    """Turn examples into token ids, with labels on the response alone.

    The prompt's tokens are those that stay the same without the response. EOS ends what is not cut off. Where
    special tokens end a prompt (ChatGLM's "[gMASK] <sop>"), the response stands behind them.

    Args:
        examples: dicts of one kind, or a `datasets.Dataset` of them: with `instruction`, `output` and, if
            there is one, `input` (the Alpaca template); with `messages`, whose last is the assistant's and
            is learned, and perhaps `tools` (the tokenizer's chat template); or with `text`, which is learned.
        tokenizer: adds what it adds at the start of a text (BOS); needs an EOS token.
        cutoff: tokens; the rest of a longer example is dropped.

    Returns: rows in the order of `examples`, without those whose response is cut off whole (a warning).
    Raises:  ValueError: a key, the EOS token or the chat template is missing, or no response is left.
    Source:  the Alpaca template; post_training.py, `generate_and_tokenize_prompt`, train_on_inputs False.
        Differs: a token that spans prompt and response is labelled; examples without a label are left out.
    """
    if getattr(tokenizer, "eos_token_id", None) is None:
        raise ValueError("The tokenizer has no EOS token, which ends a response: set tokenizer.eos_token.")
    are_many = isinstance(examples, Iterable) and not isinstance(examples, str)
    examples = list(examples) if are_many else [examples]
    are_dicts = all(isinstance(one, Mapping) for one in examples)
    kinds = {next((kind for kind in KINDS if kind in one), "instruction") for one in examples if are_dicts}
    if len(kinds) != 1:
        came = f"{len(examples)} examples hold {sorted(kinds) or 'no dicts'}"
        wanted = "dicts of one kind, with instruction, output and, optionally, input; or messages; or text"
        raise ValueError(f"{came}: give {wanted}, such as windows.instructions(path); got {examples!r:.80}")
    parts = [_parts(number, example, tokenizer) for number, example in enumerate(examples)]
    special = kinds != {"messages"}  # a chat template writes all special tokens itself
    prompt_ids = _token_ids([prompt for prompt, _ in parts], tokenizer, special)
    if hasattr(tokenizer, "prompt_end_ids"):  # they stand between prompt and response
        answers = _token_ids([response for _, response in parts], tokenizer, False)
        whole_ids = [prompt + answer for prompt, answer in zip(prompt_ids, answers, strict=True)]
    else:
        whole_ids = _token_ids([prompt + response for prompt, response in parts], tokenizer, special)
    encoded, end = [], [tokenizer.eos_token_id] if special else []
    for prompt, whole in zip(prompt_ids, whole_ids, strict=True):
        ids = (whole + end)[:cutoff]
        n_prompt = len(commonprefix([prompt, ids]))
        encoded.append({"input_ids": ids, "labels": [IGNORED] * n_prompt + ids[n_prompt:]})
    usable = [row for row in encoded if row["labels"][1:] and row["labels"][-1] != IGNORED]  # 1st: no guess
    if not usable:
        found = f"{len(encoded)} examples (the shortest prompt has {min(map(len, prompt_ids))} tokens)"
        raise ValueError(f"cutoff={cutoff} tokens leave no response in any of {found}: raise the cutoff.")
    if len(usable) < len(encoded):
        left_out = f"{len(encoded) - len(usable)} of {len(encoded)} examples"
        warnings.warn(f"{left_out} are left out: no response in their first {cutoff} tokens.", stacklevel=3)
    return usable


def batches(encoded: Sequence[Row], *, steps: int, batch_size: int, seed: int) -> list[list[Row]]:
    """Put examples in the order of training: `steps` lists of `batch_size`.

    Pass after pass over the data, each shuffled anew. A step adds up its examples, so that their order inside
    it is free: they are sorted by length, so that a micro-batch has little padding.
    """
    generator = np.random.default_rng(seed)
    passes = -(-steps * batch_size // len(encoded))
    order = np.concatenate([generator.permutation(len(encoded)) for _ in range(passes)])[: steps * batch_size]
    rows = order.reshape(steps, batch_size)
    return [sorted((encoded[i] for i in row), key=lambda one: len(one["input_ids"])) for row in rows]


def collate(rows: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    """Stack examples into `(batch, tokens)`, padded on the right with token `pad` to the longest."""
    fillings = {"input_ids": pad, "attention_mask": 0, "labels": IGNORED}
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {
        name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=filling)
        for name, filling in fillings.items()
    }


def _parts(number: int, example: Mapping[str, Any], tokenizer: Any) -> tuple[str, str]:
    """Prompt and response of one example, as text."""
    if "messages" in example:
        return _chat(number, example["messages"], tokenizer, example.get("tools"))
    if "instruction" not in example and isinstance(example.get("text"), str):
        return "", example["text"]
    texts = {"input": example.get("input") or ""} | {name: example.get(name) for name in ANSWERED}
    if missing := [name for name, one in texts.items() if not isinstance(one, str)]:
        found = f"no text under {' and '.join(missing)}, only {example!r:.80}"
        raise ValueError(f"Example {number} has {found}; give instruction, output and, optionally, input.")
    form = PROMPT_WITH_INPUT if texts["input"] else PROMPT
    return form.format(**texts), example["output"]


def _chat(number: int, messages: Sequence[Mapping], tokenizer: Any, tools: Any) -> tuple[str, str]:
    """Prompt and response of one chat, as its template writes it for a model that may call `tools`."""
    if not getattr(tokenizer, "chat_template", None):
        name = type(tokenizer).__name__
        raise ValueError(f"{name} has no chat template for messages: give rows with instruction and output.")
    messages = list(messages) if isinstance(messages, Sequence) else [messages]
    roles = [one.get("role") if isinstance(one, Mapping) else type(one).__name__ for one in messages]
    if roles[-1:] != ["assistant"] or not isinstance(messages[-1].get("content"), str):
        wanted = "the last should be the assistant's, with a text"
        raise ValueError(f"Example {number} has messages of {roles}; {wanted}.")
    try:
        form = partial(tokenizer.apply_chat_template, tokenize=False, tools=tools or None)
        given, whole = form(messages[:-1], add_generation_prompt=True), form(messages)
    except Exception as error:  # what a template raises is its own
        said = f"Example {number} has messages of {roles}, which the chat template refuses"
        raise ValueError(f"{said} ({error}): change its messages, or leave it out.") from error
    if any(str(parts) in whole for one in messages if isinstance(parts := one.get("content"), list)):
        said = "messages with lists of parts, which the chat template shows as Python does"
        raise ValueError(f"Example {number} has {said}: give each content as a text.")
    prompt = commonprefix([given, whole])
    return prompt, whole.removeprefix(prompt)


def _token_ids(texts: list[str], tokenizer: Any, special: bool) -> list[list[int]]:
    require([str, ...], examples=texts)
    rows = tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
    if not special:
        return rows
    return [row[:-1] if row and row[-1] == tokenizer.eos_token_id else row for row in rows]  # some append EOS
