"""One notebook by papermill, in a thread beside the main one, which alone hears signals.

Its kernel is a process and does not outlive the runner: a shell holds a pipe to this process, and where that
closes it kills the kernel and all that the kernel started.
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
STARTS = 3  # tries to start a kernel: another process may take a port that was chosen for it


class Shell(AsyncZMQSocketChannel):
    """The channel to a kernel, on which nbclient speaks for an output widget while it waits for a reply."""

    def send(self, message: dict[str, Any]) -> None:
        super().send(message)
        self.socket.get(zmq.EVENTS)  # wakes who waits: a reply is signalled once, which sending takes away


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


def execute(
    path: Path, executed: Path, parameters: Mapping[str, Any], environment: Mapping[str, str], progress: bool
) -> str:
    """Run a notebook, and say what went wrong, if anything did.

    Args:    executed: where the executed notebook goes.    environment: of the kernel.
             progress: show a bar on this terminal.
    Raises:  SystemExit: SIGINT or SIGTERM stopped the kernel, and so stops the study.
    """
    kernels = []
    messages = executed.with_suffix(".txt")  # of the kernel

    class Manager(AsyncKernelManager):
        def client(self, **how: Any) -> AsyncKernelClient:
            return super().client(**how, shell_channel_class=Shell)

        async def start_kernel(self, **how: Any) -> None:
            how |= {"env": dict(environment), "cwd": str(path.resolve().parent)}
            with messages.open("wb") as stderr:
                await super().start_kernel(**how, stdout=subprocess.DEVNULL, stderr=stderr)
            kernels.append(self.provisioner.process)
            if os.name != "nt":  # there ipykernel itself ends with its parent
                guards.callback(_guard(kernels[-1].pid).communicate)

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this Python's kernel, whatever the user has installed
    how = {"kernel_name": "python3", "kernel_manager_class": Manager, "progress_bar": progress}
    with ExitStack() as guards:
        for _ in range(STARTS):
            try:
                papermill.execute_notebook(path, executed, dict(parameters), **how)
                return ""
            except DeadKernelError:
                return _say_how_it_died(kernels[-1], messages)
            except PapermillExecutionError as error:
                if error.ename == "KeyboardInterrupt":
                    sys.exit(STOPPED[0])
                return str(error)
            except Exception as error:
                if "died before replying" not in str(error):  # of a kernel, before a cell has run
                    return traceback.format_exc()
                died = _say_how_it_died(kernels[-1], messages)
        return f"{died}; before it answered, {STARTS} times in a row"


def _say_how_it_died(kernel: subprocess.Popen, messages: Path) -> str:
    """Name a dead kernel's last words and exit code; one that SIGINT or SIGTERM stopped stops the study."""
    code = kernel.wait()
    code = code if code >= 0 else 128 - code  # as a shell says that a signal ended it
    if code in STOPPED:
        sys.exit(code)
    said = messages.read_text(errors="replace")
    return f"{said}\nits kernel died with exit code {code} (137: killed, as where memory runs out)"


def _guard(group: int) -> subprocess.Popen:
    """Start a shell that kills a process group once this process closes the pipe to it, or is gone."""
    command = ["sh", "-c", f"read -r _; kill -9 -{group}"]
    pipe = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **pipe)


def stop_at_signals() -> None:
    """Let the first SIGINT or SIGTERM raise `SystemExit(128 + n)`; those that follow are not heard."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
