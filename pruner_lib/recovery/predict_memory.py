"""What a training step will take, before it starts (a question of machines; nothing in the paper).

The longest example runs forward once, and what autograd would keep for backward is counted and dropped.
Weights are frozen, so this is what the adapters need: their inputs, and all between them.
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

    Args:    examples: encoded; a micro-batch of those as long as the longest is assumed.
    Returns: bytes; `.total` is resident memory, on a GPU that of its tensors. Part of `.temporary` are, on a
             CPU, the holes that freed memory leaves, measured as up to a third of the activations.
    """
    device, training, base = next(adapted.parameters()).device, adapted.training, adapted.get_base_model()
    longest = collate([max(examples, key=lambda row: len(row["input_ids"]))], pad=0)
    longest["labels"][:, :-1] = IGNORED  # the logits are counted apart
    batch = {name: x.to(device) for name, x in longest.items()}
    half = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # as Trainer does
    try:
        with random_state(), half:
            counted = count_forward(adapted, lambda: response_loss(base, adapted.train(), **batch))
    finally:
        adapted.train(training)
    size = settings.micro_batch_size
    labels = sorted(sum(label != IGNORED for label in row["labels"]) for row in examples)[-size:]
    vocabulary = base.get_output_embeddings().weight.shape[0]
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    activations = size * counted.kept(settings.gradient_checkpointing)
    logits = 3 * sum(labels) * vocabulary * FLOAT32  # log-softmax, its gradient, that of the logits
    if settings.gradient_checkpointing:  # they go before a layer is recomputed
        logits = max(0, logits - size * max(counted.saved[:-1]))
    return Memory(
        held=held_bytes(adapted),
        activations=activations,
        logits=logits,
        optimizer=3 * trained * FLOAT32,
        temporary=3 * size * counted.widest + (activations // 3 if device.type == "cpu" else 0) + HOLES // 2,
    )


def check_training_memory(adapted: PeftModel, settings: RecoverySettings, examples: list[Row]) -> None:
    """Refuse a training that would not fit; see `check_fits`."""

    def predict(size: int, recomputed: bool) -> Memory:
        way = replace(settings, micro_batch_size=size, gradient_checkpointing=recomputed)
        return predict_training_memory(adapted, way, examples)

    check_fits(
        adapted,
        f"A step of micro_batch_size={settings.micro_batch_size}",
        predict,
        [n for n in range(settings.micro_batch_size, 0, -1) if settings.batch_size % n == 0],
        settings.gradient_checkpointing,
        names=("micro_batch_size", "gradient_checkpointing"),
        otherwise="take a smaller cutoff or a machine with more memory: even",
    )
