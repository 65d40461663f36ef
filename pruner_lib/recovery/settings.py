"""The settings of recovery: plain data, checked on creation (paper App. B.2)."""

from dataclasses import dataclass

from pruner_lib.method.checks import require


@dataclass(frozen=True)
class RecoverySettings:
    """How a pruned model is trained; the defaults are the paper's.

    Raises: ValueError: a value is out of range, or `batch_size` is not a multiple of `micro_batch_size`.
    Source: paper App. B.2 (rank, learning rate, warm-up, batch size, epochs); the rest from post_training.py
        and its script. Differs: the last adapter is kept (the reference keeps the one with the lowest loss on
        2000 held-out examples); if an epoch ends inside a batch, the next epoch fills the batch.
    """

    steps: int | None = None  # optimizer steps; None: as many as `epochs` need
    epochs: float = 2  # not used if `steps` is a number
    batch_size: int = 64  # examples per step
    micro_batch_size: int = 4  # examples per forward pass and device
    learning_rate: float = 1e-4  # reached after the warm-up, then decreasing linearly to 0
    warmup_steps: int = 100
    rank: int = 8
    alpha: int = 16  # the update is alpha / rank * B A
    dropout: float = 0.05  # on the input of the adapter
    # or "without-mlp", "without-attention", or suffixes of module names; never the output layer
    target_modules: str | tuple[str, ...] = "all-linear"
    cutoff: int = 256  # tokens per example
    seed: int = 0
    gradient_checkpointing: bool = False  # less memory, one more forward pass, the same result

    def __post_init__(self) -> None:
        require("1.. or None", steps=self.steps)
        require("1..", batch_size=self.batch_size, micro_batch_size=self.micro_batch_size)
        require("1..", rank=self.rank, cutoff=self.cutoff)
        require("0..", warmup_steps=self.warmup_steps, seed=self.seed)
        require(f"[0, {2**32})", seed=self.seed)  # the limit of numpy's global generator, which Trainer seeds
        require("(0, inf)", epochs=self.epochs, learning_rate=self.learning_rate, alpha=self.alpha)
        require("[0, 1)", dropout=self.dropout)
        require(bool, gradient_checkpointing=self.gradient_checkpointing)
        if self.batch_size % self.micro_batch_size:
            divisor = f"micro_batch_size={self.micro_batch_size}; change one of them"
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of {divisor}")
        if not isinstance(self.target_modules, str):
            require([str], target_modules=self.target_modules)
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
