"""The interpreter that torch-pruning runs in: an environment of its own, made for the benchmark alone.

It lies in the cache folder and holds that one package, without its dependencies; torch and the rest are read
from where this process reads them, so that both tools meet the same model on the same libraries.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from pruner_lib.inputs.assets import build_folder, cache_root

REQUIREMENT = "torch-pruning==1.6.1"  # the newest on PyPI when this was written
TAIL = 600  # characters of pip's messages that are shown


def rival_python(requirement: str = REQUIREMENT) -> Path:
    """Give the interpreter of the environment that holds torch-pruning, making it first where there is none.

    Raises:  ValueError: it can't be made, for example without a network.
    """
    folder = cache_root() / "bench" / "torch-pruning"
    source = f"{requirement} {sys.version} {_our_packages()}"
    return build_folder(folder, lambda partial: _make(partial, requirement), source=source) / _PYTHON


_PYTHON = Path("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _our_packages() -> Path:
    return Path(sysconfig.get_paths()["purelib"])


def _make(folder: Path, requirement: str) -> None:
    _call([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    quiet = ["--no-deps", "--quiet", "--disable-pip-version-check", "--progress-bar=off"]
    _call([sys.executable, "-m", "pip", "--python", str(folder / _PYTHON), "install", *quiet, requirement])
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(_call([str(folder / _PYTHON), "-c", ask]).strip())
    # a path file is read at the start: `addsitedir` heeds the path files of our own packages in turn
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({str(_our_packages())!r})\n")


def _call(command: list[str]) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"the environment for torch-pruning could not be made: `{' '.join(command[1:4])}` gave exit code "
            f"{done.returncode}: {(done.stderr or done.stdout)[-TAIL:].strip()}\nwith a network it is made "
            "once; --no-rival leaves torch-pruning out"
        )
    return done.stdout
