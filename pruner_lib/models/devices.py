"""The device of a model, and how an offloaded model is scored and pruned.

A model is on one device, or accelerate distributes it over several GPUs and CPU memory. It is evaluated as it
is: weights in CPU memory are copied to a GPU for their part of the forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from torch import nn

from pruner_lib.method.offload import offloaded


def find_device(name: str | torch.device) -> str:
    """Choose the device of a model: "auto" takes CUDA if available; "cuda:1" is the second GPU.

    Raises:  ValueError: the device is unknown or not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.device(str(name)))
    except (RuntimeError, NotImplementedError, AssertionError) as error:  # unknown or not available
        choices = "auto, cpu or, with CUDA, cuda or cuda:1"
        raise ValueError(f"device must be {choices}, got {name!r}: {str(error):.80}") from error
    return str(name)


@contextmanager
def in_place(model: nn.Module) -> Iterator[nn.Module]:
    """Keep the weights of an offloaded model in their modules, and compute with each on its own device.

    On exit, the model is offloaded as before, with its current weights, which pruning may have made smaller.

    Raises:  ValueError: some weights are on disk, where nothing can be computed.
    """
    if not offloaded(model):
        yield model
        return
    device_map = dict(getattr(model, "hf_device_map", {"": "cpu"}))
    if names := [name for name, device in device_map.items() if device == "disk"]:
        parts = f"{len(names)} parts of the model, such as {names[0]!r}, are on disk"
        raise ValueError(f"{parts}, where nothing is computed; load the model into GPU and CPU memory only")
    remove_hook_from_submodules(model)  # returns the weights to the modules, without a copy
    model.tie_weights()
    dispatch_model(model, device_map, main_device="cpu", force_hooks=True)
    try:
        yield model
    finally:
        remove_hook_from_submodules(model)
        model.tie_weights()
        dispatch_model(model, device_map)
