"""The runner believes what a notebook wrote, not what it looks like."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import time
from types import SimpleNamespace

import pytest
import zmq.asyncio
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session
from made_notebooks import FINISH, WRITE, make_project, notebook

from pruner_lib.study import notebooks as runner
from pruner_lib.study.cluster import SCHEDULER
from pruner_lib.study.execution import Shell, execute
from pruner_lib.study.notebooks import main, run_study, was_done
from pruner_lib.study.report import find_notebooks
from pruner_lib.study.results import manifest_path, results_dir

DIE_ONCE = "import os, signal\nif not tried_before:\n    os.kill(os.getpid(), signal.SIGKILL)"
WORK_ONCE = "assert not tried_before, 'on purpose'"
OTHER = """
other = results.place / "notebooks" / "NAME.json"  # of another study on the same results
other.parent.mkdir(exist_ok=True)
other.write_text("{}")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return make_project(tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.notebook
def test_study_done_before_runs_side_by_side_the_summary_last_and_alone_and_values_keep_their_types(
    folder, monkeypatch, capsys
):
    paths = [notebook(folder, name, WRITE, FINISH) for name in ("00_one", "13_two", "12_summary")]
    given = {"ratio": 0.5, "names": ["x", "y"]}
    with monkeypatch.context() as patch:
        patch.setattr(runner, "was_done", lambda *_: True)
        runs = run_study("tiny", parameters=given)
    lines = capsys.readouterr().out.splitlines()
    order = [f"start {x.split()[1]}" if x[0] == "[" else f"end {x.split()[0]}" for x in lines]
    side_by_side = ["start 00_one", "start 13_two", "end 00_one", "end 13_two"]
    assert order == [*side_by_side, "start 12_summary", "end 12_summary"]
    for path, run in zip(paths, runs, strict=True):
        assert run["status"] == "done" and run["outputs"] == [f"tables/{path.stem}.csv"], run["error"]
        place = results_dir("tiny", changed=given)
        assert run["changed"] == given and place == results_dir("tiny") / "changed/ratio=0.5,names=x+y"
        assert (place / run["outputs"][0]).read_text() == "float,0.5,['x', 'y']"
        manifest = json.loads(manifest_path(path.stem, "tiny", given).read_text())
        assert manifest["status"] == "done" and manifest["seconds"] == run["seconds"]
        assert manifest["parameters"] == given | {"profile": "tiny"}
        assert was_done(path, "tiny", given)
        assert not was_done(path, "tiny", given | {"ratio": 0.25}), "another study"
        executed = (place / "notebooks" / path.name).read_text()
        assert str(folder.parent) not in executed
    assert not (results_dir("tiny") / "tables").exists() and not manifest_path("00_one", "tiny").exists()


@pytest.mark.slow
@pytest.mark.notebook
def test_page_is_that_of_the_last_run_also_where_the_clock_went_back(folder):
    path = notebook(folder, "00_one", WRITE, FINISH)
    main(["--profile", "tiny"])
    page = manifest_path("00_one", "tiny").with_suffix(".html")
    assert "names" in page.read_text() and "another" not in page.read_text()
    os.utime(page, (2**32, 2**32))  # made by a clock far ahead
    path.write_text(path.read_text().replace("results.finish", "'another run'; results.finish"))
    main(["--profile", "tiny"])
    assert "another" in page.read_text()


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What three commands said and left: five notebooks, the killed one again, one that works only once."""
    place = tmp_path_factory.mktemp("tried")
    with pytest.MonkeyPatch.context() as patch:
        folder = make_project(place, patch)
        notebook(folder, "00_bad", "raise RuntimeError('on purpose')")
        notebook(folder, "01_silent", WRITE, OTHER)
        notebook(folder, "02_lossy", WRITE, FINISH, "path.unlink()")
        notebook(folder, "03_killed", WRITE, FINISH, DIE_ONCE)
        notebook(folder, "04_once", WRITE, WORK_ONCE, FINISH, OTHER)
        first, again, failed = (command(), command("--only", "03"), command("--only", "04"))
        yield SimpleNamespace(place=place, folder=folder, first=first, again=again, failed=failed)


def command(*words):
    """The exit code of a command, what it said, and the files of its results: name -> text."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["--profile", "tiny", "--set", "ratio=0.75", *words])
    place = results_dir("tiny", changed={"ratio": 0.75})
    files = {path.relative_to(place).as_posix(): path for path in place.rglob("*.*") if path.is_file()}
    files = {name: path.read_text() for name, path in files.items()}
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue(), files=files)


@pytest.mark.slow
@pytest.mark.notebook
def test_study_goes_on_after_failures_and_a_killed_kernel(tried):
    first = tried.first
    assert first.code == 1 and "1 of 5 notebooks done" in first.out and "4 FAILED" in first.out
    assert "last time" not in first.out
    reasons = first.err.split(" failed:\n")[1:]
    wanted = ("on purpose", "without results.finish", "tables/02_lossy.csv", "exit code 137")
    assert all(words in reason for words, reason in zip(wanted, reasons, strict=True))
    assert str(tried.place) not in first.err
    assert json.loads(first.files["notebooks/03_killed.json"])["status"] == "failed"


@pytest.mark.slow
@pytest.mark.notebook
def test_killed_notebook_is_done_by_the_same_command(tried):
    again = tried.again
    assert again.code == 0 and "1 of 1 notebooks done" in again.out and "last time" in again.out
    assert re.search(r"files in \S*results/tiny/changed/ratio=0.75\n", again.out)
    assert again.files["tables/03_killed.csv"].startswith("float,0.75")
    tried_before, tried_now = ({*each.files} for each in (tried.first, again))
    assert tried_before - tried_now == {"notebooks/failed/03_killed.ipynb"}
    page = results_dir("tiny", changed={"ratio": 0.75}) / "index.html"
    assert str(page) in again.out and 'href="notebooks/03_killed.html"' in again.files["index.html"]


@pytest.mark.slow
@pytest.mark.notebook
def test_manifest_of_another_run_neither_helps_nor_harms(tried):
    """Two studies on the same results write the same manifests."""
    good = json.loads(tried.first.files["notebooks/04_once.json"])
    assert good["status"] == "done" and good["outputs"] == ["tables/04_once.csv"]
    silent = json.loads(tried.first.files["notebooks/01_silent.json"])
    assert silent["status"] == "failed" and "without results.finish" in silent["error"]


@pytest.mark.slow
@pytest.mark.notebook
def test_failed_try_replaces_neither_the_good_notebook_nor_its_files_on_the_page(tried):
    before, after = tried.first.files, tried.failed.files
    good, bad = (json.loads(files["notebooks/04_once.json"]) for files in (before, after))
    assert tried.failed.code == 1 and bad["status"] == "failed" and "on purpose" in bad["error"]
    assert all(bad[name] == good[name] for name in ("outputs", "git_revision", "versions"))
    assert after["notebooks/04_once.ipynb"] == before["notebooks/04_once.ipynb"]
    assert "AssertionError" in after["notebooks/failed/04_once.ipynb"]
    page = after["index.html"]
    assert 'href="notebooks/04_once.html"' in page and "failed" in page
    assert "AssertionError" not in after["notebooks/04_once.html"]
    assert not was_done(tried.folder / "04_once.ipynb", "tiny", {"ratio": 0.75})
    assert was_done(tried.folder / "03_killed.ipynb", "tiny", {"ratio": 0.75})


@pytest.mark.slow
@pytest.mark.notebook
def test_relative_paths_are_those_of_the_folder_in_which_the_study_was_started(folder, monkeypatch, capsys):
    (here := folder.parent / "here").mkdir()
    (here / "mine.yaml").write_text("mine: {like: tiny}")
    (here / "data").mkdir()
    (here / "data" / "words.txt").write_text("own words")
    for name, value in (("PROFILES", "mine.yaml"), ("DATA", "data"), ("RESULTS", "../elsewhere")):
        monkeypatch.setenv(f"PRUNER_LIB_{name}", value)
    monkeypatch.chdir(here)
    reads = "from pruner_lib.data.assets import local_path\nassert local_path('words.txt').read_text()"
    notebook(folder, "00_paths", WRITE, reads, "assert open('data/words.txt').read()", FINISH)
    run = run_study("mine")[0]
    assert run["error"] is None and (folder.parent / "elsewhere/mine/tables/00_paths.csv").is_file()
    assert "1 files in ../elsewhere/mine\n" in capsys.readouterr().out


def test_notebook_without_the_parameters_tag_is_an_error(folder):
    notebook(folder, "00_bare", "profile = 'tiny'", parameters=None)
    with pytest.raises(ValueError, match="tagged 'parameters'"):
        run_study("tiny")


def test_notebooks_come_in_the_order_of_their_names_and_can_be_chosen(folder):
    for name in ("02_c", "00_a", "01_b", "00_a_more"):
        notebook(folder, name)
    assert [path.stem for path in find_notebooks()] == ["00_a", "00_a_more", "01_b", "02_c"]
    assert [path.stem for path in find_notebooks(["01", "02"])] == ["01_b", "02_c"]
    assert [path.stem for path in find_notebooks(["00_a"])] == ["00_a"]
    with pytest.raises(ValueError, match="starts with '9'; there are 00_a"):
        find_notebooks(["9"])


@pytest.mark.slow
@pytest.mark.notebook
def test_full_disk_ends_the_study_in_one_sentence(folder, capsys):
    notebook(folder, "00_full", "import errno, os\nraise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))")
    notebook(folder, "01_next", WRITE, FINISH)
    assert main(["--profile", "tiny"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: 00_full stopped: OSError: [Errno 28] No space left on device\n"
    assert "01_next" not in shown.out and not (results_dir("tiny") / "tables").exists()


@pytest.mark.parametrize(
    ("words", "address"),
    [(["--workers", "2"], "here, 2"), (["--scheduler", "tcp://a:1"], "tcp://a:1"), ([], "")],
)
def test_address_of_the_cluster_reaches_the_notebooks(folder, monkeypatch, words, address):
    given = {}
    served = contextlib.contextmanager(
        lambda workers, named: iter([f"here, {workers}" if workers else named])
    )
    monkeypatch.setattr(runner, "serving", served)
    monkeypatch.setattr(runner, "run_study", lambda *_, environment: given.update(environment) or [])
    monkeypatch.delenv(SCHEDULER, raising=False)
    notebook(folder, "00_good")
    assert main(["--profile", "tiny", *words]) == 0
    assert given[SCHEDULER] == address and given["PATH"] == os.environ["PATH"]


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize(("deaths", "started"), [(2, True), (3, False)])
def test_kernel_that_dies_at_its_start_is_started_three_times_at_most(folder, tmp_path, deaths, started):
    """As where another process took a port that was chosen for it; what it said last is named."""
    config = tmp_path / "ipython/profile_default/ipython_config.py"  # runs before a kernel binds its ports
    config.parent.mkdir(parents=True)
    config.write_text(
        "import os, pathlib\n"
        f"log = pathlib.Path({str(tmp_path / 'starts.txt')!r})\n"
        "starts = len(log.read_text()) if log.exists() else 0\n"
        "log.write_text('x' * (starts + 1))\n"
        f"if starts < {deaths}:\n    os.write(2, b'the port is taken')\n    os._exit(7)\n"
    )
    path = notebook(folder, "00_late", WRITE, FINISH)
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    said = execute(path, tmp_path / "executed.ipynb", {}, environment, progress=False)
    assert len((tmp_path / "starts.txt").read_text()) == 3
    if started:
        assert said == "" and (results_dir("tiny") / "tables" / "00_late.csv").is_file()
    else:
        assert "the port is taken" in said and "exit code 7" in said and "died while starting" in said


@pytest.mark.parametrize(("kind", "arrives"), [(Shell, True), (AsyncZMQSocketChannel, False)])
def test_reply_that_comes_while_a_request_is_sent_is_not_waited_for_for_ever(kind, arrives):
    """As of a cell with an output widget; the channel of the library alone shows that a mend is needed."""

    async def ask():
        context, session = zmq.asyncio.Context(), Session(key=b"")
        kernel, socket = zmq.Context.shadow(context).socket(zmq.PAIR), context.socket(zmq.PAIR)
        socket.connect(f"tcp://127.0.0.1:{kernel.bind_to_random_port('tcp://127.0.0.1')}")
        channel = kind(socket, session)
        channel.send(session.msg("execute_request"))
        reply = asyncio.ensure_future(channel.get_msg(timeout=None))
        await asyncio.sleep(0)  # it waits from here on
        kernel.recv_multipart()
        session.send(kernel, "execute_reply")
        time.sleep(0.5)  # the reply is there; nobody has looked yet
        channel.send(session.msg("comm_msg"))
        done, _ = await asyncio.wait([reply], timeout=5)
        said = [one.result()["msg_type"] for one in done]
        reply.cancel()
        for one in (kernel, socket):
            one.close(linger=0)
        context.term()
        return said

    assert asyncio.run(ask()) == ["execute_reply"] * arrives
