"""The results of an experiment: JSON on disk, and a tidy table that refuses metrics of mixed protocols."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
from pydantic import PlainValidator

from pruner_lib.files import plain, read_json, set_aside, write_json
from pruner_lib.study.settings import DATA_FREE, FORMAT, Experiment, from_plain, settings_key

KEPT, FILE = "kept", "file"  # keys in a kept file: data that are not a dictionary, and the file's own name
# perplexity: of texts; the others: of tasks, p_right being the right answer's probability among the choices
KINDS = ("perplexity", "accuracy", "p_right", "bits_per_byte")


class MetricName(NamedTuple):
    """The name of a metric: what was measured on which data; `str(name)` is its form in files."""

    kind: str  # one of KINDS
    dataset: str  # a text or a task; "mean": the mean of all tasks
    length: int | None = None  # tokens per window, for perplexity

    def __str__(self) -> str:
        return f"{self.kind}/{self.dataset}" + ("" if self.length is None else f"@{self.length}")

    @classmethod
    def parse(cls, text: str) -> "MetricName":
        """Parse the form in files: "perplexity/wiki@128", "accuracy/boolq", "p_right/boolq".

        Raises:  ValueError: the text is not the name of a metric.
        """
        if match := re.fullmatch("perplexity/(.+)@([0-9]+)", text):
            return cls("perplexity", match[1], int(match[2]))
        if match := re.fullmatch(f"({'|'.join(KINDS[1:])})/(.+)", text):
            return cls(match[1], match[2])
        raise ValueError(f"{text!r} names no metric; write it as 'perplexity/wiki@128' or 'accuracy/boolq'")


MEAN = MetricName("accuracy", "mean")  # all tasks have the same weight, as in the paper's "Average"


@dataclass(frozen=True)
class Metric:
    """One measured number."""

    value: float  # perplexity, accuracy or probability in [0, 1], or bits
    stderr: float | None = None  # the standard error
    n: int | None = None  # number of windows or questions
    protocol: dict[str, Any] = field(default_factory=dict)  # values are comparable only if these are equal
    values: tuple[float, ...] = ()  # per window the mean NLL; per question 0 or 1, probability or bits


Metrics = dict[Annotated[MetricName, PlainValidator(MetricName.parse)], Metric]


@dataclass(frozen=True)
class Record:
    """The results of one experiment, and how they were made."""

    experiment: Experiment
    plan: dict[str, Any]  # parameters, sparsity and, for each axis, [groups kept, all groups]
    metrics: Metrics
    history: tuple[dict[str, Any], ...] = ()  # of the recovery, one entry per logged step
    seconds: dict[str, float] = field(default_factory=dict)  # per stage that ran
    peak_memory_mb: float | None = None  # highest resident memory, MiB
    machine: dict[str, Any] = field(default_factory=dict)  # where it ran
    versions: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    created: str = ""
    reused: bool = False  # read from disk, not measured in this run

    @property
    def key(self) -> str:
        """The hash of the settings that names this record."""
        return self.experiment.key

    @property
    def perplexity(self) -> dict[str, float]:
        """Text name -> perplexity."""
        return self._values("perplexity")

    @property
    def accuracy(self) -> dict[str, float]:
        """Task name -> accuracy in [0, 1]."""
        return self._values("accuracy")

    def _values(self, kind: str) -> dict[str, float]:
        return {name.dataset: metric.value for name, metric in self.metrics.items() if name.kind == kind}

    def __str__(self) -> str:
        model = f"{self.experiment.model} {self.experiment.method} {self.experiment.stage}"
        head = f"{self.key} {model}, {self.plan.get('sparsity', 0):.1%} cut"
        numbers = [f"{name} {value:.2f}" for name, value in self.perplexity.items()]
        numbers += [f"{name} {value:.1%}" for name, value in self.accuracy.items()]
        return ", ".join([head, *numbers]) + (" (reused)" if self.reused else "")


def record_path(directory: Path, key: str) -> Path:
    """Return the path of the record `key` in a profile's results directory."""
    return directory / "records" / f"{key}.json"


def write_record(record: Record, directory: Path) -> Path:
    """Write a record as JSON in one step, in a profile's results directory."""
    data = asdict(replace(record, experiment=record.experiment.canonical()))
    del data["reused"]
    return _write(record_path(directory, record.key), {"format": FORMAT, "key": record.key} | data)


def read_record(path: Path) -> Record:
    """Read a record from disk.

    Raises:  ValueError: the file is damaged, edited or in another format; the message says what to do.
    """
    data = read_json(path)
    try:
        record = replace(from_plain(Record, data), reused=True)
        edited = _was_edited(data)
    except ValueError as error:
        raise ValueError(f"{path} is not a valid record ({error}); delete it and run again") from error
    if data.get("format") != FORMAT or data.get("key") != path.stem or record.key != path.stem:
        raise ValueError(f"{path} does not hold the settings of its name; delete it and run again")
    if edited:
        raise ValueError(f"{path} was changed after it was written; restore it, or delete it and run again")
    return record


def write_kept(path: Path, data: Any) -> Path:
    """Write plain data as JSON in one step, together with the file's name and a digest."""
    return _write(path, (data if isinstance(data, dict) else {KEPT: data}) | {FILE: path.name})


def _write(path: Path, data: dict[str, Any]) -> Path:
    data = plain(data)
    return write_json(path, data | {"digest": settings_key(data)})


def read_kept(path: Path) -> Any:
    """Read what `write_kept` wrote; None if it is missing.

    A damaged, edited or renamed file counts as missing: it is renamed to NAME.damaged, with a warning.
    """
    if not path.is_file():
        return None
    try:
        data = read_json(path)
        if not isinstance(data, dict) or _was_edited(data):
            raise ValueError("it was changed after it was written")
        if (name := data.pop(FILE, path.name)) != path.name:  # files of earlier versions hold no name
            raise ValueError(f"it was written as {name}")
        return data[KEPT] if data.keys() == {KEPT} else data
    except ValueError as error:
        set_aside(path, error)
        return None


def _was_edited(data: dict[str, Any]) -> bool:
    """Remove the digest from the data, and say whether it is missing or wrong."""
    return data.pop("digest", None) != settings_key(data)


def load_records(directory: Path) -> list[Record]:
    """Read all records in a profile's results directory, or in its `records`, in the order of their keys."""
    paths = [*directory.glob("records/[!.]*.json")] or directory.glob("[!.]*.json")
    return [read_record(path) for path in sorted(paths)]


def records_frame(records: Iterable[Record], *, allow: Sequence[str] = ()) -> pd.DataFrame:
    """Convert records to a tidy table with one row for each metric of each record.

    Args:    allow: protocol fields that may differ between the rows of one metric; each becomes a column.
    Returns: columns for the settings (`calibration_length`, ...), `method`, `stage`, `parameters`,
             `sparsity`, `metric` (one of `KINDS`), `dataset`, `length` (tokens per window), `value`,
             `stderr`, `n`.
    Raises:  ValueError: two rows of a metric were measured by different protocols (the field is named).
    """
    records = list({record.key: record for record in records}.values())
    refuse_mixed_protocols(records, allow=allow)
    return pd.DataFrame(_row(record, name, allow) for record in records for name in record.metrics)


def refuse_mixed_protocols(records: Iterable[Record], *, allow: Sequence[str] = ()) -> None:
    """Check that each metric was measured by the same protocol in all records.

    Raises:  ValueError: the message names all fields that differ, and for one of them metric and records.
    """
    first: dict[MetricName, tuple[str, dict[str, Any]]] = {}
    different: dict[str, str] = {}
    for record in records:
        for name, metric in record.metrics.items():
            first_key, protocol = first.setdefault(name, (record.key, metric.protocol))
            for item in sorted((protocol.keys() | metric.protocol.keys()) - set(allow)):
                value, other = metric.protocol.get(item), protocol.get(item)
                if value != other:
                    both = f"{item} is {value!r} in record {record.key}, but {other!r} in record {first_key}"
                    different.setdefault(item, f"{name} can't be compared: {both}")
    if different:
        fields = (*different,)
        raise ValueError(f"{different[fields[0]]}; measure all alike, or pass allow={fields} to show them")


def _row(record: Record, name: MetricName, allow: Sequence[str]) -> dict[str, Any]:
    experiment, metric = record.experiment, record.metrics[name]
    settings = experiment.settings()
    row = {"key": record.key, "method": experiment.method, "stage": experiment.stage}
    for part in ("calibration", "recovery"):
        row |= {f"{part}_{item}": value for item, value in (settings.pop(part) or {}).items()}
    if experiment.ratio == 0 or experiment.criterion in DATA_FREE:  # no calibration samples were used
        row |= {column: None for column in row if column.startswith("calibration_")}
    del settings["evaluation"]
    size = {column: record.plan.get(column) for column in ("parameters", "sparsity")}
    row |= size | {"metric": name.kind, "dataset": name.dataset, "length": name.length}
    row |= {"value": metric.value, "stderr": metric.stderr, "n": metric.n}
    return settings | row | {item: metric.protocol.get(item) for item in allow}


def metrics_from(values: dict[str, Any]) -> Metrics:
    """Rebuild metrics from their JSON form."""
    return from_plain(Metrics, values)
