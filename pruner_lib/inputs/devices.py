"""Where a model runs: one device, or spread by accelerate over several GPUs and CPU memory.

A spread model is evaluated as it is: what lies in CPU memory is brought to a GPU for its part of the forward
pass. `in_place` is for scoring and cutting: there each weight is used where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pruner_lib.method.placement import offloaded


def find_device(name: str) -> str:
    """Say where to put a model: "auto" takes CUDA when there is one.

    Raises:  ValueError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(
            f"device came as {name!r}, wanted auto, cpu or cuda (cuda:1 for the second)"
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device came as {name!r}, but there is no CUDA here; use auto or cpu")
    return name


@contextmanager
def in_place(model: nn.Module) -> Iterator[nn.Module]:
    """Hold the weights of a spread model in their modules, each computed with on the device where it lies.

    Afterwards the model is spread as before, with the weights that it has then: smaller ones, after a cut.

    Raises:  ValueError: weights are on a disk, where nothing can be computed.
    """
    if not offloaded(model):
        yield model
        return
    from accelerate import dispatch_model
    from accelerate.hooks import remove_hook_from_submodules

    places = dict(getattr(model, "hf_device_map", {"": "cpu"}))
    if "disk" in places.values():
        names = [name for name, place in places.items() if place == "disk"]
        raise ValueError(
            f"{len(names)} parts of the model, such as {names[0]!r}, are on disk and can't be scored or cut "
            "there; load it with a device_map over GPUs and CPU memory alone"
        )
    remove_hook_from_submodules(model)  # gives the weights back, without a copy
    model.tie_weights()
    dispatch_model(model, places, main_device="cpu", force_hooks=True)
    try:
        yield model
    finally:
        remove_hook_from_submodules(model)
        model.tie_weights()
        dispatch_model(model, places)
