"""The loop of recovery on the Trainer of transformers, and the folder that it goes on from after a kill.

The folder holds recovery.json (arguments, history, the last whole checkpoint), checkpoint-<step>/, the
adapters of steps that are to be kept as adapter-<step>/, and at the end adapter/ in place of the checkpoints.
recovery.json is written last each time, so what it names is whole.
"""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pruner_lib.files import read_json, write_json
from pruner_lib.recovery.instructions import IGNORED, Row, collate


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


@dataclass(frozen=True)
class RecoverySettings:
    """What decides the result of a recovery; the defaults are the paper's.

    Raises: ValueError: a value is out of its range, or `micro_batch_size` does not divide `batch_size`.
    Source: paper App. B.2 (rank, rate, warm-up, batch, epochs); post_training.py and its script (the rest).
        Differs: the last adapter is kept (the reference keeps the one with the best loss on 2000 held-out
        examples); a pass over the data that ends inside a batch is filled up from the next pass.
    """

    steps: int | None = None  # optimizer steps; None: as many as `epochs` need
    epochs: float = 2
    batch_size: int = 64  # examples a step
    micro_batch_size: int = 4  # examples in memory at once, a device
    learning_rate: float = 1e-4  # reached after the warm-up, then linearly to 0
    warmup_steps: int = 100
    rank: int = 8
    alpha: int = 16  # the update is alpha / rank * B A
    dropout: float = 0.05  # of the adapter's input
    # or "without-mlp", "without-attention", or ends of module names; never the output layer
    target_modules: str | tuple[str, ...] = "all-linear"
    cutoff: int = 256  # tokens an example
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "rank", "alpha", "cutoff", "learning_rate", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: a number above 0 is wanted.")
        if self.steps is not None and not (self.steps >= 1 and self.steps == int(self.steps)):
            raise ValueError(f"steps={self.steps!r}: a whole number above 0 is wanted, or None.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps!r}: a number of steps is wanted.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}: a share in [0, 1) is wanted.")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of micro_batch_size={self.micro_batch_size}: "
                "a step adds up whole micro-batches. Change one of the two."
            )
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))


def train(
    adapted: nn.Module,
    run: Run,
    settings: RecoverySettings,
    *,
    points: list[int],
    evaluate: Callable[[nn.Module], Any] | None,
    save_steps: int,
    pad: int,
) -> None:
    """Train what requires a gradient on the batches of `run`, from its checkpoint if it has one, to the end.

    Args:
        adapted: a PeftModel; on a GPU it trains under autocast.
        points: steps to call `evaluate` at; 0 is before training.
        pad: token id for padding.

    Raises: ValueError: the loss is no number, or `evaluate` returns what can't be kept.
    """
    recorder = _Recorder(run, points, evaluate)
    trainer = _ResponseTrainer(
        adapted,
        _arguments(run, settings, next(adapted.parameters()).device, save_steps),
        data_collator=partial(collate, pad=pad),
        train_dataset=[row for batch in run.data for row in batch],
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)
    log = logging.getLogger("transformers.trainer_utils")
    level = log.level
    log.setLevel(logging.ERROR)  # else it tells where checkpoints are as old as each other; it goes by number
    try:
        trainer.train(resume_from_checkpoint=str(run.folder / run.checkpoint) if run.checkpoint else None)
    finally:
        log.setLevel(level)
        recorder.bar.close()
        for name in ("forward", "_original_forward"):  # where accelerate puts autocast
            vars(adapted).pop(name, None)
    run.finish(adapted)
    trainer.accelerator.wait_for_everyone()  # the first process writes the adapter


def _arguments(
    run: Run, settings: RecoverySettings, device: torch.device, save_steps: int
) -> TrainingArguments:
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1  # by accelerate: it chooses the devices
    on_gpu = device.type == "cuda" or (launched and torch.cuda.is_available())
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    arguments = TrainingArguments(
        output_dir=str(run.folder),
        max_steps=len(run.data),
        per_device_train_batch_size=settings.micro_batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        seed=settings.seed,
        train_sampling_strategy="sequential",  # `run.data` is in its order
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        save_steps=save_steps,
        save_total_limit=2,  # the one that recovery.json names, and the next until it does
        use_cpu=not on_gpu,
        bf16=bf16,
        fp16=on_gpu and not bf16,
        dataloader_pin_memory=on_gpu,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # a process drives one device: no DataParallel
    per_round = settings.micro_batch_size * arguments.world_size
    if settings.batch_size % per_round:
        raise ValueError(
            f"batch_size={settings.batch_size} is no multiple of {per_round}, micro_batch_size times "
            f"{arguments.world_size} devices. Change one of them."
        )
    arguments.gradient_accumulation_steps = settings.batch_size // per_round
    return arguments


class _ResponseTrainer(Trainer):
    """Computes the logits that have a label alone (exact: the loss uses no others); saves adapters alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # makes it count the labels of a whole step
        self.loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the micro-batch's share of the mean loss over all labels of the step."""
        ids, seen, labels = (inputs[name] for name in ("input_ids", "attention_mask", "labels"))
        if ids.shape[0] == ids.shape[1]:  # a token more, unseen, so that batch and tokens can be told apart
            ids, seen = (functional.pad(x, (0, 1)) for x in (ids, seen))
            labels = functional.pad(labels, (0, 1), value=IGNORED)
        targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)  # (batch, tokens)
        labelled = targets != IGNORED

        def keep_labelled(_, args: tuple) -> tuple:
            if args[0].shape[:2] == labelled.shape:
                return args[0][labelled][None], *args[1:]  # (1, labels, hidden)
            return args[0].transpose(0, 1)[labelled][:, None], *args[1:]  # tokens first: (labels, 1, hidden)

        hook = self.model.get_base_model().get_output_embeddings().register_forward_pre_hook(keep_labelled)
        try:
            outputs = model(ids, attention_mask=seen, use_cache=False)
        finally:
            hook.remove()
        logits = outputs.logits[0].float()  # (labels, vocabulary)
        loss = functional.cross_entropy(logits, targets[labelled], reduction="sum")
        loss = loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.should_save:
            self.model.save_pretrained(output_dir, save_embedding_layers=False)  # "auto" asks the hub


class _Recorder(TrainerCallback):
    """Keeps the history of a run: a row a step, with what `evaluate` returns at the points."""

    def __init__(self, run: Run, points: list[int], evaluate: Callable | None) -> None:
        self.run, self.points, self.evaluate = run, points, evaluate
        self.tokens = [0, *accumulate(sum(len(row["input_ids"]) for row in batch) for batch in run.data)]
        self.seconds = run.history[-1]["seconds"] if run.history else 0.0
        self.started = 0.0
        others = os.environ.get("RANK", "0") != "0"
        self.bar = tqdm(total=len(run.data), desc="recover", unit="step", mininterval=1.0, disable=others)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.bar.update(state.global_step)
        if 0 in self.points and not self.run.history:
            self._record(0, None, model)
            self.run.save()

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "loss" not in logs:  # the summary at the end
            return
        self.seconds += time.perf_counter() - self.started
        if not math.isfinite(logs["loss"]):
            raise ValueError(
                f"The loss is {logs['loss']} at step {state.global_step}: lower the learning rate "
                f"({args.learning_rate}), or load the model in float32 if it is in half precision."
            )
        self._record(state.global_step, logs["loss"], model)
        if state.global_step in self.run.kept:
            self.run.keep(model, state.global_step)
        self.bar.update()
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        control.should_save |= state.global_step in (*self.points, *self.run.kept)

    def on_save(self, args, state, control, **kwargs):
        self.run.checkpoint = f"checkpoint-{state.global_step}"
        self.run.save()

    def _record(self, step: int, loss: float | None, adapted: nn.Module) -> None:
        row = {"step": step, "loss": loss, "seconds": self.seconds, "tokens": self.tokens[step]}
        if step in self.points:
            adapted.eval()
            with random_state(), torch.no_grad():
                measured = dict(self.evaluate(adapted.get_base_model()))
            if clash := sorted(set(row) & set(measured)):
                raise ValueError(
                    f"evaluate returned {clash}, names that the history uses itself; rename them."
                )
            row |= {name: float(value) for name, value in measured.items()}
        self.run.history.append(row)
