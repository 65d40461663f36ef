"""Run the notebooks of a study by papermill, one process each, in the order of their needs, and report.

    python -m pruner_lib.running.runner study --profile quick [--only 00,01] [--set ratio=0.5 ...]
    python -m pruner_lib.running.runner notebook 00_quickstart --profile tiny [--set ratio=0.5 ...]

The order is that of their names: the summary, which reads what all others wrote, is the last. At the end
stands one page with everything, `results/<profile>/index.html`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pruner_lib.experiments.profiles import load_profile
from pruner_lib.experiments.results import project_root, read_manifest
from pruner_lib.running.execution import (
    NotebookRun,
    check_parameters,
    notebook_parameters,
    run_notebook,
    was_done,
)
from pruner_lib.running.index import write_index

__all__ = ["NotebookRun", "check_parameters", "find_notebooks", "main", "report", "run_notebook", "run_study"]

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
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is no setting; write name=value, as ratio=0.5")
    return name, yaml.safe_load(value)


def main(words: Sequence[str] | None = None) -> int:
    """Run from the command line; give the exit code: 0 all done, 1 a notebook failed, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m pruner_lib.running.runner", description=__doc__.split("\n")[0]
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
