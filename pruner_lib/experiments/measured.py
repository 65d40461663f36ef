"""What is measured of an experiment's model beside its record: once, then read back.

Losses on instructions that no training saw, and seconds of a forward pass. Perplexity and accuracy belong to
records (`measures`), texts to `samples`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruner_lib.experiments.experiment import Experiment, Recovery, settings_key
from pruner_lib.experiments.results import results_dir as profile_dir
from pruner_lib.experiments.stages import KEEP_BYTES, model_hash
from pruner_lib.experiments.storage import read_json, write_json
from pruner_lib.experiments.study import model_of

if TYPE_CHECKING:
    import pandas as pd

Example = Mapping[str, str]


def held_out(corpus: str, n: int, recoveries: Iterable[Recovery], *, seed: int = 0) -> list[dict[str, str]]:
    """Draw instructions that none of these recoveries sees.

    Raises:  ValueError: fewer are left than wanted.
    """
    import numpy as np

    from pruner_lib.inputs.data import instructions

    drawn = [instructions(one.corpus, samples=one.samples, seed=one.seed) for one in recoveries]
    seen = {tuple(sorted(row.items())) for rows in drawn for row in rows}
    left = [row for row in instructions(corpus) if tuple(sorted(row.items())) not in seen]
    if len(left) < n:
        raise ValueError(
            f"of the instructions {corpus!r}, {len(left)} are seen by no recovery, wanted {n}; "
            "take fewer, or let the recoveries see fewer (`samples`)"
        )
    return [left[i] for i in np.random.default_rng(seed).choice(len(left), size=n, replace=False)]


def response_losses(
    experiment: Experiment,
    examples: Sequence[Example],
    *,
    cutoff: int = 256,
    profile: str = "quick",
    results_dir: Path | str | None = None,
) -> list[float]:
    """Measure how badly an experiment's model predicts the responses to instructions; once.

    Returns: for each example that fits into `cutoff` tokens the mean loss of its response, nats a token.
    """
    details = ["responses", [dict(one) for one in examples], cutoff]

    def measure(model: Any, tokenizer: Any) -> list[float]:
        return losses_on(model, tokenizer, examples, cutoff=cutoff)

    return _once(experiment, details, measure, profile, results_dir)


def losses_on(model: Any, tokenizer: Any, examples: Sequence[Example], *, cutoff: int = 256) -> list[float]:
    """Compute the mean loss of each example's response under a model, nats a token."""
    import torch
    import torch.nn.functional as F

    from pruner_lib.measuring.evaluation import evaluating
    from pruner_lib.tuning.alpaca import IGNORED, encode

    device, found = model.get_input_embeddings().weight.device, []
    with evaluating(model):
        for row in encode(examples, tokenizer, cutoff=cutoff):
            ids, labels = (torch.tensor([row[name]], device=device) for name in ("input_ids", "labels"))
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()  # (tokens - 1, vocabulary)
            found.append(float(F.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED)))
    return found


def timings(
    experiments: Mapping[str, Experiment],
    *,
    tokens: int = 128,
    repeats: int = 10,
    warmup: int = 2,
    profile: str = "quick",
    results_dir: Path | str | None = None,
) -> pd.DataFrame:
    """Time a forward pass of the models of several experiments, in turns, on this machine; once.

    Taking turns lets a machine that becomes slow or fast meanwhile do so for all alike. Models too large to
    be held together are timed one after the other.

    Args:    tokens: of the one sequence.    repeats: rounds that count.    warmup: rounds before them.
    Returns: columns model, round, seconds.
    """
    import pandas as pd

    settings = [_settings(one) for one in experiments.values()]
    details = ["timings", list(experiments), settings, tokens, repeats, warmup]
    path = _path(details, profile, results_dir)
    if not path.is_file():
        rounds = _in_turns(experiments, tokens, repeats, warmup, profile, results_dir)
        write_json(path, [dict(zip(("model", "round", "seconds"), row, strict=True)) for row in rounds])
    return pd.DataFrame(read_json(path))


def _in_turns(
    experiments: Mapping[str, Experiment], tokens: int, repeats: int, warmup: int, profile: str, root: Any
) -> list[tuple[str, int, float]]:
    held, rows = {}, []
    for name, experiment in experiments.items():
        held[name], _ = model_of(experiment, profile=profile, results_dir=root)
        if sum(_bytes(one) for one in held.values()) > 2 * KEEP_BYTES or name == list(experiments)[-1]:
            for number in range(-warmup, repeats):
                seconds = {name: _pass(model, tokens) for name, model in held.items()}
                rows += [(name, number, time) for name, time in seconds.items() if number >= 0]
            held.clear()
    return rows


def _pass(model: Any, tokens: int) -> float:
    import torch

    from pruner_lib.measuring.evaluation import evaluating
    from pruner_lib.measuring.timing import timed

    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(weight.shape[0], (1, tokens), generator=generator).to(weight.device)
    with evaluating(model):
        return timed(lambda: model(input_ids=ids, use_cache=False), weight.device)


def _bytes(model: Any) -> int:
    from pruner_lib.measuring.efficiency import weight_bytes

    return weight_bytes(model)


def _once(
    experiment: Experiment, details: list, measure: Callable[[Any, Any], Any], profile: str, root: Any
) -> Any:
    path = _path([*details, _settings(experiment)], profile, root)
    if not path.is_file():
        write_json(path, measure(*model_of(experiment, profile=profile, results_dir=root)))
    return read_json(path)


def _path(details: list, profile: str, root: Path | str | None) -> Path:
    return profile_dir(profile, root) / "measured" / f"{settings_key(details)}.json"


def _settings(experiment: Experiment) -> list:
    """Give what makes an experiment's model; how it is measured otherwise does not matter."""
    settings = asdict(experiment.canonical())
    del settings["evaluation"]
    return [settings, model_hash(experiment.model)]
