"""Find which parameters of a notebook were changed, and the results folder for them.

The notebook's own process inspects the cells that it ran, so papermill, the runner and readers who edit the
parameters in JupyterLab are treated alike. Defaults are in `parameters.yaml`, since readers edit the cell.
"""

import ast
import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from IPython import get_ipython

from pruner_lib.study.settings import settings_key

DEFAULTS_FILE = Path(__file__).with_suffix(".yaml")
INJECTED = "# Parameters"  # the first line of the cell that papermill inserts after the tagged one
PATHS = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")  # from papermill's --inject-paths; not parameters
PROFILE = "profile"  # each profile has its own results folder
PLAIN = re.compile(r"[A-Za-z0-9_.-]+")  # a value that may appear in a folder's name
LONGEST = 80  # characters of a folder's name


def changed_parameters(cells: Sequence[str] | None = None) -> dict[str, Any]:
    """Find the parameters of a notebook that differ from their defaults, except `profile`.

    Papermill itself only warns about a misspelt parameter, and would run the notebook with the default.

    Args:    cells: sources of the cells run so far, in order; None: those of this process's notebook, if any.
    Raises:  ValueError: papermill was given parameters that the notebook does not have.
    """
    if cells is None:
        shell = get_ipython()
        cells = [cell for cell in shell.user_ns.get("In", ()) if cell] if shell else []
    declared, injected, previous = {}, {}, {}
    for cell in cells:
        values = assigned(cell)
        if cell.startswith(INJECTED):
            declared, injected = previous, {name: v for name, v in values.items() if name not in PATHS}
        elif PROFILE in values:
            declared, injected = values, {}
        previous = values
    if unknown := sorted(injected.keys() - declared.keys()):
        raise ValueError(f"this notebook has no parameter {', '.join(unknown)}; it has {', '.join(declared)}")
    notebooks = yaml.safe_load(DEFAULTS_FILE.read_text(encoding="utf-8")).values()
    defaults = next((names for names in notebooks if {PROFILE, *names} == declared.keys()), declared)
    values = declared | injected
    return {name: v for name, v in values.items() if name != PROFILE and v != defaults[name]}


def folder_of(changed: Mapping[str, Any]) -> Path:
    """Name the folder of changed parameters, such as `changed/ratio=0.5,seed=1`; "." if nothing was changed.

    Names that are too long, or hold characters that a folder name should not, are shortened and get a hash.
    """
    if not changed:
        return Path()
    lists = {name: value if isinstance(value, list) else [value] for name, value in changed.items()}
    name = ",".join(f"{name}={'+'.join(map(str, values))}" for name, values in lists.items())
    is_plain = all(values and all(PLAIN.fullmatch(str(v)) for v in values) for values in lists.values())
    if not is_plain or len(name) > LONGEST:
        name = f"{re.sub('[^A-Za-z0-9_.,=+-]', '-', name)[:LONGEST]}-{settings_key(dict(changed))[:8]}"
    return Path("changed") / name


def assigned(cell: str) -> dict[str, Any]:
    """Read the names and values that a cell assigns, as `name = value` or `name: type = value`."""
    with contextlib.suppress(SyntaxError):  # magics and shell commands
        nodes = [node for node in ast.parse(cell).body if isinstance(node, (ast.Assign, ast.AnnAssign))]
        pairs = [(n.targets[0] if isinstance(n, ast.Assign) else n.target, n.value) for n in nodes if n.value]
        return {target.id: _value(value) for target, value in pairs if isinstance(target, ast.Name)}
    return {}


def _value(expression: ast.expr) -> Any:
    try:
        return ast.literal_eval(expression)
    except ValueError:  # not a literal, such as papermill's float('nan')
        return ast.unparse(expression)
