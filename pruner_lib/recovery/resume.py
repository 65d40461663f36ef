"""The folder of a recovery, which it resumes from after a kill, and the random state that it trains with.

The folder holds recovery.json (arguments; the history once the run has finished), adapter-<step>/ for steps
whose adapters are kept, checkpoint-<step>/, from which more steps go on, and at the end adapter/. The history
of an open run is the log in the checkpoint's trainer_state.json, which Trainer writes last: a checkpoint
without it is incomplete and is dropped, as one is whose files are not those that contents.json noted.
"""

import hashlib
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

from pruner_lib.files import content_hashes, only_one, plain, read_json, set_aside, write_folder, write_json
from pruner_lib.recovery.instructions import Row

CONTENTS, LAST = "contents.json", "trainer_state.json"  # of a checkpoint; the second Trainer writes last
ADAPTER = "adapter_model.safetensors"
OWN_COLUMNS = ("step", "loss", "seconds", "tokens")  # of the history, beside what `evaluate` returns
GROWING = ("steps", "examples", "evaluated_steps", "kept_steps")  # what more steps change


def digest(data: Any) -> str:
    """Name plain data by twelve hex digits."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:12]


@dataclass
class Run:
    """One recovery in one folder: what decides its result, its history, and where to resume."""

    folder: Path  # of recovery.json, the adapters and the checkpoint
    identity: dict[str, Any]  # all that decides the result, as plain data; compared before a run is resumed
    data: list[list[Row]]  # batches of encoded examples, one a step
    points: Sequence[int]  # steps at which the model is measured; 0 is before training
    kept: Sequence[int]  # steps whose adapters are kept
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None  # measures at the points
    until: int  # the last step now; before the last of all, the run pauses there
    checkpoint: str | None = None  # to resume from
    shorter: int | None = None  # steps that the run had when it was opened, where they are more now
    history: list[dict[str, Any]] = field(default_factory=list)  # of a finished or paused run

    def place(self, step: int) -> Path:
        """Name the folder of the adapter of a step: adapter/ of the last, which marks the run as finished."""
        return self.folder / ("adapter" if step == len(self.data) else f"adapter-{step}")

    def open(self, resume: bool) -> None:
        """Look for an earlier run, and drop its incomplete checkpoints; without `resume`, all of it.

        All of it goes where an adapter of a finished or paused run is damaged, which is kept as NAME.damaged.

        Raises: ValueError: the earlier run had other arguments (the message names them), or is no recovery.
        """
        state = self.folder / "recovery.json"
        kinds = ("checkpoint-*", "adapter", "adapter-*[0-9]", ".adapter-*")  # .adapter: of a killed process
        whole = {path: _is_whole(path) for kind in kinds for path in self.folder.glob(kind)}
        if whole and not state.exists():
            found = f"{next(iter(whole)).name} but no recovery.json, so something else made it"
            raise ValueError(f"{self.folder} holds {found}. Give another output_dir.")
        if whole and resume:
            saved = _read_state(state)
            can_go_on = any(whole[path] for path in whole if path.match("checkpoint-*"))
            self._compare(saved["identity"], can_go_on)
            self.history = [  # JSON keeps infinities as text
                {name: float(value) if isinstance(value, str) else value for name, value in row.items()}
                for row in saved["history"]
            ]
        damaged = [path for path in whole if path.match("adapter*") and not whole[path]]
        if damaged and self.history:
            for path in damaged:
                set_aside(path, "its weights are not those that were written")
            resume, self.history = False, []
        for path in whole:
            if not resume or not whole[path]:
                shutil.rmtree(path, ignore_errors=True)
        self.checkpoint = get_last_checkpoint(self.folder) if whole else None
        if self.shorter and self.checkpoint:
            last = self.folder / "adapter"
            if last.exists():
                last.rename(self.place(self.shorter))
            what = f"the run in {self.folder} had {self.shorter} steps and goes on to {len(self.data)}"
            rates = "what it trained so far had the learning rates of the shorter run"
            warnings.warn(f"{what}: {rates}", stacklevel=3)
        self._save()

    def has(self, step: int) -> bool:
        """Say whether the run has finished, or the adapter of a step is there and the history up to it."""
        there = self.place(step).exists() and any(row["step"] == step for row in self.history)
        return there or self.place(len(self.data)).exists()

    def keep(self, adapted: PeftModel, step: int) -> None:
        """Save the adapter of a step, whole or not at all."""
        if first_process():

            def save(folder: Path) -> None:
                adapted.save_pretrained(folder, save_embedding_layers=False)  # "auto" asks the hub
                note_contents(folder)

            write_folder(self.place(step), save)

    def close(self, adapted: PeftModel, history: list[dict[str, Any]]) -> None:
        """Save the history and the adapter of its last step, where a callback may have stopped the run."""
        # the Trainer's own file, from which a stopped run goes on, sorts the names
        names = [*OWN_COLUMNS, *sorted(set().union(*history) - set(OWN_COLUMNS))]
        self.history = [{name: row[name] for name in names if name in row} for row in history]
        self._save()
        if not self.place(history[-1]["step"]).exists():
            self.keep(adapted, history[-1]["step"])

    def _save(self) -> None:
        if first_process():
            state = plain({"identity": self.identity, "history": self.history})
            write_json(self.folder / "recovery.json", state | {"digest": digest(state)})

    def _compare(self, saved: dict[str, Any], can_go_on: bool) -> None:
        """Refuse a run with other arguments, but not the beginning of this one, measured and kept alike."""
        steps, growing = saved["steps"], ()
        before = {*saved["evaluated_steps"], *saved.get("kept_steps", ())}
        wanted = {step for step in (*self.points, *self.kept) if step < steps}
        is_beginning = steps < len(self.data) and saved["examples"] == digest(self.data[:steps])
        if can_go_on and is_beginning and wanted <= before:
            self.shorter, growing = steps, GROWING
        differing = [
            f"{name}: {saved.get(name)!r} there, {self.identity.get(name)!r} now"
            for name in {**saved, **self.identity}
            if name not in growing and saved.get(name) != self.identity.get(name)
        ]
        if differing:
            advice = "Give the same arguments, or another output_dir, or resume=False to throw it away."
            found = f"a recovery with other arguments ({'; '.join(differing)})"
            raise ValueError(f"{self.folder} holds {found}. {advice}")


def note_contents(folder: Path) -> None:
    """Note what the files of a checkpoint or adapter hold, beside them; a checkpoint needs it to count."""
    if first_process():
        write_json(folder / CONTENTS, content_hashes(folder))


def _read_state(path: Path) -> dict[str, Any]:
    """Read recovery.json; refuse one that was changed (that of an earlier version has no digest)."""
    saved = read_json(path)
    written = saved.pop("digest", None) if isinstance(saved, dict) else ""
    if written not in (None, digest(saved)) or {"identity", "history"} != {*saved}:
        advice = "restore it, give another output_dir, or throw the run away with resume=False"
        raise ValueError(f"{path} was changed after it was written; {advice}")
    return saved


def _is_whole(folder: Path) -> bool:
    """Look whether the files are those that were noted; an adapter of an earlier version has no note."""
    try:
        if folder.match("checkpoint-*") or (folder / CONTENTS).exists():
            noted, there = read_json(folder / CONTENTS), content_hashes(folder)
            wanted = LAST if folder.match("checkpoint-*") else ADAPTER
            return wanted in noted and all(there.get(name) == noted[name] for name in noted)
        with safe_open(folder / ADAPTER, "pt"):
            return True
    except (OSError, ValueError, TypeError, SafetensorError):
        return False


def first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # of those that `accelerate launch` started


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from recovering in a folder meanwhile; ValueError where one is at it."""
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
    """Leave the random states of Python, numpy and torch as they were; inside, start from `seed`."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            if seed is not None:
                set_seed(seed)
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
