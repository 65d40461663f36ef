"""The third stage of the paper, recovery: a short LoRA training after pruning (Sec. 3.3, App. B.2).

peft provides the adapter, transformers' Trainer the loop (on several devices with `accelerate launch`). Added
here are the settings, the history, and resuming: a killed run ends as an uninterrupted one would have. The
data is chosen elsewhere (`windows.instructions`), and only the caller's `evaluate` measures anything.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainerCallback
from transformers.pytorch_utils import Conv1D

from pruner_lib.files import check_folder, plain
from pruner_lib.method.checks import plain_number, require
from pruner_lib.method.decoder import check_plain, check_reads
from pruner_lib.method.discover import discover
from pruner_lib.recovery.instructions import batches, encode
from pruner_lib.recovery.predict_memory import check_training_memory
from pruner_lib.recovery.resume import Run, digest, first_process, folder_lock, random_state
from pruner_lib.recovery.settings import RecoverySettings
from pruner_lib.recovery.trainer import train, trainer_arguments

WITHOUT = {"without-mlp": "mlp", "without-attention": "attention"}  # target_modules -> kind; Table 12


@dataclass(frozen=True)
class Recovered:
    """The result of `recover`."""

    model: nn.Module  # in eval mode: a PeftModel, or the merged model
    history: list[dict[str, Any]]  # one row per step: step, loss, seconds, tokens, and results of `evaluate`
    adapter_path: Path  # for PeftModel.from_pretrained(pruned_model, adapter_path)


def recover(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Mapping[str, Any]],
    *,
    output_dir: str | Path,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    evaluate_at: Sequence[int] = (),
    keep_at: Sequence[int] = (),
    at: int | None = None,
    resume: bool = True,
    save_steps: int = 50,
    merge: bool = False,
    training_arguments: Mapping[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> Recovered:
    """Train a LoRA adapter on instructions; resume if an earlier call with the same arguments was stopped.

    If the earlier call had fewer steps, training continues from it, with a warning about its learning rates.

    f(x) = W x + b + alpha / rank * B A x; only A and B are trained, starting from B = 0.

    Args:
        model: a decoder, pruned or not, trained on its device: on a GPU under autocast to bf16 (or fp16), on
            a CPU in its own dtype. peft inserts its layers into it; `result.model.unload()` removes them.
            Its weights change only with `merge`.
        tokenizer: of the model; needs an EOS token.
        examples: dicts, or a `datasets.Dataset`, with `instruction`, `output` and optionally `input`; or with
            `messages` (chat template); or with `text`. See `instructions.encode`.
        output_dir: receives recovery.json, adapter/ and the last checkpoint.
        evaluate: model (eval mode, adapter active) -> numbers; called at steps 0, `evaluate_at` and the last.
        keep_at: further steps whose adapters are kept.
        at: stop after this step, one of `keep_at`, and return the model at that step; a later call continues
            from there. None: train to the last step.
        resume: False discards an earlier run in `output_dir`.
        save_steps: optimizer steps between checkpoints; each evaluation also writes one.
        merge: add the adapter to the weights of `model` and return `model`, its `requires_grad` restored.
        training_arguments: further `TrainingArguments` of transformers, such as lr_scheduler_type,
            weight_decay, max_grad_norm, run_name and report_to; not those that the settings determine.
        callbacks: further callbacks of the Trainer; one may stop the run before its last step.
        settings: fields of `RecoverySettings`: steps (or epochs), batch_size, learning_rate, rank, ...

    Raises:
        ValueError: settings are out of range, no example is usable, the model is not plain (see
            `check_plain`) or does not fit the tokens (see `check_reads`), memory is too small, `output_dir`
            holds a run with other arguments or is in use by another process, or the loss is not finite.
    """
    names = [setting.name for setting in fields(RecoverySettings)]
    if unknown := sorted(set(settings) - set(names)):
        raise ValueError(f"recover has no setting {', '.join(unknown)}; it has {', '.join(names)}")
    settings = RecoverySettings(**plain_number(settings))
    require(PreTrainedTokenizerBase, tokenizer=tokenizer)
    require(Callable, **({} if evaluate is None else {"evaluate": evaluate}))
    require("1..", save_steps=save_steps)
    require(bool, resume=resume, merge=merge)
    require(["0..", ...], evaluate_at=evaluate_at, keep_at=keep_at)
    require("0.. or None", at=at)
    require([TrainerCallback, ...], callbacks=callbacks)
    if any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks):
        raise ValueError("EarlyStoppingCallback needs the Trainer to evaluate; give a callback that does not")
    check_folder(output_dir)
    check_plain(model)
    encoded = encode(examples, tokenizer, cutoff=settings.cutoff)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = [row["input_ids"] for row in encoded]
    check_reads(model, max(map(len, ids)), max(pad, *map(max, ids)))
    steps = settings.steps or math.ceil(settings.epochs * len(encoded) / settings.batch_size)
    data = batches(encoded, steps=steps, batch_size=settings.batch_size, seed=settings.seed)
    points, kept = _checked_steps(evaluate, evaluate_at, keep_at, at, steps)
    more, device = training_arguments or {}, next(model.parameters()).device
    arguments = trainer_arguments(output_dir, settings, steps, device, save_steps, more)
    identity = asdict(settings) | {"steps": steps, "evaluated_steps": points, "examples": digest(data)}
    del identity["gradient_checkpointing"]  # does not change the result
    identity |= {"model": _weights_digest(model)} | ({"kept_steps": kept} if kept else {})
    identity = plain(identity | {name: str(value) for name, value in more.items()})
    last = at or steps
    run = Run(Path(output_dir), identity, data, points, kept, evaluate, last)
    with _restored(model, always=merge), random_state(settings.seed):
        adapted = add_adapter(model, settings)
        with folder_lock(run.folder) if first_process() else nullcontext():
            run.open(resume)
            if not (done := run.has(last)):
                check_training_memory(adapted, settings, encoded)
                train(adapted, run, arguments, settings.gradient_checkpointing, pad, callbacks)
            last = min(last, run.history[-1]["step"])  # a callback may have stopped the run early
            path = run.adapter_path(last)
            if done or last != steps:
                adapted.load_adapter(str(path), "default", is_trainable=True)
            result = adapted.merge_and_unload() if merge else adapted
    return Recovered(result.eval(), [row for row in run.history if row["step"] <= last], path)


def add_adapter(model: nn.Module, settings: RecoverySettings) -> PeftModel:
    """Insert LoRA layers into `model`, in place, but not into its output layer; with B = 0 they are no-ops.

    Raises: ValueError: an entry of `target_modules` matches no linear layer other than the output layer.
    """
    dropout = settings.dropout
    modules = (module for module in model.modules() if not isinstance(module, nn.Conv1d))
    if dropout and any(weight.ndim == 3 for module in modules for weight in module.parameters(recurse=False)):
        warnings.warn("peft trains stacked experts only without dropout, so it is set to 0", stacklevel=2)
        dropout = 0.0
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=dropout,
        task_type="CAUSAL_LM",
        target_modules=_targets(model, settings.target_modules),
        exclude_modules=_without_adapter(model) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 uses an old name of transformers 5.23
        # peft does apply these keys, to stacked experts
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        adapted = get_peft_model(model, config)
    config = adapted.peft_config["default"]
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # a set, whose order varies between runs
    return adapted


def _targets(model: nn.Module, setting: str | tuple[str, ...]) -> str | list[str]:
    """Convert the setting `target_modules` to peft's argument of that name."""
    if setting == "all-linear":
        return setting
    if setting in WITHOUT:
        return linear_modules(model, without=WITHOUT[setting])
    suffixes, names = [setting] if isinstance(setting, str) else list(setting), linear_names(model)
    unknown = [end for end in suffixes if not any(f".{name}".endswith(f".{end}") for name in names)]
    if unknown or not suffixes:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise ValueError(f"target_modules={suffixes}: {unknown} match no linear layer; choose from {known}")
    return suffixes


@torch.no_grad()
def _without_adapter(model: nn.Module) -> list[str]:
    """List linear layers that return more than one tensor (routers) or whose weights a Mamba kernel reads."""
    modules, standard = dict(model.named_modules()), (nn.Linear.forward, Conv1D.forward)
    names = {f"{name}.out_proj" for name, m in modules.items() if {"A_log", "D"} <= m._parameters.keys()}
    for name in linear_names(model):
        module = modules[name]
        if type(module).forward not in standard:
            names |= set() if isinstance(module.forward(module.weight[:1]), torch.Tensor) else {name}
    return sorted(names)


def linear_names(model: nn.Module) -> set[str]:
    """Return the names of the linear layers other than the output layer."""
    head = model.get_output_embeddings()
    return {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}


def linear_modules(model: nn.Module, *, without: str) -> list[str]:
    """List the linear layers outside the groups of kind `without`, except the output layer.

    Discovery, not the name of a layer, tells whether it belongs to attention or to the MLP.

    Args:    without: "attention" or "mlp", a kind of axis.
    Raises:  ValueError: there is no group of that kind, or no other linear layer.
    Source:  paper, Table 12. Differs: the paper excludes modules by their names in LLaMA.
    """
    linear = linear_names(model)
    excluded = {s for axis in discover(model).of_kind(without).values() for s in axis.structures} & linear
    if not excluded or excluded == linear:
        found = f"{len(excluded)} of {len(linear)} linear layers in groups of kind {without!r}"
        raise ValueError(f"{type(model).__name__} has {found}; expected some, but not all")
    return sorted(linear - excluded)


def _checked_steps(
    evaluate: Callable | None, evaluate_at: Sequence[int], keep_at: Sequence[int], at: int | None, last: int
) -> tuple[list[int], list[int]]:
    """Return the steps at which the model is evaluated, and those before the last whose adapters are kept."""
    for option, steps, first in (("evaluate_at", evaluate_at, 0), ("keep_at", keep_at, 1)):
        if outside := sorted(step for step in steps if not first <= step <= last):
            raise ValueError(f"{option}={outside} is out of range; give steps from {first} to {last}")
    if evaluate is None and len(evaluate_at):
        raise ValueError(f"evaluate_at={sorted(evaluate_at)} but evaluate=None; give a function to evaluate")
    kept = sorted({int(step) for step in keep_at} | {last})
    if at is not None and at not in kept:
        raise ValueError(f"at={at}, but adapters are kept only at {kept}; choose one of them or set keep_at")
    points = [] if evaluate is None else sorted({0, last, *map(int, evaluate_at)})
    return points, kept[:-1]


def _weights_digest(model: nn.Module) -> str:
    """Hash the name, shape and 1000 evenly spaced values of each weight, which differ between prunings."""
    weights = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 1000)].float().cpu().numpy()
        weights.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + sample.tobytes())
    return weights.hexdigest()[:12]


@contextmanager
def _restored(model: nn.Module, *, always: bool) -> Iterator[None]:
    """Remove peft's layers and restore `requires_grad` after an error or, with `always`, in any case."""
    training = model.training
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    use_cache = getattr(model.config, "use_cache", None)
    try:
        yield
    except BaseException:
        always = True
        model.train(training)
        raise
    finally:
        model.config.use_cache = use_cache  # Trainer turns it off
        if always:
            for name, module in list(model.named_modules()):
                if isinstance(module, BaseTunerLayer):
                    model.set_submodule(name, module.get_base_layer())
            vars(model).pop("peft_config", None)
            for weight, flag in flags:
                weight.requires_grad_(flag)
