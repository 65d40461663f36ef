"""Parameters that papermill put into the running notebook: unknown ones are refused.

To papermill itself a misspelt parameter is only a warning, and the notebook would run with its default.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

MARK = "# Parameters"  # the first line of the cell that papermill inserts after the tagged one


def refuse_unknown_parameters(cells: Sequence[str] | None = None) -> None:
    """Compare the inserted cell with the one before it.

    Args:    cells: what was run so far, in order; None: of the notebook that this process runs, if any.
    Raises:  ValueError: names the parameters that are unknown and those there are.
    """
    cells = _cells_run() if cells is None else cells
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.startswith(MARK):
            known, given = _assigned(before), _assigned(cell)
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(
                    f"this notebook has no parameter {', '.join(unknown)}; it has {', '.join(known)}"
                )
            return


def _cells_run() -> list[str]:
    try:
        from IPython import get_ipython
    except ImportError:
        return []
    shell = get_ipython()
    return [] if shell is None else [cell for cell in shell.user_ns.get("In", []) if cell]


def _assigned(cell: str) -> list[str]:
    """Names that a cell of plain assignments gives a value, in order."""
    found = []
    for node in ast.parse(cell).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found += [target.id for target in targets if isinstance(target, ast.Name)]
    return found
