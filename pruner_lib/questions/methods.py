"""The rows of the paper's Tables 1, 2, 4 and 5 as experiments and, as printed, by our words.

Nothing is run here; what the rows differ by is known to `contrasts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruner_lib.experiments.experiment import Experiment
from pruner_lib.experiments.profiles import Profile
from pruner_lib.questions.paper import published, published_tables

if TYPE_CHECKING:
    import pandas as pd

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
                 draw: number of the calibration draw, and the seed of random scores.
                 changes: fields of `Experiment`; the evaluation is the profile's short one if none is given.
        """
        values: dict[str, Any] = {
            "model": self.model,
            "criterion": "element1" if method == "dense" else method,
            "ratio": self.share,
            "target": "parameters",
            "calibration": settings.calibrations(draw + 1)[draw],
            "seed": draw,
            "evaluation": settings.short_evaluation,
        }
        asked = settings.experiment(**values | (CHANNEL if method == "channel" else {}) | changes)
        return asked.dense if method == "dense" else asked

    def rows(
        self, settings: Profile, methods: Sequence[str], draws: Sequence[int], **changes: Any
    ) -> dict[str, list[Experiment]]:
        """Make the experiments of the whole model and of several methods, one a draw, by name."""
        return {
            name: [self.ask(settings, name, draw, **changes) for draw in draws]
            for name in ("dense", *methods)
        }


def compared(settings: Profile, models: Sequence[str] = (), share: float = 0.0) -> list[Compared]:
    """List the models that are compared, each with its share and the paper's table that is like it.

    Args:    models: empty takes the profile's model and the further ones of its `method_study`.
             share: of the parameters, that every model loses; 0: as the profile says.
    """
    study = settings.method_study
    own = Compared(settings.model, study.share)
    known = [own, *map(Compared, study.models, study.shares, study.tables)]
    by_name = {one.model: one for one in known}
    chosen = [by_name.get(name, Compared(name, study.share)) for name in models] if models else known
    return [Compared(one.model, share or one.share, one.table) for one in chosen]


def published_methods(table: str) -> pd.DataFrame:
    """Read a table of the paper by our words: columns name (a method, or "dense"), stage, metric, value.

    Accuracies are shares in [0, 1]. A row that the preprint alone has (`mixed`) is taken from there. Of the
    whole model, what the authors measured counts, not the official numbers.
    """
    sources = [name for name in (table, f"{table}, preprint v1") if name in published_tables()]
    return _by_our_words([(name, _row(row), row) for name in sources for row in published(name).row.unique()])


def published_choices(table: str, rows: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Read Table 6 or 7 by our words, as `published_methods` does; their whole model is that of Table 1.

    Args:    rows: a row as printed -> our name and stage.
    """
    return _by_our_words(
        [(table, ours, row) for row, ours in rows.items()] + [(DENSE[0], ("dense",) * 2, DENSE[1])]
    )


def _by_our_words(rows: Sequence[tuple[str, tuple[str, str] | None, str]]) -> pd.DataFrame:
    """Look rows up: (table, our name and stage, the row as printed)."""
    import pandas as pd

    parts = [
        published(table).query("row == @printed").assign(name=ours[0], stage=ours[1])
        for table, ours, printed in rows
        if ours is not None
    ]
    found = pd.concat(parts, ignore_index=True)[["name", "stage", "metric", "value"]]
    percent = found.metric.str.startswith("accuracy/")
    return found.assign(value=found.value.where(~percent, found.value / 100))


def _row(printed: str) -> tuple[str, str] | None:
    """Translate the name of a row; None for one that we have nothing to compare with."""
    if printed.startswith("0%"):
        return None if "official" in printed else ("dense", "dense")
    first, _, name = printed.partition(" / ")
    stage = next((ours for theirs, ours in STAGES.items() if first.endswith(theirs)), None)
    return (ROWS[name], stage) if stage and name in ROWS else None
