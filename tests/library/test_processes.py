"""Recovery in several processes, each with a part of every batch, is the recovery of one."""

from __future__ import annotations

import json
import os

import forked
import pytest
import torch
from safetensors.torch import load_file

from pruner_lib import load_model, recover
from pruner_lib.data.windows import instructions

api = pytest.importorskip("torch.distributed.launcher.api", reason="torch was built without it")
HOW = {"steps": 4, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 1, "dropout": 0.0}


def train(folder) -> None:
    """Train the tiny model; each process of several notes which one it is."""
    examples = instructions("tiny", samples=16)
    recover(*load_model("tiny"), examples, output_dir=folder, learning_rate=0.01, **HOW)
    if torch.distributed.is_initialized():
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        (folder / f"process {rank} of {size}").touch()


def launch(folder) -> None:
    """Do what `torchrun --standalone --nproc_per_node 2` does, on forks of this process."""
    how = api.LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="test", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork",
    )  # fmt: skip
    api.elastic_launch(how, train)(folder)


def trained(folder, way):
    """Train in a process of its own; give the losses and the adapter."""
    folder.mkdir()
    said = folder.with_suffix(".txt")
    process = forked.start(way, folder, said=said)
    process.join(300)
    assert process.exitcode == 0, said.read_text()[-2000:]
    history = json.loads((folder / "recovery.json").read_text())["history"]
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    return [row["loss"] for row in history], adapter


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_give_the_losses_and_the_adapter_of_one(tmp_path):
    losses, adapter = trained(tmp_path / "two", launch)
    assert {path.name for path in (tmp_path / "two").glob("process *")} == {
        "process 0 of 2",
        "process 1 of 2",
    }
    wanted, alone = trained(tmp_path / "one", train)
    assert losses == pytest.approx(wanted, rel=1e-5) and losses[-1] < losses[0]
    assert adapter.keys() == alone.keys()
    for name, weight in adapter.items():
        assert torch.allclose(weight, alone[name], atol=1e-5), name
