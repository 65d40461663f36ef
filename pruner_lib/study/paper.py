"""Published numbers: those of the paper's tables, and those of model cards for our default model.

They are in `results/paper/*.csv`, as printed; `Compared` makes the experiments of Tables 1, 2, 4 and 5, and
`coverage.yaml` says where each table and figure is reproduced. Nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pruner_lib.evaluation.tasks import CHANCE
from pruner_lib.study.profiles import Profile
from pruner_lib.study.records import MEAN, MetricName
from pruner_lib.study.results import project_root
from pruner_lib.study.settings import Experiment

COVERAGE_FILE = Path(__file__).with_name("coverage.yaml")
PAPER_ONLY = "only in the profile `paper`"  # the start of notes in `coverage.yaml`
TEXTS = ("wikitext2", "ptb")  # the paper's texts, compared with our first and second one


def published(table: str) -> pd.DataFrame:
    """Look up a published table.

    Args:    table: "Table 1" to "Table 17" of the paper, "SmolLM2 card", ...; see `published_tables()`.
    Returns: one row per number: `row` as printed (parts joined by " / "), `metric` as in our records
             ("perplexity/wikitext2@128", "accuracy/boolq", "accuracy/mean", "macs", ...), `value` as printed,
             its `unit` (accuracies are in %), `source`: the copies of the text that agree on it.
    Raises:  ValueError: there is no such table (the message lists the known ones).
    """
    numbers = _numbers()
    rows = numbers[numbers.table == table]
    if rows.empty:
        raise ValueError(f"unknown table {table!r}; there are {', '.join(published_tables())}")
    return rows.reset_index(drop=True)


def published_tables() -> list[str]:
    """List the names of all published tables."""
    return list(_numbers().table.unique())


@cache
def _numbers() -> pd.DataFrame:
    folder = (project_root() or Path.cwd()) / "results" / "paper"
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise ValueError(f"there are no published numbers in {folder}; run this in a clone of the project")
    return pd.concat([pd.read_csv(path, keep_default_na=False) for path in paths], ignore_index=True)


ROWS = {  # a row as the paper prints it -> our method
    "L2": "l2",
    "Random": "random",
    "Channel": "channel",
    "Vector": "vector",
    "Element^1": "element1",
    "Element^2": "element2",
    "Block": "element1",  # Table 2
    "Parameter^{1+2}": "mixed",  # only in the preprint
}
DENSE = ("Table 1", "0% / LLaMA-7B*")  # the dense model of Tables 6 and 7
STAGES = {"w/o tune": "pruned", "w/ tune": "recovered"}
CHANNEL = {"criterion": "element1", "granularity": "channel", "protect_first": 0, "protect_last": 0}


@dataclass(frozen=True)
class Compared:
    """A compared model, the share of its parameters that is removed, and the paper's table for it."""

    model: str
    share: float
    table: str = "Table 1"

    def ask(self, settings: Profile, method: str, draw: int = 0, **changes: Any) -> Experiment:
        """Make the experiment of a table row.

        Args:    method: a criterion, "channel" (hidden channels by element1) or "dense".
                 draw: the seed of the calibration samples, of random scores and of a recovery's instructions.
                 changes: fields of `Experiment`; without an evaluation, the profile's short one is used.
        """
        values = {"model": self.model, "ratio": self.share, "target": "parameters", "seed": draw}
        values |= {"calibration": replace(settings.calibration, seed=draw)}
        values |= {"evaluation": settings.short_evaluation}
        if method != "dense":
            values |= CHANNEL if method == "channel" else {"criterion": method}
        if recovery := changes.get("recovery"):
            changes["recovery"] = replace(recovery, seed=draw)
        experiment = settings.experiment(**values | changes)
        return experiment.dense if method == "dense" else experiment


def compared(settings: Profile, models: Sequence[str] = (), share: float = 0.0) -> list[Compared]:
    """List the models that are compared, each with its share and the corresponding table of the paper.

    Args:    models: empty: the profile's model and those of its `method_study`.
             share: of the parameters, removed from every model; 0: as the profile says.
    """
    study = settings.method_study
    first = Compared(settings.model, study.share)
    listed = [first, *map(Compared, study.models, study.shares, study.tables)]
    by_name = {model.model: model for model in listed}
    chosen = [by_name.get(name, Compared(name, study.share)) for name in models] if models else listed
    return [replace(model, share=share or model.share) for model in chosen]


def published_methods(table: str) -> pd.DataFrame:
    """Read a table of the paper with our names: columns name (a method, or "dense"), stage, metric, value.

    Accuracies are shares in [0, 1]. The row `mixed`, which only the preprint has, is taken from there. The
    dense model has the numbers that the authors measured, not the official ones.
    """
    sources = [name for name in (table, f"{table}, preprint v1") if name in published_tables()]
    numbers = pd.concat(published(name) for name in sources or [table])
    return _renamed(numbers, {row: ours for row in numbers.row.unique() if (ours := _row(row))})


def published_choices(table: str, rows: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Read Table 6 or 7 with our names, as `published_methods` does; their dense model is that of Table 1.

    Args:    rows: a row as printed -> our name and stage.
    """
    dense, row = DENSE
    numbers = pd.concat([published(table).query("row in @rows"), published(dense).query("row == @row")])
    return _renamed(numbers, {**rows, row: ("dense", "dense")})


def _renamed(numbers: pd.DataFrame, rows: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Select and rename rows: the row as printed -> our name and stage."""
    names = pd.DataFrame([(row, *ours) for row, ours in rows.items()], columns=["row", "name", "stage"])
    found = names.merge(numbers, on="row")[["name", "stage", "metric", "value"]]
    percent = found.metric.str.startswith("accuracy/")
    return found.assign(value=found.value.where(~percent, found.value / 100))


def _row(printed: str) -> tuple[str, str] | None:
    """Translate the name of a row to our name and stage; None if we have nothing to compare it with."""
    if printed.startswith("0%"):
        return None if "official" in printed else ("dense", "dense")
    first, _, name = printed.partition(" / ")
    stage = next((ours for theirs, ours in STAGES.items() if first.endswith(theirs)), None)
    return (ROWS[name], stage) if stage and name in ROWS else None


def paper_metric(metric: MetricName, index: int) -> str:
    """Name the paper's metric that one of ours is compared with; `index` is the position of our text."""
    if metric.kind != "perplexity":
        return str(metric)
    text = metric.dataset if metric.dataset in TEXTS or index >= len(TEXTS) else TEXTS[index]
    return str(MetricName("perplexity", text, 128))


def relative_to_dense(paper: pd.DataFrame | None) -> dict[tuple[str, str, str], float]:
    """Divide published numbers by those of their dense model, as `compare.kept_frame` does with ours.

    Returns: (name, stage, metric) -> perplexity or mean accuracy above chance, relative to the dense model.
    """
    if paper is None:
        return {}
    dense, shares = paper[paper.name == "dense"].set_index("metric").value, {}
    for row in paper[paper.metric.isin(dense.index)].itertuples():
        chance = CHANCE if row.metric == str(MEAN) else 0.0
        shares[row.name, row.stage, row.metric] = (row.value - chance) / (dense[row.metric] - chance)
    return shares


def coverage_frame(folder: Path) -> pd.DataFrame:
    """Map each table and figure of the paper to the notebook and the file that reproduce it.

    Args:    folder: the results of a profile.
    Returns: one row for each: columns name (such as "Table 3"), shows, notebook (without extension; empty:
             none), file (the first of its files, relative to `folder`), note (what differs from the paper, or
             why it can't be reproduced), there (whether the file exists and reproduces it).
    """
    rows = yaml.safe_load(COVERAGE_FILE.read_text(encoding="utf-8"))
    frame = pd.DataFrame(rows, columns=["name", "shows", "notebook", "file", "note"]).fillna("")
    is_file = frame.file.map(lambda name: bool(name) and (folder / name).is_file())
    elsewhere = frame.note.str.startswith(PAPER_ONLY) & (folder.name != "paper")
    return frame.assign(there=is_file & ~elsewhere)
