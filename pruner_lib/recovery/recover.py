"""The third stage of the paper, recovery: a short LoRA training after pruning (Sec. 3.3, App. B.2).

The adapter is peft's, the loop is the Trainer of transformers (several devices: `accelerate launch`). Ours
are the settings, the history, and that a killed run ends as an uninterrupted one would have. It chooses no
data (`windows.instructions`) and measures only what the caller's `evaluate` returns.
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
from pruner_lib.recovery.resume import Run, alone_in, digest, first_process, random_state
from pruner_lib.recovery.settings import RecoverySettings
from pruner_lib.recovery.trainer import train, trainer_arguments

WITHOUT = {"without-mlp": "mlp", "without-attention": "attention"}  # the paper's Table 12


@dataclass(frozen=True)
class Recovered:
    """What `recover` returns."""

    model: nn.Module  # in eval mode: a PeftModel, or the plain merged model
    history: list[dict[str, Any]]  # a row a step: step, loss, seconds, tokens, and what `evaluate` returned
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
    """Train a LoRA adapter on instructions; resume where an earlier call with the same arguments was stopped.

    Where the earlier call had fewer steps it goes on from there, with a warning, since its rates were others.

    f(x) = W x + b + alpha / rank * B A x; A and B alone are trained, from B = 0.

    Args:
        model: a decoder, pruned or not, trained where it lies: under autocast to bf16 (or fp16) on a GPU, in
            its own type on a CPU. peft puts its layers inside it; `result.model.unload()` takes them out.
            Its weights change with `merge` alone.
        tokenizer: of the model; needs an EOS token.
        examples: dicts, or a `datasets.Dataset`, with `instruction`, `output` and, if there is one, `input`;
            or with `messages` (chat template); or with `text`. See `instructions.encode`.
        output_dir: gets recovery.json, adapter/ and the last checkpoint.
        evaluate: model (eval mode, adapter active) -> numbers; called at steps 0, `evaluate_at` and the last.
        keep_at: steps whose adapters are kept too.
        at: return the model as it was after this step, one of `keep_at`, and train no further now; a later
            call goes on from there. None: after the last.
        resume: False throws away what an earlier run left in `output_dir`.
        save_steps: optimizer steps between checkpoints; each evaluation makes one, too.
        merge: add the adapter to the weights of `model` and return that, its `requires_grad` as before.
        training_arguments: others of transformers' `TrainingArguments`, such as lr_scheduler_type,
            weight_decay, max_grad_norm, run_name and report_to; not those that the settings decide.
        callbacks: of the Trainer, called beside our own. One may stop the run before its last step.
        settings: fields of `RecoverySettings`: steps, epochs, batch_size, learning_rate, rank, seed, ...

    Raises:
        ValueError: settings out of range, no usable example, a model that is not plain (see `check_plain`)
            or does not fit the tokens (see `check_reads`), too little memory, a run with other arguments or
            of another process in `output_dir`, or a loss that is not finite.
    """
    names = [one.name for one in fields(RecoverySettings)]
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
    if any(isinstance(one, EarlyStoppingCallback) for one in callbacks):
        raise ValueError("EarlyStoppingCallback needs the Trainer to evaluate; give one that stops by itself")
    check_folder(output_dir)
    check_plain(model)
    encoded = encode(examples, tokenizer, cutoff=settings.cutoff)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    texts = [row["input_ids"] for row in encoded]
    check_reads(model, max(map(len, texts)), max(pad, *map(max, texts)))
    steps = settings.steps or math.ceil(settings.epochs * len(encoded) / settings.batch_size)
    data = batches(encoded, steps=steps, batch_size=settings.batch_size, seed=settings.seed)
    points, kept = _checked_steps(evaluate, evaluate_at, keep_at, at, steps)
    more, device = training_arguments or {}, next(model.parameters()).device
    arguments = trainer_arguments(output_dir, settings, steps, device, save_steps, more)
    identity = asdict(settings) | {"steps": steps, "evaluated_steps": points, "examples": digest(data)}
    del identity["gradient_checkpointing"]  # decides nothing
    identity |= {"model": _weights_digest(model)} | ({"kept_steps": kept} if kept else {})
    identity = plain(identity | {name: str(value) for name, value in more.items()})
    last = at or steps
    run = Run(Path(output_dir), identity, data, points, kept, evaluate, last)
    with _put_back(model, after=merge), random_state(settings.seed):
        adapted = add_adapter(model, settings)
        with alone_in(run.folder) if first_process() else nullcontext():
            run.open(resume)
            done = run.has(last)
            if not done:
                check_training_memory(adapted, settings, encoded)
                train(adapted, run, arguments, settings.gradient_checkpointing, pad, callbacks)
            last = min(last, run.history[-1]["step"])  # fewer, where a callback stopped it
            if done or last != steps:
                adapted.load_adapter(str(run.place(last)), "default", is_trainable=True)
            result = adapted.merge_and_unload() if merge else adapted
    return Recovered(result.eval(), [row for row in run.history if row["step"] <= last], run.place(last))


def add_adapter(model: nn.Module, settings: RecoverySettings) -> PeftModel:
    """Put LoRA layers into `model`, in place; as B = 0 they change nothing yet. The output layer gets none.

    Raises: ValueError: one of `target_modules` ends the name of no linear layer but the output layer.
    """
    dropout = settings.dropout
    others = (module for module in model.modules() if not isinstance(module, nn.Conv1d))
    if dropout and any(weight.ndim == 3 for module in others for weight in module.parameters(recurse=False)):
        warnings.warn("stacked experts: peft trains them without dropout only, so it is 0 here", stacklevel=2)
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
        adapted = get_peft_model(model, config)
    used = adapted.peft_config["default"]
    if not isinstance(used.target_modules, str):
        used.target_modules = sorted(used.target_modules)  # a set, whose order changes from run to run
    return adapted


def _targets(model: nn.Module, wanted: str | tuple[str, ...]) -> str | list[str]:
    """Turn the setting `target_modules` into what peft takes."""
    if wanted == "all-linear":
        return wanted
    if wanted in WITHOUT:
        return linear_modules(model, without=WITHOUT[wanted])
    wanted, names = [wanted] if isinstance(wanted, str) else list(wanted), linear_names(model)
    unknown = [one for one in wanted if not any(f".{name}".endswith(f".{one}") for name in names)]
    if unknown or not wanted:
        ends = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise ValueError(f"target_modules={wanted}: {unknown} name no linear layer, wanted some of {ends}")
    return wanted


@torch.no_grad()
def _without_adapter(model: nn.Module) -> list[str]:
    """Name linear layers that return more than a product (routers) or whose weights a Mamba kernel reads."""
    modules, plain = dict(model.named_modules()), (nn.Linear.forward, Conv1D.forward)
    left = {f"{name}.out_proj" for name, m in modules.items() if {"A_log", "D"} <= m._parameters.keys()}
    for name in linear_names(model):
        module = modules[name]
        if type(module).forward not in plain:
            left |= set() if isinstance(module.forward(module.weight[:1]), torch.Tensor) else {name}
    return sorted(left)


def linear_names(model: nn.Module) -> set[str]:
    """Name the linear layers but the output layer."""
    head = model.get_output_embeddings()
    return {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}


def linear_modules(model: nn.Module, *, without: str) -> list[str]:
    """Name the linear layers outside of the groups of kind `without`, and without the output layer.

    Which layers are the attention's and which the MLP's follows from discovery, not from their names.

    Args:    without: "attention" or "mlp", a kind of axis.
    Raises:  ValueError: no group of that kind, or no other linear layer.
    Source:  paper, Table 12. Differs: that leaves the modules out by their names in LLaMA.
    """
    linear = linear_names(model)
    left_out = {s for axis in discover(model).of_kind(without).values() for s in axis.structures} & linear
    if not left_out or left_out == linear:
        found = f"{len(left_out)} of {len(linear)} linear layers in groups of kind {without!r}"
        raise ValueError(f"{type(model).__name__} has {found}; there should be some, but not all.")
    return sorted(linear - left_out)


def _checked_steps(
    evaluate: Callable | None, evaluate_at: Sequence[int], keep_at: Sequence[int], at: int | None, last: int
) -> tuple[list[int], list[int]]:
    """Give the steps at which the model is measured, and those before the last whose adapters are kept."""
    for option, given, first in (("evaluate_at", evaluate_at, 0), ("keep_at", keep_at, 1)):
        if outside := sorted(step for step in given if not first <= step <= last):
            raise ValueError(f"{option}={outside}: steps from {first} to {last}, the last, are possible.")
    if evaluate is None and len(evaluate_at):
        raise ValueError(f"evaluate_at={sorted(evaluate_at)} but evaluate=None; give what measures a model.")
    kept = sorted({int(step) for step in keep_at} | {last})
    if at is not None and at not in kept:
        raise ValueError(f"at={at}: no adapter is kept there, only at {kept}; see keep_at.")
    points = [] if evaluate is None else sorted({0, last, *map(int, evaluate_at)})
    return points, kept[:-1]


def _weights_digest(model: nn.Module) -> str:
    """Hash name, shape and 1000 evenly spaced numbers of each weight: prunings of a model differ."""
    weights = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 1000)].float().cpu().numpy()
        weights.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + sample.tobytes())
    return weights.hexdigest()[:12]


@contextmanager
def _put_back(model: nn.Module, *, after: bool) -> Iterator[None]:
    """Take peft's layers out and restore `requires_grad`, after an error or, with `after`, in any case."""
    training = model.training
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    use_cache = getattr(model.config, "use_cache", None)
    try:
        yield
    except BaseException:
        after = True
        model.train(training)
        raise
    finally:
        model.config.use_cache = use_cache  # Trainer turns it off
        if after:
            for name, module in list(model.named_modules()):
                if isinstance(module, BaseTunerLayer):
                    model.set_submodule(name, module.get_base_layer())
            vars(model).pop("peft_config", None)
            for weight, flag in flags:
                weight.requires_grad_(flag)
