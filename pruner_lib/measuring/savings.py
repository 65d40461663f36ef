"""What pruning and 8 bits save, beside the paper's Tables 3 and 13.

LLaMA-7B is counted without weights, on the meta device. How counts and seconds come about is known to
`efficiency` and `measured`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pruner_lib.experiments.experiment import settings_key
from pruner_lib.experiments.records import Record, records_frame
from pruner_lib.experiments.results import results_dir as profile_dir
from pruner_lib.experiments.storage import read_json, write_json
from pruner_lib.questions.evidence import metric_names, values_of
from pruner_lib.questions.paper import published
from pruner_lib.questions.statistics import Interval, paired_difference, paired_ratio

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

BASE = "LLaMA-7B/Vicuna-7B / base"
CUTS = {  # the rows of Table 3 -> how `select` chooses what goes
    BASE: {},
    "Channel 20%": {"ratio": 0.2, "granularity": "channel"},
    "Block 20%": {"ratio": 0.25, "protect_first": 4, "protect_last": 2},
    "Channel 50%": {"ratio": 0.5, "granularity": "channel"},
    "Block 50%": {"ratio": 0.6, "protect_first": 3, "protect_last": 1},
}
TABLES_MB = 32  # constant tables that the paper's LLaMA kept beside its weights, MiB
ROWS = {  # (model, in 8 bits) -> its row of Table 13
    ("dense", False): "LLaMA-7B",
    ("dense", True): "LLM.int8()",
    ("recovered", False): "LLaMA-5.4B",
    ("recovered", True): "LLaMA-5.4B + LLM.int8()",
}


def without_weights(layers: int = 32) -> nn.Module:
    """Build LLaMA-7B on the meta device: shapes, and no numbers.

    Args:    layers: fewer make a smaller model of the same widths.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=layers))  # else its defaults


def count_cuts(
    cuts: Mapping[str, Mapping[str, Any]] = CUTS,
    *,
    layers: int = 32,
    profile: str = "quick",
    results_dir: Path | str | None = None,
) -> pd.DataFrame:
    """Cut LLaMA-7B without weights in several ways, by random scores, and count what is left; once.

    Args:    cuts: a name -> the settings of `select`; none: the whole model.
    Returns: a row a name: columns row, parameters (billions), macs (billions, 64 tokens), memory (MiB, 16
             bits), memory_int8 (MiB, linear layers in 8 bits).
    """
    import pandas as pd

    key = settings_key(["cuts", {name: dict(how) for name, how in cuts.items()}, layers])
    path = profile_dir(profile, results_dir) / "measured" / f"{key}.json"
    if not path.is_file():
        write_json(path, _count(cuts, layers))
    return pd.DataFrame(read_json(path))


def _count(cuts: Mapping[str, Mapping[str, Any]], layers: int) -> list[dict[str, Any]]:
    import torch

    from pruner_lib import discover, prune_, select
    from pruner_lib.measuring.efficiency import count_parameters, macs, memory_mb
    from pruner_lib.measuring.quantisation import quantise_

    whole, rows, generator = without_weights(layers), [], torch.Generator().manual_seed(0)
    axes = discover(whole)
    scores = {name: torch.rand(axis.n_groups, generator=generator) for name, axis in axes.items()}
    for name, how in cuts.items():
        model = deepcopy(whole)
        if how:
            prune_(model, select(axes, scores, **how), axes=axes)
        row = {"row": name, "parameters": count_parameters(model) / 1e9, "macs": macs(model) / 1e9}
        row["memory"] = memory_mb(model, tables_mb=TABLES_MB)
        rows.append(row | {"memory_int8": memory_mb(quantise_(model))})
    return rows


def beside_table_3(counted: pd.DataFrame) -> pd.DataFrame:
    """Put the counts beside Table 3: columns row, metric, unit, ours (NaN for times), paper, difference."""
    printed = published("Table 3").rename(columns={"value": "paper"})
    ours = counted.set_index("row")
    known = [(row, metric) for row, metric in zip(printed.row, printed.metric, strict=True)]
    found = [ours[m][row] if m in ours and row in ours.index else np.nan for row, m in known]
    table = printed.assign(ours=found, difference=np.array(found) - printed.paper)
    return table[["row", "metric", "unit", "ours", "paper", "difference"]]


def quality(records: Sequence[Record], whole: Sequence[Record], kind: str) -> Interval | None:
    """Compare a model with the whole one on the same windows or questions, whatever their number formats.

    Args:    records, whole: of one model each.
             kind: "perplexity" (of the first text) or "accuracy" (mean of the tasks).
    Returns: perplexity / that of the whole model, or accuracy / its; None where that was not measured.
    Raises:  ValueError: measured by different protocols, apart from the number format.
    """
    sides = [[one for one in side if metric_names([one], kind)][:1] for side in (records, whole)]
    if not all(sides):
        return None
    records_frame([one for side in sides for one in side], allow=("dtype",))
    if kind == "accuracy":
        return paired_ratio(*(values_of(side, "accuracy/mean") for side in sides))
    name = metric_names(sides[0], kind)[0]
    return Interval(**vars(paired_difference(*(values_of(side, name) for side in sides)))).map(np.exp)


def int8_frame(
    measured: Mapping[tuple[str, bool], Sequence[Record]],
    size: Mapping[tuple[str, bool], float],
    seconds: Mapping[tuple[str, bool], Interval],
) -> pd.DataFrame:
    """Lay quality, bytes and seconds out beside Table 13, all relative to the dense model in floating point.

    Args:    measured: (model, in 8 bits) -> its records.    size: the same -> bytes.
             seconds: the same -> share of the dense model's seconds.
    Returns: a row a model and number: columns model, int8, number ("bytes", "seconds", "perplexity",
             "accuracy"), ours, low, high, paper (NaN where it has none), difference.
    """
    import pandas as pd

    rows, whole = [], measured["dense", False]
    for key, records in measured.items():
        share = size[key] / size["dense", False]
        found = {"bytes": Interval(share, share, share, 1), "seconds": seconds[key]}
        found |= {kind: quality(records, whole, kind) for kind in ("perplexity", "accuracy")}
        for number, one in found.items():
            if one is not None:
                rows.append((*key, number, one.mean, one.low, one.high, _table_13(key, number)))
    frame = pd.DataFrame(rows, columns=["model", "int8", "number", "ours", "low", "high", "paper"])
    return frame.assign(difference=frame.ours - frame.paper)


def _table_13(key: tuple[str, bool], number: str) -> float:
    metric = {"bytes": "memory", "seconds": "latency", "accuracy": "accuracy/mean"}.get(number)
    table = published("Table 13").pivot(index="row", columns="metric", values="value")
    return float(table[metric][ROWS[key]] / table[metric]["LLaMA-7B"]) if metric and key in ROWS else np.nan
