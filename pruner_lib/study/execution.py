"""Run one notebook with papermill, in a thread beside the main one, which alone receives signals.

The kernel is a process that does not outlive the runner: a shell holds a pipe to the runner and, once that is
closed, kills the kernel and all its child processes.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import nbformat
import papermill
import zmq
from jupyter_client import AsyncKernelClient, AsyncKernelManager
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator

from pruner_lib.study.parameters import changed_parameters

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes
STARTS = 3  # attempts to start a kernel: another process may take a port that was chosen for it


class Shell(AsyncZMQSocketChannel):
    """A kernel's shell channel, on which nbclient sends updates of output widgets while it awaits a reply."""

    def send(self, message: dict[str, Any]) -> None:
        super().send(message)
        self.socket.get(zmq.EVENTS)  # wakes the waiting reader: sending consumes the only signal of a reply


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook.

    Raises:  ValueError: the file is not a notebook; the message names it.
    """
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise ValueError(f"{path} is not a notebook: {error}") from error


def parameters_cell(path: Path) -> str:
    """Read the source of a notebook's parameters cell.

    Raises:  ValueError: not a notebook, or no cell is tagged `parameters` (papermill would then ignore the
             given values and run it with its defaults).
    """
    for cell in read_notebook(path).cells:
        if "parameters" in cell.metadata.get("tags", ()):
            return cell.source
    raise ValueError(f"{path.name} has no cell tagged 'parameters'; tag the cell that holds them")


def changed_in(path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Find the parameters that a run changes: those passed to it, and those edited in the notebook file."""
    return changed_parameters([parameters_cell(path), PythonTranslator.codify(parameters)])


def execute(
    path: Path, executed: Path, parameters: Mapping[str, Any], environment: Mapping[str, str], progress: bool
) -> str:
    """Run a notebook, and return the error message, or "" if it succeeded.

    Args:    executed: path of the executed notebook.    environment: environment variables of the kernel.
             progress: show a progress bar on this terminal.
    Raises:  SystemExit: SIGINT or SIGTERM stopped the kernel, and so stops the study.
    """
    kernels = []
    messages = executed.with_suffix(".txt")  # the kernel's stderr

    class Manager(AsyncKernelManager):
        def client(self, **options: Any) -> AsyncKernelClient:
            return super().client(**options, shell_channel_class=Shell)

        async def start_kernel(self, **options: Any) -> None:
            options |= {"env": dict(environment), "cwd": os.getcwd()}  # relative paths are the caller's
            with messages.open("wb") as stderr:
                await super().start_kernel(**options, stdout=subprocess.DEVNULL, stderr=stderr)
            kernels.append(self.provisioner.process)
            if os.name != "nt":  # on Windows, ipykernel itself ends with its parent
                guards.callback(_guard(kernels[-1].pid).communicate)

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # use this Python's kernel, not one that the user installed
    options = {"kernel_name": "python3", "kernel_manager_class": Manager, "progress_bar": progress}
    with ExitStack() as guards:
        for _ in range(STARTS):
            try:
                papermill.execute_notebook(path, executed, dict(parameters), **options)
                return ""
            except DeadKernelError:
                return _describe_death(kernels[-1], messages)
            except PapermillExecutionError as error:
                if error.ename == "KeyboardInterrupt":
                    sys.exit(STOPPED[0])
                return str(error)
            except Exception as error:
                if "died before replying" not in str(error):  # the kernel started properly
                    return traceback.format_exc()
                death = _describe_death(kernels[-1], messages)
        return f"{death}; it died while starting, {STARTS} times in a row"


def _describe_death(kernel: subprocess.Popen, messages: Path) -> str:
    """Return a dead kernel's stderr and exit code; stop the study if SIGINT or SIGTERM ended the kernel."""
    code = kernel.wait()
    code = code if code >= 0 else 128 - code  # a shell's exit code for a signal
    if code in STOPPED:
        sys.exit(code)
    output = messages.read_text(errors="replace")
    return f"{output}\nits kernel died with exit code {code} (137: killed, for example when memory runs out)"


def _guard(group: int) -> subprocess.Popen:
    """Start a shell that kills a process group when this process ends or closes the pipe to the shell."""
    command = ["sh", "-c", f"read -r _; kill -9 -{group}"]
    pipe = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **pipe)


def stop_at_signals() -> None:
    """Let the first SIGINT or SIGTERM raise `SystemExit(128 + n)`; later ones are ignored."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
