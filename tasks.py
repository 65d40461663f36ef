"""The verbs of the study: `python tasks.py VERB` on a bare Python, `inv VERB` inside the environment.

A bare Python needs nothing installed: the first call makes `.venv` beside this file, installs the lock and
the project into it, and runs the verb there; an interrupted installation is made anew. An interpreter that
already holds the project (a conda environment made from environment.yml) is used as it is.
"""

import hashlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036, this file is what an older Python meets first
    sys.exit(
        "tasks.py needs Python 3.10 or newer; this is {}.{} ({}). Run it with a newer one, "
        "for example: python3.12 tasks.py study".format(*sys.version_info[:2], sys.executable)
    )

try:
    from invoke import task
except ImportError:  # a bare Python only lists the verbs; they run where invoke is installed

    def task(*verbs, **_options):
        """Stand in for invoke's decorator: leave the verb a plain function."""
        return verbs[0] if verbs else lambda verb: verb


ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed.txt"
TORCH = "torch==2.13.0"  # not in the lock, since its builds for CPUs and CUDA have different hashes
UNFINISHED = "unfinished"
BOTH = (signal.SIGTERM,) if os.name == "nt" else (signal.SIGINT, signal.SIGTERM)
CACHES = ("__pycache__", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", "build", "dist", "*.egg-info")
PLACES = ("pruner_lib", "pruner_lib/*", "pruner_lib/study/figures", "tests", "tests/*", "notebooks")
BENCHMARKS = ("scoring", "discovery", "speed", "evaluation")
# over the cores, a file at a time, in the order that tests/conftest.py gives: the long ones first
SPREAD = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
PROFILE_HELP = "tiny, quick, decide or paper"
SET_HELP = "parameter=value; repeatable"
CLUSTER_HELP = {
    "workers": "run experiments on so many processes of this machine",
    "scheduler": "run experiments on a Dask cluster, as tcp://host:8786",
}


# --- the verbs ------------------------------------------------------------------------------------


@task
def setup(context):
    """Download what the study reads: the model, the tasks and the texts."""
    _python("-m", "pruner_lib.data.assets", pass_on=BOTH)


@task(pre=[setup], help={"port": "0 takes any free one", "browser": "open a browser"})
def lab(context, port="8888", browser=True):
    """Open JupyterLab on localhost, at the project's root."""
    where = ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.root_dir=.", "--allow-root"]
    _python("-m", "jupyterlab", *where, *([] if browser else ["--no-browser"]))


@task(
    pre=[setup],
    iterable=["only", "set"],
    help={"profile": PROFILE_HELP, "only": "a notebook; repeatable", "set": SET_HELP} | CLUSTER_HELP,
)
def study(context, profile="quick", only=None, set=None, workers="", scheduler=""):
    """Run the notebooks and write their figures and tables to results/."""
    words = [word for name in only or [] for word in ("--only", name)]
    words += [word for value in set or [] for word in ("--set", value)]
    words += ["--workers", workers] if workers else []
    words += ["--scheduler", scheduler] if scheduler else []
    _notebooks("--profile", profile, *words)


@task(
    pre=[setup],
    iterable=["set"],
    help={"name": "for example 00_quickstart", "profile": PROFILE_HELP, "set": SET_HELP},
)
def notebook(context, name, profile="quick", set=None):
    """Run one notebook."""
    values = [word for value in set or [] for word in ("--set", value)]
    _notebooks("--profile", profile, "--only", name, *values)


@task(pre=[setup], help={"profile": PROFILE_HELP})
def figures(context, profile="quick"):
    """Draw all figures and tables again from the records of a profile, and the tables of the README."""
    _notebooks("--profile", profile)
    _python("-m", "tests.benchmarks.readme")


@task(help={"name": "for example 04", "profile": PROFILE_HELP})
def slides(context, name, profile="quick"):
    """Make slides of the cells of a notebook that are tagged `slide`."""
    _python("-m", "pruner_lib.study.report", name, "--profile", profile)


@task(
    pre=[setup],
    iterable=["only", "set"],
    help={"only": f"one of {', '.join(BENCHMARKS)}; repeatable", "set": "setting=value, as size=0.1,7"},
)
def bench(context, only=None, set=None, again=False):
    """Measure memory and time, beside torch-pruning; write results/bench/."""
    unknown = sorted({*(only or ())} - {*BENCHMARKS})
    if unknown:
        sys.exit(f"error: no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    words = [*(["--set", *set] if set else []), *(["--again"] if again else [])]
    codes = [_run([sys.executable, "-m", f"tests.benchmarks.{name}", *words]) for name in only or BENCHMARKS]
    _python("-m", "tests.benchmarks.figure")
    sys.exit(max(codes))


@task(pre=[setup], iterable=["only"], help={"only": "a test file or test id; repeatable"})
def test(context, only=None):
    """Run the tests, all of them on several cores."""
    _python("-m", "pytest", *(only or SPREAD))


@task(pre=[setup], help={"record": "its path, or its key"})
def reproduce(context, record):
    """Make a record again in a temporary folder, and compare every number; fail where they differ."""
    _python("-m", "pruner_lib.study.reproduce", record, pass_on=BOTH)


@task(iterable=["only"], help={"only": "a part; repeatable", "kills": "how many kills"})
def stress(context, only=None, kills="50", damages="3"):
    """Kill, damage, interrupt and double a tiny study, and count what it costs; a quarter of an hour."""
    words = ["--only", ",".join(only)] if only else []
    _python("-m", "tests.benchmarks.stress", "--kills", kills, "--damages", damages, *words)


@task(help={"fix": "correct what can be corrected instead of reporting it"})
def lint(context, fix=False):
    """Check the code with ruff, and that the notebooks hold no outputs."""
    ruff, notebooks = [sys.executable, "-m", "ruff"], sorted(ROOT.glob("notebooks/*.ipynb"))
    codes = [_run([*ruff, "format", *([] if fix else ["--check"])])]
    codes += [_run([*ruff, "check", *(["--fix"] if fix else [])])]
    codes += [_run([sys.executable, "-m", "nbstripout", *([] if fix else ["--verify"]), *notebooks])]
    if any(codes):
        sys.exit(max(codes))


@task(help={"environment": "remove .venv too"})
def clean(context, environment=False):
    """Remove caches and build products; results/ stays."""
    folders = [ROOT, *(path for place in PLACES for path in ROOT.glob(place))]
    for path in [path for folder in folders for cache in CACHES for path in folder.glob(cache)]:
        shutil.rmtree(path)
    if environment and VENV.exists():
        shutil.rmtree(VENV)


VERBS = {
    verb.__name__: verb
    for verb in (setup, lab, study, notebook, reproduce, test, lint, bench, stress, figures, slides, clean)
}


# --- the environment ------------------------------------------------------------------------------


def _run(command: list, pass_on: tuple = (signal.SIGTERM,)) -> int:
    """Run a command in the project's root, on this terminal; give its exit code, 128 + n for signal n.

    Signals are passed on to it: SIGTERM and, to a child that hears only the first, SIGINT. To any other a
    SIGINT is left to the terminal, whose Ctrl-C reaches all.
    """
    heard, child = [], []

    def hear(number, _frame):
        heard.append(number)
        if number in pass_on and child:
            child[0].send_signal(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    with subprocess.Popen([str(word) for word in command], cwd=str(ROOT)) as started:
        child.append(started)
        if {*heard} & {*pass_on}:  # while it started
            started.terminate()
        code = started.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    code = code if code >= 0 else 128 - code
    return 128 + heard[0] if heard and code else code


def _python(*arguments, pass_on: tuple = (signal.SIGTERM,)) -> None:
    """Run this interpreter; where it fails, end the verb with its exit code."""
    code = _run([sys.executable, *arguments], pass_on)
    if code:
        sys.exit(code)


def _notebooks(*words) -> None:
    """Run notebooks; the runner stops at the first signal, and is told once more without harm."""
    _python("-m", "pruner_lib.study.notebooks", *words, pass_on=BOTH)


def _fingerprint() -> str:
    """Hash what says which packages have to be installed."""
    content = b"".join((ROOT / name).read_bytes() for name in ("requirements.lock", "pyproject.toml"))
    return hashlib.sha256(content + TORCH.encode()).hexdigest()


def _stamp() -> str:
    """Give the fingerprint of a finished installation, `unfinished` for an interrupted one, else nothing."""
    return STAMP.read_text() if STAMP.exists() else ""


def _holds_the_project() -> bool:
    """Say whether this interpreter has invoke and, installed from this very folder, the project."""
    from importlib.metadata import distributions
    from importlib.util import find_spec

    # this folder is on the path of a script, and build products in it are no installation
    path = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    installed = distributions(name="pruner-lib", path=path)
    urls = [json.loads(each.read_text("direct_url.json") or "{}").get("url") for each in installed]
    return find_spec("invoke") is not None and ROOT.as_uri() in urls


def _environment() -> str:
    """Give the interpreter that holds everything, after an installation where there is none."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if Path(sys.prefix).resolve() != VENV and _holds_the_project():
        return sys.executable
    if _stamp() != _fingerprint() or not python.exists():
        _install(python)
    return str(python)


def _install(python: Path) -> None:
    """Make `.venv` and install the lock and the project; the stamp says whether it came to its end."""
    if _stamp() == UNFINISHED:
        discarded = VENV.with_name(".venv-discarded")
        shutil.rmtree(discarded, ignore_errors=True)
        VENV.rename(discarded)  # at once, so that a second interruption can't leave half of it
        shutil.rmtree(discarded)
    print(f"Installing the pinned packages into {VENV}: once, some minutes.", flush=True)
    VENV.mkdir(exist_ok=True)
    STAMP.write_text(UNFINISHED)
    quiet = ["--quiet", "--progress-bar=off"] if os.environ.get("CI") else []
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *quiet]
    for command in (
        [getattr(sys, "_base_executable", sys.executable), "-m", "venv", VENV],
        [*pip, "--no-deps", "-r", ROOT / "requirements.lock"],  # its hashes are checked
        [*pip, "--no-build-isolation", TORCH, "-e", ROOT],  # and the CUDA packages that torch may pin
    ):
        code = _run(command)
        if code:
            shown = " ".join(str(word) for word in command)
            print(f"The installation stopped: `{shown}` gave exit code {code}.", file=sys.stderr)
            print("Look at its message above, then run the same command again.", file=sys.stderr)
            sys.exit(code)
    STAMP.write_text(_fingerprint())


def _usage() -> str:
    """List the verbs with their options."""
    lines = ["Usage: python tasks.py VERB [options]", ""]
    for name, verb in VERBS.items():
        body = getattr(verb, "body", verb)
        _context, *options = inspect.signature(body).parameters.values()
        lines.append(f"  {' '.join([name, *map(_option, options)])}\n      {body.__doc__}")
    return "\n".join([*lines, "", "Inside the environment: inv --list, inv VERB, inv VERB --help."])


def _option(parameter: inspect.Parameter) -> str:
    """Show a parameter of a verb as it is typed."""
    if parameter.default is parameter.empty:
        return parameter.name.upper()
    switch = isinstance(parameter.default, bool)
    name = f"no-{parameter.name}" if parameter.default is True else parameter.name
    return f"[--{name}]" if switch else f"[--{name} {parameter.name.upper()}]"


def main(arguments: list) -> int:
    """Run one verb where everything is installed, and give its exit code."""
    if not arguments or {"-h", "--help", "-l", "--list"} & {*arguments}:
        print(_usage())
        return 0
    if arguments[0] not in VERBS:
        print(f"tasks.py has no verb {arguments[0]!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    if arguments[0] == "clean" and {*arguments[1:]} <= {"-e", "--environment"}:
        getattr(clean, "body", clean)(None, environment=len(arguments) > 1)  # needs no environment
        return 0
    return _run([_environment(), "-m", "invoke", *arguments], BOTH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
