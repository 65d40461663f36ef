"""What a notebook defines, without running it, so that functions are tested where they stand."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def functions_of(notebook: str, **given: Any) -> SimpleNamespace:
    """Give the functions, imports and CONSTANTS of a notebook.

    Args:    notebook: its file name without ending.    given: variables of the notebook that they use.
    """
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    wanted = [node for node in ast.parse(code).body if _defines(node)]
    names = dict(given)
    exec(compile(ast.Module(wanted, []), notebook, "exec"), names)
    return SimpleNamespace(**names)


def _defines(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id.isupper() for target in node.targets)
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))
