"""Pruning a model of transformers, so that whoever saves it afterwards writes a folder that loads.

The cut itself is `method.prune`; it knows no transformers. Here the pruned model also gets the class whose
`save_pretrained` (and so Trainer, `push_to_hub` and peft's `merge_and_unload`) writes its widths and the code
that reads them.
"""

from torch import nn
from transformers import PreTrainedModel

from pruner_lib.method import prune
from pruner_lib.method.groups import Axes, Plan
from pruner_lib.models.modeling_pruned import make_saveable_


def prune_(model: nn.Module, plan: Plan, *, axes: Axes | None = None) -> nn.Module:
    """Remove the groups that a plan does not keep.

    Args:
        model: on any device, in any dtype; its parameters are replaced by smaller ones, one after the other.
        plan: from `select`, for this model.
        axes: of the model in its present state, or of one that it is a copy of; None: they are discovered.
    Returns: the same model. `model.pruning_layout` is None if its config alone describes it (a plain
        checkpoint), else the widths that its config can't say; then its class is a subclass, of the same
        name, of the one that it had. `model.pruned_by` lists the plans carried out so far.
    Raises: ValueError: the plan does not fit the model, the model would no longer run or mix its groups, or
        it is not plain (see `check_plain`) or offloaded. The model is then unchanged.
    """
    pruned = prune.prune_(model, plan, axes=axes)
    return make_saveable_(pruned) if isinstance(pruned, PreTrainedModel) else pruned
