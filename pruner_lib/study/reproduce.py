"""Run a recorded experiment again from scratch, and compare the plan, the metrics item by item, the history.

    python tasks.py reproduce results/quick/records/0123456789ab.json

With the same versions, kind of machine and number of threads, all values must be equal. Otherwise numbers may
have a relative difference of up to `NEAR`, since sums run in another order; everything else must be equal.
When, where and how fast a record was made is not compared (`CIRCUMSTANCES`).
"""

import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pruner_lib.study.cache import inputs_hash
from pruner_lib.study.records import Record, read_record
from pruner_lib.study.results import results_root
from pruner_lib.study.run import Study

CIRCUMSTANCES = {"seconds", "peak_memory_mb", "machine", "versions", "git_revision", "created", "digest"}
KIND = ("device", "device_name", "threads", "system")  # what makes two machines of the same kind
NEAR = 1e-3
SHOWN = 20  # other differing values that the table shows


def find_record(name: str) -> Path:
    """Find a record by its path, or by its key in the results of any profile.

    Raises:  ValueError: there is none, or several.
    """
    if Path(name).is_file():
        return Path(name).resolve()
    found = sorted(results_root().glob(f"*/records/{Path(name).stem}.json"))
    if len(found) != 1:
        count = f"{len(found)} records in {results_root()} have the name {name!r}, expected 1"
        raise ValueError(f"{count}; give a path, such as results/quick/records/0123456789ab.json")
    return found[0]


def made_again(path: Path) -> tuple[Record, Record]:
    """Read a record, and run its experiment in a temporary folder of results, where nothing is cached.

    Args:    path: in the folder of a profile, whose dtype is used.
    Returns: the old and the new record.
    Raises:  ValueError: not a record, an unknown profile, or local models or data have changed.
    """
    old = read_record(path)
    now, before = inputs_hash(old.experiment), old.machine.get("inputs_hash")
    if now != before:
        change = f"the local models or data of {path.name} have changed (hash {before}, now {now})"
        raise ValueError(f"{change}; restore them")
    with tempfile.TemporaryDirectory() as folder:
        return old, Study(path.parents[1].name, folder).run(old.experiment)


def compared(old: Record, new: Record) -> pd.DataFrame:
    """Compare two records of the same experiment, value by value.

    Returns: one row per value: columns item, old, new, difference (relative; infinite if not numbers).
    """
    before, after = (dict(_leaves(asdict(replace(record, reused=False)))) for record in (old, new))
    rows = [(item, before.get(item), after.get(item)) for item in before | after]
    frame = pd.DataFrame(rows, columns=["item", "old", "new"], dtype=object)
    return frame.assign(difference=[_difference(*row[1:]) for row in rows])


def tolerance(old: Record, new: Record) -> float:
    """Return the relative difference that is allowed: 0, or `NEAR` if machines or versions differ."""
    same = all(old.machine.get(name) == new.machine.get(name) for name in KIND)
    return 0.0 if same and old.versions == new.versions else NEAR


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the (path, value) of each leaf of nested data, except the circumstances."""
    if isinstance(data, dict | list | tuple):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            if key not in CIRCUMSTANCES:
                yield from _leaves(value, f"{name} {key}".strip())
    else:
        yield name, data


def _difference(old: Any, new: Any) -> float:
    if old == new or (old != old and new != new):
        return 0.0
    are_numbers = all(isinstance(value, int | float) and value == value for value in (old, new))
    return abs(new / old - 1) if are_numbers and old else math.inf


def main(words: list[str] | None = None) -> int:
    """Print the comparison and return the exit code: 0 if equal, 1 if values differ, 2 for bad input."""
    words = sys.argv[1:] if words is None else words
    try:
        if len(words) != 1:
            raise ValueError(f"got {words}; give the path or the key of one record")
        old, new = made_again(find_record(words[0]))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    frame, allowed = compared(old, new), tolerance(old, new)
    value = frame.item.str.contains(r"^metrics \S+ value$")
    differing = frame[~value & (frame.difference > 0)]
    print(pd.concat([frame[value], differing.head(SHOWN)]).to_string(index=False))
    print(f"{len(differing)} other values differ" if len(differing) > SHOWN else "")
    far = int((frame.difference > allowed).sum())
    machine = "another machine or other versions" if allowed else "the same kind of machine and versions"
    count = f"{far} of {len(frame)} values differ" if far else "no value differs"
    print(f"{count} by more than the relative difference {allowed:g}, which is allowed for {machine}")
    return int(bool(far))


if __name__ == "__main__":
    sys.exit(main())
