"""Freeze the answers of the study, and check that they come out the same after a change.

    PYTHONPATH=$PWD python tests/support/freeze.py write [PARTS]
    PYTHONPATH=$PWD python tests/support/freeze.py check [PARTS]

Parts that run always: `committed` (tables that lie outside the profiles), `counts` (Table 3 and other
published counts), `plans` (kept groups of a small model for every way of choosing), `records` (the notebooks
of the profile quick that only read its committed records, the verdicts among them) and `tiny` (all notebooks
of the profile tiny, run from nothing).

Parts that take longer, each by its own option: `--quick` (the notebooks of quick, on a copy of its records;
needs the model), `--architectures` (every family, by the tests that write the table) and `--reference` (what
is removed from the twin of SmolLM2-135M; needs the model). `--only tiny,plans` runs these alone.

Most of the time of `--quick` is scoring and recovery, which lie in no record. Where FREEZE_CACHE names a
folder, they are kept there for the next run, which then sees no change in them.

The tree that is judged is the one that `import pruner_lib` finds. The frozen answers are CSV files in
`frozen/` beside this script: numbers with six significant digits, without columns and rows that hold times,
memory, dates, versions, revisions, paths or hashes. Each difference is printed as one line; those that
`moved_on_purpose.txt` allows are counted apart. The exit code is 1 if any other is left.

A line of `moved_on_purpose.txt` is `file[:column]  reason`: shell patterns, the file as in `frozen/`
(`tiny/tables/06_result.csv:paper`, `*/tables/09_*:tokens`), then white space and the reason. In the name of a
column `_` stands for a space.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "JUPYTER_PREFER_ENV_PATH": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
os.environ |= SETTINGS  # before torch is imported

HERE = Path(__file__).resolve().parent
FROZEN, ALLOWED = HERE / "frozen", HERE / "moved_on_purpose.txt"
RELATIVE, ABSOLUTE = 2e-5, 1e-8  # six digits are off by 5e-6 at most; the order of a sum adds to it
ALWAYS = ("committed", "counts", "plans", "records", "tiny")
LONGER = ("quick", "architectures", "reference")
READ_RECORDS_ONLY = ("03", "06", "07", "08", "09", "11")  # beside the summary, which is always the last
SUMMARY = "12"

# Times and the like: columns by their names, and rows in which one of these words is a whole cell. What is
# read from committed records must stay in every digit, times too: only the costs of a pass are measured anew.
MEASURED_COLUMN = re.compile(
    r"(?i)second|^times plain$|memory, times|peak|memory_mb|_ms$|^date$|created|version|revision|path$|^key$"
    r"|^records$|^cut_is_mask$"
)
MEASURED_ROW = {"seconds", "latency", "time"}
TIMED = re.compile(r"^tiny/|^architectures/|^committed/architectures/")
Table = list[list[str]]  # the first row holds the names of the columns
Answers = dict[str, Table]  # file below `frozen/` -> its table


def library() -> dict[str, Any]:
    """Import from the library what the checks call: public names, and the few others at old or new homes."""
    import pruner_lib

    public = ("discover", "estimate", "load_model", "prune_", "select")
    found = {name: getattr(pruner_lib, name) for name in public}
    homes = {
        "count_parameters": ("measuring.efficiency", "evaluation.efficiency"),
        "macs": ("measuring.efficiency", "evaluation.efficiency"),
        "memory_mb": ("measuring.efficiency", "evaluation.efficiency"),
        "calibration_ids": ("inputs.data", "data.windows", "data"),
    }
    for name, places in homes.items():
        for place in places:
            try:
                found[name] = getattr(import_module(f"pruner_lib.{place}"), name)
                break
            except (ImportError, AttributeError):
                continue
        else:
            found[name] = getattr(pruner_lib, name)
    return found


def tree() -> Path:
    """Give the root of the tree that is judged."""
    import pruner_lib

    return Path(pruner_lib.__file__).resolve().parents[1]


# --- the parts ------------------------------------------------------------------------------------------


def tiny() -> Answers:
    """Run all notebooks of the profile tiny from nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        run_notebooks("tiny", Path(scratch), [path.stem[:2] for path in notebooks()])
        return csv_files(Path(scratch) / "tiny", "tiny")


def records() -> Answers:
    """Run the notebooks of quick that only read records; the others' tables stay as they are committed."""
    return of_quick(READ_RECORDS_ONLY + (SUMMARY,), "records")


def quick() -> Answers:
    """Run the notebooks of quick on a copy of its records, all but 02.

    What 02 shows are scores and true changes of a loss, which are measured anew: their fifth digits, and with
    them which groups are probed, follow the number of threads. Its code is frozen by `tiny` and `plans`.
    """
    return of_quick([path.stem[:2] for path in notebooks() if path.stem[:2] != "02"], "quick")


def of_quick(numbers: Any, part: str) -> Answers:
    """Run some notebooks of quick in a copy of its committed results, and read what they write."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "quick"
        shutil.copytree(tree() / "results/quick", copy, ignore=shutil.ignore_patterns("cache", "models"))
        for path in [*copy.glob("figures/*"), *copy.glob("tables/*")]:
            if path.name[:2] in numbers:
                path.unlink()
        kept = Path(os.environ["FREEZE_CACHE"]) if os.environ.get("FREEZE_CACHE") else None
        if kept and kept.is_dir():
            shutil.copytree(kept, copy / "cache")
        before = {path.name for path in copy.glob("records/*.json")}
        run_notebooks("quick", Path(scratch), numbers)
        if kept and (copy / "cache").is_dir():
            shutil.copytree(copy / "cache", kept, dirs_exist_ok=True)
        answers = csv_files(copy, part, numbers)
        new = sorted({path.name for path in copy.glob("records/*.json")} - before)
        answers[f"{part}/measured_again.csv"] = [["record"], *([name] for name in new)]
        return answers


def plans() -> Answers:
    """Choose groups of the model tiny in every way: scores of all groups, and which of them stay."""
    import torch

    lib = library()
    model, _ = lib["load_model"]("tiny")
    axes = lib["discover"](model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (6, 16), generator=generator)
    rows, scored = [], []
    for criterion in ("random", "l1", "l2", "vector", "element1", "element2", "mixed"):
        for aggregation in ("sum", "mean", "prod", "max", "last"):
            for order in ("channel", "group"):
                how = dict(criterion=criterion, aggregation=aggregation, order=order)
                scores = lib["estimate"](model, axes, ids, **how)
                name = " ".join(how.values())
                for axis, values in scores.items():
                    scored.append([name, axis, *summed_up(values.double())])
                for granularity, scope in product(("block", "channel", "layer"), ("local", "global")):
                    keep = lib["select"](axes, scores, ratio=0.5, granularity=granularity, scope=scope).keep
                    rows += kept_rows(f"{name} {granularity} {scope}", keep)
        alone = lib["estimate"](model, axes, ids, criterion=criterion, aggregation="none")
        plan = lib["select"](axes, alone, ratio=0.5, dependency=False)
        rows += kept_rows(f"{criterion} no dependency", plan.keep)
        scores = lib["estimate"](model, axes, ids, criterion=criterion)
        for share in (0.05, 0.2):
            plan = lib["select"](axes, scores, ratio=share, target="parameters", protect_first=1)
            rows += kept_rows(f"{criterion} {share} of the parameters", plan.keep)
    return {
        "plans/scores.csv": [["choice", "axis", "least", "mean", "largest", "weighted"], *scored],
        "plans/kept.csv": [["choice", "axis", "kept"], *rows],
    }


def summed_up(scores: Any) -> list[str]:
    """Reduce the scores of an axis to numbers, the last of which depends on their order."""
    weights = (1 + scores.new_ones(len(scores)).cumsum(0)).log()
    numbers = scores.min(), scores.mean(), scores.max(), (weights * scores).mean()
    return [repr(float(number)) for number in numbers]


def kept_rows(choice: str, keep: Any) -> Table:
    """Lay out a plan: one row an axis, or one row a structure where each was ranked alone."""
    rows = []
    for axis, kept in keep.items():
        parts = kept.items() if hasattr(kept, "items") else [("", kept)]
        for part, numbers in parts:
            listed = " ".join(map(str, numbers.tolist() if hasattr(numbers, "tolist") else list(numbers)))
            rows.append([choice, f"{axis} {part}".strip(), listed])
    return rows


def counts() -> Answers:
    """Count Table 3 of the paper, and what others published of two models, without weights."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    lib = library()
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads",
    )  # fmt: skip
    shapes = {
        "LLaMA-7B": (32000, 4096, 11008, 32, 32, 32),
        "Llama-3-8B": (128256, 4096, 14336, 32, 32, 8),
        "TinyLlama_v1.1": (32000, 2048, 5632, 22, 32, 4),
    }
    protected = dict(protect_first=4, protect_last=2)
    cuts = {
        "LLaMA-7B": {
            "base": None,
            "channel 20 %": dict(ratio=0.2, granularity="channel"),
            "block 20 %": dict(ratio=0.25, **protected),
            "channel 50 %": dict(ratio=0.5, granularity="channel"),
            "block 50 %": dict(ratio=0.6, protect_first=3, protect_last=1),
        },
        "Llama-3-8B": {"base": None, "block 25 %": dict(ratio=0.25, **protected)},
        "TinyLlama_v1.1": {"base": None, "block 25 %": dict(ratio=0.25, protect_first=4, protect_last=4)},
    }
    rows = [["row", "parameters", "macs", "giga_macs", "mib"]]
    for name, shape in shapes.items():
        config = LlamaConfig(**dict(zip(names, shape, strict=True)), tie_word_embeddings=False)
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config)
        axes = lib["discover"](whole)
        for row, settings in cuts[name].items():
            model = copy.deepcopy(whole)
            if settings:
                generator = torch.Generator().manual_seed(0)
                scores = {axis: torch.rand(one.n_groups, generator=generator) for axis, one in axes.items()}
                lib["prune_"](model, lib["select"](axes, scores, **settings), axes=axes)
            macs = lib["macs"](model)
            mib = f"{lib['memory_mb'](model, tables_mb=32):.1f}"
            rows.append(
                [f"{name} {row}", str(lib["count_parameters"](model)), str(macs), f"{macs / 1e9:.2f}", mib]
            )
    return {"counts/table_3.csv": rows}


def committed() -> Answers:
    """Read the tables that lie outside the profiles; they change only when somebody writes them anew."""
    place = tree() / "results"
    paths = [*place.glob("architectures/*.csv"), *place.glob("paper/*.csv")]
    return {f"committed/{path.relative_to(place)}": read_csv(path) for path in sorted(paths)}


def architectures() -> Answers:
    """Let the tests write the table of all families anew; the committed one is put back."""
    [test] = (tree() / "tests").rglob("test_architectures.py")
    table = tree() / "results/architectures/architectures.csv"
    before = table.read_bytes()
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", str(test), "--write-tables"]
        run(command, cwd=tree())
        return {"architectures/architectures.csv": read_csv(table)}
    finally:
        table.write_bytes(before)


def reference() -> Answers:
    """List what is removed from SmolLM2-135M, whose key and value heads are repeated for each query head."""
    import copy

    from transformers import LlamaForCausalLM

    lib = library()
    model, tokenizer = lib["load_model"]("smollm2-135m")
    config = copy.deepcopy(model.config)
    config.num_key_value_heads = 9
    twin = LlamaForCausalLM(config).eval()
    twin.load_state_dict(
        {
            name: weight.view(3, 64, -1).repeat_interleave(3, 0).flatten(0, 1)
            if "k_proj" in name or "v_proj" in name
            else weight
            for name, weight in model.state_dict().items()
        }
    )
    axes = lib["discover"](twin)
    ids = lib["calibration_ids"]("bookcorpus", tokenizer, samples=10, length=64)
    rows = [["criterion", "axis", "removed"]]
    for criterion in ("l2", "element1", "element2"):
        scores = lib["estimate"](twin, axes, ids, criterion=criterion)
        plan = lib["select"](axes, scores, ratio=0.25, protect_first=4, protect_last=2)
        for axis, kept in plan.keep.items():
            gone = sorted(set(range(axes[axis].n_groups)) - set(kept.tolist()))
            rows.append([criterion, axis, " ".join(map(str, gone))])
    return {"reference/removed.csv": rows}


PARTS: dict[str, Callable[[], Answers]] = {
    one.__name__: one for one in (committed, counts, plans, records, tiny, quick, architectures, reference)
}


# --- running ----------------------------------------------------------------------------------------------


def notebooks() -> list[Path]:
    """List the notebooks of the tree that is judged, in the order of their names."""
    return sorted((tree() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def run_notebooks(profile: str, results: Path, numbers: Any) -> None:
    """Run notebooks by papermill, two at a time, and the summary after all others."""
    chosen = [path for path in notebooks() if path.stem[:2] in numbers]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as workers:

        def one(path: Path) -> None:
            start = time.perf_counter()
            executed = Path(scratch) / path.name
            command = [sys.executable, "-m", "papermill", str(path), str(executed), "--no-progress-bar"]
            command += ["-k", "python3", "-p", "profile", profile]
            run(command, cwd=path.parent, PRUNER_LIB_RESULTS=str(results))
            print(f"    {path.stem} of {profile}: {time.perf_counter() - start:.0f} s", flush=True)

        list(workers.map(one, [path for path in chosen if path.stem[:2] != SUMMARY]))
        list(workers.map(one, [path for path in chosen if path.stem[:2] == SUMMARY]))


def run(command: list[str], cwd: Path, **settings: str) -> None:
    """Run a command on the tree that is judged; where it fails, show the end of what it printed and stop."""
    environment = os.environ | {"PYTHONPATH": str(tree())} | settings
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FAILED ({done.returncode}): {' '.join(command)}\n{(done.stdout + done.stderr)[-5000:]}")


# --- tables -----------------------------------------------------------------------------------------------


def csv_files(folder: Path, part: str, numbers: Any = None) -> Answers:
    """Read the CSV files of a profile's folder: figures and tables, of some notebooks or of all."""
    paths = [path for path in sorted(folder.rglob("*.csv")) if numbers is None or path.name[:2] in numbers]
    return {f"{part}/{path.relative_to(folder).as_posix()}": read_csv(path) for path in paths}


def read_csv(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def normalised(file: str, table: Table) -> Table:
    """Leave out what is measured by a clock or depends on the place, and round numbers to six digits."""
    timed = bool(TIMED.match(file))
    names, *rows = table
    stay = [
        i for i, name in enumerate(names) if not (measured(name) and (timed or name in ("key", "records")))
    ]
    rows = [row for row in rows if not (timed and MEASURED_ROW & set(row))]
    return [[names[i] for i in stay], *([rounded(row[i]) for i in stay] for row in rows)]


def measured(column: str) -> bool:
    return bool(MEASURED_COLUMN.search(column))


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def rounded(text: str) -> str:
    value = number(text)
    if value is None or re.fullmatch(r"[+-]?\d+", text) or not math.isfinite(value):
        return text
    return f"{value:.6g}"


def same(frozen: str, now: str) -> bool:
    """Say whether two cells agree: texts and whole numbers exactly, other numbers nearly."""
    if frozen == now:
        return True
    one, other = number(frozen), number(now)
    if one is None or other is None:
        return False
    if all(re.fullmatch(r"[+-]?\d+", text) for text in (frozen, now)):
        return one == other
    return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def differences(file: str, frozen: Table, now: Table) -> Iterator[tuple[str, str]]:
    """Compare two tables; yield the column of each difference, and a line that describes it."""
    old_names, new_names = frozen[0], now[0]
    for name in old_names:
        if name not in new_names:
            yield name, f"{file}: column {name!r} is missing"
    for name in new_names:
        if name not in old_names:
            yield name, f"{file}: column {name!r} is new"
    if len(frozen) != len(now):
        yield "", f"{file}: {len(frozen) - 1} rows frozen, {len(now) - 1} now"
    for index, (old, new) in enumerate(zip(frozen[1:], now[1:], strict=False), start=1):
        before, after = (
            dict(zip(names, row, strict=True)) for names, row in ((old_names, old), (new_names, new))
        )
        for name in old_names:
            if name in after and not same(before[name], after[name]):
                yield (
                    name,
                    f"{file}: row {index} ({old[0]}), {name}: {before[name]!r} frozen, {after[name]!r} now",
                )


def allowed(file: str, column: str) -> bool:
    """Say whether a line of `moved_on_purpose.txt` names this file, or this column of it."""
    lines = ALLOWED.read_text().splitlines() if ALLOWED.is_file() else []
    patterns = [line.split(None, 1)[0] for line in lines if line.strip() and not line.startswith("#")]
    for pattern in patterns:
        place, _, name = pattern.partition(":")
        if fnmatchcase(file, place) and (not name or fnmatchcase(column.replace(" ", "_"), name)):
            return True
    return False


# --- the two commands -------------------------------------------------------------------------------------


def answers(part: str) -> Answers:
    start = time.perf_counter()
    found = {file: normalised(file, table) for file, table in PARTS[part]().items()}
    print(f"  {part}: {len(found)} files, {time.perf_counter() - start:.0f} s", flush=True)
    return found


def write(parts: list[str]) -> int:
    """Write the answers of some parts to `frozen/`; those of other parts stay."""
    for part in parts:
        found = answers(part)
        shutil.rmtree(FROZEN / part, ignore_errors=True)
        for file, table in found.items():
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(table)
            (FROZEN / file).parent.mkdir(parents=True, exist_ok=True)
            (FROZEN / file).write_text(text.getvalue(), encoding="utf-8")
    return 0


def check(parts: list[str]) -> int:
    """Compare the answers of some parts with the frozen ones; print each difference."""
    moved = left = 0
    for part in parts:
        now = answers(part)
        paths = sorted(path for path in (FROZEN / part).rglob("*.csv"))
        frozen = {path.relative_to(FROZEN).as_posix(): read_csv(path) for path in paths}
        if not frozen:
            sys.exit(f"no frozen answers of {part!r}; run `write` on the tree as it was before the change")
        found = [("", file, f"{file}: is missing") for file in frozen if file not in now]
        found += [("", file, f"{file}: is new") for file in now if file not in frozen]
        for file in frozen.keys() & now.keys():
            found += [(column, file, line) for column, line in differences(file, frozen[file], now[file])]
        for column, file, line in sorted(found, key=lambda one: one[1]):
            if allowed(file, column):
                moved += 1
            else:
                left += 1
                print(f"    {line}")
    print(f"{left} differences, and {moved} that moved on purpose, in {', '.join(parts)} of {tree()}")
    return int(left > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("write", "check"))
    parser.add_argument("--only", default="", help=f"parts, with commas: {', '.join(PARTS)}")
    for part in LONGER:
        parser.add_argument(f"--{part}", action="store_true", help=(PARTS[part].__doc__ or "").split("\n")[0])
    asked = parser.parse_args()
    only = [name.strip() for name in asked.only.split(",") if name.strip()]
    if unknown := sorted(set(only) - set(PARTS)):
        parser.error(f"unknown parts {', '.join(unknown)}; there are {', '.join(PARTS)}")
    parts = only or [*ALWAYS, *(part for part in LONGER if getattr(asked, part))]
    print(f"{asked.command} {', '.join(parts)} of {tree()}", flush=True)
    return write(parts) if asked.command == "write" else check(parts)


if __name__ == "__main__":
    sys.exit(main())
