"""What a notebook was asked for: which of its parameters were changed, and the folder that this goes to.

The notebook's own process looks at the cells that it ran, so papermill, the runner and a reader who edits the
parameters in JupyterLab are treated alike. Defaults are in `parameters.yaml`, since a reader edits the cell.
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
PATHS = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")  # of papermill's --inject-paths; no parameters
PROFILE = "profile"  # has folders of its own
PLAIN = re.compile(r"[A-Za-z0-9_.-]+")  # a value that may stand in the name of a folder
LONGEST = 80  # characters in the name of a folder


def changed_parameters(cells: Sequence[str] | None = None) -> dict[str, Any]:
    """Find the parameters of a notebook that differ from its defaults, but `profile`.

    To papermill itself a misspelt parameter is only a warning, and the notebook would run with its default.

    Args:    cells: what was run so far, in order; None: of the notebook that this process runs, if any.
    Raises:  ValueError: papermill was given parameters that the notebook does not have.
    """
    if cells is None:
        shell = get_ipython()
        cells = [cell for cell in shell.user_ns.get("In", ()) if cell] if shell else []
    own, given, before = {}, {}, {}
    for cell in cells:
        values = assigned(cell)
        if cell.startswith(INJECTED):
            own, given = before, {name: value for name, value in values.items() if name not in PATHS}
        elif PROFILE in values:
            own, given = values, {}
        before = values
    if unknown := sorted(given.keys() - own.keys()):
        raise ValueError(f"this notebook has no parameter {', '.join(unknown)}; it has {', '.join(own)}")
    known = yaml.safe_load(DEFAULTS_FILE.read_text(encoding="utf-8"))
    defaults = next((one for one in known.values() if {PROFILE, *one} == own.keys()), own)
    asked = own | given
    return {name: asked[name] for name in asked if name != PROFILE and asked[name] != defaults[name]}


def folder_of(changed: Mapping[str, Any]) -> Path:
    """Name the folder of changed parameters, below a profile's: `changed/ratio=0.5,seed=1`, "." of none.

    What is no plain word, or too long, is shortened and told apart by a hash.
    """
    if not changed:
        return Path()
    values = {name: value if isinstance(value, list) else [value] for name, value in changed.items()}
    name = ",".join(f"{name}={'+'.join(map(str, each))}" for name, each in values.items())
    is_plain = all(each and all(PLAIN.fullmatch(str(one)) for one in each) for each in values.values())
    if not is_plain or len(name) > LONGEST:
        name = f"{re.sub('[^A-Za-z0-9_.,=+-]', '-', name)[:LONGEST]}-{settings_key(dict(changed))[:8]}"
    return Path("changed") / name


def assigned(cell: str) -> dict[str, Any]:
    """Read what a cell assigns to names, as `name = value` or `name: type = value`."""
    with contextlib.suppress(SyntaxError):  # of the notebook's own commands
        body = ast.parse(cell).body
        found = [one for one in body if isinstance(one, (ast.Assign, ast.AnnAssign)) and one.value]
        pairs = [(one.targets[0] if isinstance(one, ast.Assign) else one.target, one.value) for one in found]
        return {target.id: _value(value) for target, value in pairs if isinstance(target, ast.Name)}
    return {}


def _value(expression: ast.expr) -> Any:
    try:
        return ast.literal_eval(expression)
    except ValueError:  # as papermill writes float('nan')
        return ast.unparse(expression)
