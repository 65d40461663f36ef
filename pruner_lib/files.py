"""Write result files completely or not at all, and let only one process at a time build a file.

A study may be killed at any moment. Each file is written under a temporary name and then renamed in one step,
so readers see either the old file or the new one, never a partial one.
"""

import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

LOCK = "lock"  # held by the process that is writing a folder


def write_atomic(path: Path | str, write: Callable[[Path], Any]) -> Path:
    """Let `write` create a file under a temporary name, then rename it to `path` in one step.

    Args:    path: missing parent folders are created.    write: receives the temporary path (`*.tmp`).
    Raises:  OSError: the disk is full or not writable; the message names the file. Nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        message = f"could not write {path}: {error.strerror or error}; nothing was changed"
        advice = "free some space or set PRUNER_LIB_RESULTS to another folder, then run again"
        raise OSError(error.errno, f"{message}; {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def write_folder(path: Path | str, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a temporary folder beside `path`, then rename it to `path`, replacing an older folder.

    Leftovers of killed processes are removed first, after restoring an older folder that they had moved.

    Raises:  whatever `write` raises, or OSError; the older folder is then unchanged and nothing else is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}-????????"):  # names chosen by `tempfile`
        with suppress(OSError):  # not a folder, or its process is still running
            if {entry.name for entry in leftover.iterdir()} <= {"new", "old", LOCK}:
                with only_one(leftover / LOCK, wait=False):
                    if not path.exists() and (leftover / "old").exists():
                        os.replace(leftover / "old", path)
                    shutil.rmtree(leftover, ignore_errors=True)
    scratch = tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent)
    with scratch as folder, only_one(Path(folder, LOCK)):
        new, old = Path(folder, "new"), Path(folder, "old")
        new.mkdir()
        write(new)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    return path


def check_folder(path: Path | str) -> Path:
    """Refuse a path that can't be a writable folder: empty, a file, below a file, or not writable.

    Raises: ValueError: the message names the file or folder that is in the way.
    """
    if not isinstance(path, (str, Path)) or not str(path):
        raise ValueError(f"a folder must be named by a text or a Path, got {path!r}")
    absolute = Path(path).absolute()
    existing = next(folder for folder in (absolute, *absolute.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise ValueError(f"{existing} is a {'link' if existing.is_symlink() else 'file'}; give a folder")
    try:
        str(path).encode()
        with suppress(FileNotFoundError):
            absolute.lstat()  # its name may be too long
        tempfile.TemporaryFile(dir=existing).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"nothing can be written in {existing} ({reason}); give another folder") from error
    return Path(path)


def write_text(path: Path | str, text: str) -> Path:
    """Write a text file (UTF-8, newlines unchanged) in one step; see `write_atomic`."""
    return write_atomic(path, lambda temporary: temporary.write_bytes(text.encode()))


def write_json(path: Path | str, data: Any) -> Path:
    """Write plain data as strict JSON in one step; infinities and NaN become "inf", "-inf" and "nan"."""
    text = json.dumps(plain(data), indent=1, allow_nan=False, ensure_ascii=False)
    # put each list of numbers on one line
    flat = re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\n\s*", " ", match[0]), text)
    return write_text(path, flat + "\n")


def write_csv(path: Path | str, frame: Any) -> Path:
    """Write a pandas frame as CSV in one step; its index is written only if it has a name."""
    named = any(name is not None for name in frame.index.names)
    return write_text(path, frame.to_csv(index=named, lineterminator="\n"))


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:  ValueError: the file is not valid JSON; the message names it and says what to do.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fix or delete it, then run again") from error


def set_aside(path: Path, reason: object) -> None:
    """Rename a damaged file or folder to NAME.damaged and warn that its content will be recomputed."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)  # a folder that was set aside before
    with suppress(FileNotFoundError):  # another process has already renamed it
        os.replace(path, aside)
    warnings.warn(f"{path} is damaged ({reason}): renamed to {aside.name}, will be recomputed", stacklevel=3)


def content_hash(path: Path | str) -> str:
    """Compute the sha256 of a file, once per process unless its size or timestamps change."""
    path = Path(path).absolute()
    state = path.stat()  # a copy can keep the modification time, but not the change time
    return _content_hash(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def content_hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Hash the files of a folder that match a pattern: relative path -> `content_hash`, sorted by path."""
    paths = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): content_hash(path) for path in paths}


def text_hash(text: str) -> str:
    """Return the first twelve hex digits of the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=1024)
def _content_hash(path: Path, *_state: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plain(data: Any) -> Any:
    """Turn dataclasses into dictionaries, tuples into lists, and infinities and NaN into text, as JSON needs.

    `float()` converts those texts back.
    """
    if is_dataclass(data):
        data = {field.name: getattr(data, field.name) for field in fields(data)}
    if isinstance(data, dict):
        return {str(name): plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    return data


def only_one(path: Path | str, *, wait: bool = True) -> FileLock:
    """Create the lock `path`, a context manager; it is released when the process that holds it is killed.

    Raises:  TimeoutError: when entered, if another process holds the lock and `wait` is False.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=-1 if wait else 0)
