"""The folders of results, the writing of tables and figures, and the manifest that marks a notebook as done.

results/<profile>/records/    one JSON file per experiment
results/<profile>/measured/   measurements that are not part of a record; samples/: generated texts
results/<profile>/tables/     CSV
results/<profile>/figures/    SVG and PNG, and the CSV that they are drawn from
results/<profile>/notebooks/  executed notebooks, each with its manifest
results/<profile>/cache/      saves time when a run is resumed; may be deleted
results/<profile>/changed/    tables, figures, claims and notebooks of other parameters, such as ratio=0.5/
"""

import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from matplotlib.figure import Figure

from pruner_lib import __version__
from pruner_lib.files import text_hash, write_atomic, write_csv, write_text
from pruner_lib.study.parameters import changed_parameters, folder_of
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.records import write_kept

PACKAGES = ("torch", "transformers", "peft", "lm_eval", "numpy", "scipy")
RECEIPTS = "PRUNER_LIB_RECEIPTS"  # set by the runner: the folder to which notebooks write their manifests
PNG_DPI = 150


def project_root() -> Path | None:
    """Find the project: the folder that holds the package, if it also holds `pyproject.toml`; else None."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None


def results_root() -> Path:
    """Find the folder of all results: $PRUNER_LIB_RESULTS, or `results` in the project or current folder."""
    if folder := os.environ.get("PRUNER_LIB_RESULTS"):
        return Path(os.path.realpath(Path(folder).expanduser()))  # accepts circular links
    return (project_root() or Path.cwd()) / "results"


def results_dir(profile: str, root: Path | str | None = None, changed: Mapping | None = None) -> Path:
    """Return the folder of a profile's results, or of those with changed notebook parameters."""
    folder = (Path(root).resolve() if root else results_root()) / load_profile(profile).name
    return folder / folder_of(changed or {})


def make_cache(folder: Path) -> None:
    """Make the cache folder of a profile's results, with a `.gitignore` for all that is in it.

    Raises:  OSError: the folder can't be written.
    """
    write_text(folder / "cache" / ".gitignore", "*\n")


class Results:
    """The folder of a profile's results; it remembers which files were written, for a notebook's manifest.

    Args:    profile: the name of a profile.    root: the folder of all results; None: `results_root()`.
    Raises:  ValueError: see `load_profile` and `changed_parameters`.
    """

    def __init__(self, profile: str, root: Path | str | None = None) -> None:
        self.profile = load_profile(profile)
        self.folder = results_dir(profile, root)
        self.changed = changed_parameters()  # of the notebook that this process runs
        self._place = results_dir(profile, root, self.changed)
        self.outputs: list[Path] = []  # files written so far
        self.measured_by: set[str | None] = set()  # git revisions with which the records were measured

    @property
    def place(self) -> Path:
        """The notebook's folder; ValueError if its parameters were changed after this object was made."""
        if (changed := changed_parameters()) != self.changed:
            values = ", ".join(f"{name}={value!r}" for name, value in changed.items()) or "their defaults"
            raise ValueError(f"parameters changed after the set-up, to {values}; run the set-up cell again")
        return self._place

    def save_table(self, frame: pd.DataFrame, stem: str) -> Path:
        """Write a table as `tables/<stem>.csv`; return its path."""
        self.outputs.append(write_csv(self.place / "tables" / f"{stem}.csv", frame))
        return self.outputs[-1]

    def save_figure(self, figure: Figure, frame: pd.DataFrame, stem: str) -> list[Path]:
        """Write a figure as SVG and PNG, and its numbers as CSV: `figures/<stem>.*`.

        Returns: the paths of the CSV, the SVG and the PNG. The same figure gives the same bytes.
        Raises:  ValueError: the frame is empty.
        """
        if frame.empty:
            raise ValueError(f"figure {stem!r} has no numbers: pass the frame that it was drawn from")
        folder = self.place / "figures"
        paths = [write_csv(folder / f"{stem}.csv", frame), *save_image(figure, stem, folder)]
        self.outputs += paths
        return paths

    def provenance(self) -> str:
        """Describe in one line how this session's numbers are made: profile, code, packages and folder."""
        packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES[:2])
        code = f"pruner_lib {__version__} ({git_revision() or 'no git'})"
        folder = os.path.relpath(self.place, project_root() or Path.cwd())
        return f"profile {self.profile.name} ({self.profile.model}); {code}; {packages}; results in {folder}"

    def finish(self, notebook: str) -> str:
        """Write the manifest that marks a notebook as done, with every file that was written.

        Args:    notebook: the file name without its extension, such as "00_quickstart".
        Returns: a sentence: what was written where, and the command that writes it again.
        Raises:  ValueError: one of the files is missing or empty.
        """
        if missing := [str(path) for path in self.outputs if not path.is_file() or not path.stat().st_size]:
            raise ValueError(f"{notebook} wrote files that are missing or empty now: {', '.join(missing)}")
        place = self.place
        written = sorted({path.relative_to(place).as_posix() for path in self.outputs})
        manifest = {"notebook": notebook, "profile": self.profile.name, "status": "done", "finished": now()}
        manifest |= {"git_revision": git_revision(), "versions": versions(), "outputs": written}
        manifest["measured_by"] = sorted(revision or "no git" for revision in self.measured_by)
        write_kept(Path(os.environ.get(RECEIPTS) or place / "notebooks", f"{notebook}.json"), manifest)
        folder = Path(os.path.relpath(place, self.folder.parent.parent)).as_posix()
        by = f"; records measured at {', '.join(manifest['measured_by'])}" if self.measured_by else ""
        command = ["python", "tasks.py", "study", "--profile", self.profile.name, "--only", notebook]
        command += [word for name, value in self.changed.items() for word in ("--set", f"{name}={value}")]
        names = ", ".join(written) or "nothing new"
        return f"{notebook} is done{by}; in {folder}: {names}. Made by: {shlex.join(command)}"


def save_image(figure: Figure, stem: str, folder: Path) -> list[Path]:
    """Save a figure as `<folder>/<stem>.svg` and `.png`; the same figure gives the same bytes."""
    svg = partial(figure.savefig, format="svg", metadata={"Date": None})
    png = partial(figure.savefig, format="png", metadata={"Software": None}, dpi=PNG_DPI)
    with mpl.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
        return [write_atomic(folder / f"{stem}.svg", svg), write_atomic(folder / f"{stem}.png", png)]


def manifest_path(notebook: str, profile: str, changed: Mapping[str, Any] | None = None) -> Path:
    """Return the path of a notebook's manifest, which `finish` or the runner writes, for `read_kept`."""
    return results_dir(profile, changed=changed) / "notebooks" / f"{notebook}.json"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers may depend on."""
    packages = {package: version(package) for package in PACKAGES}
    return {"python": platform.python_version(), "pruner_lib": __version__} | packages


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash the vocabulary of a tokenizer: its tokens and their ids."""
    return text_hash(repr(sorted(tokenizer.get_vocab().items())))


def model_revision(name: str) -> str | None:
    """Return the commit of a model from the hub, as found in the hub's cache; None for any other model."""
    hub_id, _, revision = name.partition("@")
    try:
        path = try_to_load_from_cache(hub_id, "config.json", revision=revision or "main")
    except HFValidationError:  # a folder, or one of our names
        return None
    return Path(path).parent.name if isinstance(path, str) else None


@lru_cache(maxsize=1)
def git_revision() -> str | None:
    """Return the git revision, with `-dirty` if the library has uncommitted changes; None outside a clone."""
    root = project_root()
    if root is None or not (root / ".git").exists():
        return None
    output = partial(subprocess.check_output, cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=20)
    try:
        commit = output(["git", "rev-parse", "--short=10", "HEAD"]).strip()
        return commit + "-dirty" * bool(output(["git", "status", "--porcelain", "--", "pruner_lib"]))
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """Return the current UTC time to the second, in ISO format."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
