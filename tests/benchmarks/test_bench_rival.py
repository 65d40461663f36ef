"""The environment of torch-pruning: one package of its own, the rest from ours, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.benchmarks.discovery import rival_python
from tests.benchmarks.process import in_fresh_process


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A package of the same name, so that no network is needed; it asks for one that does not exist."""
    monkeypatch.setenv("PRUNER_LIB_CACHE", str(tmp_path / "cache"))
    path, facts = tmp_path / "torch_pruning-0.1-py3-none-any.whl", "torch_pruning-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch_pruning.py", "here = __file__\n")
        archive.writestr(
            f"{facts}/METADATA",
            "Metadata-Version: 2.1\nName: torch-pruning\nVersion: 0.1\nRequires-Dist: not-there-at-all\n",
        )
        archive.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{facts}/RECORD", "")
    return path


def look() -> dict:
    """Runs in the environment."""
    import torch_pruning

    import pruner_lib

    found = {"tool": torch_pruning.here, "torch": torch.__file__, "ours": pruner_lib.__file__}
    return found | {"prefix": sys.prefix}


def test_it_holds_the_tool_alone_and_reads_the_rest_from_ours(wheel, tmp_path):
    import pruner_lib

    python = rival_python(str(wheel))
    row = in_fresh_process("tests.test_bench_rival:look", {}, python=python)[0]
    assert row["torch"] == torch.__file__ and row["ours"] == pruner_lib.__file__
    assert Path(row["tool"]).is_relative_to(tmp_path / "cache")
    assert Path(row["prefix"]) == tmp_path / "cache" / "bench" / "torch-pruning"
    absent = subprocess.run([sys.executable, "-c", "import torch_pruning"], capture_output=True, text=True)
    assert "No module named 'torch_pruning'" in absent.stderr, "our own environment stays as it was"
    made = python.lstat().st_mtime_ns
    assert rival_python(str(wheel)) == python and python.lstat().st_mtime_ns == made, "made once"


def test_what_can_not_be_installed_leaves_nothing(wheel, tmp_path):
    with pytest.raises(ValueError, match="(?s)could not be made.*--no-rival leaves torch-pruning out"):
        rival_python(str(tmp_path / "absent-0.1-py3-none-any.whl"))
    assert not list((tmp_path / "cache" / "bench").glob("torch-pruning/*"))
