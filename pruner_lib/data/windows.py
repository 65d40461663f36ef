"""The data of the study: token ids to calibrate on and to measure with, and instructions.

Names of texts and instructions, and where they are looked up, are in `corpora`. This module tokenises, cuts
and draws; it runs no model.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from pruner_lib.data.corpora import Text, describe, read_corpus, read_instructions
from pruner_lib.method.checks import require

Bos = bool | Literal["window"]


def text_ids(
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 128,
    windows: int | None = None,
    seed: int | None = None,
    bos: Bos = False,
    separator: str = "\n\n",
) -> torch.Tensor:
    """Cut a text into windows to measure on: without a seed as the paper does, with one as a sample.

    Neighbouring windows of one article are alike, so an interval over them is too narrow. With a seed each
    window is a random piece of another article, and articles are what a bootstrap may resample.

    Args:
        text: one of `corpora.CORPORA`, a NAME.txt of the local data directory, the path of a file, a list of
            documents, or a `datasets.Dataset` with a column "text".
        length: tokens per window.    windows: how many; None takes all.
        seed: None joins all documents and cuts from the beginning, without overlap; a remainder is dropped.
            A number draws the documents, and from each that is long enough one window at a random place;
            more windows of the same seed begin with the fewer ones.
        bos: True puts one beginning-of-sequence token before the whole text, as the paper's code does for
            LLaMA (with a seed: before each document); "window" puts one before each window, where it counts
            as a token, as Gemma and Llama 3 need. For ChatGLM-6B it is its empty prompt "[gMASK] <sop>";
            where the tokenizer has none, texts begin without it, with a warning.
        separator: ends a document in a file; "\\n\\n": blank lines.
    Returns: `(windows, length)` int64.
    Raises:  ValueError: unknown text, a size below one, or fewer windows in the text than wanted.
    Source:  paper 4.1, reference `LLMPruner/datasets/ppl_dataset.py`. Differs: a window is never cut short.
    """
    require("1.. or None", windows=windows)
    how = {"length": length, "seed": seed, "bos": bos, "separator": separator}
    return _cut(text, tokenizer, windows, "windows", is_joined=seed is None, **how)


def calibration_ids(
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int = 10,
    length: int = 64,
    seed: int | None = None,
    bos: Bos = False,
    separator: str = "\n\n",
) -> torch.Tensor:
    """Take samples of a fixed length from documents that are long enough, one from a document.

    Args:
        text, separator: as in `text_ids`.
        seed: None takes the first documents, each from its start; a number draws documents and crops.
        bos: as in `text_ids`: True before each document, "window" before each sample; it counts as a token.
    Returns: `(samples, length)` int64.
    Raises:  ValueError: unknown text, a size below one, or too few documents of that length.
    Source:  paper 4.1, reference `LLMPruner/datasets/example_samples.py`. Differs: no document
        is drawn twice; BOS is an argument.
    """
    require("1..", samples=samples)
    how = {"length": length, "seed": seed, "bos": bos, "separator": separator}
    return _cut(text, tokenizer, samples, "samples", **how)


def _cut(
    text: Text, tokenizer: PreTrainedTokenizerBase, n: int | None, what: str, *, is_joined: bool = False,
    length: int, seed: int | None, bos: Bos, separator: str,
) -> torch.Tensor:  # fmt: skip
    """Cut pieces from a text: `(n, length)` int64; n None: as many as there are.

    Args:    is_joined: one piece after the other from all documents, joined; else one from each document that
             is long enough, of its start or, with a seed, drawn.    what: the pieces are called.
    """
    if not isinstance(text, (str, Path, Iterable)):
        raise ValueError(f"text must be a name, a path or a list of documents, got {text!r}")
    text = list(text) if isinstance(text, Iterator) else text
    require(PreTrainedTokenizerBase, tokenizer=tokenizer)
    require("1..", length=length)
    require("0.. or None", seed=seed)
    if not separator or not isinstance(separator, str):
        raise ValueError(f"separator must be a text of at least one character, got {separator!r}")
    first, before = _first_tokens(tokenizer, bos, length)
    corpus, own, rng = read_corpus(text, separator), length - len(before), np.random.default_rng(seed)
    documents = [corpus.separator.join(corpus.documents)] if is_joined else corpus.documents
    rows: list[list[int]] = []
    for i in range(len(documents)) if seed is None else rng.permutation(len(documents)):
        require(str, **{"the text" if is_joined else f"document {i}": documents[i]})
        ids = first + tokenizer(documents[i], add_special_tokens=False, verbose=False)["input_ids"]
        last = len(ids) - own  # where a piece can start
        if is_joined or last < 0:  # too short: none
            starts = range(0, last + 1, own)
        else:
            starts = [0 if seed is None else int(rng.integers(last + 1))]
        rows += [before + ids[start : start + own] for start in starts]
        if n and len(rows) >= n:
            break
    if len(rows) < (n or 1):
        found = f"{len(rows)} {what} of" if is_joined else f"{len(rows)} documents of at least"
        wanted = f"wanted {n or 'some'} {what}; take fewer or shorter {what}, or another text"
        raise ValueError(f"text {describe(text)} has {found} {length} tokens, {wanted}")
    return torch.tensor(rows[:n], dtype=torch.int64)


def corpus_hash(ids: torch.Tensor) -> str:
    """Name token ids by content: 12 hex digits of the sha256 over their shape and int64 values."""
    table = ids.detach().cpu().to(torch.int64).contiguous().numpy()
    return hashlib.sha256(repr(table.shape).encode() + table.tobytes()).hexdigest()[:12]


def instructions(name: str | Path, *, samples: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Read instructions to recover with.

    Args:
        name: one of `corpora.INSTRUCTIONS`, a NAME.json or NAME.jsonl of the local data directory, or the
            path of such a file.
        samples: how many, drawn at random without repetition; None takes all, in their order.
    Returns: dictionaries with the keys `instruction`, `input` (may be empty) and `output`, or what else
        `recover` takes, as the file holds it.
    Raises:  ValueError: unknown name, malformed rows, or fewer than wanted.
    """
    require("1.. or None", samples=samples)
    require("0..", seed=seed)
    rows = read_instructions(name)
    if samples is None:
        return rows
    if samples > len(rows):
        raise ValueError(f"instructions {str(name)!r} are {len(rows)}, wanted {samples}; take fewer")
    return [rows[i] for i in np.random.default_rng(seed).choice(len(rows), size=samples, replace=False)]


def has_bos(tokenizer: PreTrainedTokenizerBase, bos: Bos) -> Bos:
    """Say which BOS the ids of `text_ids` and `calibration_ids` get: `bos`, or False where there is none."""
    return bos if tokenizer.bos_token_id is not None else False


def _first_tokens(tokenizer: PreTrainedTokenizerBase, bos: Bos, length: int) -> tuple[list[int], list[int]]:
    """Read the tokens that stand before a text, and those that stand before each window."""
    require((True, False, "window"), bos=bos)
    if bos and not has_bos(tokenizer, bos):
        name = type(tokenizer).__name__
        message = f"bos={bos!r}, but this {name} has no beginning-of-sequence token: texts begin without"
        warnings.warn(message, stacklevel=4)
        return [], []
    # where <sop> stands behind a prompt, text follows an empty prompt
    first = getattr(tokenizer, "prompt_end_ids", [tokenizer.bos_token_id]) if bos else []
    if bos != "window":
        return first, []
    if length <= len(first):
        raise ValueError(f"length is {length}, wanted more than the {len(first)} tokens that begin a window")
    return [], first
