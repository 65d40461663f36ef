"""Prune a transformers model so that any way of saving it afterwards writes a folder that can be loaded.

`method.prune` does the pruning, without transformers. This module also gives the pruned model a class whose
`save_pretrained` (and thus Trainer, `push_to_hub` and peft's `merge_and_unload`) writes its widths and the
code that reads them.
"""

from torch import nn
from transformers import PreTrainedModel

from pruner_lib.method import prune
from pruner_lib.method.groups import Axes, Plan
from pruner_lib.models.modeling_pruned import make_saveable_


def prune_(model: nn.Module, plan: Plan, *, axes: Axes | None = None) -> nn.Module:
    """Remove the groups that a plan does not keep.

    Args:
        model: on any device, in any dtype; its parameters are replaced by smaller ones, one at a time.
        plan: from `select`, for this model.
        axes: from `discover`, for this model in its current state or for a copy of it; None discovers them.
    Returns: the same model. `model.pruning_layout` is None if its config alone describes it (a plain
        checkpoint). Otherwise it holds the widths that the config can't express, and the class of the model
        becomes a subclass with the same name. `model.pruned_by` lists the plans applied so far.
    Raises: ValueError: the plan does not fit the model, the model would no longer run or would mix its
        groups, is not plain (see `check_plain`) or is offloaded. The model is then unchanged.
    """
    pruned = prune.prune_(model, plan, axes=axes)
    return make_saveable_(pruned) if isinstance(pruned, PreTrainedModel) else pruned
