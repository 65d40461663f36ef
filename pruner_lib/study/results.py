"""Where results lie, how tables and figures are saved, and the manifest by which a notebook says it is done.

results/<profile>/records/    one JSON file an experiment
results/<profile>/measured/   what was measured beside the records; samples/: generated texts
results/<profile>/tables/     CSV
results/<profile>/figures/    SVG and PNG, and the CSV that they are drawn from
results/<profile>/notebooks/  executed, each with its manifest
results/<profile>/cache/      what saves time when a run goes on; may be deleted
results/<profile>/changed/    tables, figures, claims and notebooks of other parameters, as in ratio=0.5/
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
RECEIPTS = "PRUNER_LIB_RECEIPTS"  # a folder of the runner, which takes the manifests of its run from there
PNG_DPI = 150


def project_root() -> Path | None:
    """Find the project: the folder of the package, if it holds `pyproject.toml` too; else None."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None


def results_root() -> Path:
    """Find the folder of all results: $PRUNER_LIB_RESULTS, else `results` in the project, else here."""
    if named := os.environ.get("PRUNER_LIB_RESULTS"):
        return Path(os.path.realpath(Path(named).expanduser()))  # no error where links go round
    return (project_root() or Path.cwd()) / "results"


def results_dir(profile: str, root: Path | str | None = None, changed: Mapping | None = None) -> Path:
    """Name the folder of a profile's results, or of a notebook's with changed parameters."""
    folder = (Path(root).resolve() if root else results_root()) / load_profile(profile).name
    return folder / folder_of(changed or {})


def make_cache(folder: Path) -> None:
    """Make the cache of a profile's results, which keeps itself out of git.

    Raises:  OSError: it can't be written.
    """
    write_text(folder / "cache" / ".gitignore", "*\n")


class Results:
    """The folder of a profile's results; it remembers what was written, for the manifest of a notebook.

    Args:    profile: its name.    root: the folder of all results; None: `results_root()`.
    Raises:  ValueError: see `load_profile` and `changed_parameters`.
    """

    def __init__(self, profile: str, root: Path | str | None = None) -> None:
        self.profile = load_profile(profile)
        self.folder = results_dir(profile, root)
        self.changed = changed_parameters()  # of the notebook that this process runs
        self.place = results_dir(profile, root, self.changed)  # of what the notebook makes of the records
        self.outputs: list[Path] = []  # files written so far
        self.measured_by: set[str | None] = set()  # git revisions that measured the records in use

    def save_table(self, frame: pd.DataFrame, stem: str) -> Path:
        """Write a table as `tables/<stem>.csv`; return its path."""
        self.outputs.append(write_csv(self.place / "tables" / f"{stem}.csv", frame))
        return self.outputs[-1]

    def save_figure(self, figure: Figure, frame: pd.DataFrame, stem: str) -> list[Path]:
        """Write a figure as SVG and PNG next to its numbers as CSV: `figures/<stem>.*`.

        Returns: the paths of the CSV, the SVG and the PNG. The same figure gives the same bytes.
        Raises:  ValueError: the frame is empty.
        """
        if frame.empty:
            raise ValueError(f"figure {stem!r} has no numbers: pass the frame that it was drawn from")
        place = self.place / "figures"
        paths = [write_csv(place / f"{stem}.csv", frame), *save_image(figure, stem, place)]
        self.outputs += paths
        return paths

    def provenance(self) -> str:
        """Say in one line what makes the numbers of this session: code, packages, profile and place."""
        packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES[:2])
        code = f"pruner_lib {__version__} ({git_revision() or 'no git'})"
        place = os.path.relpath(self.place, project_root() or Path.cwd())
        return f"profile {self.profile.name} of {self.profile.model}; {code}; {packages}; results in {place}"

    def finish(self, notebook: str) -> str:
        """Write the manifest that marks a notebook as done, with every file that was written.

        Args:    notebook: its file name without the ending, as "00_quickstart".
        Returns: what was written and where, and the command that makes it again.
        Raises:  ValueError: one of the files is not there or is empty.
        """
        if missing := [str(path) for path in self.outputs if not path.is_file() or not path.stat().st_size]:
            names = ", ".join(missing)
            raise ValueError(f"{notebook} says that it wrote {names}, but a file is missing or empty")
        written = sorted({path.relative_to(self.place).as_posix() for path in self.outputs})
        manifest = {"notebook": notebook, "profile": self.profile.name, "status": "done", "finished": now()}
        manifest |= {"git_revision": git_revision(), "versions": versions(), "outputs": written}
        manifest["measured_by"] = sorted(revision or "no git" for revision in self.measured_by)
        write_kept(Path(os.environ.get(RECEIPTS) or self.place / "notebooks", f"{notebook}.json"), manifest)
        below = self.place.relative_to(self.folder.parent).as_posix()
        by = f"; records measured at {', '.join(manifest['measured_by'])}" if self.measured_by else ""
        again = ["python", "tasks.py", "study", "--profile", self.profile.name, "--only", notebook]
        again += [word for name, value in self.changed.items() for word in ("--set", f"{name}={value}")]
        what = ", ".join(written) or "nothing new"
        return f"{notebook} is done{by}; in results/{below}: {what}. Made by: {shlex.join(again)}"


def save_image(figure: Figure, stem: str, place: Path) -> list[Path]:
    """Save a figure as `<place>/<stem>.svg` and `.png`; the same figure gives the same bytes."""
    svg = partial(figure.savefig, format="svg", metadata={"Date": None})
    png = partial(figure.savefig, format="png", metadata={"Software": None}, dpi=PNG_DPI)
    with mpl.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
        return [write_atomic(place / f"{stem}.svg", svg), write_atomic(place / f"{stem}.png", png)]


def manifest_path(notebook: str, profile: str, changed: Mapping[str, Any] | None = None) -> Path:
    """Name the file of a notebook's manifest: `finish` writes it, or the runner; `read_kept` reads it."""
    return results_dir(profile, changed=changed) / "notebooks" / f"{notebook}.json"


def versions() -> dict[str, str]:
    """List the versions that numbers may depend on."""
    own = {"python": platform.python_version(), "pruner_lib": __version__}
    return own | {package: version(package) for package in PACKAGES}


def tokenizer_hash(tokenizer: Any) -> str:
    """Name a tokenizer by a hash of its vocabulary; two with the same ids for all tokens have the same."""
    return text_hash(repr(sorted(tokenizer.get_vocab().items())))


def model_revision(name: str) -> str | None:
    """Name the commit of a model that came from the hub, as the hub's cache knows it; None of any other."""
    hub_id, _, revision = name.partition("@")
    try:
        path = try_to_load_from_cache(hub_id, "config.json", revision=revision or "main")
    except HFValidationError:  # a folder, or one of our names
        return None
    return Path(path).parent.name if isinstance(path, str) else None


@lru_cache(maxsize=1)
def git_revision() -> str | None:
    """Read the git revision, with `-dirty` where the library differs from it; None outside a clone."""
    root = project_root()
    if root is None or not (root / ".git").exists():
        return None
    say = partial(subprocess.check_output, cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=20)
    try:
        commit = say(["git", "rev-parse", "--short=10", "HEAD"]).strip()
        return commit + "-dirty" * bool(say(["git", "status", "--porcelain", "--", "pruner_lib"]))
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """The time in UTC, to the second, in ISO form."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
