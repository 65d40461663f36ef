"""The keys of results and cache entries, and the cached scores, which are checked when they are read.

Every key hashes the settings. It also hashes the content of local files, since these may change under the
same name: models in folders, and texts, instructions and questions of the local data directory. Built-in data
are not hashed: `data.assets` checks them, and the names of results must not depend on the machine.
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
    """Hash the files of a local model folder; None for any other model."""
    folder = own_folder(name)
    if folder is None or not folder.is_dir():
        return None
    return text_hash("".join(f"{file} {content}\n" for file, content in content_hashes(folder).items()))


def files_hash(model: str, files: Sequence[Path | None]) -> str | None:
    """Hash the content of a model and of data files; None if neither the model nor the data are local.

    Args:    files: in the local data directory; None stands for built-in data.
    """
    hashes = [path and content_hash(path) for path in files]
    folder = model_hash(model)
    return settings_key([folder, hashes]) if any(hashes) else folder


def inputs_hash(experiment: Experiment, *, evaluated: bool = True) -> str | None:
    """Hash the content of all local files that an experiment reads; None if there are none.

    Args:    evaluated: False leaves out the evaluation data, so that only what makes the model counts.
    """
    evaluation = experiment.evaluation
    data = [*map(local_text, evaluation.texts), *map(local_questions, evaluation.tasks)] if evaluated else []
    return files_hash(experiment.model, [*_model_data(experiment), *data])


def check_inputs(experiment: Experiment) -> None:
    """Refuse an experiment whose model, texts, tasks or instructions are unknown, before it starts.

    Raises: ValueError: the message names what is unknown and the known names.
    """
    recovery, texts = experiment.recovery, {*experiment.evaluation.texts}
    if experiment.model not in NAMES:
        find_model(experiment.model)
    if _is_calibrated(experiment):
        texts.add(experiment.calibration.corpus)
    require([(*CORPORA,), ...], texts=[text for text in sorted(texts) if local_text(text) is None])
    require([(*TASKS,), ...], tasks=experiment.evaluation.tasks)
    if recovery and local_instructions(recovery.corpus) is None:
        require((*INSTRUCTIONS,), instructions=recovery.corpus)


def _is_calibrated(experiment: Experiment) -> bool:
    """Whether an experiment reads its calibration samples."""
    return bool(experiment.ratio) and experiment.criterion not in DATA_FREE


def _model_data(experiment: Experiment) -> list[Path | None]:
    """List the data files that determine the model of an experiment, as `files_hash` takes them."""
    files = [local_text(experiment.calibration.corpus)] if _is_calibrated(experiment) else []
    return files + ([local_instructions(experiment.recovery.corpus)] if experiment.recovery else [])


def recovery_key(experiment: Experiment) -> str:
    """Return the key of an experiment's training, which does not depend on when and how it is evaluated."""
    settings, evaluation = experiment.model_settings(), experiment.evaluation
    watched, files = None, _model_data(experiment)
    if experiment.recovery.evaluate_at:
        watched = [evaluation.texts, evaluation.windows, evaluation.length, evaluation.bos]
        watched += [] if evaluation.seed is None else [evaluation.seed]
        files += map(local_text, evaluation.texts)
    settings["recovery"]["at"] = None
    del settings["int8"]
    return settings_key([settings, watched, files_hash(experiment.model, files)])


def calibration_key(experiment: Experiment) -> list:
    """Return what determines an experiment's dense model and calibration samples, for `Study.cached`."""
    calibration = experiment.calibration
    files = files_hash(experiment.model, [local_text(calibration.corpus)])
    return [experiment.model, files, asdict(calibration)]


def model_key(experiment: Experiment) -> list:
    """Return what determines an experiment's model, whatever its evaluation, for `Study.cached`."""
    return [experiment.model_settings(), inputs_hash(experiment, evaluated=False)]


def members_key(experiment: Experiment, criterion: str) -> str:
    """Return the key of the scores of a model's members by one criterion."""
    model = [experiment.model, model_hash(experiment.model)]
    key = model if criterion in DATA_FREE else calibration_key(experiment)
    return settings_key([*key, criterion, experiment.seed if criterion == "random" else 0])


def write_scores(path: Path, scores: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors in one step, and the hash of the file beside it."""
    tensors = {name: tensor.contiguous() for name, tensor in scores.items()}
    write_atomic(path, lambda temporary: save_file(tensors, temporary))
    write_kept(path.with_suffix(".json"), content_hash(path))


def read_scores(path: Path) -> dict[str, Tensor] | None:
    """Read what `write_scores` wrote; None if it is missing.

    A damaged file counts as missing: it is renamed to NAME.damaged, with a warning.
    """
    expected = read_kept(path.with_suffix(".json"))
    if expected is None or not path.is_file():
        return None
    if content_hash(path) == expected:
        return load_file(path)
    set_aside(path, "it was changed after it was written")
    return None
