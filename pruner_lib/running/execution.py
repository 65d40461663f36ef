"""Run one notebook by papermill in a process of its own, and judge it by what it wrote.

The judge is the manifest that a notebook's last cell writes (`results.finish`), never the executed notebook:
after its kernel was killed papermill leaves one that says "completed". Which notebooks a study has is known
to `runner`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruner_lib.experiments.experiment import settings_key
from pruner_lib.experiments.profiles import load_profile
from pruner_lib.experiments.results import (
    RUN_ID,
    manifest_path,
    now,
    read_manifest,
    results_dir,
    results_root,
)
from pruner_lib.experiments.storage import write_atomic, write_json

TAIL = 4000  # characters of a failed notebook's messages that are kept


@dataclass(frozen=True)
class NotebookRun:
    """What came of one notebook: `done` or `failed`, and the files it wrote, below the profile's folder."""

    notebook: str
    profile: str
    status: str
    seconds: float
    outputs: tuple[str, ...] = ()
    error: str | None = None

    @property
    def done(self) -> bool:
        """Whether the notebook ran to its end and everything that it says it wrote is there."""
        return self.status == "done"


def notebook_parameters(path: Path) -> dict[str, Any]:
    """List the parameters of a notebook: name -> what papermill found out about it.

    Raises:  ValueError: not a readable notebook, or no cell is tagged `parameters` (papermill would then run
             it with its defaults, whatever is asked).
    """
    import nbformat
    import papermill

    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:
        raise ValueError(f"{path} is no notebook: {error}") from error
    if not any("parameters" in cell.metadata.get("tags", ()) for cell in notebook.cells):
        raise ValueError(f"{path.name} has no cell tagged 'parameters'; tag the cell that holds them")
    return papermill.inspect_notebook(str(path))


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse a parameter that the notebook does not have (to papermill that is only a warning).

    Raises:  ValueError: names the parameters that are unknown and those there are.
    """
    known = notebook_parameters(path)
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(
            f"{path.name} has no parameter {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )


def run_notebook(
    path: Path,
    profile: str = "quick",
    parameters: Mapping[str, Any] | None = None,
    *,
    show: bool = True,
    threads: int | None = None,
) -> NotebookRun:
    """Run one notebook in a process of its own; the executed notebook goes to `results/<profile>/notebooks/`.

    Args:    parameters: values for its tagged cell besides `profile`; plain scalars or flat lists.
             show: pass papermill's progress bar on to the terminal.
             threads: of its computations, where other notebooks run beside it; None: as many as torch takes.
    Returns: what came of it. A failure inside the notebook is reported there, not raised.
    Raises:  ValueError: unknown profile or parameter, no `parameters` tag. Nothing has run then.
    """
    load_profile(profile)
    parameters = {name: list(v) if isinstance(v, tuple) else v for name, v in (parameters or {}).items()}
    parameters |= {"profile": profile}
    check_parameters(path, parameters)
    run_id, start = uuid.uuid4().hex, time.perf_counter()
    code, messages = _papermill(path, profile, parameters, run_id, show, threads)
    seconds = round(time.perf_counter() - start, 1)
    error = _problem(path.stem, profile, run_id, code, messages)
    error = error and _without_places(error)
    manifest = read_manifest(path.stem, profile) if error is None else None
    outputs = tuple(manifest["outputs"]) if manifest else ()
    done = NotebookRun(path.stem, profile, "failed" if error else "done", seconds, outputs, error)
    base = manifest or {"finished": now(), "run_id": run_id}
    asked = {"parameters": parameters, "asked": _asked(profile, parameters)}
    write_json(manifest_path(path.stem, profile), base | asdict(done) | asked)
    return done


def was_done(path: Path, profile: str, parameters: Mapping[str, Any]) -> bool:
    """Say whether a notebook was done before with the same parameters and the same values of the profile."""
    manifest = read_manifest(path.stem, profile) or {}
    asked = _asked(profile, dict(parameters) | {"profile": profile})
    return manifest.get("status") == "done" and manifest.get("asked") == asked


def _asked(profile: str, parameters: Mapping[str, Any]) -> str:
    return settings_key([asdict(load_profile(profile)), dict(parameters)])


def _papermill(
    path: Path, profile: str, parameters: dict[str, Any], run_id: str, show: bool, threads: int | None
) -> tuple[int, str]:
    """Execute a notebook by papermill in its own process; give the exit code and the end of its messages."""
    import yaml

    executed = results_dir(profile) / "notebooks" / path.name
    executed.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        RUN_ID: run_id,
        "PRUNER_LIB_RESULTS": str(results_root()),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [_package_parent(), os.environ.get("PYTHONPATH")])),
    }
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / path.name
        command = [
            sys.executable,
            "-m",
            "papermill",
            str(path.resolve()),
            str(out),
            "--parameters_yaml",
            yaml.safe_dump(parameters),
            "--kernel",
            "python3",
        ]
        code, messages = _watch(command, environment, path.resolve().parent, show)
        if out.is_file():
            write_atomic(executed, lambda temporary: temporary.write_text(_executed(out), encoding="utf-8"))
    return code, messages


def _watch(command: list[str], environment: dict[str, str], cwd: Path, show: bool) -> tuple[int, str]:
    """Run a command, showing what it says; a break from the keyboard ends it and all that it started."""
    tail = b""
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while chunk := process.stdout.read1(4096):
            tail = (tail + chunk)[-4 * TAIL :]
            if show and sys.stderr.isatty():
                sys.stderr.buffer.write(chunk)
                sys.stderr.flush()
        return process.wait(), tail.decode(errors="replace")[-TAIL:]
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, AttributeError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        process.stdout.close()


def _problem(notebook: str, profile: str, run_id: str, code: int, messages: str) -> str | None:
    """Say what went wrong; None where papermill ended well and this run's marker names files that exist."""
    if code:
        return _plain(messages).strip() or f"papermill ended with exit code {code}"
    try:
        manifest = read_manifest(notebook, profile)
    except ValueError as error:
        return str(error)
    if manifest is None or manifest.get("run_id") != run_id:
        return "it ended without results.finish(...): its kernel died, or its last cell does not call it"
    base = results_dir(profile)
    missing = [name for name in manifest["outputs"] if not (base / name).is_file()]
    return f"it says that it wrote {', '.join(missing)}, but that is not there" if missing else None


def _executed(path: Path) -> str:
    """Give an executed notebook as text, without the paths of this machine in its metadata and outputs."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for name in ("input_path", "output_path"):
        if name in notebook.metadata.get("papermill", {}):
            notebook.metadata["papermill"][name] = path.name
    return _without_places(nbformat.writes(notebook))


def _without_places(text: str) -> str:
    """Take the paths of this machine out of a text."""
    places = {str(results_root().parent): ".", _package_parent(): ".", str(Path.home()): "~"}
    for place, shown in places.items():
        text = text.replace(place + os.sep, shown + os.sep) if place != os.sep else text
    return text


def _package_parent() -> str:
    return str(Path(__file__).resolve().parents[2])


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "\n")
