"""What others published: the numbers of the paper's tables, and those of model cards for our default model.

The numbers lie in `results/paper/*.csv`, as printed; rows of Tables 1, 2, 4 and 5 are also given as
experiments. `coverage.yaml` says where each table and figure is reproduced. Nothing is measured here.
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
PAPER_ALONE = "in the profile `paper` alone"  # how notes on other models than a profile's begin
TEXTS = ("wikitext2", "ptb")  # stand beside our first text and our second one


def published(table: str) -> pd.DataFrame:
    """Look up a published table.

    Args:    table: "Table 1" to "Table 17" of the paper, "SmolLM2 card", ...; see `published_tables()`.
    Returns: a row for each number: `row` as printed (parts joined by " / "), `metric` by the names of our
             records ("perplexity/wikitext2@128", "accuracy/boolq", "accuracy/mean", "macs", ...), `value` as
             printed, its `unit` (accuracies are in %), `source`: which copies of the text agree on it.
    Raises:  ValueError: there is no such table (the message lists those there are).
    """
    numbers = _numbers()
    rows = numbers[numbers.table == table]
    if rows.empty:
        raise ValueError(f"unknown table {table!r}; there are {', '.join(published_tables())}")
    return rows.reset_index(drop=True)


def published_tables() -> list[str]:
    """List the tables that `published` knows."""
    return list(_numbers().table.unique())


@cache
def _numbers() -> pd.DataFrame:
    folder = (project_root() or Path.cwd()) / "results" / "paper"
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise ValueError(f"no published numbers in {folder}; run this in a clone of the project")
    return pd.concat([pd.read_csv(path, keep_default_na=False) for path in paths], ignore_index=True)


ROWS = {  # a row as the paper prints it -> our method
    "L2": "l2",
    "Random": "random",
    "Channel": "channel",
    "Vector": "vector",
    "Element^1": "element1",
    "Element^2": "element2",
    "Block": "element1",  # Table 2
    "Parameter^{1+2}": "mixed",  # the preprint alone
}
DENSE = ("Table 1", "0% / LLaMA-7B*")  # the whole model of Tables 6 and 7
STAGES = {"w/o tune": "pruned", "w/ tune": "recovered"}
CHANNEL = {"criterion": "element1", "granularity": "channel", "protect_first": 0, "protect_last": 0}


@dataclass(frozen=True)
class Compared:
    """A model of the comparison: the share of its parameters that goes, and the paper's table beside it."""

    model: str
    share: float
    table: str = "Table 1"

    def ask(self, settings: Profile, method: str, draw: int = 0, **changes: Any) -> Experiment:
        """Make the experiment that a row of the tables stands for.

        Args:    method: a criterion, "channel" (hidden channels by element1) or "dense".
                 draw: the seed of the calibration samples, of random scores and of a recovery's instructions.
                 changes: fields of `Experiment`; the evaluation is the profile's short one if none is given.
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
    """List the models that are compared, each with its share and the paper's table that is like it.

    Args:    models: empty takes the profile's model and the further ones of its `method_study`.
             share: of the parameters, that every model loses; 0: as the profile says.
    """
    study = settings.method_study
    own = Compared(settings.model, study.share)
    listed = [own, *map(Compared, study.models, study.shares, study.tables)]
    by_name = {one.model: one for one in listed}
    chosen = [by_name.get(name, Compared(name, study.share)) for name in models] if models else listed
    return [Compared(one.model, share or one.share, one.table) for one in chosen]


def published_methods(table: str) -> pd.DataFrame:
    """Read a table of the paper by our words: columns name (a method, or "dense"), stage, metric, value.

    Accuracies are shares in [0, 1]. A row that the preprint alone has (`mixed`) is taken from there. Of the
    whole model, what the authors measured counts, not the official numbers.
    """
    sources = [name for name in (table, f"{table}, preprint v1") if name in published_tables()]
    numbers = pd.concat(published(name) for name in sources or [table])
    return _in_our_words(numbers, {row: ours for row in numbers.row.unique() if (ours := _row(row))})


def published_choices(table: str, rows: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Read Table 6 or 7 by our words, as `published_methods` does; their whole model is that of Table 1.

    Args:    rows: a row as printed -> our name and stage.
    """
    whole, row = DENSE
    numbers = pd.concat([published(table).query("row in @rows"), published(whole).query("row == @row")])
    return _in_our_words(numbers, {**rows, row: ("dense", "dense")})


def _in_our_words(numbers: pd.DataFrame, rows: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Pick rows, and name them: the row as printed -> our name and stage."""
    words = pd.DataFrame([(row, *ours) for row, ours in rows.items()], columns=["row", "name", "stage"])
    found = words.merge(numbers, on="row")[["name", "stage", "metric", "value"]]
    percent = found.metric.str.startswith("accuracy/")
    return found.assign(value=found.value.where(~percent, found.value / 100))


def _row(printed: str) -> tuple[str, str] | None:
    """Translate the name of a row; None for one that we have nothing to compare with."""
    if printed.startswith("0%"):
        return None if "official" in printed else ("dense", "dense")
    first, _, name = printed.partition(" / ")
    stage = next((ours for theirs, ours in STAGES.items() if first.endswith(theirs)), None)
    return (ROWS[name], stage) if stage and name in ROWS else None


def paper_metric(metric: MetricName, place: int) -> str:
    """Name the paper's number that stands beside one of ours; `place` counts our texts."""
    if metric.kind != "perplexity":
        return str(metric)
    text = metric.dataset if metric.dataset in TEXTS or place >= len(TEXTS) else TEXTS[place]
    return str(MetricName("perplexity", text, 128))


def relative_to_dense(paper: pd.DataFrame | None) -> dict[tuple[str, str, str], float]:
    """Relate published numbers to those of their dense model, as `compare.kept_frame` does with ours.

    Returns: (name, stage, metric) -> perplexity or mean accuracy above chance, divided by that of dense.
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
    Returns: a row each: columns name (as "Table 3"), shows, notebook (its name without ending; empty: none),
             file (the first of its files, below `folder`), note (what differs from the paper, or why it can't
             be reproduced), there (whether the file exists and holds it).
    """
    rows = yaml.safe_load(COVERAGE_FILE.read_text(encoding="utf-8"))
    frame = pd.DataFrame(rows, columns=["name", "shows", "notebook", "file", "note"]).fillna("")
    is_file = frame.file.map(lambda name: bool(name) and (folder / name).is_file())
    elsewhere = frame.note.str.startswith(PAPER_ALONE) & (folder.name != "paper")
    return frame.assign(there=is_file & ~elsewhere)
