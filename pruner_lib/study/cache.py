"""What is kept between runs: named by what it rests on, and checked when it is read.

Settings are part of every name. Files of the user's own are too, by content, since they may be changed under
the same name: models in folders, texts, instructions and questions of the local data directory. Embedded data
are not: `data.assets` checks them, and names of results don't depend on the machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from pruner_lib.data.corpora import CORPORA, INSTRUCTIONS, local_instructions, local_questions, local_text
from pruner_lib.evaluation.tasks import TASKS
from pruner_lib.files import content_hash, content_hashes, set_aside, text_hash, write_atomic
from pruner_lib.method.checks import require
from pruner_lib.models.load import NAMES, find_model, own_folder
from pruner_lib.study.records import read_kept, write_kept
from pruner_lib.study.settings import DATA_FREE, Experiment, settings_key


def model_hash(name: str) -> str | None:
    """Name the contents of the user's own model folder by a hash of its files; None of any other model."""
    folder = own_folder(name)
    if folder is None or not folder.is_dir():
        return None
    return text_hash("".join(f"{file} {content}\n" for file, content in content_hashes(folder).items()))


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
    texts = {*how.texts, *([experiment.calibration.corpus] if _looks(experiment) else [])}
    require([(*CORPORA,), ...], texts=[one for one in sorted(texts) if local_text(one) is None])
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


def calibration_key(experiment: Experiment) -> list:
    """What makes the model and the calibration samples of an experiment, for `Study.cached`."""
    how = experiment.calibration
    return [experiment.model, files_hash(experiment.model, [local_text(how.corpus)]), asdict(how)]


def model_key(experiment: Experiment) -> list:
    """What makes an experiment's model, for `Study.cached`; how it is measured otherwise does not matter."""
    return [experiment.model_settings(), inputs_hash(experiment, evaluated=False)]


def members_key(experiment: Experiment, criterion: str) -> str:
    """Name the scores of a model's members by one criterion."""
    whole = [experiment.model, model_hash(experiment.model)]
    made = whole if criterion in DATA_FREE else calibration_key(experiment)
    return settings_key([*made, criterion, experiment.seed if criterion == "random" else 0])


def write_scores(path: Path, scores: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors in one step, and beside them a note of the file's content."""
    whole = {name: tensor.contiguous() for name, tensor in scores.items()}
    write_atomic(path, lambda temporary: save_file(whole, temporary))
    write_kept(path.with_suffix(".json"), content_hash(path))


def read_scores(path: Path) -> dict[str, Tensor] | None:
    """Read what `write_scores` wrote; None if it is not there.

    A damaged file counts as not there: it is set aside as NAME.damaged, with a warning.
    """
    noted = read_kept(path.with_suffix(".json"))
    if noted is None or not path.is_file():
        return None
    if content_hash(path) == noted:
        return load_file(path)
    set_aside(path, "it was changed after it was written")
    return None
