"""Run the notebooks of a study with papermill, each in its own kernel.

    python -m pruner_lib.study.notebooks --profile quick [--only 00,01] [--set ratio=0.5 ...]
                                         [--workers 4 | --scheduler tcp://host:8786]

They run in the order of their names. The summary, which is the front page of the profile's results, runs last
because it reads what all others wrote.

A run has succeeded if the notebook's last cell wrote its manifest (`results.finish`). The executed notebook
does not tell: papermill marks it as "completed" even if its kernel was killed.
"""

import argparse
import contextlib
import errno
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from pruner_lib.files import write_text
from pruner_lib.study.cache import check_inputs
from pruner_lib.study.cluster import SCHEDULER, serving
from pruner_lib.study.execution import changed_in, execute, parameters_cell, stop_at_signals
from pruner_lib.study.parameters import assigned, folder_of
from pruner_lib.study.profiles import Loader, Profile, load_profile
from pruner_lib.study.records import read_kept, write_kept
from pruner_lib.study.report import find_notebooks, write_index
from pruner_lib.study.results import RECEIPTS, make_cache, manifest_path, now, results_dir, results_root
from pruner_lib.study.settings import settings_key

TAIL = 4000  # characters kept of a failed notebook's messages
FULL = (errno.ENOSPC, errno.EDQUOT)  # errors that would stop all other notebooks as well
AT_ONCE = 2  # notebooks that run in parallel if nothing is left to measure
PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


def run_study(
    profile: str = "quick",
    only: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> list[dict[str, Any]]:
    """Run the notebooks of a study, the summary last, even if some of them fail.

    The executed notebooks go to `results/<profile>/notebooks/` (failed ones to `failed/` there) or, if
    parameters differ from their defaults, to `results/<profile>/changed/`. Measurements of an earlier run are
    reused. If all notebooks were done before with the same parameters, they run two at a time.

    Args:    only: see `find_notebooks`.
             parameters: plain scalars or flat lists; each is passed to the notebooks that have it.
             environment: the environment variables of the kernels.
    Returns: the manifest of each run; for a failed one, `outputs` lists the files of the last successful run.
    Raises:  ValueError: an unknown profile, notebook, model, text or parameter, or a parameter's wrong type.
             OSError: the results can't be written, or the disk is full.
    """
    settings = load_profile(profile)
    if "profile" in (parameters or {}):
        raise ValueError(f"profile={parameters['profile']!r} was given by --set; give it by --profile")
    defaults = {path: assigned(parameters_cell(path)) for path in find_notebooks(only)}
    parameters, known = parameters or {}, sorted({name for cell in defaults.values() for name in cell})
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"no notebook has a parameter {', '.join(unknown)}; there are {', '.join(known)}")
    values = {path: {n: v for n, v in parameters.items() if n in names} for path, names in defaults.items()}
    _check_parameters(settings, parameters, defaults.values())
    make_cache(results_dir(profile))  # fails early if the results can't be written
    (*first, last), runs = values, []
    step = AT_ONCE if all(was_done(path, profile, values[path]) for path in values) else 1
    for batch in [*(first[start : start + step] for start in range(0, len(first), step)), [last]]:
        for number, path in enumerate(batch, len(runs) + 1):
            manifest = read_kept(manifest_path(path.stem, profile, changed_in(path, values[path]))) or {}
            before = f", last time {manifest['seconds']:.0f} s" if manifest.get("seconds") else ""
            print(f"[{number}/{len(values)}] {path.stem} ({profile}){before}", flush=True)
        for run in _run_batch({path: values[path] for path in batch}, profile, environment):
            folder = os.path.relpath(results_dir(profile, changed=run["changed"]))
            reason = run["error"] and run["error"].splitlines()[-1][:200]
            message = reason or f"{len(run['outputs'])} files in {folder}"
            print(f"    {run['notebook']} {run['status']} in {run['seconds']:.1f} s: {message}", flush=True)
            runs.append(run)
    return runs


def _check_parameters(profile: Profile, parameters: Mapping, defaults: Iterable[Mapping]) -> None:
    """Check parameters against each notebook's defaults, and that models, texts and questions are known."""
    for known in defaults:
        for name in parameters.keys() & known.keys():
            value, default = parameters[name], known[name]
            kinds = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
                raise ValueError(
                    f"{name} is {value!r}, but should be of the type of its default, {default!r}"
                )
    for model in (parameters.get("model") or profile.model, *parameters.get("models", ())):
        check_inputs(profile.experiment(model=model, recovered=True))
    check_inputs(profile.experiment(evaluation=profile.short_evaluation, recovery=profile.short_recovery))


def was_done(path: Path, profile: str, parameters: Mapping[str, Any]) -> bool:
    """Whether a notebook was done before with the same parameters and the same values of the profile."""
    manifest = read_kept(manifest_path(path.stem, profile, changed_in(path, parameters))) or {}
    return manifest.get("status") == "done" and manifest.get("asked") == _settings_key(profile, parameters)


def _settings_key(profile: str, parameters: Mapping[str, Any]) -> str:
    return settings_key([asdict(load_profile(profile)), dict(parameters) | {"profile": profile}])


def _run_batch(values: Mapping[Path, dict], profile: str, environment: Mapping[str, str]) -> list[dict]:
    """Run notebooks in parallel, and wait for all of them."""
    environment = dict(environment) | {"PRUNER_LIB_RESULTS": str(results_root())}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGE_PARENT, environment.get("PYTHONPATH")]))
    if len(values) > 1:
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    progress = len(values) == 1 and sys.stderr.isatty()
    threads = ThreadPoolExecutor(len(values))  # no `with`: a signal or a full disk must not wait for them
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        environment[RECEIPTS] = scratch
        jobs = [threads.submit(_run, path, profile, values[path], environment, progress) for path in values]
        return sorted((job.result() for job in as_completed(jobs)), key=lambda run: run["notebook"])


def _run(path: Path, profile: str, parameters: dict, environment: Mapping[str, str], progress: bool) -> dict:
    """Run a notebook, save the executed copy, and write and return its manifest.

    Raises:  SystemExit: a signal ended its kernel.    OSError: the disk is full.
    """
    start, scratch = time.perf_counter(), Path(environment[RECEIPTS])
    arguments = parameters | {"profile": profile}
    message = execute(path, scratch / path.name, arguments, environment, progress)
    changed = changed_in(path, parameters)
    target = manifest_path(path.stem, profile, changed)
    receipt = read_kept(scratch / f"{path.stem}.json")
    if not message and receipt is None:
        message = "it ended without results.finish(...): its kernel died, or its last cell does not call it"
    elif not message:
        missing = [name for name in receipt["outputs"] if not (target.parents[1] / name).is_file()]
        message = f"its manifest lists {', '.join(missing)}, but there is no such file" if missing else ""
    error = _without_machine_paths(re.sub(r"\x1b\[[0-9;]*m", "", message)[-TAIL:]).strip() or None
    with contextlib.suppress(FileNotFoundError):  # papermill failed before it wrote the notebook
        text = (scratch / path.name).read_text(encoding="utf-8")
        for folder in (scratch, path.resolve().parent):
            text = text.replace(f"{folder}{os.sep}", "")
        write_text(target.parent / ("failed" if error else "") / path.name, _without_machine_paths(text))
    if not error:
        (target.parent / "failed" / path.name).unlink(missing_ok=True)
        target.with_suffix(".html").unlink(missing_ok=True)  # an older page may have a later time stamp
    previous = {"outputs": []} | (read_kept(target) or {})  # its files are kept after a failure
    manifest = previous | {"finished": now()} if error else receipt
    manifest |= {"notebook": path.stem, "profile": profile, "status": "failed" if error else "done"}
    manifest |= {"seconds": round(time.perf_counter() - start, 1), "error": error, "changed": changed}
    manifest |= {"asked": _settings_key(profile, parameters), "parameters": arguments}
    write_kept(target, manifest)
    if error and any(os.strerror(code) in error for code in FULL):
        raise OSError(f"{path.stem} stopped: {error.splitlines()[-1]}")
    return manifest


def _without_machine_paths(text: str) -> str:
    """Remove this machine's paths from a text."""
    paths = {str(results_root().parent): ".", PACKAGE_PARENT: ".", sys.prefix: ".", str(Path.home()): "~"}
    for path, shown in paths.items():
        text = text.replace(path + os.sep, shown + os.sep) if path != os.sep else text
    return text


def _setting(text: str) -> tuple[str, Any]:
    """Parse `name=value` with the value as YAML: a number, `true`, `null`, text, or a flat list of these."""
    name, equals, value = text.partition("=")
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        parsed = yaml.load(value, Loader=Loader)
        items = parsed if isinstance(parsed, list) else [parsed]
        plain = all(isinstance(item, (int, float, str, type(None))) for item in items)
        if equals and name.isidentifier() and plain:
            return name, parsed
    raise argparse.ArgumentTypeError(f"{text!r} is not a setting; write name=value, such as models=[tiny]")


def main(words: Sequence[str] | None = None) -> int:
    """Run a study. Exit codes: 0 done, 1 a notebook failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m pruner_lib.study.notebooks", description=__doc__)
    add = parser.add_argument
    add("--profile", default="quick")
    add("--only", action="append", default=[], help="names or prefixes, separated by commas: 00,01")
    add("--set", type=_setting, action="extend", nargs="+", default=[], metavar="NAME=VALUE")
    add("--workers", type=int, default=0, metavar="N", help="run experiments in N local processes")
    add("--scheduler", default=os.environ.get(SCHEDULER, ""), help="a Dask cluster, as tcp://host:port")
    options = parser.parse_args(words)
    only = [name.strip() for names in options.only for name in names.split(",")]
    names = [name for name, _ in options.set]
    try:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"--set gives {', '.join(twice)} more than once; give each parameter once")
        environment = dict(os.environ)  # before a cluster changes it
        with serving(options.workers, options.scheduler) as scheduler:
            environment[SCHEDULER] = scheduler
            runs = run_study(options.profile, only, dict(options.set), environment=environment)
        failed = [run for run in runs if run["error"]]
        for run in failed:
            print(f"\n{run['notebook']} failed:\n{run['error']}", file=sys.stderr)
        seconds = sum(run["seconds"] for run in runs)
        print(f"{len(runs) - len(failed)} of {len(runs)} notebooks done in {seconds:.0f} s", end="")
        print(f", {len(failed)} FAILED" if failed else "")
        changed = {folder_of(run["changed"]): run["changed"] for run in runs}
        pages = [write_index(options.profile, changed[folder]) for folder in sorted(changed)]
        print(f"all results: {', '.join(map(str, pages))}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return getattr(stop, "code", 130)
    return int(bool(failed))


if __name__ == "__main__":
    stop_at_signals()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips the cleanup of libraries, which takes seconds; workers end with this process
