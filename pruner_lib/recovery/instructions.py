"""Turn instructions into prompts, token ids and batches in a fixed order, for recovery.

Nothing here uses the global random state, so the batches of a killed run can be rebuilt.
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

IGNORED = -100  # label of a token that the loss ignores
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
KINDS = ("messages", "instruction", "text")  # the key of each kind of example; the first one found counts
Row = dict[str, list[int]]  # input_ids and labels of one example, of equal length


def encode(examples: Sequence[Mapping[str, Any]], tokenizer: Any, *, cutoff: int = 256) -> list[Row]:
    """Turn examples into token ids, with labels only on the response.

    The tokens of the prompt are those that don't change without the response. EOS ends examples that are not
    truncated. If special tokens end a prompt (ChatGLM's "[gMASK] <sop>"), the response follows them.

    Args:
        examples: dicts of one kind, or a `datasets.Dataset` of them: with `instruction`, `output` and
            optionally `input` (the Alpaca template); with `messages` and optionally `tools` (the tokenizer's
            chat template), learning the last message, the assistant's; or with `text`, learning all of it.
        tokenizer: adds its usual tokens at the start of a text (BOS); needs an EOS token.
        cutoff: tokens per example; longer examples are truncated.

    Returns: rows in the order of `examples`, without those whose response is truncated away (a warning).
    Raises:  ValueError: a key, the EOS token or the chat template is missing, or no response is left.
    Source:  the Alpaca template; post_training.py, `generate_and_tokenize_prompt`, train_on_inputs False.
        Differs: a token that spans prompt and response is labelled; examples without a label are dropped.
    """
    if getattr(tokenizer, "eos_token_id", None) is None:
        raise ValueError("the tokenizer has no EOS token to end a response; set tokenizer.eos_token")
    is_sequence = isinstance(examples, Iterable) and not isinstance(examples, str)
    examples = list(examples) if is_sequence else [examples]
    are_dicts = all(isinstance(row, Mapping) for row in examples)
    kinds = {next((kind for kind in KINDS if kind in row), "instruction") for row in examples if are_dicts}
    if len(kinds) != 1:
        found = f"{len(examples)} examples hold {sorted(kinds) or 'no dicts'}"
        expected = "dicts of one kind, with instruction, output and optionally input; or messages; or text"
        raise ValueError(f"{found}: give {expected}, as windows.instructions does; got {examples!r:.80}")
    parts = [_parts(number, example, tokenizer) for number, example in enumerate(examples)]
    special = kinds != {"messages"}  # a chat template already writes all special tokens
    prompt_ids = _token_ids([prompt for prompt, _ in parts], tokenizer, special)
    if hasattr(tokenizer, "prompt_end_ids"):  # these come between prompt and response
        answers = _token_ids([response for _, response in parts], tokenizer, False)
        whole_ids = [prompt + answer for prompt, answer in zip(prompt_ids, answers, strict=True)]
    else:
        whole_ids = _token_ids([prompt + response for prompt, response in parts], tokenizer, special)
    encoded, end = [], [tokenizer.eos_token_id] if special else []
    for prompt, whole in zip(prompt_ids, whole_ids, strict=True):
        ids = (whole + end)[:cutoff]
        n_prompt = len(commonprefix([prompt, ids]))
        encoded.append({"input_ids": ids, "labels": [IGNORED] * n_prompt + ids[n_prompt:]})
    # the first token is never predicted
    usable = [row for row in encoded if row["labels"][1:] and row["labels"][-1] != IGNORED]
    if not usable:
        found = f"{len(encoded)} examples (the shortest prompt has {min(map(len, prompt_ids))} tokens)"
        raise ValueError(f"cutoff={cutoff} tokens leave no response in any of {found}: raise the cutoff")
    if len(usable) < len(encoded):
        dropped = f"{len(encoded) - len(usable)} of {len(encoded)} examples"
        warnings.warn(f"{dropped} are dropped: no response in their first {cutoff} tokens", stacklevel=3)
    return usable


def batches(encoded: Sequence[Row], *, steps: int, batch_size: int, seed: int) -> list[list[Row]]:
    """Arrange examples in training order: `steps` lists of `batch_size`.

    Each epoch is shuffled independently. The order within a step does not change the result, so examples are
    sorted by length there, which leaves little padding in a micro-batch.
    """
    generator = np.random.default_rng(seed)
    epochs = -(-steps * batch_size // len(encoded))
    order = np.concatenate([generator.permutation(len(encoded)) for _ in range(epochs)])[: steps * batch_size]
    numbers = order.reshape(steps, batch_size)
    return [sorted((encoded[i] for i in step), key=lambda row: len(row["input_ids"])) for step in numbers]


def collate(rows: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    """Stack examples into `(batch, tokens)`, padding on the right with token `pad` to the longest."""
    fillings = {"input_ids": pad, "attention_mask": 0, "labels": IGNORED}
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {
        name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=filling)
        for name, filling in fillings.items()
    }


def _parts(number: int, example: Mapping[str, Any], tokenizer: Any) -> tuple[str, str]:
    """Return the prompt and the response of one example, as text."""
    if "messages" in example:
        return _chat(number, example["messages"], tokenizer, example.get("tools"))
    if "instruction" not in example and isinstance(example.get("text"), str):
        return "", example["text"]
    texts = {name: example.get(name) for name in ("instruction", "input", "output")}
    texts["input"] = texts["input"] or ""
    if missing := [name for name, text in texts.items() if not isinstance(text, str)]:
        found = f"no text under {' and '.join(missing)}, only {example!r:.80}"
        raise ValueError(f"Example {number} has {found}; give instruction, output and optionally input")
    template = PROMPT_WITH_INPUT if texts["input"] else PROMPT
    return template.format(**texts), example["output"]


def _chat(number: int, messages: Sequence[Mapping], tokenizer: Any, tools: Any) -> tuple[str, str]:
    """Return the prompt and the response of one chat, by the chat template; the model may call `tools`."""
    if not getattr(tokenizer, "chat_template", None):
        name = type(tokenizer).__name__
        raise ValueError(f"{name} has no chat template for messages: give rows with instruction and output")
    messages = list(messages) if isinstance(messages, Sequence) else [messages]
    roles = [turn.get("role") if isinstance(turn, Mapping) else type(turn).__name__ for turn in messages]
    if roles[-1:] != ["assistant"] or not isinstance(messages[-1].get("content"), str):
        expected = "the last should be the assistant's, with a text"
        raise ValueError(f"Example {number} has messages of {roles}; {expected}")
    try:
        render = partial(tokenizer.apply_chat_template, tokenize=False, tools=tools or None)
        start, whole = render(messages[:-1], add_generation_prompt=True), render(messages)
    except Exception as error:  # a template may raise anything
        refusal = f"Example {number} has messages of {roles}, which the chat template refuses"
        raise ValueError(f"{refusal} ({error}): change its messages, or remove it") from error
    if any(str(parts) in whole for turn in messages if isinstance(parts := turn.get("content"), list)):
        fault = "messages with lists of parts, which the chat template prints as Python lists"
        raise ValueError(f"Example {number} has {fault}: give each content as a text")
    prompt = commonprefix([start, whole])
    return prompt, whole.removeprefix(prompt)


def _token_ids(texts: list[str], tokenizer: Any, special: bool) -> list[list[int]]:
    require([str, ...], examples=texts)
    rows = tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
    if not special:
        return rows
    return [row[:-1] if row and row[-1] == tokenizer.eos_token_id else row for row in rows]  # some append EOS
