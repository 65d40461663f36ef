"""Write result files whole or not at all, and let one process at a time make a file.

A study may be killed at any moment. Every file is written beside its place and then moved there in one step,
so that a reader sees the old file or the new one and never a part. What a file means is not known here.
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

LOCK = "lock"  # of a folder that is being written; its process holds it


def write_atomic(path: Path | str, write: Callable[[Path], Any]) -> Path:
    """Let `write` make a file under a temporary name, then move it to `path` in one step.

    Args:    path: missing folders are made.    write: is given the temporary path, which ends in `.tmp`.
    Raises:  OSError: the disk is full or may not be written; the message names the file, nothing is left.
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
        said = f"could not write {path}: {error.strerror or error}; nothing was changed; free some space or "
        said += "set PRUNER_LIB_RESULTS to another folder, then run again"
        raise OSError(error.errno, said) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def write_folder(path: Path | str, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a folder beside `path`, then move it there; an older folder goes only after that.

    What processes that were killed meanwhile left of it is cleared first; an older folder is put back.

    Raises:  what `write` raises, or OSError; the older folder is untouched, nothing else is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}-????????"):  # as `tempfile` names them
        with suppress(OSError):  # no such folder, or its process lives
            if {one.name for one in left.iterdir()} <= {"new", "old", LOCK}:
                with only_one(left / LOCK, wait=False):
                    if not path.exists() and (left / "old").exists():
                        os.replace(left / "old", path)
                    shutil.rmtree(left, ignore_errors=True)
    scratch = tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent)
    with scratch as place, only_one(Path(place, LOCK)):
        new, old = Path(place, "new"), Path(place, "old")
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
    """Refuse what can be no folder: no path, a file, or a place below one or where nothing can be written.

    Raises: ValueError: says which file or folder it is.
    """
    if not isinstance(path, (str, Path)) or not str(path):
        raise ValueError(f"a folder must be named by a text or a Path, got {path!r}")
    whole = Path(path).absolute()
    place = next(one for one in (whole, *whole.parents) if os.path.lexists(one))
    if not place.is_dir():
        raise ValueError(f"{place} is a {'link' if place.is_symlink() else 'file'}; give a folder")
    try:
        str(path).encode()
        with suppress(FileNotFoundError):
            whole.lstat()  # its name may be too long
        tempfile.TemporaryFile(dir=place).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"nothing can be written in {place} ({reason}); give another folder") from error
    return Path(path)


def write_text(path: Path | str, text: str) -> Path:
    """Write a text file (UTF-8, newlines as given) in one step; see `write_atomic`."""
    return write_atomic(path, lambda temporary: temporary.write_bytes(text.encode()))


def write_json(path: Path | str, data: Any) -> Path:
    """Write plain data as strict JSON in one step; infinities and NaN become "inf", "-inf" and "nan"."""
    text = json.dumps(plain(data), indent=1, allow_nan=False, ensure_ascii=False)
    # a list of numbers: one line
    flat = re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\n\s*", " ", match[0]), text)
    return write_text(path, flat + "\n")


def write_csv(path: Path | str, frame: Any) -> Path:
    """Write a pandas frame as CSV in one step, without its index unless that has a name."""
    named = any(name is not None for name in frame.index.names)
    return write_text(path, frame.to_csv(index=named, lineterminator="\n"))


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:  ValueError: the file is not JSON (the message names it and says what to do).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); mend or delete it, then run again") from error


def set_aside(path: Path, reason: object) -> None:
    """Rename a damaged file or folder to NAME.damaged, with a warning: what was in it is made again."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)  # a folder that was set aside before
    with suppress(FileNotFoundError):  # another process has done it
        os.replace(path, aside)
    warnings.warn(f"{path} is damaged ({reason}): it is {aside.name} now and made again", stacklevel=3)


def content_hash(path: Path | str) -> str:
    """Name a file by content: its sha256, read once a process unless its size or time of change differs."""
    path = Path(path).absolute()
    state = path.stat()  # a copy may keep the time of change, but not that of its coming
    return _content_hash(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def content_hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Name the files of a folder that fit a pattern by content: path below it -> `content_hash`, in order."""
    paths = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): content_hash(path) for path in paths}


def text_hash(text: str) -> str:
    """Name a text by twelve hex digits of its sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=1024)
def _content_hash(path: Path, *_state: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plain(data: Any) -> Any:
    """Turn dataclasses into dictionaries, tuples into lists, and infinities into text, as JSON holds them.

    `float()` reads infinities back.
    """
    if is_dataclass(data):
        data = {one.name: getattr(data, one.name) for one in fields(data)}
    if isinstance(data, dict):
        return {str(name): plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    return data


def only_one(path: Path | str, *, wait: bool = True) -> FileLock:
    """Give the lock `path`: one process at a time runs a block `with` it; a killed one releases it.

    Raises:  TimeoutError: another process holds it, and `wait` is False.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=-1 if wait else 0)
