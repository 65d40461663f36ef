"""Run the notebooks of a study by papermill, one process each, in the order of their needs, and report.

    python -m pruner_lib.study.notebooks study --profile quick [--only 00,01] [--set ratio=0.5 ...]
    python -m pruner_lib.study.notebooks notebook 00_quickstart --profile tiny [--set ratio=0.5 ...]

The order is that of their names: the summary, which reads what all others wrote, is the last. At the end
stands one page with everything, `results/<profile>/index.html`.

The judge of a run is the manifest that a notebook's last cell writes (`results.finish`), never the executed
notebook: after its kernel was killed papermill leaves one that says "completed".
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml

from pruner_lib.files import write_atomic, write_json
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.report import write_index
from pruner_lib.study.results import (
    RUN_ID,
    manifest_path,
    now,
    project_root,
    read_manifest,
    results_dir,
    results_root,
)
from pruner_lib.study.settings import settings_key

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


AT_ONCE = 2  # notebooks that were all done before run side by side


def notebooks_dir() -> Path:
    """Find the folder of the notebooks: in the project, else here.

    Raises:  ValueError: there is none.
    """
    place = (project_root() or Path.cwd()) / "notebooks"
    if not place.is_dir():
        raise ValueError(f"there is no folder {place}; run this in a clone of the project")
    return place


def find_notebooks(only: Sequence[str] = (), place: Path | None = None) -> list[Path]:
    """List the notebooks in the order of their file names.

    Args:    only: names or their beginnings, as "00" or "01_discover_groups"; empty: all.
    Raises:  ValueError: one of `only` is the beginning of no name (the message lists those there are).
    """
    place = place or notebooks_dir()
    found = sorted(path for path in place.glob("*.ipynb") if not path.name.startswith("."))
    for start in only:
        if not start or not any(path.stem.startswith(start) for path in found):
            names = ", ".join(path.stem for path in found) or "none"
            raise ValueError(f"no notebook in {place} is named {start!r} or begins so; there are {names}")
    names = {path.stem for path in found}
    chosen = [
        (lambda name, start=start: name == start if start in names else name.startswith(start))
        for start in only
    ]
    return [path for path in found if not only or any(is_it(path.stem) for is_it in chosen)]


def run_study(
    profile: str = "quick",
    only: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    *,
    place: Path | None = None,
    show: bool = True,
) -> list[NotebookRun]:
    """Run the notebooks of a study in the order of their names; a failure does not stop those that follow.

    What an earlier run measured is not measured again; where all notebooks were done before, they run two at
    a time, and the last one, which reads what they wrote, after them. Otherwise the profile's page is written
    after each notebook.

    Args:    only: see `find_notebooks`.    parameters: each goes to the notebooks that have it.
    Raises:  ValueError: unknown profile or notebook, or a parameter that none of the notebooks has. Nothing
             has run then.
    """
    load_profile(profile)
    paths = find_notebooks(only, place)
    if not paths:
        raise ValueError(f"there are no notebooks in {place or notebooks_dir()}")
    known = {path: notebook_parameters(path) for path in paths}
    if unknown := sorted(
        name for name in parameters or {} if not any(name in names for names in known.values())
    ):
        raise ValueError(f"no notebook has a parameter {', '.join(unknown)}")
    asked = {path: {n: v for n, v in (parameters or {}).items() if n in known[path]} for path in paths}
    again = [path for path in paths if was_done(path, profile, asked[path])]
    together = len(again) == len(paths) > 1

    def run(path: Path) -> NotebookRun:
        number = paths.index(path) + 1
        print(f"[{number}/{len(paths)}] {path.stem} ({profile}){_last_time(path.stem, profile)}", flush=True)
        threads = 1 if together else None
        came = run_notebook(path, profile, asked[path], show=show and not together, threads=threads)
        print(f"    {path.stem + ': ' if together else ''}{_line(came)}", flush=True)
        if not together:
            _write_page(profile)
        return came

    if not together:
        return [run(path) for path in paths]
    with ThreadPoolExecutor(AT_ONCE) as workers:  # nothing is measured, so nothing is disturbed
        return [*workers.map(run, paths[:-1]), run(paths[-1])]


def _write_page(profile: str) -> str:
    """Write the page of a profile; what keeps it from being written does not stop a study."""
    try:
        return f"everything on one page: {write_index(profile)}"
    except (OSError, ValueError) as error:
        return f"the page of all results could not be written: {error}"


def _last_time(notebook: str, profile: str) -> str:
    """Tell how long a notebook took when it was last done."""
    manifest = read_manifest(notebook, profile)
    done = manifest and manifest.get("status") == "done" and manifest.get("seconds")
    return f", last time {done:.0f} s" if done else ""


def report(runs: Sequence[NotebookRun]) -> str:
    """Lay out what came of the notebooks as a text table."""
    width = max(len(run.notebook) for run in runs)
    lines = [f"{run.notebook:<{width}}  {_line(run)}" for run in runs]
    failed = sum(not run.done for run in runs)
    total = sum(run.seconds for run in runs)
    lines.append(
        f"{len(runs) - failed} of {len(runs)} notebooks done in {total:.0f} s"
        + f", {failed} FAILED" * bool(failed)
    )
    return "\n".join(lines)


def _line(run: NotebookRun) -> str:
    what = f"{len(run.outputs)} files" if run.done else (run.error or "").strip().splitlines()[-1][:200]
    return f"{run.status:<6} {run.seconds:7.1f} s  {what}"


def _setting(text: str) -> tuple[str, Any]:
    """Read `name=value` as YAML does: numbers stay numbers, `true` and lists are read too."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is no setting; write name=value, as ratio=0.5")
    return name, yaml.safe_load(value)


def main(words: Sequence[str] | None = None) -> int:
    """Run from the command line; give the exit code: 0 all done, 1 a notebook failed, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m pruner_lib.study.notebooks", description=__doc__.split("\n")[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    study = verbs.add_parser("study", help="run all notebooks in order")
    study.add_argument(
        "--only", action="append", default=[], help="names or their beginnings, with commas: 00,01"
    )
    one = verbs.add_parser("notebook", help="run one notebook")
    one.add_argument("name", help="its name or the beginning of it")
    for verb in (study, one):
        verb.add_argument("--profile", default="quick")
        verb.add_argument(
            "--set", type=_setting, action="extend", nargs="+", default=[], metavar="NAME=VALUE"
        )
    asked = parser.parse_args(words)
    try:
        if asked.verb == "study":
            only = [name.strip() for name in ",".join(asked.only).split(",") if name.strip()]
            runs = run_study(asked.profile, only, dict(asked.set))
        else:
            runs = [
                run_notebook(path, asked.profile, dict(asked.set)) for path in find_notebooks([asked.name])
            ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    print("\n" + report(runs))
    print(_write_page(asked.profile))
    for run in runs:
        if not run.done:
            print(f"\n{run.notebook} failed:\n{run.error}", file=sys.stderr)
    return int(not all(run.done for run in runs))


if __name__ == "__main__":
    sys.exit(main())
