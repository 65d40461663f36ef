"""Recovery in several processes, each with a part of every batch, is the recovery of one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

TRAIN = """
import sys
import torch
from pruner_lib import load_model, recover
from pruner_lib.data.windows import instructions

how = {"steps": 4, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 1, "dropout": 0.0}
examples = instructions("tiny", samples=16)
recover(*load_model("tiny"), examples, output_dir=sys.argv[1], learning_rate=0.01, **how)
if torch.distributed.is_initialized():
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    sys.stdout.write(f"process {rank} of {size}\\n")  # at once: both write to one pipe
"""
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def trained(folder, script, launch=()):
    """Run the script, and give what it printed, the losses and the adapter."""
    command = [sys.executable, *launch, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    history = json.loads((folder / "recovery.json").read_text())["history"]
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    return done.stdout, [row["loss"] for row in history], adapter


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
def test_two_processes_give_the_losses_and_the_adapter_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    said, losses, adapter = trained(tmp_path / "two", script, LAUNCH)
    assert "process 0 of 2" in said and "process 1 of 2" in said
    _, wanted, alone = trained(tmp_path / "one", script)
    assert losses == pytest.approx(wanted, rel=1e-5) and losses[-1] < losses[0]
    assert adapter.keys() == alone.keys()
    for name, weight in adapter.items():
        assert torch.allclose(weight, alone[name], atol=1e-5), name
