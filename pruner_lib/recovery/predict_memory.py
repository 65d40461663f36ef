"""What a training step will take, before it starts (a question of machines; nothing in the paper).

The longest example runs forward once, and what autograd would keep for backward is counted and dropped.
Weights are frozen, so this is what the adapters need: their inputs, and all between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from peft import PeftModel

from pruner_lib.method.memory import HOLES, available_bytes, held_bytes
from pruner_lib.method.predict_memory import Forward, count_forward
from pruner_lib.recovery.instructions import IGNORED, Row, collate
from pruner_lib.recovery.resume import random_state
from pruner_lib.recovery.settings import RecoverySettings
from pruner_lib.recovery.trainer import response_loss

FLOAT32 = 4


@dataclass(frozen=True)
class TrainingMemory:
    """Predicted bytes of training at its peak."""

    held: int  # by the process now, with the weights (on a GPU: by tensors)
    activations: int  # kept for backward by one micro-batch
    logits: int  # at the labels of one micro-batch, with their gradients; recomputed: beyond a layer's
    optimizer: int  # gradients of the adapter and the two moments of Adam
    # gradients on their way through a layer; on a CPU also the holes that freed memory leaves between tensors
    # that stay, measured as up to a third of the activations
    temporary: int

    @property
    def extra(self) -> int:
        return self.activations + self.logits + self.optimizer + self.temporary

    @property
    def total(self) -> int:
        return self.held + self.extra


def predict_training_memory(
    adapted: PeftModel, settings: RecoverySettings, examples: Sequence[Row]
) -> TrainingMemory:
    """Predict the peak memory of a training step from one forward pass of the longest example.

    Args:    examples: encoded; a micro-batch of those as long as the longest is assumed.
    Returns: bytes; `.total` is resident memory, on a GPU that of its tensors.
    """
    counted = _count(adapted, max(examples, key=lambda row: len(row["input_ids"])))
    size = settings.micro_batch_size
    labels = sorted(sum(label != IGNORED for label in row["labels"]) for row in examples)[-size:]
    vocabulary = adapted.get_base_model().get_output_embeddings().weight.shape[0]
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    on_cpu = next(adapted.parameters()).device.type == "cpu"
    *layers, outside = counted.saved
    kept = outside + sum(layers)
    logits = 3 * sum(labels) * vocabulary * FLOAT32  # log-softmax, its gradient, that of the logits
    if settings.gradient_checkpointing:  # all layers but one keep their inputs alone; the logits go before it
        kept = outside + sum(counted.entries) + max(layers)
        logits = max(0, logits - size * max(layers))
    return TrainingMemory(
        held=held_bytes(adapted),
        activations=size * kept,
        logits=logits,
        optimizer=3 * trained * FLOAT32,
        temporary=3 * size * counted.widest + (size * kept // 3 if on_cpu else 0) + HOLES // 2,
    )


def check_training_memory(adapted: PeftModel, settings: RecoverySettings, examples: Sequence[Row]) -> None:
    """Refuse a training that would not fit.

    Raises: ValueError: with what is needed, what is available, and a setting to try.
    """
    available = available_bytes(next(adapted.parameters()).device)
    needed = predict_training_memory(adapted, settings, examples)
    if available is None or needed.extra <= available:
        return
    sizes = [n for n in range(settings.micro_batch_size, 0, -1) if settings.batch_size % n == 0]
    for recompute, size in product(sorted({settings.gradient_checkpointing, True}), sizes):
        other = replace(settings, micro_batch_size=size, gradient_checkpointing=recompute)
        extra = predict_training_memory(adapted, other, examples).extra
        if extra <= available:
            break
    fits = "try" if extra <= available else "take a smaller cutoff or a machine with more memory: even"
    raise ValueError(
        f"A step of micro_batch_size={settings.micro_batch_size} needs {_gb(needed.extra)} (activations "
        f"{_gb(needed.activations)}, logits {_gb(needed.logits)}, optimizer {_gb(needed.optimizer)}, "
        f"temporary {_gb(needed.temporary)}) beside the {_gb(needed.held)} held now, and {_gb(available)} "
        f"are available; {fits} micro_batch_size={size}, gradient_checkpointing={recompute}, {_gb(extra)}."
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _count(adapted: PeftModel, example: Row) -> Forward:
    """Count what one example keeps, in bytes."""
    device = next(adapted.parameters()).device
    batch = {name: x.to(device) for name, x in collate([example], pad=0).items()}
    batch["labels"][:, :-1] = IGNORED  # the logits are counted apart
    half = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # as Trainer does
    training, base = adapted.training, adapted.get_base_model()
    try:
        with random_state(), half:
            return count_forward(adapted, lambda: response_loss(base, adapted.train(), **batch))
    finally:
        adapted.train(training)
