"""A file is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import forked
import pandas as pd
import pytest

from pruner_lib.files import only_one, read_json, write_atomic, write_csv, write_folder, write_json


def test_json_comes_back_and_infinities_stay_readable_by_strict_readers(tmp_path):
    path = write_json(tmp_path / "new" / "a.json", {"x": (1, 2.5), "big": float("inf"), "text": "[ \n ] é"})
    strict = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(word))
    assert strict == {"x": [1, 2.5], "big": "inf", "text": "[ \n ] é"}
    assert float(strict["big"]) == float("inf")


def test_failed_write_keeps_the_old_file_and_leaves_no_part(tmp_path):
    path = write_json(tmp_path / "a.json", {"old": 1})

    def full_disk(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match="could not write .*a.json: No space left on device; nothing was changed"
    ) as raised:
        write_atomic(path, full_disk)
    assert raised.value.errno == errno.ENOSPC
    assert read_json(path) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    def write(name: str, error: Exception | None = None):
        def fill(folder: Path) -> None:
            (folder / name).write_text(name)
            if error:
                raise error

        return fill

    folder = write_folder(tmp_path / "new" / "m", write("one"))
    assert [path.name for path in folder.iterdir()] == ["one"] and folder.stat().st_mode & 0o055
    with pytest.raises(KeyError):
        write_folder(folder, write("two", KeyError()))
    assert [path.name for path in folder.iterdir()] == ["one"]
    write_folder(folder, write("two"))
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "m", lambda new: (new / "old").touch())
    move, calls = os.replace, []

    def broken(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        move(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="broken"):
        write_folder(folder, lambda new: (new / "new").touch())
    assert [path.name for path in folder.iterdir()] == ["old"] and len(calls) == 3


def be_killed(folder: Path, moves: int) -> None:
    """Write a folder, and be killed before it is moved into its place, which takes two moves."""
    move, calls = os.replace, []

    def until_killed(source, target):
        if len(calls) == moves:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(target)
        move(source, target)

    os.replace = until_killed
    write_folder(folder, lambda new: (new / "new").touch())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("moves", [0, 1])
@pytest.mark.parametrize("name", ["m", "m[1]"])
def test_what_a_killed_process_left_of_a_folder_is_cleared_and_an_older_one_put_back(name, moves, tmp_path):
    folder = write_folder(tmp_path / name, lambda new: (new / "old").touch())
    killed = forked.start(be_killed, folder, moves)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 2 - moves
    write_folder(tmp_path / f"{name}-2", Path.touch)  # another folder
    with pytest.raises(KeyError):
        write_folder(folder, lambda new: {}["fails"])
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}-2"}
    assert [path.name for path in folder.iterdir()] == ["old"]


def test_only_what_was_left_of_a_folder_is_cleared(tmp_path):
    (tmp_path / ".m-mha.lock").touch()  # of another folder, "m-mha"
    (tmp_path / ".m-mynotes1").mkdir()
    (tmp_path / ".m-mynotes1" / "notes.txt").touch()
    write_folder(tmp_path / "m", lambda new: (new / "new").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m-mha.lock", ".m-mynotes1", "m"]
    assert [path.name for path in (tmp_path / ".m-mynotes1").iterdir()] == ["notes.txt"]


def test_folder_that_another_process_is_writing_is_left_alone(tmp_path):
    def write(new: Path) -> None:
        write_folder(tmp_path / "m", lambda other: (other / "other").touch())
        (new / "mine").touch()

    folder = write_folder(tmp_path / "m", write)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_real_full_disk_is_an_error():
    with pytest.raises(OSError, match="could not write /dev/full"):
        write_json(Path("/dev/full/a.json"), {})


@pytest.mark.parametrize(
    "text",
    ['{"half": ', "", "[" * 100_000, "\ufeff{}", "1" * 5000],
    ids=["cut", "empty", "deep", "marked", "huge"],
)
def test_damaged_json_is_named(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="a.json is not valid JSON .* delete it"):
        read_json(tmp_path / "a.json")


def test_csv_keeps_a_named_index_and_drops_a_bare_one(tmp_path):
    frame = pd.DataFrame({"a": [1, 2]})
    assert write_csv(tmp_path / "bare.csv", frame).read_text() == "a\n1\n2\n"
    assert write_csv(tmp_path / "named.csv", frame.rename_axis("n")).read_text() == "n,a\n0,1\n1,2\n"


def test_one_at_a_time_holds_a_lock(tmp_path):
    """Threads stand for processes: each opens the lock's file itself."""
    words = []

    def hold() -> None:
        with only_one(tmp_path / "lock"):
            words.append("in")
            time.sleep(0.1)  # long enough for the other to come
            words.append("out")

    jobs = [threading.Thread(target=hold) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert words == ["in", "out", "in", "out"]
