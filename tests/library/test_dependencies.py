"""Each part of the library imports what its own extra declares, and no extra declares what nobody imports."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pruner_lib import load_model, zero_shot

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = packages_distributions()
OWN = {"pruner_lib", "tests", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
PARTS = {  # files -> the extras that they may use, beside the library's own dependencies
    "pruner_lib/*.py": [],
    "pruner_lib/method/*.py": [],
    "pruner_lib/models/*.py": [],
    "pruner_lib/data/*.py": [],
    "pruner_lib/evaluation/perplexity.py": [],
    "pruner_lib/recovery/*.py": ["recover"],
    "pruner_lib/evaluation/*.py": ["eval"],
    "pruner_lib/study/cluster.py": ["cluster", "study"],
    "pruner_lib/study/**/*.py": ["recover", "eval", "study"],
    "tasks.py": ["study"],
    "tests/benchmarks/*.py": ["recover", "eval", "study", "bench", "dev"],
    "tests/**/*.py": ["recover", "eval", "study", "bench", "dev"],
}
OPTIONAL = {"torch-pruning"}  # its benchmark runs where it is installed
NOT_IMPORTED = {  # declared, but used by another package or as a program
    "": {"protobuf", "safetensors", "sentencepiece", "tqdm"},  # or by several parts alike
    "study": {"ipykernel", "ipywidgets", "jupyterlab"},
    "dev": {"nbstripout", "pre-commit", "pytest-timeout", "pytest-xdist", "ruff", "setuptools"},
}


def declared(extra: str = "") -> set[str]:
    """Names of the distributions that the project, or one of its extras, asks for."""
    texts = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return {canonicalize_name(Requirement(text).name) for text in texts}


def distribution(module: str) -> str:
    return canonicalize_name(DISTRIBUTIONS.get(module, [module.replace("_", "-")])[0])


@cache
def imported(source: str, *, inside_functions: bool) -> set[str]:
    """Distributions that a module imports at its top, or anywhere; its own project and Python's left out."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    if not inside_functions:
        functions = [each for each in nodes if isinstance(each, (ast.FunctionDef, ast.Lambda))]
        inner = {node for each in functions for node in ast.walk(each)}
        nodes = [node for node in nodes if node not in inner]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    others = [node for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]  # not relative
    found |= {node.module for node in others}
    names = {name.partition(".")[0] for name in found} - OWN - set(sys.stdlib_module_names)
    return {distribution(name) for name in names}


@cache
def files(part: str) -> list[Path]:
    """Files of a part, without those that a part before it has taken, nor code that only travels."""
    earlier = [path for other in list(PARTS)[: list(PARTS).index(part)] for path in ROOT.glob(other)]
    return [p for p in sorted(ROOT.glob(part)) if p not in earlier and "remote" not in p.parts]


def undeclared(source: str, extras: list[str], *, inside_functions: bool) -> set[str]:
    """What a module imports that neither the library nor one of these extras declares."""
    there = set().union(declared(), *map(declared, extras))
    return imported(source, inside_functions=inside_functions) - there


@pytest.mark.parametrize("part", PARTS)
def test_what_is_imported_is_declared(part):
    """An import inside a function is of an optional package, and declared by some extra."""
    everywhere = list(PROJECT["optional-dependencies"])
    assert files(part)
    for path in files(part):
        source = path.read_text()
        assert not undeclared(source, PARTS[part], inside_functions=False) - OPTIONAL, path
        assert not undeclared(source, everywhere, inside_functions=True), path


def test_what_is_not_declared_is_seen():
    source = (
        "import os, torch.nn\nfrom peft import x\ndef f():\n    import pandas\n    from yaml import load\n"
    )
    assert undeclared(source, [], inside_functions=False) == {"peft"}
    assert undeclared(source, ["recover"], inside_functions=False) == set()
    assert undeclared(source, ["recover"], inside_functions=True) == {"pandas", "pyyaml"}
    assert undeclared("import no_such", list(PROJECT["optional-dependencies"]), inside_functions=True)


def private(source: str) -> list[str]:
    """Modules and names with a leading underscore that are imported from other projects but torch."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in nodes for alias in node.names]
    names = [name for name in names if name.partition(".")[0] not in ("torch", "pruner_lib", "__future__")]
    return [name for name in names if any(part.startswith("_") for part in name.split("."))]


def test_nothing_private_is_imported_that_a_newer_version_may_not_have():
    assert not [name for path in (ROOT / "pruner_lib").rglob("*.py") for name in private(path.read_text())]


def test_what_is_private_is_seen():
    assert private("from a._b import c\nfrom a import _d, e\nfrom torch.utils._pytree import f") == [
        "a._b.c",
        "a._d",
    ]


@pytest.mark.parametrize("missing", ["lm_eval", "datasets"])
def test_zero_shot_says_what_is_not_installed(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"zero_shot needs {missing}: `pip install pruner-lib\[eval\]`"):
        zero_shot(*load_model("tiny"))


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_what_is_declared_is_used(extra):
    parts = [part for part, extras in PARTS.items() if (extra in extras if extra else True)]
    if not extra:
        parts = [part for part, extras in PARTS.items() if not extras]
    used = {
        name
        for part in parts
        for path in files(part)
        for name in imported(path.read_text(), inside_functions=True)
    }
    assert declared(extra) - used == NOT_IMPORTED.get(extra, set())


def test_nothing_is_declared_twice():
    names = [name for extra in ["", *PROJECT["optional-dependencies"]] for name in declared(extra)]
    assert sorted(names) == sorted(set(names))


def test_torch_is_pinned_by_the_installation_alone():
    (torch,) = [each for each in PROJECT["dependencies"] if Requirement(each).name == "torch"]
    operators = {each.operator for each in Requirement(torch).specifier}
    assert operators == {">=", "<"}
    assert re.search(r'^TORCH = "torch==\d', (ROOT / "tasks.py").read_text(), re.MULTILINE)
    assert not [each for each in PROJECT["dependencies"] if "jupyter" in each or "==" in each]
