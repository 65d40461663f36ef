"""A wheel of the project, with nothing installed but its own dependencies, prunes and saves a model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"peft", "lm_eval", "datasets", "jupyterlab", "papermill", "matplotlib", "pandas"}
PRUNE = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))  # as if they were not installed
import pruner_lib
from pathlib import Path
assert Path(pruner_lib.__file__).is_relative_to({site!r}), pruner_lib.__file__
from pruner_lib import calibration_ids, discover, estimate, load_model, prune_, save_model, select

model, tokenizer = load_model("tiny")
axes = discover(model)
scores = estimate(model, axes, calibration_ids("tiny", tokenizer, samples=4, length=16))
before = sum(p.numel() for p in model.parameters())
prune_(model, select(axes, scores, ratio=0.5, protect_first=1))
assert model.pruning_layout and sum(p.numel() for p in model.parameters()) < before
save_model(model, tokenizer, "pruned")
again, _ = load_model("pruned")
ids = calibration_ids("tiny", tokenizer, samples=2, length=16)
assert again(ids).logits.equal(model(ids).logits)
rooms = ("pruner_lib.study", "pruner_lib.recovery", "pruner_lib.evaluation")
assert not [name for name in sys.modules if name.startswith(rooms)]

from pruner_lib import perplexity, text_ids
assert perplexity(model, text_ids("tiny", tokenizer, length=16, windows=2)) > 1
try:
    pruner_lib.recover
except ImportError as error:
    assert "peft" in str(error)
"""


def needed(requirements: list[str]) -> set[str]:
    """Follow installed distributions from what a project requires, extras of its own left out."""
    found, queue = set(), [(Requirement(text), frozenset()) for text in requirements]
    while queue:
        requirement, extras = queue.pop()
        markers = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker and not any(requirement.marker.evaluate(each) for each in markers):
            continue
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if (name, extras) in found:
            continue
        found.add((name, extras))
        try:
            further = distribution(name).requires or []
        except ModuleNotFoundError:  # CUDA's packages, where torch is the build without them
            continue
        queue += [(Requirement(text), extras) for text in further]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The wheel's content, and nothing else; built from a copy, so that the working tree stays clean."""
    made = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "pruner_lib", made / "source" / "pruner_lib")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, made / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "-w", made, made / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(made / "site")
    return made / "site"


@pytest.mark.slow
def test_the_wheel_alone_prunes_and_saves_a_model(site, tmp_path):
    (metadata,) = site.glob("*.dist-info/METADATA")
    there = needed(Parser().parsestr(metadata.read_text()).get_all("Requires-Dist"))
    absent = [
        module
        for module, names in packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & there and module != "pruner_lib"
    ]
    assert {"torch", "transformers", "safetensors"} <= there and not {*absent} & {"torch", "transformers"}
    assert set(absent) >= HEAVY
    code = PRUNE.format(absent=absent, site=str(site))
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"modeling_pruned.py", "layout.py", "plan.json"} <= {
        p.name for p in (tmp_path / "pruned").iterdir()
    }


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package(site):
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "pruner_lib").rglob("*") if p.is_file()}
    shipped = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    assert {name for name in files if not name.endswith(".pyc")} <= shipped
    assert {name.partition("/")[0].partition("-")[0] for name in shipped} == {"pruner_lib"}
