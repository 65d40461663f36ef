"""What is kept between runs: named by what it rests on, and checked when it is read.

Settings are part of every name. Files of the user's own are too, by content, since they may be changed under
the same name: models in folders, texts, instructions and questions of the local data directory. Embedded data
are not: `data.assets` checks them, and names of results don't depend on the machine.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruner_lib.data.corpora import CORPORA, INSTRUCTIONS, local_instructions, local_questions, local_text
from pruner_lib.evaluation.tasks import TASKS
from pruner_lib.files import content_hash, content_hashes, set_aside, write_atomic
from pruner_lib.method.checks import require
from pruner_lib.models.load import NAMES, find_model, own_folder
from pruner_lib.study.records import read_kept, write_kept
from pruner_lib.study.settings import DATA_FREE, Experiment, settings_key


def model_hash(name: str) -> str | None:
    """Name the contents of the user's own model folder by a hash of its files; None of any other model."""
    folder = own_folder(name)
    if folder is None or not folder.is_dir():
        return None
    text = "".join(f"{file} {content}\n" for file, content in content_hashes(folder).items())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def files_hash(model: str, files: Sequence[Path | None]) -> str | None:
    """Name a model and the data read with it by content; None where nothing of it is the user's own.

    Args:    files: of the local data directory; None stands for data from elsewhere.
    """
    hashes = [path and content_hash(path) for path in files]
    folder = model_hash(model)
    return settings_key([folder, hashes]) if any(hashes) else folder


def inputs_hash(experiment: Experiment, *, evaluated: bool = True) -> str | None:
    """Name all that an experiment reads by content; None where nothing of it is the user's own.

    Args:    evaluated: with what is measured on; else that alone which makes the model.
    """
    how = experiment.evaluation
    measured = [*map(local_text, how.texts), *map(local_questions, how.tasks)] if evaluated else []
    return files_hash(experiment.model, [*_makers(experiment), *measured])


def check_inputs(experiment: Experiment) -> None:
    """Refuse an experiment whose model, texts, tasks or instructions are unknown, before anything is made.

    Raises: ValueError: names what is unknown, and what there is.
    """
    how, recovery = experiment.evaluation, experiment.recovery
    if experiment.model not in NAMES:
        find_model(experiment.model)
    texts = [*how.texts, *([experiment.calibration.corpus] if _looks(experiment) else [])]
    require([(*CORPORA,), ...], texts=[one for one in texts if local_text(one) is None])
    require([(*TASKS,), ...], tasks=how.tasks)
    if recovery and local_instructions(recovery.corpus) is None:
        require((*INSTRUCTIONS,), instructions=recovery.corpus)


def _looks(experiment: Experiment) -> bool:
    """Whether the samples of its calibration are looked at."""
    return bool(experiment.ratio) and experiment.criterion not in DATA_FREE


def _makers(experiment: Experiment) -> list[Path | None]:
    """List the data that make the model of an experiment, as `files_hash` takes them."""
    made = [local_text(experiment.calibration.corpus)] if _looks(experiment) else []
    return made + ([local_instructions(experiment.recovery.corpus)] if experiment.recovery else [])


def recovery_key(experiment: Experiment) -> str:
    """Name the training of an experiment; what is measured of it, and after which step, does not matter."""
    settings, how = experiment.model_settings(), experiment.evaluation
    watched, files = None, _makers(experiment)
    if experiment.recovery.evaluate_at:
        watched = [how.texts, how.windows, how.length, how.bos]
        watched += [] if how.seed is None else [how.seed]
        files += map(local_text, how.texts)
    settings["recovery"]["at"] = None
    del settings["int8"]
    return settings_key([settings, watched, files_hash(experiment.model, files)])


def members_key(experiment: Experiment, criterion: str) -> str:
    """Name the scores of a model's members by one criterion."""
    looks = criterion not in DATA_FREE
    calibration = asdict(experiment.calibration) if looks else None
    files = [local_text(experiment.calibration.corpus)] if looks else []
    seed = experiment.seed if criterion == "random" else 0
    inputs = files_hash(experiment.model, files)
    return settings_key([experiment.model, inputs, criterion, calibration, seed])


def note_adapters(folder: Path) -> None:
    """Note the contents of the adapters that a recovery left in its folder, for `check_adapters`."""
    write_kept(folder / "contents.json", content_hashes(folder, "adapter*/*"))


def check_adapters(folder: Path) -> None:
    """Set a recovery aside, with a warning, one of whose adapters is not as it was noted."""
    noted, there = read_kept(folder / "contents.json") or {}, content_hashes(folder, "adapter*/*")
    if changed := [name for name, content in there.items() if noted.get(name, content) != content]:
        shutil.rmtree(folder.with_name(f"{folder.name}.damaged"), ignore_errors=True)  # an earlier one
        set_aside(folder, f"{changed[0]} was changed after it was written")


def write_scores(path: Path, scores: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors in one step, with a digest of them."""
    whole = {name: tensor.contiguous() for name, tensor in scores.items()}
    written = {"digest": _digest(whole)}
    write_atomic(path, lambda temporary: save_file(whole, str(temporary), written))


def read_scores(path: Path) -> dict[str, Tensor] | None:
    """Read what `write_scores` wrote; None if it is not there.

    A damaged file counts as not there: it is set aside as NAME.damaged, with a warning.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            scores = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            written = (file.metadata() or {}).get("digest")  # none in files of earlier versions
        if written not in (None, _digest(scores)):
            raise ValueError("its numbers are not those that were written")
        return scores
    except (SafetensorError, ValueError) as error:
        set_aside(path, error)
        return None


def _digest(scores: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(scores):
        digest.update(name.encode() + scores[name].cpu().numpy().tobytes())
    return digest.hexdigest()
