"""The folder from which a killed recovery resumes, and the random state of the training.

The folder holds recovery.json (the arguments and, once the run has finished, its history), adapter-<step>/
for steps whose adapters are kept, checkpoint-<step>/ to resume from, and finally adapter/. Until the run has
finished, its history is the log in the checkpoint's trainer_state.json, which Trainer writes last. A
checkpoint is dropped if that file is missing or if its files differ from the hashes in contents.json.
"""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from pruner_lib.files import (
    content_hashes,
    only_one,
    plain,
    read_json,
    set_aside,
    text_hash,
    write_folder,
    write_json,
)
from pruner_lib.method.checks import require
from pruner_lib.recovery.instructions import Row

CONTENTS, TRAINER_STATE = "contents.json", "trainer_state.json"  # files of a checkpoint
ADAPTER = "adapter_model.safetensors"
COLUMNS = ("step", "loss", "seconds", "tokens")  # of the history, besides the results of `evaluate`
GROWING = ("steps", "examples", "evaluated_steps", "kept_steps")  # entries that change when steps are added


def digest(data: Any) -> str:
    """Hash plain data to twelve hex digits."""
    return text_hash(json.dumps(data))


@dataclass
class Run:
    """One recovery in one folder: everything that determines its result, its history, where to resume."""

    folder: Path  # holds recovery.json, the adapters and the checkpoint
    identity: dict[str, Any]  # plain data that determines the result; compared before a run is resumed
    data: list[list[Row]]  # batches of encoded examples, one per step
    points: Sequence[int]  # steps at which the model is evaluated; 0 is before training
    kept: Sequence[int]  # steps whose adapters are kept
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None  # called at the points
    until: int  # the step after which this call stops; the run is paused if it has more steps
    checkpoint: str | None = None  # to resume from
    earlier_steps: int | None = None  # total steps of the run that is resumed, if this one has more
    history: list[dict[str, Any]] = field(default_factory=list)  # of a finished or paused run

    def adapter_path(self, step: int) -> Path:
        """Return the adapter folder of a step; adapter/ is that of the last and marks the run as finished."""
        return self.folder / ("adapter" if step == len(self.data) else f"adapter-{step}")

    def open(self, resume: bool) -> None:
        """Find an earlier run and drop its incomplete checkpoints, or all of it unless `resume` is set.

        If an adapter of a finished or paused run is damaged, it becomes NAME.damaged and the run restarts.

        Raises: ValueError: the earlier run had other arguments (the message names them) or is no recovery.
        """
        state = self.folder / "recovery.json"
        patterns = ("checkpoint-*", "adapter", "adapter-*[0-9]", ".adapter-*")  # the last by killed processes
        intact = {path: _is_intact(path) for pattern in patterns for path in self.folder.glob(pattern)}
        if intact and not state.exists():
            found = f"{next(iter(intact)).name} but no recovery.json, so something else made it"
            raise ValueError(f"{self.folder} holds {found}; give another output_dir")
        if intact and resume:
            identity, self.history = _read_state(state)
            self._compare(identity, any(intact[path] for path in intact if path.match("checkpoint-*")))
        damaged = [path for path in intact if path.match("adapter*") and not intact[path]]
        if damaged and self.history:
            for path in damaged:
                set_aside(path, "its weights differ from those that were written")
            resume, self.history = False, []
        for path in intact:
            if not resume or not intact[path]:
                shutil.rmtree(path, ignore_errors=True)
        self.checkpoint = get_last_checkpoint(self.folder) if intact else None
        if self.earlier_steps and self.checkpoint:
            with suppress(FileNotFoundError):
                (self.folder / "adapter").rename(self.adapter_path(self.earlier_steps))
            change = f"the run in {self.folder} had {self.earlier_steps} steps and continues to"
            rates = "its first steps used the learning rates of the shorter run"
            warnings.warn(f"{change} {len(self.data)}; {rates}", stacklevel=3)
        self._save()

    def has(self, step: int) -> bool:
        """Return whether the run has finished, or has the adapter of a step and the history up to it."""
        kept = self.adapter_path(step).exists() and any(row["step"] == step for row in self.history)
        return kept or self.adapter_path(len(self.data)).exists()

    def keep(self, adapted: PeftModel, step: int) -> None:
        """Save the adapter of a step, completely or not at all."""
        if first_process():

            def save(folder: Path) -> None:
                adapted.save_pretrained(folder, save_embedding_layers=False)  # "auto" queries the hub
                note_contents(folder)

            write_folder(self.adapter_path(step), save)

    def close(self, adapted: PeftModel, history: list[dict[str, Any]]) -> None:
        """Save the history and the adapter of its last step, at which a callback may have stopped the run."""
        # restore the order of the columns, which Trainer's own file sorts by name
        names = [*COLUMNS, *sorted(set().union(*history) - set(COLUMNS))]
        self.history = [{name: row[name] for name in names if name in row} for row in history]
        self._save()
        if not self.adapter_path(history[-1]["step"]).exists():
            self.keep(adapted, history[-1]["step"])

    def _save(self) -> None:
        if first_process():
            state = plain({"identity": self.identity, "history": self.history})
            write_json(self.folder / "recovery.json", state | {"digest": digest(state)})

    def _compare(self, saved: dict[str, Any], has_checkpoint: bool) -> None:
        """Refuse a run with other arguments, unless it is the beginning of this one."""
        steps, growing = saved["steps"], ()
        recorded = {*saved["evaluated_steps"], *saved.get("kept_steps", ())}
        needed = {step for step in (*self.points, *self.kept) if step < steps}
        is_beginning = steps < len(self.data) and saved["examples"] == digest(self.data[:steps])
        if has_checkpoint and is_beginning and needed <= recorded:
            self.earlier_steps, growing = steps, GROWING
        differing = [
            f"{name}: {saved.get(name)!r} there, {self.identity.get(name)!r} now"
            for name in {**saved, **self.identity}
            if name not in growing and saved.get(name) != self.identity.get(name)
        ]
        if differing:
            advice = "Give the same arguments, or another output_dir, or resume=False to discard it."
            found = f"a recovery with other arguments ({'; '.join(differing)})"
            raise ValueError(f"{self.folder} holds {found}. {advice}")


def note_contents(folder: Path) -> None:
    """Write the hashes of the files of a checkpoint or adapter beside them; a checkpoint needs them."""
    if first_process():
        write_json(folder / CONTENTS, content_hashes(folder))


def _read_state(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read identity and history from recovery.json; refuse an edited file, with or without a digest."""
    saved = read_json(path)
    try:
        recorded = saved.pop("digest", None)
        if recorded not in (None, digest(saved)) or {"identity", "history"} != {*saved}:
            raise ValueError("its digest or its keys differ")
        identity, rows = saved["identity"], [dict(row) for row in saved["history"]]
        lists = [[row["step"] for row in rows], identity["evaluated_steps"], identity.get("kept_steps", [])]
        require([["0..", ...]], steps=lists)
        require("1..", steps=identity["steps"])
        require(str, examples=identity["examples"])
        for row in rows:  # JSON keeps infinities and NaN as text
            row.update({name: float(value) for name, value in row.items() if isinstance(value, str)})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        advice = "restore it, give another output_dir, or discard the run with resume=False"
        raise ValueError(f"{path} was changed after it was written ({error!r}); {advice}") from error
    return identity, rows


def _is_intact(folder: Path) -> bool:
    """Return whether the files match their recorded hashes; adapters of an earlier version have none."""
    try:
        if folder.match("checkpoint-*") or (folder / CONTENTS).exists():
            recorded, found = read_json(folder / CONTENTS), content_hashes(folder)
            needed = TRAINER_STATE if folder.match("checkpoint-*") else ADAPTER
            return needed in recorded and all(found.get(name) == recorded[name] for name in recorded)
        with safe_open(folder / ADAPTER, "pt"):
            return True
    except (OSError, ValueError, TypeError, SafetensorError):
        return False


def first_process() -> bool:
    """Return whether this is the first of the processes that `accelerate launch` started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock the folder of a recovery; raise ValueError if another process holds the lock."""
    lock = only_one(folder / ".lock", wait=False)
    try:
        lock.acquire()
    except TimeoutError:
        raise ValueError(f"another process recovers in {folder}: wait, or give another output_dir") from None
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def random_state(seed: int | None = None) -> Iterator[None]:
    """Seed Python, numpy and torch with `seed`, if given, and restore their random states afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            if seed is not None:
                set_seed(seed)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
