"""Predict the memory of a training step before training starts (practical; not in the paper).

The longest example runs forward once; the activations that autograd would keep for backward are counted and
dropped. Weights are frozen, so these are what the adapters need: their inputs and everything between them.
"""

from dataclasses import replace

import torch
from peft import PeftModel

from pruner_lib.method.memory import HOLES, held_bytes
from pruner_lib.method.predict_memory import FLOAT32, Memory, check_fits, count_forward
from pruner_lib.recovery.instructions import IGNORED, Row, collate
from pruner_lib.recovery.resume import random_state
from pruner_lib.recovery.settings import RecoverySettings
from pruner_lib.recovery.trainer import response_loss


def predict_training_memory(adapted: PeftModel, settings: RecoverySettings, examples: list[Row]) -> Memory:
    """Predict the peak memory of a training step from one forward pass of the longest example.

    Args:    examples: encoded; every example of a micro-batch is assumed to be as long as the longest.
    Returns: bytes; `.total` is resident memory, on a GPU that of its tensors. On a CPU, `.temporary` includes
             fragmentation of freed memory, measured as up to a third of the activations.
    """
    device, training, base = next(adapted.parameters()).device, adapted.training, adapted.get_base_model()
    longest = collate([max(examples, key=lambda row: len(row["input_ids"]))], pad=0)
    longest["labels"][:, :-1] = IGNORED  # the logits are counted separately
    batch = {name: x.to(device) for name, x in longest.items()}
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # as Trainer does
    try:
        with random_state(), autocast:
            counted = count_forward(adapted, lambda: response_loss(base, adapted.train(), **batch))
    finally:
        adapted.train(training)
    size = settings.micro_batch_size
    labels = sorted(sum(label != IGNORED for label in row["labels"]) for row in examples)[-size:]
    vocabulary = base.get_output_embeddings().weight.shape[0]
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    activations = size * counted.kept(settings.gradient_checkpointing)
    logits = 3 * sum(labels) * vocabulary * FLOAT32  # log-softmax, its gradient, the gradient of the logits
    if settings.gradient_checkpointing:  # they are freed before a layer is recomputed
        logits = max(0, logits - size * max(counted.saved[:-1]))
    return Memory(
        held=held_bytes(adapted),
        activations=activations,
        logits=logits,
        optimizer=3 * trained * FLOAT32,
        temporary=3 * size * counted.widest + (activations // 3 if device.type == "cpu" else 0) + HOLES // 2,
    )


def check_training_memory(adapted: PeftModel, settings: RecoverySettings, examples: list[Row]) -> None:
    """Refuse a training that would not fit into memory; see `check_fits`."""

    def predict(size: int, recomputed: bool) -> Memory:
        changed = replace(settings, micro_batch_size=size, gradient_checkpointing=recomputed)
        return predict_training_memory(adapted, changed, examples)

    check_fits(
        adapted,
        f"A step of micro_batch_size={settings.micro_batch_size}",
        predict,
        [n for n in range(settings.micro_batch_size, 0, -1) if settings.batch_size % n == 0],
        settings.gradient_checkpointing,
        names=("micro_batch_size", "gradient_checkpointing"),
        otherwise="take a smaller cutoff or a machine with more memory: even",
    )
