"""One notebook in a process of its own: papermill runs it, and the exit code says how that ended.

    python -m pruner_lib.study.execution NOTEBOOK EXECUTED PARAMETERS RUNNER

0: it ran to its end; 1: a cell failed, or the kernel died; 130, 143: SIGINT or SIGTERM stopped the kernel or
this process, and so it stops the study. No kernel outlives this process, and it does not outlive the RUNNER,
whose process id it is given, since that may be gone before this process asks for its parent.
Papermill runs beside the main thread, which alone hears signals.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

# ruff: noqa: E402, since this goes first: the import of a grammar for addresses, which takes jsonschema
# seconds; the format of notebooks has none
sys.modules.setdefault("rfc3987_syntax", None)

import nbformat
import papermill
import psutil
import yaml
from jupyter_client import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator

from pruner_lib.study.parameters import changed_parameters

LOOK_S = 0.5  # seconds between looks at whether the runner is still there
SHORT_S = 0.1  # seconds between looks at the notebooks that run
STOP_S = 3  # seconds that processes have to end by themselves
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook; one that can't be read is a ValueError that names it."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise ValueError(f"{path} is no notebook: {error}") from error


def parameters_cell(path: Path) -> str:
    """Read the cell of a notebook that holds its parameters.

    Raises:  ValueError: not a readable notebook, or no cell is tagged `parameters` (papermill would then run
             it with its defaults, whatever values it is given).
    """
    for cell in read_notebook(path).cells:
        if "parameters" in cell.metadata.get("tags", ()):
            return cell.source
    raise ValueError(f"{path.name} has no cell tagged 'parameters'; tag the cell that holds them")


def changed_in(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Find the parameters of a notebook that a run changes: those given, and those edited in its file."""
    return changed_parameters([parameters_cell(path), PythonTranslator.codify(given)])


@contextlib.contextmanager
def running(
    path: Path, scratch: Path, parameters: Mapping[str, Any], environment: Mapping[str, str], progress: bool
) -> Iterator[subprocess.Popen]:
    """Start the process of a notebook; at the end of the block it and all that it started are gone.

    Args:    scratch: gets the executed notebook and, as `<name>.txt`, what the process says.
             progress: let it show a bar on this terminal instead.
    """
    command = [sys.executable, "-m", "pruner_lib.study.execution", path.resolve(), scratch / path.name]
    command += [yaml.safe_dump(dict(parameters)), str(os.getpid())]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with (scratch / f"{path.stem}.txt").open("wb") as messages:
        streams["stderr"] = None if progress else messages
        place = path.resolve().parent
        process = subprocess.Popen(command, env=environment, cwd=place, start_new_session=True, **streams)
        try:
            yield process
        finally:
            if process.poll() is None:
                end(psutil.Process(process.pid).children(recursive=True), process)
                process.wait()


def ended(processes: Mapping[Path, subprocess.Popen]) -> Iterator[tuple[Path, int]]:
    """Give notebooks with the exit codes of their processes, in the order in which they end.

    Raises:  SystemExit: SIGINT or SIGTERM ended one of them, or its kernel; the code is 128 + n.
    """
    left = dict(processes)
    while left:
        time.sleep(SHORT_S)
        for path in [path for path, process in left.items() if process.poll() is not None]:
            code = exit_code(left.pop(path).returncode)
            if code in STOPPED:
                sys.exit(code)
            yield path, code


def end(processes: list[psutil.Process], first: subprocess.Popen | None = None) -> None:
    """End processes, and kill what is left after a while; `first`, if it is given, ends the others itself."""
    asked = [psutil.Process(first.pid)] if first else processes
    for one in asked:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    everything = dict.fromkeys([*asked, *processes])
    for left in psutil.wait_procs(list(everything), STOP_S + bool(first))[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


def stop_at_signals() -> None:
    """Let the first SIGINT or SIGTERM raise `SystemExit(128 + n)`; those that follow are not heard."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def exit_code(code: int) -> int:
    """Give the exit code that a shell would: 128 + n for a process that signal n ended."""
    return code if code >= 0 else 128 - code


def execute(source: str, executed: str, parameters: dict[str, Any]) -> int:
    """Run a notebook by papermill, and give the exit code."""
    kernels: list[subprocess.Popen] = []

    class Manager(AsyncKernelManager):
        async def start_kernel(self, **how: Any) -> None:
            await super().start_kernel(**how)
            kernels.append(self.provisioner.process)

    how = {"kernel_name": "python3", "kernel_manager_class": Manager, "progress_bar": sys.stderr.isatty()}
    try:
        papermill.execute_notebook(source, executed, parameters, **how)
        return 0
    except PapermillExecutionError as error:
        print(error, file=sys.stderr)
        return STOPPED[0] if error.ename == "KeyboardInterrupt" else 1
    except DeadKernelError:
        code = exit_code(kernels[-1].wait())
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: on Windows
            os.killpg(kernels[-1].pid, signal.SIGKILL)  # what the kernel had started
        print(
            f"its kernel died with exit code {code} (137: killed, as where memory runs out)", file=sys.stderr
        )
        return code if code in STOPPED else 1


def main() -> int:
    """Run the notebook that the command line names, until it ends, a signal comes or the runner is gone."""
    source, executed, parameters, runner = sys.argv[1:]
    codes, arguments = [], (source, executed, yaml.safe_load(parameters))
    thread = threading.Thread(target=lambda: codes.append(execute(*arguments)), daemon=True)
    try:
        stop_at_signals()
        thread.start()
        while thread.is_alive() and int(runner) in [one.pid for one in psutil.Process().parents()]:
            thread.join(LOOK_S)
        code = codes[0] if codes else 1
    except SystemExit as stop:
        code = stop.code
    end(psutil.Process().children(recursive=True))
    sys.stderr.flush()
    os._exit(code)  # papermill's thread may wait for the kernel that is gone


if __name__ == "__main__":
    main()
