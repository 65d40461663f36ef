"""The settings of recovery: plain data, checked when they are made (paper App. B.2)."""

from dataclasses import dataclass

from pruner_lib.method.checks import require


@dataclass(frozen=True)
class RecoverySettings:
    """How a pruned model is trained; the defaults are the paper's.

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
    gradient_checkpointing: bool = False  # less memory, a forward pass more; the result is the same

    def __post_init__(self) -> None:
        require("1.. or None", steps=self.steps)
        require("1..", batch_size=self.batch_size, micro_batch_size=self.micro_batch_size)
        require("1..", rank=self.rank, cutoff=self.cutoff)
        require("0..", warmup_steps=self.warmup_steps, seed=self.seed)
        require("(0, inf)", epochs=self.epochs, learning_rate=self.learning_rate, alpha=self.alpha)
        require("[0, 1)", dropout=self.dropout)
        require(bool, gradient_checkpointing=self.gradient_checkpointing)
        if self.batch_size % self.micro_batch_size:
            size = f"micro_batch_size={self.micro_batch_size}: a step adds up whole micro-batches"
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of {size}. Change one of them.")
        if not isinstance(self.target_modules, str):
            require([str], target_modules=self.target_modules)
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
