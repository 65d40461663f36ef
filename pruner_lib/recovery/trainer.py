"""The training loop of recovery, on transformers' Trainer: its arguments, its loss and its history."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from pruner_lib.method.checks import require
from pruner_lib.recovery.instructions import IGNORED, collate
from pruner_lib.recovery.resume import Run, first_process, note_contents, random_state
from pruner_lib.recovery.settings import RecoverySettings

FIXED = {  # arguments of the Trainer that are the same in every recovery
    "train_sampling_strategy": "sequential",  # `run.data` is already in training order
    "remove_unused_columns": False,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "save_total_limit": 1,
}
KEPT = (  # arguments that keep the Trainer's default or are set below
    *("num_train_epochs", "gradient_accumulation_steps", "logging_strategy", "save_strategy"),
    *("eval_strategy", "load_best_model_at_end", "push_to_hub", "eval_on_start", "auto_find_batch_size"),
    *("ignore_data_skip", "save_only_model", "resume_from_checkpoint"),  # would change a resumed run
    *("label_smoothing_factor", "use_liger_kernel"),  # for the Trainer's own loss, which is replaced
    # a setting of recovery, turned on in `train`; the Trainer's argument raises a deprecation warning
    *("gradient_checkpointing", "activation_checkpointing"),
    *("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    *("data_seed", "parallelism_config"),  # `seed` orders the data; `accelerate launch` distributes the work
)
DEFAULTS = {"lr_scheduler_type": "linear", "optim": "adamw_torch", "report_to": "none", "disable_tqdm": True}
ROWS_ON_CPU = 2  # examples per forward pass on a CPU: more are no faster and need more padding


def trainer_arguments(
    folder: Path, settings: RecoverySettings, steps: int, device: torch.device, save_steps: int, more: Mapping
) -> TrainingArguments:
    """Turn the settings of a recovery into arguments of the Trainer.

    Args:    device: of the model.    more: arguments of the Trainer that the settings don't determine.
    Raises:  ValueError: `more` has other names or invalid values, or devices can't share a batch evenly.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1  # by accelerate, which chooses the devices
    on_gpu = device.type == "cuda" or (launched and torch.cuda.is_available())
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    size = settings.micro_batch_size
    fixed = FIXED | {"output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": size}
    fixed |= {name: getattr(settings, name) for name in ("learning_rate", "warmup_steps", "seed")}
    fixed |= {"save_steps": save_steps, "use_cpu": not on_gpu, "bf16": bf16, "fp16": on_gpu and not bf16}
    _check_more(more, (*fixed, *KEPT))
    try:
        arguments = TrainingArguments(**fixed, **{"dataloader_pin_memory": on_gpu} | DEFAULTS | dict(more))
        # try out what the Trainer creates only when training starts
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = optimizer_class([nn.Parameter(torch.zeros(1))], **options)
        options = {"scheduler_specific_kwargs": arguments.lr_scheduler_kwargs}
        get_scheduler(arguments.lr_scheduler_type, optimizer, 1, 2, **options)
        for report in get_reporting_integration_callbacks(arguments.report_to):
            report()
        arguments.get_process_log_level()
    except Exception as error:
        raise ValueError(f"training_arguments={dict(more)} can't be used: {error}") from error
    arguments._n_gpu = min(1, arguments.n_gpu)  # one device per process: no DataParallel
    per_round = size * arguments.world_size
    if settings.batch_size % per_round:
        multiple = f"a multiple of {per_round}, micro_batch_size times {arguments.world_size} devices"
        raise ValueError(f"batch_size={settings.batch_size} is not {multiple}; change one of them")
    arguments.gradient_accumulation_steps = settings.batch_size // per_round
    return arguments


def _check_more(more: Mapping[str, Any], refused: Sequence[str]) -> None:
    """Refuse unknown arguments of the Trainer, those that recovery sets, and numbers out of range."""
    allowed = {entry.name: entry.default for entry in fields(TrainingArguments) if entry.name not in refused}
    if wrong := set(more) - set(allowed) if isinstance(more, Mapping) else [more]:
        names = f"training_arguments holds {', '.join(sorted(map(str, wrong)))}: no such argument of"
        others = f"or one that settings of recover decide ({', '.join(refused)})"
        raise ValueError(f"{names} TrainingArguments, {others}.")
    for name, value in more.items():
        if isinstance(allowed[name], bool | int | float):
            require(bool if isinstance(allowed[name], bool) else "[0, inf)", **{name: value})


def train(
    adapted: PeftModel, run: Run, arguments: TrainingArguments, recompute: bool, pad: int, callbacks: list
) -> None:
    """Train the adapter on the batches of `run`, resuming from its checkpoint if it has one.

    Args:    adapted: trains under autocast on a GPU.    recompute: recompute activations, to save memory.
             pad: token id for padding.    callbacks: further callbacks of the Trainer.
    Raises:  ValueError: the loss is not finite, or `run.evaluate` returns a name that the history uses.
    """
    recorder = _Recorder(run)
    collator, rows = partial(collate, pad=pad), [row for batch in run.data for row in batch]
    trainer = _ResponseTrainer(adapted, arguments, collator, rows, callbacks=[recorder, *callbacks])
    trainer.model_accepts_loss_kwargs = True  # so that it counts the labels of a whole step
    trainer.loss_is_scaled_for_ga = True
    trainer.remove_callback(PrinterCallback)
    log = logging.getLogger("transformers.trainer_utils")
    level = log.level
    log.setLevel(logging.ERROR)  # it would warn about checkpoints with the same modification time
    if recompute:
        adapted.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    try:
        trainer.train(resume_from_checkpoint=run.checkpoint)
    finally:
        log.setLevel(level)
        recorder.bar.close()
        if recompute:
            adapted.get_base_model().gradient_checkpointing_disable()
        for name in ("forward", "_original_forward"):  # accelerate's autocast wrappers
            vars(adapted).pop(name, None)
    run.close(adapted, trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()  # the first process writes the adapter


class _ResponseTrainer(Trainer):
    """A Trainer that computes logits only at the labels (the loss uses no others) and saves only adapters."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the micro-batch's share of the mean loss over all labels of the step."""
        columns = [inputs[name] for name in ("input_ids", "attention_mask", "labels")]
        rows = ROWS_ON_CPU if columns[0].device.type == "cpu" else len(columns[0])
        loss = 0.0
        for ids, mask, labels in zip(*(column.split(rows) for column in columns), strict=True):
            length = int(mask.sum(1).max())
            part = (x[:, :length] for x in (ids, mask, labels))
            loss += response_loss(self.model.get_base_model(), model, *part)
        return loss * self.accelerator.num_processes / num_items_in_batch

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.should_save:
            self.model.save_pretrained(output_dir, save_embedding_layers=False)  # "auto" queries the hub


def response_loss(
    base: nn.Module, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> Tensor:
    """Sum the loss over the labels of a micro-batch, computing logits only at the labels.

    Args:
        base: the decoder with the output layer.    model: `base` or a wrapper of it; it is called.
        input_ids, attention_mask, labels: `(batch, tokens)`, padded on the right.
    """
    if input_ids.shape[0] == input_ids.shape[1]:  # add a masked token, so that batch and tokens differ
        input_ids, attention_mask = (functional.pad(x, (0, 1)) for x in (input_ids, attention_mask))
        labels = functional.pad(labels, (0, 1), value=IGNORED)
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)  # (batch, tokens)
    labelled = targets != IGNORED

    def keep_labelled(_, args: tuple) -> tuple:
        if args[0].shape[:2] == labelled.shape:
            return args[0][labelled][None], *args[1:]  # (1, labels, hidden)
        return args[0].transpose(0, 1)[labelled][:, None], *args[1:]  # from (tokens, batch, hidden)

    with base.get_output_embeddings().register_forward_pre_hook(keep_labelled):
        logits = model(input_ids, attention_mask=attention_mask, use_cache=False).logits
    return functional.cross_entropy(logits[0].float(), targets[labelled], reduction="sum")


class _Recorder(TrainerCallback):
    """Keeps the history in Trainer's log: one row per step, with the results of `evaluate` at the points."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tokens = [0, *accumulate(sum(len(row["input_ids"]) for row in batch) for batch in run.data)]
        self.seconds = self.started = 0.0
        hidden = not first_process()
        self.bar = tqdm(total=run.until, desc="recover", unit="step", mininterval=1.0, disable=hidden)

    def on_train_begin(self, args, state, control, model=None, lr_scheduler=None, **kwargs):
        self.bar.update(state.global_step)
        if self.run.earlier_steps and self.run.checkpoint:  # the shorter run has often reached rate 0
            lr_scheduler.last_epoch -= 1
            lr_scheduler.step()
        if state.log_history:
            self.seconds = state.log_history[-1]["seconds"]
        elif 0 in self.run.points:
            self._record(state, None, model)

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        state.log_history.pop()  # Trainer's own row
        if "loss" not in logs:  # the summary at the end
            return
        self.seconds += time.perf_counter() - self.started
        if not math.isfinite(logs["loss"]):
            advice = f"lower the learning rate ({args.learning_rate}), or load the model in float32"
            message = f"The loss is {logs['loss']} at step {state.global_step}"
            raise ValueError(f"{message}: {advice} if it is in half precision")
        self._record(state, logs["loss"], model)
        if state.global_step in self.run.kept:
            self.run.keep(model, state.global_step)
        self.bar.update()
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        control.should_save |= state.global_step in (*self.run.points, *self.run.kept)
        control.should_training_stop |= state.global_step == self.run.until

    def on_save(self, args, state, control, **kwargs):
        note_contents(self.run.folder / f"checkpoint-{state.global_step}")

    def _record(self, state: Any, loss: float | None, adapted: PeftModel) -> None:
        step = state.global_step
        row = {"step": step, "loss": loss, "seconds": self.seconds, "tokens": self.tokens[step]}
        if step in self.run.points:
            adapted.eval()
            with random_state(), torch.no_grad():
                returned = self.run.evaluate(adapted.get_base_model())
            try:
                numbers = {str(name): float(value) for name, value in dict(returned).items()}
            except (TypeError, ValueError):
                expected = "expected a dict of numbers, such as {'loss': 1.5}"
                raise ValueError(f"evaluate returned {returned!r:.80}; {expected}") from None
            if clash := sorted(set(row) & set(numbers)):
                raise ValueError(f"evaluate returned {clash}, which the history already has; rename them")
            row |= numbers
        state.log_history.append(row)
