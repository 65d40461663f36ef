"""tasks.py: it needs nothing but Python, installs once, and recovers from an interruption."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path):
    """A project folder with nothing but what tasks.py reads."""
    folder = (tmp_path / "clone").resolve()
    folder.mkdir()
    for name in ("tasks.py", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return folder


def load(folder: Path):
    spec = importlib.util.spec_from_file_location("tasks_under_test", folder / "tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tasks(clone, monkeypatch):
    """tasks.py of the clone; its commands are written down and only pretend to install."""
    module = load(clone)
    module.commands, module.failing = [], None

    def pretend(command, _pass_on=()):
        words = " ".join(map(str, command))
        module.commands.append(words)
        if "-m venv" in words:
            (module.VENV / "bin").mkdir(exist_ok=True)
            (module.VENV / "bin" / "python").touch()
        return 3 if module.failing and module.failing in words else 0

    monkeypatch.setattr(module, "_run", pretend)
    monkeypatch.setattr(module.os, "name", "posix")
    return module


def test_bare_python_lists_the_verbs_and_makes_nothing(clone):
    bare = [sys._base_executable, "-I", "-S", clone / "tasks.py"]
    shown = subprocess.run([*bare, "--help"], capture_output=True, text=True)
    wrong = subprocess.run([*bare, "prune"], capture_output=True, text=True)
    verbs = [
        line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ") and line[2] != " "
    ]
    expected = ["setup", "lab", "study", "notebook", "reproduce", "test", "lint"]
    expected += ["bench", "stress", "figures", "slides", "clean"]
    assert (shown.returncode, verbs) == (0, expected)
    assert wrong.returncode == 2 and "no verb 'prune'" in wrong.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("name", "chosen"), [("00", "00"), ("01_b", "01_b"), ("0", None), ("01", None), ("", None)]
)
def test_notebook_runs_exactly_one(tasks, name, chosen):
    (folder := tasks.ROOT / "notebooks").mkdir()
    for stem in ("00_a", "01_b", "01_b_more"):
        (folder / f"{stem}.ipynb").touch()
    verb = getattr(tasks.notebook, "body", tasks.notebook)
    if chosen:
        verb(None, name)
        assert tasks.commands[0].endswith(f"--profile quick --only {chosen}")
    else:
        with pytest.raises(SystemExit, match="is the start of .*01_b, 01_b_more; name one of them"):
            verb(None, name)
        assert not tasks.commands


def test_older_python_gets_a_plain_message(clone, monkeypatch):
    ast.parse((clone / "tasks.py").read_text(), feature_version=(3, 6))
    load(clone)
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"needs Python 3\.10 or newer; this is 3\.9"):
        load(clone)


def test_verbs_are_short_and_say_what_they_do():
    tree = ast.parse((ROOT / "tasks.py").read_text())
    verbs = [
        f for f in tree.body if isinstance(f, ast.FunctionDef) and "task" in ast.unparse(f.decorator_list)
    ]
    imported = {alias.name for each in tree.body if isinstance(each, ast.Import) for alias in each.names}
    assert len(verbs) == 12
    assert {f.name: f.end_lineno - f.lineno for f in verbs if f.end_lineno - f.lineno > 8} == {}
    assert {f.name for f in verbs if "\n" in (ast.get_docstring(f) or "\n")} == set()
    assert imported <= sys.stdlib_module_names


def test_installation_is_made_once(tasks):
    assert tasks.main(["lint", "--fix"]) == 0
    kinds = ["-m venv", "--no-deps -r", "-e ", "-m invoke lint --fix"]
    assert [kind in command for kind, command in zip(kinds, tasks.commands, strict=True)] == [True] * 4
    tasks.main(["lint"])
    assert len(tasks.commands) == 5, "the second time only the verb runs"


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_changed_dependencies_are_installed(tasks, changed):
    tasks.main(["lint"])
    kept = tasks.VENV / "kept"
    kept.touch()
    with (tasks.ROOT / changed).open("a") as file:
        file.write("\n# changed\n")
    tasks.main(["lint"])
    assert len(tasks.commands) == 8 and kept.exists()


@pytest.mark.parametrize("step", ["-m venv", "requirements.lock", "-e "])
def test_interrupted_installation_is_made_anew(tasks, step, capsys):
    tasks.failing = step
    with pytest.raises(SystemExit) as stopped:
        tasks.main(["test"])
    assert stopped.value.code == 3 and "run the same command again" in capsys.readouterr().err
    assert not any("invoke" in command for command in tasks.commands)
    (tasks.VENV / "half").touch()
    tasks.failing = None
    assert tasks.main(["test"]) == 0 and "invoke test" in tasks.commands[-1]
    assert not (tasks.VENV / "half").exists() and not (tasks.ROOT / ".venv-discarded").exists()


def test_pip_is_quiet_only_in_ci(tasks, monkeypatch):
    monkeypatch.setenv("CI", "true")
    tasks.main(["lint"])
    assert "--quiet" in tasks.commands[1]
    shutil.rmtree(tasks.VENV)
    monkeypatch.delenv("CI")
    tasks.main(["lint"])
    assert "--quiet" not in tasks.commands[5]


def test_only_an_interpreter_with_this_very_project_is_used_as_it_is(tasks, tmp_path, monkeypatch):
    installed = tmp_path / "site" / "pruner_lib-0.1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: pruner-lib\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(installed.parent))
    for source, own in ((tasks.ROOT, False), (tmp_path / "other", True)):
        (installed / "direct_url.json").write_text(json.dumps({"url": source.as_uri()}))
        tasks.commands.clear()
        tasks.main(["lint"])
        assert tasks.VENV.exists() is own
        assert tasks.commands[-1].startswith(str(tasks.VENV) if own else sys.executable)


def test_build_products_in_the_folder_are_no_installation(tasks, monkeypatch):
    products = tasks.ROOT / "pruner_lib.egg-info"
    products.mkdir()
    (products / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: pruner-lib\nVersion: 0.1.0\n")
    (products / "direct_url.json").write_text(json.dumps({"url": tasks.ROOT.as_uri()}))
    monkeypatch.syspath_prepend(str(tasks.ROOT))
    tasks.main(["lint"])
    assert tasks.VENV.exists()


def test_exit_code_of_the_child_is_passed_on(clone):
    tasks = load(clone)
    python = [sys.executable, "-c"]
    assert [tasks._run([*python, f"raise SystemExit({code})"]) for code in (0, 7)] == [0, 7]
    assert tasks._run([*python, "import os; os.kill(os.getpid(), 9)"]) in (137, 9)
    with pytest.raises(SystemExit) as stopped:
        tasks._python("-c", "raise SystemExit(5)")
    assert stopped.value.code == 5
    tasks._python("-c", "pass")


@pytest.fixture
def verb(clone):
    """A verb whose child says `up`, and `interrupted` where it hears a SIGINT; give what is passed on."""
    started = []

    def start(pass_on):
        wait = "import time\ntry:\n    print('up', flush=True)\n    time.sleep(60)\n"
        wait += "except KeyboardInterrupt:\n    print('interrupted')\n    raise"
        command = [sys.executable, "-I", "-S", "-c", wait]
        code = f"import tasks\nraise SystemExit(tasks._run({command!r}, {pass_on}))"
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", code], cwd=clone, **options))
        assert started[0].stdout.readline() == "up\n"
        return started[0]

    yield start
    started[0].communicate()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_signal_that_comes_while_the_child_starts_reaches_it_as_it_is(clone, tmp_path, monkeypatch):
    up, log = tmp_path / "up", tmp_path / "log"

    class SlowToReturn(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            while not up.exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    tasks = load(clone)
    monkeypatch.setattr(tasks.subprocess, "Popen", SlowToReturn)
    wait = f"import time\nlog = open({str(log)!r}, 'w')\ntry:\n    open({str(up)!r}, 'w').close()\n    "
    wait += "time.sleep(60)\nexcept KeyboardInterrupt:\n    print('interrupted', file=log)\n    raise"
    assert tasks._run([sys.executable, "-I", "-S", "-c", wait], tasks.BOTH) == 128 + signal.SIGINT
    assert log.read_text() == "interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_reaches_the_child(verb, number):
    process = verb("tasks.BOTH")
    process.send_signal(number)
    said = process.stdout.read()  # the child has closed it
    assert said == ("interrupted\n" if number == signal.SIGINT else "")
    assert process.wait() == 128 + number


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupt_is_left_to_the_terminal_where_a_child_would_hear_it_twice(verb):
    process = verb("(tasks.signal.SIGTERM,)")
    process.send_signal(signal.SIGINT)
    process.terminate()
    assert process.stdout.read() == "" and process.wait() in (130, 143)


def test_clean_keeps_results_and_by_default_the_environment(clone):
    for name in ("tests/__pycache__", "build", "results/quick/__pycache__", ".venv"):
        (clone / name).mkdir(parents=True)
    bare = [sys._base_executable, "-I", "-S", clone / "tasks.py", "clean"]
    subprocess.run(bare, check=True)
    assert not (clone / "tests/__pycache__").exists() and not (clone / "build").exists()
    assert (clone / ".venv").exists() and (clone / "results/quick/__pycache__").exists()
    subprocess.run([*bare, "--environment"], check=True)
    assert not (clone / ".venv").exists() and (clone / "results/quick/__pycache__").exists()


def test_options_reach_the_runner(tmp_path):
    """A stand-in for the runner writes its arguments, and fails where it has no others than the profile."""
    shutil.copy(ROOT / "tasks.py", tmp_path)
    for name in ("__init__.py", "data/__init__.py", "data/assets.py", "study/__init__.py"):
        (tmp_path / "pruner_lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pruner_lib" / name).touch()
    (tmp_path / "pruner_lib" / "study" / "notebooks.py").write_text(
        "import sys\nprint(sys.argv[1:])\nsys.exit(len(sys.argv) == 3)"
    )
    inv = [sys.executable, "-m", "invoke"]
    words = ["--profile", "tiny", "--only", "00", "--only", "01", "--set", "ratio=0.5", "--set", "seed=1"]
    spread = ["--workers", "2", "--scheduler", "tcp://a:1"]
    runs = (["study", *words, *spread], ["study"], ["notebook", "00_quickstart", "--set", "seed=2"])
    done = [subprocess.run([*inv, *run], cwd=tmp_path, capture_output=True, text=True) for run in runs]
    full, plain, single = [ast.literal_eval(each.stdout) for each in done]
    assert full == words + spread and plain == ["--profile", "quick"]
    assert single == ["--profile", "quick", "--only", "00_quickstart", "--set", "seed=2"]
    assert [each.returncode for each in done] == [0, 1, 0]
