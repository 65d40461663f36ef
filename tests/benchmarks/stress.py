"""Kill, damage and disturb studies of the profile `tiny`, and print a table of the losses.

    python -m tests.benchmarks.stress [--kills 50] [--damages 3] [--only kills,damage]

The parts for --only are

kills      SIGKILL at random moments, repeated until the study is done, then again from scratch
damage     files of each kind truncated, emptied or changed; then the study runs again
together   two studies on the same empty results
signals    SIGTERM to each process of `tasks.py study`
attacks    model folders that contain code (tests/library/test_remote_code.py)

survived: tries that ended with all results; lost: records that disappeared; repeated: experiments that were
measured although their record existed; bytes_different: files that differ from those of an undisturbed study,
except for times, memory and machine (a commit during the run counts, since manifests name it); in_silence:
damaged files that no message named and that changed a result or still exist; code_run: attacks that ran code;
left: processes that were still running at the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil

from pruner_lib.study import Recovery, Study, load_profile
from pruner_lib.study.claims import claims, read_answer
from pruner_lib.study.records import read_kept, records_frame
from pruner_lib.study.reproduce import CIRCUMSTANCES
from pruner_lib.study.statistics import Interval

TINY, ROOT, NAME = load_profile("tiny"), Path(__file__).resolve().parents[2], "00_stress"
TRAINING = Recovery(
    corpus="tiny", samples=8, steps=6, batch_size=2, micro_batch_size=2, warmup_steps=1, evaluate_at=(2, 4)
)
TRAINED = TINY.experiment(recovery=TRAINING)
PLAIN = TINY.experiment(recovery=replace(TRAINING, evaluate_at=()))
AGAIN = replace(PLAIN, evaluation=replace(TINY.evaluation, windows=2))  # the same training
WANTED = [TINY.dense(), TINY.experiment(criterion="l2"), TINY.experiment(), TRAINED, PLAIN, AGAIN]
KINDS = {  # a kind of file -> its place; all files are damaged, but only one of a checkpoint
    "records": "records/*.json",
    "scores": "cache/members-*.safetensors",
    "checkpoints": "cache/recovery-*/checkpoint-*/*",
    "adapters": "cache/recovery-*/adapter/adapter_model.safetensors",
    "tables": "tables/*.csv",
    "manifests": "notebooks/*.json",
    "measured": "measured/*.json",
    "claims": "claims/*.json",
}
COLUMNS = ["tries", "survived", "lost", "repeated", "bytes_different", "in_silence", "code_run", "left"]
fork = multiprocessing.get_context("fork")


def work(folder: Path, log: Path) -> None:
    """Act like a notebook: make records, scores, another measurement, a claim and a table."""
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    study = Study("tiny", folder)
    make = study.subject

    def subject(experiment, *given):
        print(f"\nmeasured {experiment.key}")  # after a progress bar, if there is one
        return make(experiment, *given)

    study.subject = subject
    records = study.run_all(WANTED)
    scores = study.scores(WANTED[2], ["element1"])["element1"]
    sums = {name: score.sum().item() for name, score in scores.items()}
    sums |= {"beside": sum(study.cached([NAME], lambda: [0.5, 1.25, 3.0]))}
    study.save_table(records_frame(records, allow=("corpus_hash",)).assign(**sums), NAME)
    claim = next(one for one in claims() if one.id == "few steps")
    read_answer(study.folder, claim)  # as the summary does
    study.answer(claim.id, Interval(0.9, 0.8, 1.0, 3), note="under stress")
    if read_kept(study.folder / "notebooks" / f"{NAME}.json") is None:
        study.finish(NAME)


def start(folder: Path) -> multiprocessing.Process:
    process = fork.Process(target=work, args=(folder, folder.with_suffix(".log")))
    process.start()
    return process


def finished(folder: Path) -> bool:
    """Run a study, and return whether it finished."""
    process = start(folder)
    process.join()
    return process.exitcode == 0


def state(folder: Path) -> dict[str, str]:
    """Read all results: name -> content, without the parts that may differ."""
    found = {}
    for kind in ("records", "tables", "measured", "claims", "notebooks"):
        for path in sorted((folder / "tiny" / kind).glob("[!.]*")):
            text = path.read_text(errors="replace")
            if kind in ("records", "notebooks") and path.suffix == ".json":
                data = {name: one for name, one in json.loads(text).items() if name not in CIRCUMSTANCES}
                data["history"] = [row | {"seconds": None} for row in data.get("history", ())]
                text = json.dumps(data | {"finished": None})
            if path.suffix != ".damaged":
                found[f"{kind}/{path.name}"] = text
    return found


def different(folder: Path, reference: dict[str, str]) -> int:
    """Count the results that differ from those of an undisturbed study."""
    mine = state(folder)
    return sum(mine.get(name) != reference.get(name) for name in {*mine, *reference})


def records_of(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "tiny" / "records").glob("[!.]*.json")}


def measured(log: Path) -> list[str]:
    return re.findall("^measured (.*)$", log.read_text() if log.is_file() else "", re.MULTILINE)


def kills(scratch: Path, reference: dict[str, str], seconds: float, n: int) -> dict[str, dict[str, int]]:
    """Kill a study n times, each time at a random moment of an undisturbed study's run time."""
    chance, count, row = random.Random(0), 0, dict.fromkeys(COLUMNS, 0) | {"tries": n}
    while count < n:
        folder, killed = scratch / f"killed-{count}", 0
        while True:
            before, earlier = records_of(folder), len(measured(folder.with_suffix(".log")))
            process = start(folder)
            process.join(chance.uniform(0, seconds) if count < n else None)
            ended = process.exitcode is not None
            if not ended:
                process.kill()
                process.join()
                count, killed = count + 1, killed + 1
            row["lost"] += len(before - records_of(folder))
            row["repeated"] += len(before & {*measured(folder.with_suffix(".log"))[earlier:]})
            if ended:
                break
        row["survived"] += killed if process.exitcode == 0 else 0
        row["bytes_different"] += different(folder, reference)
    return {"kills": row}


def hurt(path: Path, how: int) -> None:
    """Damage a file: truncate it to one half, empty it, or change its middle."""
    content = path.read_bytes()
    middle = max(len(content) // 2, 1)
    changed = content.translate(bytes.maketrans(b"123456789", b"234567891"))
    if path.suffix in (".safetensors", ".pt", ".bin"):
        changed = content[:-64] + bytes(byte ^ 85 for byte in content[-64:])
    path.write_bytes([content[:middle], b"", changed][how % 3])


def damage(scratch: Path, whole: Path, reference: dict[str, str], n: int) -> dict[str, dict[str, int]]:
    """Damage the files of each kind in n ways, each in a copy of the results of a finished study."""
    rows = {}
    for kind, place in KINDS.items():
        row = rows[f"damage: {kind}"] = dict.fromkeys(COLUMNS, 0) | {"tries": n}
        for how in range(n):
            folder = scratch / f"{kind}-{how}"
            if kind == "checkpoints":
                trained_half(folder)
            else:
                shutil.copytree(whole, folder)
            if kind == "adapters":
                (folder / "tiny" / "records" / f"{AGAIN.key}.json").unlink()
            files = sorted((folder / "tiny").glob(place), key=lambda path: -path.stat().st_size)
            for path in files if kind != "checkpoints" else files[how % 3 : how % 3 + 1]:
                hurt(path, how)
            ended = finished(folder)
            said = folder.with_suffix(".log").read_text()
            folders = {path.parent.name for path in files} if kind in ("checkpoints", "adapters") else set()
            named = any(name in said for name in {path.name for path in files} | folders)
            while not ended and (path := next((one for one in files if one.name in said), None)):
                path.unlink()  # follow the advice of the error message
                files.remove(path)
                ended, said = finished(folder), folder.with_suffix(".log").read_text()
            wrong = different(folder, reference)
            row["survived"] += ended and not wrong
            row["bytes_different"] += wrong
            row["in_silence"] += ended and wrong > 0 and not named
            row["lost"] += len({one.key for one in WANTED} - records_of(folder))
    return rows


def trained_half(folder: Path) -> None:
    """Make the results of a study that was killed during a training, after its first checkpoint."""
    process = start(folder)
    while process.exitcode is None and not list(folder.glob("tiny/cache/recovery-*/checkpoint-2/trainer*")):
        time.sleep(0.005)
    process.kill()
    process.join()


def together(scratch: Path, reference: dict[str, str]) -> dict[str, dict[str, int]]:
    """Run two studies at once."""
    folder = scratch / "together"
    both = [start(folder) for _ in range(2)]
    for process in both:
        process.join()
    row = {"tries": 2, "survived": sum(process.exitcode == 0 for process in both)}
    row["repeated"] = len(measured(folder.with_suffix(".log"))) - len(WANTED)
    return {"two at once": row | {"bytes_different": different(folder, reference)}}


def signals(scratch: Path) -> dict[str, dict[str, int]]:
    """Send SIGTERM to each process of a study; survived: it said how to continue, with exit code 143."""
    code = (
        "import sys, tasks; tasks._environment = lambda: sys.executable; sys.exit(tasks.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "study", "--profile", "tiny", "--only", "04"]
    words = {
        "tasks.py": "-c",
        "runner": "study.notebooks",
        "kernel": "ipykernel_launcher",
    }
    rows, pipes = {}, {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    for who, word in words.items():
        environment = os.environ | {"PRUNER_LIB_RESULTS": str(scratch / who), "PYTHONPATH": str(ROOT)}
        study = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        while "ipykernel_launcher" not in (lines := lines_of(study.pid)) and study.poll() is None:
            time.sleep(0.1)
        time.sleep(3)
        lines = lines_of(study.pid, processes := {})
        target = next(one for one, line in processes.items() if word in line)
        target.terminate()
        said = study.communicate()[1]
        alive = psutil.wait_procs(list(processes), 10)[1]
        for one in alive:
            one.kill()
        fine = study.returncode == 143 and "run the same command again" in said and bool(lines)
        rows[f"SIGTERM: {who}"] = {"tries": 1, "survived": int(fine), "left": len(alive)}
    return rows


def lines_of(pid: int, found: dict[psutil.Process, str] | None = None) -> str:
    """Return the command lines of a process and its descendants; fill `found` with both."""
    found = {} if found is None else found
    me = psutil.Process(pid)
    for one in [me, *me.children(recursive=True)]:
        try:
            found[one] = " ".join(one.cmdline())
        except psutil.Error:
            continue
    return "\n".join(found.values())


def attacks(scratch: Path) -> dict[str, dict[str, int]]:
    """Run the tests that load model folders that contain code."""
    report = scratch / "attacks.txt"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/library/test_remote_code.py",
        "-k",
        "trusted",
        "-rA",
    ]
    with report.open("w") as out:
        subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=False)
    passed, failed = (
        len(re.findall(f"^{word} ", report.read_text(), re.MULTILINE)) for word in ("PASSED", "FAILED")
    )
    return {"attacks": {"tries": passed + failed, "survived": passed, "code_run": failed}}


PARTS = ("kills", "damage", "together", "signals", "attacks")


def main(words: list[str] | None = None) -> int:
    """Print the table; the exit code is 0 if nothing was lost, used in silence, run or left."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stress")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--damages", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args(words)
    if strange := set(options.only.split(",")) - {*PARTS}:
        parser.error(f"there is no part {', '.join(strange)}; there are {', '.join(PARTS)}")
    begin, rows = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        start_s = time.monotonic()
        assert finished(scratch / "whole"), (scratch / "whole.log").read_text()
        seconds, reference = time.monotonic() - start_s, state(scratch / "whole")
        parts = {
            "kills": lambda: kills(scratch, reference, seconds, options.kills),
            "damage": lambda: damage(scratch, scratch / "whole", reference, options.damages),
            "together": lambda: together(scratch, reference),
            "signals": lambda: signals(scratch),
            "attacks": lambda: attacks(scratch),
        }
        for name in options.only.split(","):
            rows |= parts[name]()
            print(f"{name}: done after {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=COLUMNS).fillna(0).astype(int)
    print(frame.to_string())
    bad = frame[["lost", "repeated", "bytes_different", "in_silence", "code_run", "left"]].to_numpy().sum()
    return int(bad > 0 or (frame.survived < frame.tries).any())


if __name__ == "__main__":
    sys.exit(main())
