"""Imports run down the floors of the library, and in no circle: read off the source, inside functions too."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pruner_lib

FLOORS = {
    "files": 0,
    "method": 1,
    "models": 2,
    "data": 2,
    "recovery": 3,
    "evaluation": 3,
    "study": 4,
    "__main__": 4,
}
METHOD = {"torch", "numpy", "scipy"} | set(sys.stdlib_module_names)  # and the modules of the project below it


def sources(root: Path) -> dict[str, ast.Module]:
    """Parse every module of a package: dotted name below it -> syntax tree."""
    names = {path: path.relative_to(root).with_suffix("").as_posix() for path in sorted(root.rglob("*.py"))}
    found = {name.replace("/", "."): ast.parse(path.read_text()) for path, name in names.items()}
    return {name.removesuffix(".__init__"): tree for name, tree in found.items() if name != "__init__"}


def imports(tree: ast.Module) -> set[str]:
    """List all that a module imports, `from a import b` as `a.b`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{each.name}" for each in node.names}
    return found


def own(trees: dict[str, ast.Module], package: str, home: dict[str, str]) -> dict[str, set[str]]:
    """Give the modules of the package that each of its modules imports.

    Args:    home: name that the package itself offers -> its module; a use of it is an import of that module.
    """
    edges: dict[str, set[str]] = {}
    for name, tree in trees.items():
        edges[name] = set()
        for each in imports(tree):
            if not each.startswith(f"{package}."):
                continue
            below = each.removeprefix(f"{package}.")
            below = home.get(below, below)
            known = below if below in trees else below.rpartition(".")[0]
            edges[name] |= {known} & set(trees)
    return edges


def upward(edges: dict[str, set[str]]) -> list[str]:
    """List the imports that run up a floor."""

    def floor(name: str) -> int:
        return FLOORS[name.partition(".")[0]]

    return [f"{a} imports {b}" for a in edges for b in sorted(edges[a]) if floor(b) > floor(a)]


def circle(edges: dict[str, set[str]]) -> set[str]:
    """Name the modules of an import circle; none where there is no circle."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return set(error.args[1])
    return set()


def rooms(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Give the same graph between the rooms, without what happens inside of one."""
    found: dict[str, set[str]] = {}
    for name, others in edges.items():
        room = name.partition(".")[0]
        found.setdefault(room, set()).update({other.partition(".")[0] for other in others} - {room})
    return found


def foreign(trees: dict[str, ast.Module], package: str) -> list[str]:
    """List the imports of the method that are neither its own, `files`, nor on its short list."""
    allowed = (f"{package}.method.", f"{package}.files.")
    found = {name: imports(tree) for name, tree in trees.items() if name.partition(".")[0] == "method"}
    return [
        f"{name} imports {each}"
        for name, names in found.items()
        for each in sorted(names)
        if each.partition(".")[0] not in METHOD and not f"{each}.".startswith(allowed)
    ]


LIBRARY = sources(Path(pruner_lib.__file__).parent)
EDGES = own(LIBRARY, "pruner_lib", pruner_lib._HOME)


def test_every_module_has_a_floor():
    assert {name.partition(".")[0] for name in LIBRARY} == set(FLOORS)
    assert "method.groups" in EDGES["method.select"] and "files" in EDGES["study.records"]


def test_no_import_runs_up_a_floor():
    assert upward(EDGES) == []


def test_no_import_is_circular():
    assert circle(EDGES) == circle(rooms(EDGES)) == set()


def test_method_imports_nothing_but_torch_numpy_scipy_and_files():
    assert foreign(LIBRARY, "pruner_lib") == []


@pytest.fixture
def made_up(tmp_path) -> dict[str, ast.Module]:
    texts = {
        "__init__": "",
        "files": "import json\n",
        "method/cut": "import torch\n"
        "def f():\n    from made.models.load import load\n    import transformers\n",
        "models/load": "from made.data import names\nfrom made import files\n",
        "data/names": "from made.models import load\nfrom made import cut\n",
        "study/run": "from made.method.cut import f\n",
    }
    for name, text in texts.items():
        path = tmp_path / "made" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return sources(tmp_path / "made")


def test_what_is_wrong_is_reported(made_up):
    edges = own(made_up, "made", {"cut": "method.cut"})
    assert edges["data.names"] == {"models.load", "method.cut"} and edges["study.run"] == {"method.cut"}
    assert upward(edges) == ["method.cut imports models.load"]
    assert "models.load" in circle(edges) and "models" in circle(rooms(edges))
    wrong = ["method.cut imports made.models.load.load", "method.cut imports transformers"]
    assert foreign(made_up, "made") == wrong
    tidy = {**edges, "method.cut": set(), "data.names": {"method.cut"}}
    assert upward(tidy) == [] and circle(tidy) == circle(rooms(tidy)) == set()
