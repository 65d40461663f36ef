"""Token ids for calibration and evaluation, and samples of instructions.

`corpora` looks up texts and instructions by name; this module tokenises, cuts windows and samples.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from pruner_lib.data.corpora import CORPORA, Text, describe, read_corpus, read_instructions
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
    """Cut a text into windows for evaluation: all in order, as in the paper, or with a seed a random sample.

    Adjacent windows of one article are correlated, so a confidence interval over them is too narrow. With a
    seed, each window comes from another article, and articles can be resampled by a bootstrap.

    Args:
        text: one of `corpora.CORPORA`, a NAME.txt of the local data directory, the path of a file, a list of
            documents, or a `datasets.Dataset` with a column "text".
        length: tokens per window.    windows: how many; None takes all.
        seed: None joins all documents and cuts consecutive windows without overlap; the remainder is dropped.
            A number draws documents in random order, and one window at a random place from each that is long
            enough; with the same seed, more windows extend the sample.
        bos: True puts one beginning-of-sequence token before the whole text, as the paper's code does for
            LLaMA (with a seed: before each document); "window" puts one before each window, where it counts
            as a token, as Gemma and Llama 3 need. For ChatGLM-6B it is the empty prompt "[gMASK] <sop>". If
            the tokenizer has no such token, texts start without it, with a warning.
        separator: ends a document in a file; "\\n\\n": blank lines.
    Returns: `(windows, length)` int64.
    Raises:  ValueError: the text is unknown or has too few windows, or a size is below one.
    Source:  paper 4.1, reference `LLMPruner/datasets/ppl_dataset.py`. Differs: all windows have full length.
    """
    require("1.. or None", windows=windows)
    return _cut(text, tokenizer, windows, "windows", seed is None, length, seed, bos, separator)


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
    """Take samples of a fixed length, one from each document that is long enough.

    Args:
        text, separator: as in `text_ids`.
        seed: None takes the start of the first documents; a number draws documents and positions at random.
        bos: as in `text_ids`: True before each document, "window" before each sample; it counts as a token.
    Returns: `(samples, length)` int64.
    Raises:  ValueError: the text is unknown or has too few long documents, or a size is below one.
    Source:  paper 4.1, reference `LLMPruner/datasets/example_samples.py`. Differs: no document
        is drawn twice; BOS is an argument.
    """
    require("1..", samples=samples)
    return _cut(text, tokenizer, samples, "samples", False, length, seed, bos, separator)


def _cut(
    text: Text, tokenizer: PreTrainedTokenizerBase, n: int | None, unit: str, is_joined: bool,
    length: int, seed: int | None, bos: Bos, separator: str,
) -> torch.Tensor:  # fmt: skip
    """Cut pieces from a text: `(n, length)` int64, or all pieces if n is None.

    Args:    is_joined: cut consecutive pieces from the joined documents; otherwise one from each document
             that is long enough, at its start or, with a seed, at random.    unit: names a piece in messages.
    """
    if not isinstance(text, (str, Path, Iterable)):
        raise ValueError(f"text must be a name, a path or a list of documents, got {text!r}")
    text = list(text) if isinstance(text, Iterator) else text
    require(PreTrainedTokenizerBase, tokenizer=tokenizer)
    require("1..", length=length)
    require("0.. or None", seed=seed)
    if not separator or not isinstance(separator, str):
        raise ValueError(f"separator must be a text of at least one character, got {separator!r}")
    before_text, before_piece = _first_tokens(tokenizer, bos, length)
    corpus, rng = read_corpus(text, separator), np.random.default_rng(seed)
    step = length - len(before_piece)  # tokens of the text in each piece
    documents = [corpus.separator.join(corpus.documents)] if is_joined else corpus.documents
    rows: list[list[int]] = []
    for i in range(len(documents)) if seed is None else rng.permutation(len(documents)):
        require(str, **{"the text" if is_joined else f"document {i}": documents[i]})
        ids = before_text + tokenizer(documents[i], add_special_tokens=False, verbose=False)["input_ids"]
        last = len(ids) - step  # the last possible start; negative if the document is too short
        starts = range(0, last + 1, step)
        if starts and not is_joined:
            starts = [0 if seed is None else int(rng.integers(last + 1))]
        rows += [before_piece + ids[start : start + step] for start in starts]
        if n and len(rows) >= n:
            break
    if len(rows) < (n or 1):
        found = f"{len(rows)} {unit} of" if is_joined else f"{len(rows)} documents of at least"
        expected = f"expected {n or 'some'} {unit}; use fewer or shorter {unit}, or another text"
        if not is_joined and isinstance(text, (str, Path)) and str(text) not in CORPORA:
            expected += "; in a file, documents end at blank lines (or at the argument `separator`)"
        raise ValueError(f"text {describe(text)} has {found} {length} tokens, {expected}")
    return torch.tensor(rows[:n], dtype=torch.int64)


def corpus_hash(ids: torch.Tensor) -> str:
    """Hash token ids: 12 hex digits of the sha256 of their shape and int64 values."""
    table = ids.detach().cpu().to(torch.int64).contiguous().numpy()
    return hashlib.sha256(repr(table.shape).encode() + table.tobytes()).hexdigest()[:12]


def instructions(name: str | Path, *, samples: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Read instructions for recovery.

    Args:
        name: one of `corpora.INSTRUCTIONS`, a NAME.json or NAME.jsonl of the local data directory, or the
            path of such a file.
        samples: how many, drawn at random without replacement; None takes all, in order.
    Returns: dictionaries with the keys `instruction`, `input` (may be empty) and `output`; rows of a custom
        file may have other keys that `recover` takes.
    Raises:  ValueError: the name is unknown, a row is malformed, or there are fewer than `samples`.
    """
    require("1.. or None", samples=samples)
    require("0..", seed=seed)
    rows = read_instructions(name)
    if samples is None:
        return rows
    if samples > len(rows):
        raise ValueError(f"the set {str(name)!r} has {len(rows)} rows, expected {samples}; take fewer")
    return [rows[i] for i in np.random.default_rng(seed).choice(len(rows), size=samples, replace=False)]


def has_bos(tokenizer: PreTrainedTokenizerBase, bos: Bos) -> Bos:
    """Return which BOS `text_ids` and `calibration_ids` add: `bos`, or False if the tokenizer has none."""
    return bos if tokenizer.bos_token_id is not None else False


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer itself puts BOS before a text, as those of Gemma and Llama 3 do."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _first_tokens(tokenizer: PreTrainedTokenizerBase, bos: Bos, length: int) -> tuple[list[int], list[int]]:
    """Return the tokens to put before a text, and those to put before each window."""
    require((True, False, "window"), bos=bos)
    if bos and not has_bos(tokenizer, bos):
        name = type(tokenizer).__name__
        message = f"bos={bos!r}, but this {name} has no beginning-of-sequence token: texts start without"
        warnings.warn(message, stacklevel=4)
        return [], []
    # ChatGLM reads plain text as the fill of an empty prompt
    first = getattr(tokenizer, "prompt_end_ids", [tokenizer.bos_token_id]) if bos else []
    if bos != "window":
        return first, []
    if length <= len(first):
        raise ValueError(f"length is {length}, expected more than the {len(first)} tokens before a window")
    return [], first
