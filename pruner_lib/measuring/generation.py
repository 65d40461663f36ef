"""What models write: the prompts of the paper's examples (Tables 11, 18-21), and how texts repeat themselves.

The paper prints texts and no numbers. How texts are made is known to `evaluation`, how they are kept to
`samples`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from pruner_lib.measuring.evaluation import Sample
from pruner_lib.measuring.samples import SideBySide
from pruner_lib.questions.statistics import mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("repetition_rate", "distinct")
PROMPTS = {  # as printed; of Table 21, which is in Chinese, the sense
    "Table 11": (
        "The universe is the entirety of space, time, matter, and energy that exists.",
        "10 steps to build an ios app:",
        "Write a poetry about love and peace.",
    ),
    "Table 18": (
        "Neural Sequential Model, especially transformers,",
        "AI can create a logo in seconds",
        "What's great about the holiday season,",
    ),
    "Table 19": (
        "Last night we all danced together in the rain",
        "It fills me with such pride and joy",
        "Meet me at midnight",
    ),
    "Table 20": ("How to buy a cat?", "What is McDonald's?", "What is Mean Square Error?"),
    "Table 21": ("请介绍北京的两个景点。", "请用简单的话解释相对论。", "怎样才能健康地生活？"),
}
ENGLISH = ("Table 11", "Table 18", "Table 19", "Table 20")
OWN = {  # part of a model's name -> its own prompts in the paper, (table, number) or whole tables
    "glm": (("Table 11", 2), "Table 20", "Table 21"),
    "vicuna": (("Table 11", 1), "Table 19"),
    "llama": (("Table 11", 0), "Table 18"),
}


def prompts_of(model: str, n: int | None = None) -> list[tuple[str, str]]:
    """List the prompts of the paper for a model: `(table, prompt)`.

    Args:    model: a name; LLaMA, Vicuna and GLM have their own, other models take those in English in turns.
             n: at most so many.
    """
    own = next((parts for word, parts in OWN.items() if word in model.lower()), None)
    if own is None:
        rows = zip_longest(*([(table, text) for text in PROMPTS[table]] for table in ENGLISH))
        return [one for row in rows for one in row if one][:n]
    found = []
    for part in own:
        table, texts = (
            (part, PROMPTS[part]) if isinstance(part, str) else (part[0], [PROMPTS[part[0]][part[1]]])
        )
        found += [(table, text) for text in texts]
    return found[:n]


def first_draws(texts: Mapping[str, Sequence[Sample]], draws: int) -> SideBySide:
    """Put the first draw of each prompt side by side, to be read."""
    return SideBySide({name: list(samples)[::draws] for name, samples in texts.items()})


def texts_frame(texts: Mapping[str, Sequence[Sample]], tables: Sequence[str], draws: int) -> pd.DataFrame:
    """Lay texts out as a tidy table: columns model, table, draw, prompt, text, repetition_rate, distinct.

    Args:    texts: a model -> its samples, `draws` for each prompt, side by side.
             tables: of the paper, one a prompt.
    """
    frame = SideBySide(texts).frame()
    n = len(frame) // (len(texts) * draws)  # prompts
    frame.insert(1, "table", [table for table in tables for _ in range(draws)] * len(texts))
    frame.insert(2, "draw", list(range(draws)) * (n * len(texts)))
    return frame


def repetition(frame: pd.DataFrame, measure: str, against: str = "dense") -> pd.DataFrame:
    """Average a measure of texts for each model, and compare it with another model's on the same prompts.

    Args:    frame: of `texts_frame`.    measure: one of `MEASURES`.    against: the other model.
    Returns: a row a model: columns model, mean, low, high (95 %, over prompts and draws), difference,
             difference_low, difference_high (paired by prompt; NaN for the model itself), prompts, draws.
    """
    import pandas as pd

    values = {name: _table(part, measure) for name, part in frame.groupby("model", sort=False)}
    rows = []
    for name, table in values.items():
        one = mean_interval(table)
        apart = paired_difference(table, values[against]) if name != against else None
        ends = (apart.mean, apart.low, apart.high) if apart else (np.nan,) * 3
        rows.append((name, one.mean, one.low, one.high, *ends, table.shape[1], len(table)))
    names = [
        "model",
        "mean",
        "low",
        "high",
        "difference",
        "difference_low",
        "difference_high",
        "prompts",
        "draws",
    ]
    return pd.DataFrame(rows, columns=names)


def tell(found: pd.DataFrame, against: str = "dense") -> str:
    """Say a frame of `repetition` as a Markdown list; inside the noise nothing is said to be more or less.

    Args:    found: with the columns name (of the whole model) and measure besides.
    """
    words, lines = {"repetition_rate": "repetition", "distinct": "variety"}, []
    for row in found.dropna(subset="difference").to_dict("records"):
        sign = int(row["difference_low"] > 0) - int(row["difference_high"] < 0)
        word = {1: "**more**", -1: "**less**", 0: "neither clearly more nor less"}[sign]
        ends = ", ".join(f"{100 * row[end]:+.1f}" for end in ("difference_low", "difference_high"))
        shown = f"{100 * row['difference']:+.1f} [{ends}] points"
        lines.append(
            f"- {row['name']}, {row['model']}: {word} {words[row['measure']]} than {against} ({shown})."
        )
    return "\n".join(lines)


def _table(part: pd.DataFrame, measure: str) -> np.ndarray:
    """Give `(draws, prompts)` of one model."""
    return part.pivot(index="draw", columns="prompt", values=measure).to_numpy(float)
