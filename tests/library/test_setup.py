"""The set-up: one list of dependencies, one lock that meets it everywhere, and files that refer to both."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"].values()
DECLARED = [Requirement(text) for text in sum(EXTRAS, PROJECT["project"]["dependencies"])]
HASHED = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
HASHLESS = [line.removesuffix(" \\") for line in HASHED if not line.startswith(" ")]
LOCK = [*HASHLESS, *re.findall(r'^TORCH = "(.+?)"', (ROOT / "tasks.py").read_text(), re.MULTILINE)]
TORCH_CUDA = ("cuda-*", "nvidia-*", "triton")  # pinned by torch's own CUDA build, absent from its CPU build
HASH = r"    --hash=sha256:[0-9a-f]{64}( \\)?"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"},
    "mac": {"sys_platform": "darwin", "platform_machine": "arm64", "os_name": "posix"},
    "windows": {"sys_platform": "win32", "platform_machine": "AMD64", "os_name": "nt"},
}


def pins(lock: list[str], environment: dict[str, str] | None = None) -> dict[str, list[Requirement]]:
    """Give, by name, the lines of a lock that apply in an environment (default: this one)."""
    found: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lock):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def version(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


def unmet(declared: list[Requirement], lock: list[str], environment: dict[str, str]) -> list[str]:
    """Name the declared requirements that a lock does not meet with exactly one version."""
    found = pins(lock, environment)
    declared = [each for each in declared if each.marker is None or each.marker.evaluate(environment)]
    pinned = {requirement: found.get(canonicalize_name(requirement.name), []) for requirement in declared}
    return [r.name for r, p in pinned.items() if len(p) != 1 or not r.specifier.contains(version(p[0]))]


def loose(lock: list[str]) -> list[str]:
    """Name the lines that are not one exact version."""
    specifiers = {line: [str(each) for each in Requirement(line).specifier] for line in lock}
    return [line for line, s in specifiers.items() if len(s) != 1 or s[0][:2] != "==" or "*" in s[0]]


def drifted(declared: list[Requirement], lock: list[str]) -> set[str]:
    """Follow the installed packages from the declared ones; name those that the lock does not pin so."""
    found, seen, wrong = pins(lock), set(), set()
    here = [each for each in declared if each.marker is None or each.marker.evaluate()]
    queue = [(canonicalize_name(requirement.name), requirement.extras) for requirement in here]
    while queue:
        name, extras = queue.pop()
        if (name, frozenset(extras)) in seen or any(fnmatch.fnmatch(name, cuda) for cuda in TORCH_CUDA):
            continue
        seen.add((name, frozenset(extras)))
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            wrong.add(name)
            continue
        if [version(pin) for pin in found.get(name, [])] != [installed.version.split("+")[0]]:
            wrong.add(name)
        for needed in map(Requirement, installed.requires or []):
            markers = (
                [needed.marker.evaluate({"extra": e}) for e in ("", *extras)] if needed.marker else [True]
            )
            if any(markers):
                queue.append((canonicalize_name(needed.name), needed.extras))
    return wrong


def unhashed(lock: list[str]) -> list[str]:
    """Name the pins that no line with a SHA-256 follows."""
    lines = zip(lock, [*lock[1:], ""], strict=True)
    return [pin for pin, next in lines if pin[0] != " " and not re.fullmatch(HASH, next)]


def test_lock_has_a_hash_for_every_package():
    assert unhashed(HASHED) == []
    assert unhashed(HASHED[:1]) == HASHED[:1]
    assert [line for line in HASHED if line[0] == " " and not re.fullmatch(HASH, line)] == []
    assert {*LOCK} - {*HASHLESS} == {"torch==2.13.0"}, "a known hash would choose between CPU and CUDA"


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_lock_meets_every_declared_requirement(python, platform):
    environment = PLATFORMS[platform] | {"python_version": python, "python_full_version": f"{python}.9"}
    assert unmet(DECLARED, LOCK, environment) == []
    missing = [line for line in LOCK if not line.startswith("scipy==")]
    older = ["peft==0.1" if line.startswith("peft==") else line for line in LOCK]
    twice = [*LOCK, "invoke==3.0.0"]
    assert [unmet(DECLARED, bad, environment) for bad in (missing, older, twice)] == [
        ["scipy"],
        ["peft"],
        ["invoke"],
    ]


def test_lock_holds_exact_versions_only():
    assert loose(LOCK) == []
    assert loose(["scipy>=1", "numpy==2.*", "torch", "tqdm==4.1"]) == ["scipy>=1", "numpy==2.*", "torch"]


def test_lock_leaves_the_choice_of_cuda_to_torch():
    names = {canonicalize_name(Requirement(line).name) for line in LOCK}
    assert not [name for name in names for cuda in TORCH_CUDA if fnmatch.fnmatch(name, cuda)]
    assert "torch" in names


def test_lock_holds_what_the_declared_packages_pull_in():
    assert drifted(DECLARED, LOCK) == set()
    assert drifted(DECLARED, [line for line in LOCK if not line.startswith("joblib==")]) == {"joblib"}
    assert drifted(DECLARED, ["regex==1.0" if line.startswith("regex==") else line for line in LOCK]) == {
        "regex"
    }


def test_conda_environment_has_the_versions_of_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, from_pip = environment["dependencies"]
    *pinned, project = from_pip["pip"]
    assert sorted(pinned) == sorted(LOCK) and project == "-e ."
    assert sorted(Requirement(each).name for each in conda) == ["pip", "python"], (
        "no version but Python's here"
    )
    python = Requirement(next(each for each in conda if each.startswith("python"))).specifier
    assert [each for each in ("3.9", *PYTHONS, "4.0") if python.contains(each)] == [*PYTHONS]
    assert PROJECT["project"]["requires-python"] == ">=3.10"


def test_hooks_use_the_versions_of_the_lock():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pinned = [pin for hook in hooks for pin in hook["additional_dependencies"]]
    assert {Requirement(pin).name for pin in pinned} == {"ruff", "nbstripout"}
    assert set(pinned) <= set(LOCK)
    assert not set(pinned) <= {line for line in LOCK if not line.startswith("ruff==")}


def test_every_file_of_the_package_is_shipped():
    tools = PROJECT["tool"]["setuptools"]
    data = tools["package-data"]
    files = [path for path in (ROOT / "pruner_lib").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    packages = {path: path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in files}

    def shipped(path: Path) -> bool:
        return any(fnmatch.fnmatch(path.name, each) for each in ["*.py", *data.get(packages[path], [])])

    assert [path for path in files if not shipped(path)] == []
    assert {"profiles.yaml", "py.typed"} <= {path.name for path in files}
    data = {}
    assert {"profiles.yaml", "py.typed"} <= {path.name for path in files if not shipped(path)}
    folders = set(packages.values())
    assert set(tools["packages"]) == folders and len(folders) > 5, "each package inside it is listed"


def test_ci_runs_the_commands_of_the_readme():
    script = ROOT / ".ci" / "run"
    lines = [line for line in script.read_text().splitlines() if "tasks.py" in line]
    assert [line.split()[1:3] for line in lines] == [["tasks.py", "lint"], ["tasks.py", "test"]]
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
