"""Where a model lies: its device, and a spread model held in place to be scored and cut.

A model lies on one device, or is spread by accelerate over several GPUs and CPU memory. Spread, it is
evaluated as it is: what lies in CPU memory is brought to a GPU for its part of the forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from torch import nn

from pruner_lib.method.offload import offloaded


def find_device(name: str | torch.device) -> str:
    """Choose the device of a model: "auto" takes CUDA when there is one, "cuda:1" is the second.

    Raises:  ValueError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=torch.device(str(name)))
    except (RuntimeError, NotImplementedError, AssertionError) as error:  # no name of a device, or none there
        wanted = "auto, cpu or, where there is CUDA, cuda or cuda:1"
        raise ValueError(f"device came as {name!r}, wanted {wanted}: {str(error):.80}") from error
    return str(name)


@contextmanager
def in_place(model: nn.Module) -> Iterator[nn.Module]:
    """Hold the weights of a spread model in their modules, each computed with on the device where it lies.

    Afterwards the model is spread as before, with the weights that it has then: smaller ones, after a cut.

    Raises:  ValueError: weights are on a disk, where nothing can be computed.
    """
    if not offloaded(model):
        yield model
        return
    places = dict(getattr(model, "hf_device_map", {"": "cpu"}))
    if "disk" in places.values():
        names = [name for name, place in places.items() if place == "disk"]
        parts = f"{len(names)} parts of the model, such as {names[0]!r}, are on disk"
        raise ValueError(f"{parts}, where nothing is computed; load it over GPUs and CPU memory alone")
    remove_hook_from_submodules(model)  # gives the weights back, without a copy
    model.tie_weights()
    dispatch_model(model, places, main_device="cpu", force_hooks=True)
    try:
        yield model
    finally:
        remove_hook_from_submodules(model)
        model.tie_weights()
        dispatch_model(model, places)
