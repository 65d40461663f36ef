"""The verbs of the study: `python tasks.py VERB` on a bare Python, `inv VERB` inside the environment.

A bare Python needs no packages: the first call makes `.venv` beside this file, installs the locked packages
and the project into it, and runs the verb there; an interrupted installation starts again. An interpreter in
which the project is installed (such as a conda environment from environment.yml) is used as it is.
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

if sys.version_info < (3, 10):  # noqa: UP036, an older Python reads this file first
    sys.exit(
        "tasks.py needs Python 3.10 or newer; this is {}.{} ({}). Run it with a newer one, "
        "for example: python3.12 tasks.py study".format(*sys.version_info[:2], sys.executable)
    )

try:
    from invoke import task
except ImportError:  # a bare Python only lists the verbs; they run in the environment

    def task(*verbs, **_options):
        """Replace invoke's decorator, and leave the verb a plain function."""
        return verbs[0] if verbs else lambda verb: verb


ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed.txt"
TORCH = "torch==2.13.0"  # not in the lock file, since its builds for CPUs and CUDA have different hashes
UNFINISHED = "unfinished"
BOTH = (signal.SIGTERM,) if os.name == "nt" else (signal.SIGINT, signal.SIGTERM)
CACHES = ("__pycache__", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", "build", "dist", "*.egg-info")
PLACES = ("pruner_lib", "pruner_lib/*", "pruner_lib/study/figures", "tests", "tests/*", "notebooks")
BENCHMARKS = ("scoring", "discovery", "speed", "evaluation")
# one file at a time per core, in the order of tests/conftest.py, which puts the long ones first
SPREAD = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
PROFILE_HELP = "tiny, quick, decide, paper or a custom profile"
SET_HELP = "parameter=value; repeatable"
CLUSTER_HELP = {
    "workers": "run experiments in this many local processes",
    "scheduler": "run experiments on a Dask cluster, such as tcp://host:8786",
}


# --- the verbs ------------------------------------------------------------------------------------


@task
def setup(context):
    """Download the model, the tasks and the texts."""
    _python("-m", "pruner_lib.data.assets", pass_on=BOTH)


@task(pre=[setup], help={"port": "0 takes any free port", "browser": "open a browser"})
def lab(context, port="8888", browser=True):
    """Open JupyterLab on localhost, in the project's root folder."""
    options = ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.root_dir=.", "--allow-root"]
    _python("-m", "jupyterlab", *options, *([] if browser else ["--no-browser"]))


@task(
    pre=[setup],
    iterable=["only", "set"],
    help={"profile": PROFILE_HELP, "only": "a notebook; repeatable", "set": SET_HELP} | CLUSTER_HELP,
)
def study(context, profile="quick", only=None, set=None, workers="", scheduler=""):
    """Run the notebooks, and write figures and tables to results/."""
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
    stems = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))
    matching = [name] if name in stems else [stem for stem in stems if stem.startswith(name)]
    if len(matching) > 1:
        sys.exit(f"error: {name!r} is the start of {', '.join(matching)}; name one of them")
    values = [word for value in set or [] for word in ("--set", value)]
    _notebooks("--profile", profile, "--only", name, *values)


@task(pre=[setup], help={"profile": PROFILE_HELP})
def figures(context, profile="quick"):
    """Redraw all figures and tables of a profile from its records, and the tables of the README."""
    _notebooks("--profile", profile)
    _python("-m", "tests.benchmarks.readme")


@task(help={"name": "for example 04", "profile": PROFILE_HELP})
def slides(context, name, profile="quick"):
    """Make slides from the cells of a notebook that are tagged `slide`."""
    _python("-m", "pruner_lib.study.report", name, "--profile", profile)


@task(
    pre=[setup],
    iterable=["only", "set"],
    help={"only": f"one of {', '.join(BENCHMARKS)}; repeatable", "set": "setting=value, as size=0.1,7"},
)
def bench(context, only=None, set=None, again=False):
    """Measure memory and time, compared with torch-pruning; write results/bench/."""
    unknown = sorted({*(only or ())} - {*BENCHMARKS})
    if unknown:
        sys.exit(f"error: no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    words = [*(["--set", *set] if set else []), *(["--again"] if again else [])]
    codes = [_run([sys.executable, "-m", f"tests.benchmarks.{name}", *words]) for name in only or BENCHMARKS]
    _python("-m", "tests.benchmarks.figure")
    sys.exit(max(codes))


@task(pre=[setup], iterable=["only"], help={"only": "a test file or test id; repeatable"})
def test(context, only=None):
    """Run the tests; all of them run on several cores."""
    _python("-m", "pytest", *(only or SPREAD))


@task(pre=[setup], help={"record": "its path or its key"})
def reproduce(context, record):
    """Measure a record again in a temporary folder and compare every number; fail if they differ."""
    _python("-m", "pruner_lib.study.reproduce", record, pass_on=BOTH)


@task(iterable=["only"], help={"only": "a part; repeatable", "kills": "number of kills"})
def stress(context, only=None, kills="50", damages="3"):
    """Kill, damage, interrupt and duplicate a tiny study, and count failures; takes 15 minutes."""
    words = ["--only", ",".join(only)] if only else []
    _python("-m", "tests.benchmarks.stress", "--kills", kills, "--damages", damages, *words)


@task(help={"fix": "correct what can be corrected instead of reporting it"})
def lint(context, fix=False):
    """Check the code with ruff, and that the notebooks have no outputs."""
    ruff, notebooks = [sys.executable, "-m", "ruff"], sorted(ROOT.glob("notebooks/*.ipynb"))
    codes = [_run([*ruff, "format", *([] if fix else ["--check"])])]
    codes += [_run([*ruff, "check", *(["--fix"] if fix else [])])]
    codes += [_run([sys.executable, "-m", "nbstripout", *([] if fix else ["--verify"]), *notebooks])]
    if any(codes):
        sys.exit(max(codes))


@task(help={"environment": "remove .venv too"})
def clean(context, environment=False):
    """Remove caches and build products, but not results/."""
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
    """Run a command in the project's root, on this terminal; return its exit code, 128 + n for signal n.

    Signals in `pass_on` are sent on to the command. A SIGINT that is not comes from Ctrl-C at the terminal,
    which sends it to all processes anyway. Pass it on only to commands that ignore repeated signals.
    """
    received, child = [], []

    def receive(number, _frame):
        received.append(number)
        if number in pass_on and child:
            child[0].send_signal(number)

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    with subprocess.Popen([str(word) for word in command], cwd=str(ROOT)) as process:
        child.append(process)
        for number in {*received} & {*pass_on}:  # received while the process started
            process.send_signal(number)
        code = process.wait()
    for number, handler in previous.items():
        signal.signal(number, handler)
    code = code if code >= 0 else 128 - code
    return 128 + received[0] if received and code else code


def _python(*arguments, pass_on: tuple = (signal.SIGTERM,)) -> None:
    """Run this interpreter with arguments; if it fails, exit with its exit code."""
    code = _run([sys.executable, *arguments], pass_on)
    if code:
        sys.exit(code)


def _notebooks(*words) -> None:
    """Run notebooks; the runner stops at the first signal and ignores later ones."""
    _python("-m", "pruner_lib.study.notebooks", *words, pass_on=BOTH)


def _fingerprint() -> str:
    """Hash the files that determine which packages are installed."""
    content = b"".join((ROOT / name).read_bytes() for name in ("requirements.lock", "pyproject.toml"))
    return hashlib.sha256(content + TORCH.encode()).hexdigest()


def _stamp() -> str:
    """Return the fingerprint of a finished installation, `unfinished` for an interrupted one, else ""."""
    return STAMP.read_text() if STAMP.exists() else ""


def _holds_the_project() -> bool:
    """Whether invoke and the project, from this very folder, are installed for this interpreter."""
    from importlib.metadata import distributions
    from importlib.util import find_spec

    # a script's folder is on its path, but build products in it are not an installation
    path = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    installed = distributions(name="pruner-lib", path=path)
    urls = [json.loads(package.read_text("direct_url.json") or "{}").get("url") for package in installed]
    return find_spec("invoke") is not None and ROOT.as_uri() in urls


def _environment() -> str:
    """Return an interpreter with everything installed, after installing it if necessary."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if Path(sys.prefix).resolve() != VENV and _holds_the_project():
        return sys.executable
    if _stamp() != _fingerprint() or not python.exists():
        _install(python)
    return str(python)


def _install(python: Path) -> None:
    """Make `.venv`, and install the locked packages and the project; the stamp says whether it finished."""
    if _stamp() == UNFINISHED:
        discarded = VENV.with_name(".venv-discarded")
        shutil.rmtree(discarded, ignore_errors=True)
        VENV.rename(discarded)  # in one step, so that a second interruption can't leave half of it
        shutil.rmtree(discarded)
    print(f"Installing the pinned packages into {VENV}; this takes some minutes, once.", flush=True)
    VENV.mkdir(exist_ok=True)
    STAMP.write_text(UNFINISHED)
    quiet = ["--quiet", "--progress-bar=off"] if os.environ.get("CI") else []
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *quiet]
    for command in (
        [getattr(sys, "_base_executable", sys.executable), "-m", "venv", VENV],
        [*pip, "--no-deps", "-r", ROOT / "requirements.lock"],  # its hashes are checked
        [*pip, "--no-build-isolation", TORCH, "-e", ROOT],  # with the CUDA packages that torch may need
    ):
        code = _run(command)
        if code:
            shown = " ".join(str(word) for word in command)
            print(f"The installation failed: `{shown}` ended with exit code {code}.", file=sys.stderr)
            print("See its message above, then run the same command again.", file=sys.stderr)
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
    """Format a parameter of a verb as it is typed."""
    if parameter.default is parameter.empty:
        return parameter.name.upper()
    switch = isinstance(parameter.default, bool)
    name = f"no-{parameter.name}" if parameter.default is True else parameter.name
    return f"[--{name}]" if switch else f"[--{name} {parameter.name.upper()}]"


def main(arguments: list) -> int:
    """Run one verb in the environment, and return its exit code."""
    if not arguments or {"-h", "--help", "-l", "--list"} & {*arguments}:
        print(_usage())
        return 0
    if arguments[0] not in VERBS:
        print(f"tasks.py has no verb {arguments[0]!r}; use one of these.\n\n{_usage()}", file=sys.stderr)
        return 2
    if arguments[0] == "clean" and {*arguments[1:]} <= {"-e", "--environment"}:
        getattr(clean, "body", clean)(None, environment=len(arguments) > 1)  # needs no environment
        return 0
    return _run([_environment(), "-m", "invoke", *arguments], BOTH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
