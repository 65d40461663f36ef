"""What others published: the numbers of the paper's tables, and those of model cards for our default model.

The numbers lie in `results/paper/*.csv`, as printed. Nothing is measured or compared here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pruner_lib.experiments.results import project_root

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("table", "row", "metric", "value", "unit", "source")
TEXTS = {"wikitext2": "WikiText2", "ptb": "PTB"}
WHOLE = {  # a whole model, as `load_model` knows it -> (table, row) of what was published about it
    "smollm2-135m": (
        ("SmolLM2 card", "SmolLM2-135M-Instruct"),
        ("SmolLM2 by lm-eval", "SmolLM2-135M-Instruct"),
    ),
    "baffo32/decapoda-research-llama-7B-hf": (("Table 1", "0% / LLaMA-7B*"),),
}


def published(table: str) -> pd.DataFrame:
    """Look up a published table.

    Args:    table: "Table 1" to "Table 17" of the paper, "SmolLM2 card", ...; see `published_tables()`.
    Returns: a row for each number: `row` as printed (parts joined by " / "), `metric` by the names of our
             records ("perplexity/wikitext2@128", "accuracy/boolq", "accuracy/mean", "macs", ...), `value` as
             printed, its `unit` (accuracies are in %), `source`: which copies of the text agree on it.
    Raises:  ValueError: there is no such table (the message lists those there are).
    """
    numbers = _read(_folder())
    found = numbers[numbers.table == table]
    if found.empty:
        raise ValueError(f"unknown table {table!r}; there are {', '.join(published_tables())}")
    return found.reset_index(drop=True)


def published_whole(model: str) -> pd.DataFrame:
    """Look up what was published about a model before pruning; without rows where nothing is known of it."""
    numbers = _read(_folder())
    places = list(zip(numbers.table, numbers.row, strict=True))
    return numbers[[place in WHOLE.get(model, ()) for place in places]].reset_index(drop=True)


def published_way(table: str = "Table 1", method: str = "Element^1", text: str = "wikitext2") -> pd.DataFrame:
    """Look up what the paper says of a model whole, pruned by `method` and recovered, as `comparison.way_of`.

    Returns: columns stage, source ("paper"), model, metric ("perplexity" on `text`, "accuracy": the mean as a
             share), value.
    Raises:  ValueError: the table has no such rows.
    """
    import pandas as pd

    numbers, rows = published(table), []
    whole = next((row for row in numbers.row if row.startswith("0% / ") and "official" not in row), "0% / ?")
    model = whole.removeprefix("0% / ").rstrip("*")
    stages = {"dense": whole, "pruned": f"w/o tune / {method}", "recovered": f"w/ tune / {method}"}
    for stage, ending in stages.items():
        found = numbers[numbers.row.str.endswith(ending)].set_index("metric").value
        if found.empty:
            raise ValueError(f"{table} has no row {ending!r}; it has {', '.join(dict.fromkeys(numbers.row))}")
        rows.append(
            (stage, "paper", f"{model}, {TEXTS[text]}", "perplexity", found[f"perplexity/{text}@128"])
        )
        rows.append((stage, "paper", model, "accuracy", found["accuracy/mean"] / 100))
    return pd.DataFrame(rows, columns=["stage", "source", "model", "metric", "value"])


def published_tables() -> list[str]:
    """List the tables that `published` knows, in the order of their files."""
    return list(dict.fromkeys(_read(_folder()).table))


def _folder() -> Path:
    return (project_root() or Path.cwd()) / "results" / "paper"


@cache
def _read(folder: Path) -> pd.DataFrame:
    import pandas as pd

    paths = sorted(folder.glob("*.csv"), reverse=True)
    if not paths:
        raise ValueError(f"no published numbers in {folder}; run this in a clone of the project")
    frames = [pd.read_csv(path, keep_default_na=False) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if tuple(frame) != COLUMNS or not pd.api.types.is_numeric_dtype(frame.value):
            found = ", ".join(frame)
            raise ValueError(f"{path} has the columns {found}; wanted {', '.join(COLUMNS)}, value a number")
    return pd.concat(frames, ignore_index=True)
