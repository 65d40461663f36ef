"""Make a record again from nothing, and compare: plan, every metric with each of its windows, and history.

    python tasks.py reproduce results/quick/records/0123456789ab.json

Made by the same versions on the same kind of machine with as many threads, all of it must be equal. Elsewhere
sums run in another order: numbers may then differ by `NEAR`, relative to the old ones, and nothing else may.
When it was made, how long it took and where never counts (`CIRCUMSTANCES`).
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
KIND = ("device", "device_name", "threads", "system")  # of a machine
NEAR = 1e-3
SHOWN = 20  # rows of the table beside the metrics'


def find_record(name: str) -> Path:
    """Find a record by its path, or by its key in the results of any profile.

    Raises:  ValueError: there is none, or several.
    """
    if Path(name).is_file():
        return Path(name).resolve()
    found = sorted(results_root().glob(f"*/records/{Path(name).stem}.json"))
    if len(found) != 1:
        said = f"{name!r} names {len(found)} records below {results_root()}, wanted one"
        raise ValueError(f"{said}; give its path, as results/quick/records/0123456789ab.json")
    return found[0]


def made_again(path: Path) -> tuple[Record, Record]:
    """Read a record, and measure its experiment in a temporary folder of results, where nothing is cached.

    Args:    path: below the folder of a profile, whose type of weights it is made with.
    Returns: the old and the new one.
    Raises:  ValueError: no record, no such profile, or models or data of the user's own have changed.
    """
    old = read_record(path)
    there, before = inputs_hash(old.experiment), old.machine.get("inputs_hash")
    if there != before:
        said = f"{path.name} was made from other files of your own ({before}, now {there})"
        raise ValueError(f"{said}; put back the models and data that it read")
    with tempfile.TemporaryDirectory() as folder:
        return old, Study(path.parents[1].name, folder).run(old.experiment)


def compared(old: Record, new: Record) -> pd.DataFrame:
    """Compare all that two records say of the same experiment.

    Returns: a row a value: columns item, old, new, difference (relative to the old number, else infinite).
    """
    one, other = (dict(_leaves(asdict(replace(record, reused=False)))) for record in (old, new))
    rows = [(item, one.get(item), other.get(item)) for item in one | other]
    frame = pd.DataFrame(rows, columns=["item", "old", "new"], dtype=object)
    return frame.assign(difference=[_difference(*row[1:]) for row in rows])


def tolerance(old: Record, new: Record) -> float:
    """Give the relative difference that two records may have: none, or `NEAR` where the machines differ."""
    same = all(old.machine.get(name) == new.machine.get(name) for name in KIND)
    return 0.0 if same and old.versions == new.versions else NEAR


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Walk nested data: (place, value) of all that holds nothing else, but the circumstances."""
    if isinstance(data, dict | list | tuple):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            if key not in CIRCUMSTANCES:
                yield from _leaves(value, f"{name} {key}".strip())
    else:
        yield name, data


def _difference(old: Any, new: Any) -> float:
    if old == new or (old != old and new != new):
        return 0.0
    are_numbers = all(isinstance(one, int | float) and one == one for one in (old, new))
    return abs(new / old - 1) if are_numbers and old else math.inf


def main(words: list[str] | None = None) -> int:
    """Print the table; give the exit code: 0 the same, 1 it differs, 2 bad input."""
    words = sys.argv[1:] if words is None else words
    try:
        if len(words) != 1:
            raise ValueError(f"got {words}, wanted the path of one record, or its key")
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
    why = "another kind of machine or other versions" if allowed else "the same kind of machine and versions"
    said = f"{far} of {len(frame)} values differ by more than" if far else "no value differs by more than"
    print(f"{said} {allowed:g} (relative), which is allowed on {why}")
    return int(bool(far))


if __name__ == "__main__":
    sys.exit(main())
