"""The public names: seen by editors without running anything, imported only when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jedi
import pytest

import pruner_lib

SOURCE = Path(pruner_lib.__file__)
HEAVY = ["torch", "numpy", "scipy", "transformers", "peft", "lm_eval", "datasets", "pandas", "matplotlib"]


IMPORTS = """
import sys
import pruner_lib
print(*sys.modules)
from pruner_lib import Axes, Plan, discover, estimate, select, mask_
print(*sys.modules)
from pruner_lib import load_model, prune_, save_model, calibration_ids, text_ids, perplexity
print(*sys.modules)
"""


def for_editors() -> dict[str, str]:
    """Names imported under TYPE_CHECKING -> the module that each comes from."""
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    return {alias.asname: node.module for node in block.body for alias in node.names}


@pytest.mark.slow
def test_what_is_imported_is_what_is_used():
    """In a fresh process: the library alone, then the method without transformers, then models and data."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    alone, method, models = (
        {name for name in line.split() if name in HEAVY or name.startswith("pruner_lib")}
        for line in done.stdout.splitlines()
    )
    assert alone == {"pruner_lib"}
    assert "transformers" not in method and {"torch", "pruner_lib.method.groups"} <= method
    assert "transformers" in models and not models & {"peft", "lm_eval", "datasets", "matplotlib"}
    assert not [name for name in models if name.startswith(("pruner_lib.study", "pruner_lib.recovery"))]


def test_editors_see_every_public_name_where_it_comes_from():
    assert for_editors() == {name: f"pruner_lib.{home}" for name, home in pruner_lib._HOME.items()}
    assert (SOURCE.parent / "py.typed").is_file()
    for name, module in for_editors().items():
        assert getattr(pruner_lib, name) is getattr(import_module(module), name)
        assert name in dir(pruner_lib) and name in pruner_lib.__all__


@pytest.mark.parametrize("name", ["discover", "calibration_ids", "prune_", "instructions"])
def test_an_editor_shows_arguments_and_docstring(name):
    (shown,) = jedi.Script(f"from pruner_lib import {name}\n{name}(").get_signatures()
    function = getattr(pruner_lib, name)
    assert [each.name for each in shown.params] == [*function.__code__.co_varnames[: len(shown.params)]]
    assert shown.params and function.__doc__.splitlines()[0] in shown.docstring()
    assert not jedi.Script("from pruner_lib import nothing\nnothing(").get_signatures()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'prune_model'; it offers Axes, Plan, calibration"):
        pruner_lib.prune_model  # noqa: B018
