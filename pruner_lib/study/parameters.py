"""Find which parameters of a notebook were changed, and the results folder for them.

The notebook's own process inspects the cells that it ran, so papermill, the runner and readers who edit them
in JupyterLab or a script are treated alike. Defaults are in `parameters.yaml`, since readers edit the cell.
"""

import ast
import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from IPython import get_ipython

from pruner_lib.study.settings import settings_key

DEFAULTS_FILE = Path(__file__).with_suffix(".yaml")
CELL = re.compile(r"^# In\[.*\]:$", re.MULTILINE)  # starts a cell in a script made by nbconvert
INJECTED = "# Parameters"  # the first line of the cell that papermill inserts after the tagged one
PATHS = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")  # from papermill's --inject-paths; not parameters
PROFILE = "profile"  # each profile has its own results folder
PLAIN = re.compile(r"[A-Za-z0-9_.-]+")  # a value that may appear in a folder's name
LONGEST = 80  # characters of a folder's name


def changed_parameters(cells: Sequence[str] | None = None) -> dict[str, Any]:
    """Find the parameters of a notebook that differ from their defaults, except `profile`.

    Papermill itself only warns about a misspelt parameter, and would run the notebook with the default.

    Args:    cells: sources of the cells run so far, in order; None: those of this process.
    Raises:  ValueError: papermill was given parameters that the notebook does not have.
    """
    declared, injected, later, previous = {}, {}, {}, {}
    for cell in _cells_run() if cells is None else cells:
        values = assigned(cell)
        if cell.startswith(INJECTED):
            declared, injected = previous, {name: v for name, v in values.items() if name not in PATHS}
        elif PROFILE in values and declared.keys() <= values.keys():
            declared, injected, later = values, {}, {}
        later |= {name: v for name, v in values.items() if name in declared}
        previous = values
    if unknown := sorted(injected.keys() - declared.keys()):
        raise ValueError(f"this notebook has no parameter {', '.join(unknown)}; it has {', '.join(declared)}")
    notebooks = yaml.safe_load(DEFAULTS_FILE.read_text(encoding="utf-8")).values()
    defaults = next((names for names in notebooks if {PROFILE, *names} == declared.keys()), None)
    values = declared | injected | (later if defaults else {})  # in other notebooks, names may be used again
    return {name: v for name, v in values.items() if name != PROFILE and v != (defaults or declared)[name]}


def _cells_run() -> list[str]:
    """Return the sources of the cells of this process: those run in IPython, or those of a script."""
    if shell := get_ipython():
        return [cell for cell in shell.user_ns.get("In", ()) if cell]
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    source = script.read_text(encoding="utf-8") if script.suffix == ".py" and script.is_file() else ""
    return [cell.strip() for cell in CELL.split(source)]


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
    """Read what a cell assigns as `name = value` or `name: type = value`, but not as `name = name or ...`."""
    with contextlib.suppress(SyntaxError):  # magics and shell commands
        nodes = [node for node in ast.parse(cell).body if isinstance(node, (ast.Assign, ast.AnnAssign))]
        pairs = [(n.targets[0] if isinstance(n, ast.Assign) else n.target, n.value) for n in nodes if n.value]
        pairs = [(name.id, v) for name, v in pairs if isinstance(name, ast.Name)]
        return {name: _value(value) for name, value in pairs if not isinstance(value, ast.BoolOp)}
    return {}


def _value(expression: ast.expr) -> Any:
    try:
        return ast.literal_eval(expression)
    except ValueError:  # not a literal, such as papermill's float('nan')
        return ast.unparse(expression)
