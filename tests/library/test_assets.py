"""Assets appear whole or not at all; pip reads a folder of toy archives here, never the network."""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
import threading
import time
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from pruner_lib.data import assets
from pruner_lib.data.assets import Asset, build_folder, extract, fetch, local_path

METADATA = "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into instead of an index; the cache is empty and temporary."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "PRUNER_LIB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    return folder


def publish(index: Path, monkeypatch: pytest.MonkeyPatch, text: str = "hello", sha256: str = "") -> Asset:
    """Put a wheel with `toy/wanted.txt` and another file on the index, and list it as the asset `toy`."""
    path = index / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy/wanted.txt", text)
        wheel.writestr("toy/other.txt", "not wanted")
        wheel.writestr("toy-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("toy-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("toy-1.0.dist-info/RECORD", "")
    content = path.read_bytes()
    sha256 = sha256 or hashlib.sha256(content).hexdigest()
    asset = Asset("toy==1.0", sha256, "toy", ("wanted.txt",))
    monkeypatch.setitem(assets.ASSETS, "toy", asset)
    return asset


@pytest.fixture
def without_pip(index, monkeypatch) -> Path:
    """The same folder, read without pip, whose start takes a second."""
    monkeypatch.setattr(assets, "download", lambda asset, folder: index / "toy-1.0-py3-none-any.whl")
    return index


def overwrite(path: Path, text: str) -> None:
    """Change a file, at another time than it was written."""
    path.write_text(text)
    os.utime(path, ns=(0, 0))


def visible(cache: Path) -> list[str]:
    """Everything in the cache but the empty lock files."""
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.suffix != ".lock")


def test_fetch_keeps_the_wanted_files_and_drops_the_archive(index, monkeypatch, tmp_path, capfd):
    publish(index, monkeypatch)
    folder = fetch("toy")
    assert (folder / "wanted.txt").read_text() == "hello"
    assert visible(tmp_path / "cache") == [
        "assets",
        "assets/toy",
        "assets/toy/sha256.json",
        "assets/toy/wanted.txt",
    ]
    assert "toy-1.0-py3-none-any.whl" in capfd.readouterr().out  # pip shows what it does


@pytest.mark.slow
def test_absent_archive_is_an_error_that_says_what_and_where(index, monkeypatch, tmp_path):
    publish(index, monkeypatch)
    (index / "toy-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        ValueError, match="(?s)missing.*toy==1.0.*No matching distribution.*PRUNER_LIB_CACHE"
    ) as raised:
        fetch("toy")
    assert str(tmp_path / "cache" / "assets" / "toy") in str(raised.value)
    assert visible(tmp_path / "cache") == ["assets"]


def test_wrong_hash_is_an_error_and_leaves_nothing(index, monkeypatch, tmp_path):
    publish(index, monkeypatch, sha256="0" * 64)
    with pytest.raises(RuntimeError, match="(?s)toy==1.0 with sha256 0000.*DO NOT MATCH THE HASHES"):
        fetch("toy")
    assert visible(tmp_path / "cache") == ["assets"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "overwritten", "manifest"])
def test_damaged_folder_is_fetched_again(without_pip, monkeypatch, damage):
    publish(without_pip, monkeypatch)
    folder = fetch("toy")
    if damage == "truncated":
        (folder / "wanted.txt").write_text("he")
    elif damage == "missing":
        (folder / "wanted.txt").unlink()
    elif damage == "overwritten":
        overwrite(folder / "wanted.txt", "jello")
    else:
        (folder / "sha256.json").write_text("{")
    assert (fetch("toy") / "wanted.txt").read_text() == "hello"


@pytest.mark.slow
def test_damaged_folder_is_called_damaged_where_it_cannot_be_fetched(index, monkeypatch):
    publish(index, monkeypatch)
    overwrite(fetch("toy") / "wanted.txt", "jello")
    (index / "toy-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ValueError, match="(?s)'toy' in .* is damaged or out of date.*toy==1.0"):
        fetch("toy")


def test_fetched_asset_needs_no_index_any_more_and_may_hold_files_of_others(without_pip, monkeypatch):
    publish(without_pip, monkeypatch)
    folder = fetch("toy")
    (folder / "notes.txt").touch()
    (without_pip / "toy-1.0-py3-none-any.whl").unlink()
    assert fetch("toy") == folder and (folder / "notes.txt").exists()


def test_interrupted_download_is_redone(without_pip, monkeypatch, tmp_path):
    publish(without_pip, monkeypatch)
    leftover = tmp_path / "cache" / "assets" / ".toy-ab12cd_4" / "new" / "half.whl"  # as it is named
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    assert (fetch("toy") / "wanted.txt").read_text() == "hello"
    assert not leftover.exists()


def test_new_version_of_an_asset_replaces_the_old(without_pip, monkeypatch):
    publish(without_pip, monkeypatch)
    fetch("toy")
    publish(without_pip, monkeypatch, text="newer")
    assert (fetch("toy") / "wanted.txt").read_text() == "newer"


def test_only_one_of_two_at_once_builds(tmp_path):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.1)  # long enough for the other to come and find it unfinished
        (folder / "file").write_text("x")

    target = tmp_path / "cache" / "thing"
    both = [threading.Thread(target=build_folder, args=(target, build), kwargs={"source": "s"}) for _ in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(built) == 1 and (target / "file").read_text() == "x"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError(f"writer: {os.strerror(errno.ENOSPC)} (28)")]
)
def test_full_disk_leaves_nothing_and_says_so(tmp_path, error):
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    with pytest.raises(OSError, match="could not write .*No space left.*PRUNER_LIB_CACHE") as raised:
        build_folder(tmp_path / "cache" / "thing", build, source="s")
    assert raised.value.errno == errno.ENOSPC
    assert visible(tmp_path / "cache") == []


def test_error_of_the_builder_passes_through_and_leaves_the_old_folder(tmp_path):
    target = build_folder(tmp_path / "thing", lambda folder: (folder / "a").touch(), source="old")

    def build(folder: Path) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="^mine$"):
        build_folder(target, build, source="new")
    assert (target / "a").exists()


def source_archive(path: Path, members: dict[str, tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, member in members.items():
            member.name = name
            member.size = 4 if member.isreg() else 0
            archive.addfile(member, BytesIO(b"text"))
    return path


def test_source_archive_gives_only_the_wanted_file(tmp_path):
    asset = Asset("toy==1.0", "", "toy-1.0/data", ("wanted.txt",), is_wheel=False)
    members = {"toy-1.0/data/wanted.txt": tarfile.TarInfo(), "../escaped.txt": tarfile.TarInfo()}
    archive = source_archive(tmp_path / "toy.tar.gz", members)
    target = tmp_path / "in" / "target"
    extract(asset, archive, target)
    assert visible(tmp_path / "in") == ["target", "target/wanted.txt"]
    assert (target / "wanted.txt").read_text() == "text"


def test_link_in_place_of_a_wanted_file_is_refused(tmp_path):
    asset = Asset("toy==1.0", "", "toy-1.0/data", ("wanted.txt",), is_wheel=False)
    link = tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, "secret.txt"
    members = {"toy-1.0/data/secret.txt": tarfile.TarInfo(), "toy-1.0/data/wanted.txt": link}
    archive = source_archive(tmp_path / "toy.tar.gz", members)
    with pytest.raises(RuntimeError, match="not a regular file"):
        extract(asset, archive, tmp_path / "target")


def test_damaged_archive_is_an_error(tmp_path):
    asset = Asset("toy==1.0", "", "toy", ("wanted.txt",))
    (tmp_path / "toy.whl").write_bytes(b"not a zip file")
    with pytest.raises(RuntimeError, match="toy.whl is damaged"):
        extract(asset, tmp_path / "toy.whl", tmp_path / "target")


def test_local_data_directory_is_looked_at_only_where_set(tmp_path, monkeypatch):
    (tmp_path / "there.txt").touch()
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path))
    assert local_path("there.txt") == tmp_path / "there.txt"
    assert local_path("elsewhere.txt") is None
    monkeypatch.delenv("PRUNER_LIB_DATA")
    assert local_path("there.txt") is None
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="PRUNER_LIB_DATA is .*missing.*no folder"):
        local_path("there.txt")


def test_all_assets_that_the_study_needs_are_listed():
    assert set(assets.ASSETS) == {"smollm2-135m", "tasks", "texts", "instructlab"}
    assert all(len(asset.sha256) == 64 and "==" in asset.requirement for asset in assets.ASSETS.values())
