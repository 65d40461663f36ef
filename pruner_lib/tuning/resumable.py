"""The folder of a recovery: what a run keeps on disk, so that it can be killed at any time and go on.

It holds recovery.json (arguments, history, the last whole checkpoint), checkpoint-<step>/, the adapters of
steps that are to be kept as adapter-<step>/, and at the end adapter/ in place of the checkpoints.
recovery.json is written last each time, so what it names is whole.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pruner_lib.experiments.storage import read_json, write_json
from pruner_lib.tuning.alpaca import Row


class Run:
    """One recovery in one folder: what decides its result, its history, and where to go on.

    Args:
        folder: of recovery.json, adapter/ and the checkpoints.
        identity: all that decides the result, as plain data; compared before a run goes on.
        data: batches of encoded examples, one a step.
        kept: steps whose adapters are kept.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], data: list[list[Row]], kept: Sequence[int] = ()
    ) -> None:
        self.folder, self.identity, self.data, self.kept = folder, identity, data, kept
        self.adapter_path = folder / "adapter"
        self.history: list[dict[str, Any]] = []
        self.checkpoint: str | None = None  # the last whole one
        self.finished = False

    def open(self, resume: bool) -> None:
        """Read what an earlier run left and clear away what it left unfinished; without `resume`, all of it.

        Raises: ValueError: the earlier run had other arguments (the message names them), or is no recovery.
        """
        state = self.folder / "recovery.json"
        found = [path for name in ("checkpoint-*", "adapter*") for path in self.folder.glob(name)]
        if found and not state.exists():
            raise ValueError(
                f"{self.folder} holds {found[0].name} but no recovery.json, so something else made it. "
                "Give another output_dir."
            )
        if resume and state.exists():
            saved = read_json(state)
            self._compare(saved["identity"])
            self.checkpoint, self.finished = saved["checkpoint"], saved["finished"]
            self.history = [{name: _number(value) for name, value in row.items()} for row in saved["history"]]
        whole = {"adapter"} if self.finished else {self.checkpoint}
        whole |= {self.kept_path(step).name for step in self.kept if self._reached(step)}
        for path in found:
            if path.name not in whole:
                shutil.rmtree(path, ignore_errors=True)
        self.save()

    def save(self) -> None:
        if os.environ.get("RANK", "0") == "0":
            names = ("identity", "finished", "checkpoint", "history")
            write_json(self.folder / "recovery.json", {name: getattr(self, name) for name in names})

    def kept_path(self, step: int) -> Path:
        """Tell where the adapter of a step lies."""
        return self.folder / f"adapter-{step}"

    def keep(self, adapted: nn.Module, step: int) -> None:
        """Keep the adapter of a step."""
        self._write_adapter(adapted, self.kept_path(step))

    def finish(self, adapted: nn.Module) -> None:
        """Put the adapter in its place, say so, then drop the checkpoints."""
        self._write_adapter(adapted, self.adapter_path)
        self.finished, self.checkpoint = True, None
        self.save()
        for path in self.folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _write_adapter(self, adapted: nn.Module, place: Path) -> None:
        if os.environ.get("RANK", "0") == "0":
            part = self.folder / "adapter.part"
            adapted.save_pretrained(part, save_embedding_layers=False)
            part.rename(place)

    def _reached(self, step: int) -> bool:
        return self.finished or (self.checkpoint is not None and step <= int(self.checkpoint.split("-")[1]))

    def _compare(self, saved: dict[str, Any]) -> None:
        pairs = {name: (saved.get(name), self.identity.get(name)) for name in {**saved, **self.identity}}
        differing = [
            f"{name}: {there!r} there, {now!r} now" for name, (there, now) in pairs.items() if there != now
        ]
        if differing:
            raise ValueError(
                f"{self.folder} holds a recovery with other arguments ({'; '.join(differing)}). "
                "Give the same arguments, or another output_dir, or resume=False to throw it away."
            )


@contextmanager
def random_state(seed: int | None = None) -> Iterator[None]:
    """Leave the random states of Python, numpy and torch as they were; inside, start from `seed`."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)
                torch.manual_seed(seed)
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value  # JSON keeps infinities as text
