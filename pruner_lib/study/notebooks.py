"""Run the notebooks of a study by papermill, each in a kernel of its own.

    python -m pruner_lib.study.notebooks --profile quick [--only 00,01] [--set ratio=0.5 ...]
                                         [--workers 4 | --scheduler tcp://host:8786]

They run in the order of their names, and after them the summary, which reads what all others wrote and is
the front page of the profile's results.

A run is judged by the manifest that a notebook's last cell writes (`results.finish`), never by the executed
notebook: after its kernel was killed papermill leaves one that says "completed".
"""

import argparse
import contextlib
import errno
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from pruner_lib.data.assets import local_path
from pruner_lib.files import write_text
from pruner_lib.study.cluster import SCHEDULER, serving
from pruner_lib.study.execution import changed_in, execute, parameters_cell, stop_at_signals
from pruner_lib.study.parameters import assigned, folder_of
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.records import read_kept, write_kept
from pruner_lib.study.report import find_notebooks, write_index
from pruner_lib.study.results import RECEIPTS, make_cache, manifest_path, now, results_dir, results_root
from pruner_lib.study.settings import settings_key

TAIL = 4000  # characters of a failed notebook's messages that are kept
FULL = (errno.ENOSPC, errno.EDQUOT)  # errors after which no other notebook could be done
AT_ONCE = 2  # notebooks that run side by side where nothing is left to measure
PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


def run_study(
    profile: str = "quick",
    only: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> list[dict[str, Any]]:
    """Run the notebooks of a study, the summary last; a failure does not stop those that follow.

    Each runs in a kernel of its own; the executed notebooks go to `results/<profile>/notebooks/` (`failed/`
    there, if they fail) or, where parameters differ from their defaults, below `results/<profile>/changed/`.
    Measurements of an earlier run are reused. Where all notebooks have been done before with the same
    parameters they run two at a time, and the last one, which reads the others' results, after them.

    Args:    only: see `find_notebooks`.
             parameters: plain scalars or flat lists; each goes to the notebooks that have it.
             environment: of the kernels.
    Returns: the manifest of each run; the `outputs` of a failed one are those of the last good one.
    Raises:  ValueError: unknown profile or notebook, or a parameter that none of the notebooks has. Nothing
             has run then.    OSError: the results can't be written, or the disk is full.
    """
    load_profile(profile)
    local_path("")  # refuses a folder of data that is none
    if "profile" in (parameters or {}):
        raise ValueError(f"profile={parameters['profile']!r} is to be given by --profile, not by --set")
    names = {path: assigned(parameters_cell(path)) for path in find_notebooks(only)}
    parameters, known = parameters or {}, sorted({name for each in names.values() for name in each})
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"no notebook has a parameter {', '.join(unknown)}; there are {', '.join(known)}")
    given = {path: {name: v for name, v in parameters.items() if name in names[path]} for path in names}
    make_cache(results_dir(profile))  # finds out whether it can be written
    (*first, last), runs = names, []
    step = AT_ONCE if all(was_done(path, profile, given[path]) for path in names) else 1
    for together in [*(first[start : start + step] for start in range(0, len(first), step)), [last]]:
        for number, path in enumerate(together, len(runs) + 1):
            manifest = read_kept(manifest_path(path.stem, profile, changed_in(path, given[path]))) or {}
            before = f", last time {manifest['seconds']:.0f} s" if manifest.get("seconds") else ""
            print(f"[{number}/{len(names)}] {path.stem} ({profile}){before}", flush=True)
        for run in _run_together({path: given[path] for path in together}, profile, environment):
            place = (Path(profile) / folder_of(run["changed"])).as_posix()
            reason = run["error"] and run["error"].splitlines()[-1][:200]
            what = reason or f"{len(run['outputs'])} files in {place}"
            print(f"    {run['notebook']} {run['status']} in {run['seconds']:.1f} s: {what}", flush=True)
            runs.append(run)
    return runs


def was_done(path: Path, profile: str, parameters: Mapping[str, Any]) -> bool:
    """Say whether a notebook was done before with the same parameters and the same values of the profile."""
    manifest = read_kept(manifest_path(path.stem, profile, changed_in(path, parameters))) or {}
    return manifest.get("status") == "done" and manifest.get("asked") == _settings_key(profile, parameters)


def _settings_key(profile: str, parameters: Mapping[str, Any]) -> str:
    return settings_key([asdict(load_profile(profile)), dict(parameters) | {"profile": profile}])


def _run_together(given: Mapping[Path, dict], profile: str, environment: Mapping[str, str]) -> list[dict]:
    """Run notebooks side by side, and wait for all of them."""
    environment = dict(environment) | {"PRUNER_LIB_RESULTS": str(results_root())}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGE_PARENT, environment.get("PYTHONPATH")]))
    if len(given) > 1:
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    progress = len(given) == 1 and sys.stderr.isatty()
    threads = ThreadPoolExecutor(len(given))  # not waited for where a signal or a full disk ends the study
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        environment[RECEIPTS] = scratch
        jobs = [threads.submit(_run, path, profile, given[path], environment, progress) for path in given]
        return sorted((job.result() for job in as_completed(jobs)), key=lambda run: run["notebook"])


def _run(path: Path, profile: str, parameters: dict, environment: Mapping[str, str], progress: bool) -> dict:
    """Run a notebook, keep it as it was executed, write how it ended into its manifest, and give that.

    Raises:  SystemExit: a signal ended its kernel.    OSError: the disk is full.
    """
    start, scratch = time.perf_counter(), Path(environment[RECEIPTS])
    asked = parameters | {"profile": profile}
    said = execute(path, scratch / path.name, asked, environment, progress)
    changed = changed_in(path, parameters)
    place = manifest_path(path.stem, profile, changed)
    receipt = read_kept(scratch / f"{path.stem}.json")
    if not said and receipt is None:
        said = "it ended without results.finish(...): its kernel died, or its last cell does not call it"
    elif not said:
        lost = [name for name in receipt["outputs"] if not (place.parents[1] / name).is_file()]
        said = f"its manifest lists {', '.join(lost)}, but there is no such file" if lost else ""
    error = _without_places(re.sub(r"\x1b\[[0-9;]*m", "", said)[-TAIL:]).strip() or None
    with contextlib.suppress(FileNotFoundError):  # papermill did not come so far
        text = (scratch / path.name).read_text(encoding="utf-8")
        for folder in (scratch, path.resolve().parent):
            text = text.replace(f"{folder}{os.sep}", "")
        write_text(place.parent / ("failed" if error else "") / path.name, _without_places(text))
    if not error:
        (place.parent / "failed" / path.name).unlink(missing_ok=True)
        place.with_suffix(".html").unlink(missing_ok=True)  # may be newer, by its clock
    good = {"outputs": []} | (read_kept(place) or {})  # its files stay after a failure
    manifest = good | {"finished": now()} if error else receipt
    manifest |= {"notebook": path.stem, "profile": profile, "status": "failed" if error else "done"}
    manifest |= {"seconds": round(time.perf_counter() - start, 1), "error": error, "changed": changed}
    manifest |= {"asked": _settings_key(profile, parameters), "parameters": asked}
    write_kept(place, manifest)
    if error and any(os.strerror(full) in error for full in FULL):
        raise OSError(f"{path.stem} stopped: {error.splitlines()[-1]}")
    return manifest


def _without_places(text: str) -> str:
    """Take the paths of this machine out of a text."""
    places = {str(results_root().parent): ".", PACKAGE_PARENT: ".", sys.prefix: ".", str(Path.home()): "~"}
    for place, shown in places.items():
        text = text.replace(place + os.sep, shown + os.sep) if place != os.sep else text
    return text


def _setting(text: str) -> tuple[str, Any]:
    """Read `name=value` as YAML does: numbers stay numbers, `true` and lists are read too."""
    name, equals, value = text.partition("=")
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        read = yaml.safe_load(value)
        values = read if isinstance(read, list) else [read]
        plain = all(isinstance(one, (int, float, str, type(None))) for one in values)
        if equals and name.isidentifier() and plain:
            return name, read
    raise argparse.ArgumentTypeError(f"{text!r} is no setting; write name=value, as models=[tiny]")


def main(words: Sequence[str] | None = None) -> int:
    """Run, and give the exit code: 0 all done, 1 a notebook failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m pruner_lib.study.notebooks", description=__doc__)
    add = parser.add_argument
    add("--profile", default="quick")
    add("--only", action="append", default=[], help="names or their beginnings, with commas: 00,01")
    add("--set", type=_setting, action="extend", nargs="+", default=[], metavar="NAME=VALUE")
    add("--workers", type=int, default=0, metavar="N", help="experiments on N processes of this machine")
    add("--scheduler", default=os.environ.get(SCHEDULER, ""), help="of a Dask cluster: tcp://host:port")
    options = parser.parse_args(words)
    only = [name.strip() for names in options.only for name in names.split(",")]
    try:
        before = dict(os.environ)  # of which a cluster changes some
        with serving(options.workers, options.scheduler) as scheduler:
            kernels = before | {SCHEDULER: scheduler}
            runs = run_study(options.profile, only, dict(options.set), environment=kernels)
        failed = [run for run in runs if run["error"]]
        for run in failed:
            print(f"\n{run['notebook']} failed:\n{run['error']}", file=sys.stderr)
        seconds = sum(run["seconds"] for run in runs)
        print(f"{len(runs) - len(failed)} of {len(runs)} notebooks done in {seconds:.0f} s", end="")
        print(f", {len(failed)} FAILED" if failed else "")
        changed = {folder_of(run["changed"]): run["changed"] for run in runs}
        pages = [write_index(options.profile, changed[place]) for place in sorted(changed)]
        print(f"all results: {', '.join(map(str, pages))}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return getattr(stop, "code", 130)
    return int(bool(failed))


if __name__ == "__main__":
    stop_at_signals()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: to put all libraries away takes seconds, and workers end with this process
