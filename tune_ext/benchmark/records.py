"""Records: one line of JSON for every finished cell, kept so that a study can go on.

A study's directory holds `study.json` (its settings) and `records.jsonl` (one cell a
line, in the order in which they finished; versions, hardware and revision stand in lines of
their own, once, before the first record that refers to them). Lines are only ever appended,
and each ends with a checksum. A last line that was cut by a crash is dropped when the file is
read, and its cell is run again; any other damage is an error that leaves the file alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import lzma
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from tune_ext._json import loads
from tune_ext._sealed import is_sealed, seal, unseal
from tune_ext._text import visible
from tune_ext.benchmark._lines import check_fields, pack, parse, strict, to_text, unpack
from tune_ext.benchmark.history import History, Incumbents, anytime, best_trial
from tune_ext.benchmark.provenance import identity, provenance
from tune_ext.benchmark.study import Study
from tune_ext.errors import InvalidValueError, StateError

__all__ = ["CellRecord", "History", "RecordStore", "anytime", "best_trial", "provenance"]

SCHEMA = "tune-ext.cell"
PROVENANCE_SCHEMA = "tune-ext.provenance"
VERSION = 3
_READ = (1, 2, 3)
_SEALED = 3
"""From this version on a line has to end with its checksum."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellRecord:
    """What a finished cell leaves behind.

    `failures` is empty for a cell in which everything went well; a cell with failures may
    still have a recommendation and test results, and says in `failures` what went wrong.

    Args:
        task: Name and options.
        method: The method's name.
        seed: The search seed.
        budget: What the search was allowed, in `unit`.
        epochs_used: Epochs that were trained in the search, every one counted.
        recommendation: `config`, `source` ("validation", "method" or "default"), for
            "validation" the trial, and for a method that changes configurations in
            mid-training their `schedule`: (epoch, config) pairs.
        tests: One entry a final training: its seed, test error, test loss and so on.
        failures: Reasons, in words.
        trials: Summaries of the search's trials.
        history: Columns, one entry a trained epoch; empty for a simulated task.
        anytime: Points at which the best validation error improved: (epochs used, error).
        search_seconds: Wall-clock of the search.
        evaluation_seconds: Wall-clock of the final trainings.
        details: What the method itself has to tell.
        provenance: Versions, hardware, git revision, times.
        label: What the study calls the task; "" stands for the task's name.
        unit: Of the budget: "epochs", "trainings", "evaluations" or "seconds".
        max_epochs: The task's full length; 0 in records of version 1.
        workers: How many trials could run at once.
        clock: "wall", or "simulated" for a task whose trainings are looked up.
        incumbents: Points at which the configuration changed that would be recommended:
            [used, in `unit`; seconds on `clock`; error]. The error is the true one where the
            task knows it, otherwise the validation error at the end of its training so far.
        makespan: Length of the search on `clock`, in seconds; None where it is not known.
        busy_seconds: Seconds that workers spent training, all together, as a budget in seconds
            counts them: of the processor where that is what trains; None if not known.
        cpu_seconds: The processor's part of them, which other work on the machine does not
            prolong; None if not known.
        worst_error: What an evaluation that diverged counts as; None where there is no worst.
        percent: Whether errors are fractions that people read as percentages.
        error_name: What the error is, in words.
        regret_range: True errors of the best and of the median configuration, if known.
    """

    task: dict[str, Any]
    method: str
    seed: int
    budget: float
    epochs_used: int
    recommendation: dict[str, Any]
    tests: list[dict[str, Any]]
    failures: list[str]
    trials: list[dict[str, Any]]
    history: dict[str, Any]
    anytime: list[tuple[int, float]]
    search_seconds: float
    evaluation_seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    unit: str = "epochs"
    max_epochs: int = 0
    workers: int = 1
    clock: str = "wall"
    incumbents: list[list[float]] = field(default_factory=list)
    makespan: float | None = None
    busy_seconds: float | None = None
    worst_error: float | None = 1.0
    percent: bool = True
    error_name: str = "error"
    regret_range: tuple[float, float] | None = None
    cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.task["name"])
        if self.regret_range is not None:
            object.__setattr__(self, "regret_range", tuple(self.regret_range))

    @property
    def key(self) -> tuple[str, str, int]:
        """The cell's identity, as `Cell.key`."""
        return (visible(self.label), self.method, self.seed)

    @property
    def test_error(self) -> float | None:
        """Mean test error over the final trainings; one that diverged counts as the worst.

        None when the recommendation could not be evaluated at all, or diverged in a task
        that knows no worst error.
        """
        errors = [t.get("test_error") for t in self.tests]
        counted = [self.worst_error if e is None else e for e in errors]
        known = [e for e in counted if e is not None]
        return sum(known) / len(known) if known and len(known) == len(counted) else None

    def to_json(self) -> dict[str, Any]:
        """The record as plain data: strict JSON, with its trials in columns."""
        data = {"schema": SCHEMA, "version": VERSION}
        data |= {f.name: getattr(self, f.name) for f in fields(self)}
        data["trials"] = pack(self.trials)
        whole: dict[str, Any] = strict(data)
        return whole

    def to_line(self) -> str:
        """The record as one line of strict JSON."""
        return seal(to_text(self.to_json()))

    @classmethod
    def from_line(
        cls, line: str, known: Mapping[str, Mapping[str, Any]] | None = None
    ) -> CellRecord:
        """Parse what `to_line` wrote.

        Args:
            line: The text.
            known: Provenances by their identity, for a record that refers to one.

        Raises:
            StateError: It is not a record, or one of another version.
        """
        return cls.from_json(_opened(line), known or {})

    @classmethod
    def from_json(cls, data: dict[str, Any], known: Mapping[str, Mapping[str, Any]]) -> CellRecord:
        """See `from_line`; `data` is its parsed JSON."""
        data = dict(data)
        if data.pop("schema", None) != SCHEMA:
            raise StateError("not a record of a comparison")
        version = data.pop("version", None)
        if version not in _READ:
            raise StateError(
                f"record version {version!r}; this tune_ext reads versions 1 to {VERSION}"
            )
        try:
            check_fields(data)
            data["trials"] = unpack(data["trials"])
            data["provenance"] = _resolve(data["provenance"], known)
            if version == 1:
                data["incumbents"] = _incumbents_of(data)
                data["makespan"] = data["search_seconds"]
            record = cls(**data)
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"not a complete record: {error}") from None
        return record


def _resolve(provenance: dict[str, Any], known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A record's provenance in full."""
    if "of" not in provenance:
        return provenance
    name = provenance["of"]
    if name not in known:
        raise StateError(f"it refers to the provenance {name!r}, which no line before it holds")
    return {**known[name], "finished": provenance.get("finished")}


def _incumbents_of(data: Mapping[str, Any]) -> list[list[float]]:
    """What a record of version 1 does not say, from the epochs that it lists."""
    history, seen = data["history"], Incumbents()
    points: list[list[float]] = []
    last: dict[int, float] = {}
    for row, trial in enumerate(history.get("trial", [])):
        error = history["validation_error"][row]
        last[trial] = error
        best = seen.add(trial, history["epoch"][row], error, history["validation_loss"][row])
        if best is not None and (not points or points[-1][2] != last[best]):
            points.append([row + 1, history["seconds"][row], last[best]])
    return points


class RecordStore:
    """A study's directory.

    Args:
        directory: Created when it does not exist.
        sync_every: Seconds between waits for the disk. Every record is handed to the
            operating system at once and survives the end of this process; one that is
            younger than this may not survive the end of the machine.
    """

    def __init__(self, directory: str | Path, *, sync_every: float = 0.0) -> None:
        self.directory = Path(directory)
        self.sync_every = sync_every
        self._file: BinaryIO | Any = None  # without a buffer: what cannot be written is not kept
        self._size = 0
        self._synced = -math.inf
        self._known: set[str] = set()
        self.path = self.directory / "records.jsonl"
        self.study_path = self.directory / "study.json"

    def open(self, study: Study, unavailable: Mapping[str, str] | None = None) -> list[CellRecord]:
        """Begin or go on with `study`; returns what is finished already.

        Args:
            study: Its settings must be those of the records.
            unavailable: Methods and tasks that cannot run here, and why; for the report.

        Raises:
            InvalidValueError: The directory belongs to a study with other settings.
            StateError: The records are damaged before their last line.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        now = strict(study.settings())
        if self.study_path.exists():
            before = {"workers": 1, **self.load_settings()["settings"]}
            changed = [k for k in now if now[k] != before.get(k)]
            if changed:
                told = "; ".join(f"{k} was {before.get(k)!r}, is {now[k]!r}" for k in changed)
                raise InvalidValueError(
                    f"{self.directory} holds records of a study with other settings ({told}). "
                    "Give another directory with --out, or move this one away"
                )
        text = {"schema": "tune-ext.study", "version": VERSION, "title": study.title}
        whole = {**text, "description": study.description, "settings": now}
        whole |= {"methods": list(study.methods), "seeds": list(study.seeds)}
        whole |= {"unavailable": dict(unavailable or {})}
        temporary = self.study_path.with_suffix(".tmp")
        temporary.write_text(seal(json.dumps(whole, indent=2)) + "\n", encoding="utf-8")
        temporary.replace(self.study_path)
        return self.load(repair=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process, so that two runs cannot write one file.

        Raises:
            StateError: Another process holds it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    f"another process is running the comparison in {self.directory}; "
                    "wait for it, or give another directory with --out"
                ) from None
            yield

    def load_settings(self) -> dict[str, Any]:
        """What `study.json` says.

        Raises:
            StateError: There is none, or it is not one of ours.
        """
        try:
            text = self.study_path.read_text(encoding="utf-8")
            data = loads(unseal(text))
            if isinstance(data, dict):
                _check_sealed(text, data)
        except FileNotFoundError:
            raise StateError(
                f"{self.directory} is not the directory of a comparison: it has no study.json"
            ) from None
        except ValueError as error:
            raise StateError(
                f"{self.study_path} is damaged: {error}. The records beside it are not: move it "
                "away, and `tune-ext compare` with the same study writes it again"
            ) from None
        if not isinstance(data, dict) or data.get("version") not in _READ or "settings" not in data:
            raise StateError(f"{self.study_path} is not a study of version 1 to {VERSION}")
        return data

    def load(self, *, repair: bool = False) -> list[CellRecord]:
        """Every whole record; the last one of a cell counts.

        Where there is no records.jsonl, records.jsonl.xz is read: the same lines, packed for
        keeping. A study goes on only from the unpacked file.

        Args:
            repair: Cut a half-written last line off the file.
        """
        if not self.path.exists():
            packed = self.path.with_suffix(".jsonl.xz")
            if not packed.exists():
                return []
            if repair:
                raise StateError(
                    f"{packed} is packed: unpack it (xz -dk) to go on with the study, or give "
                    "another directory with --out"
                )
            raw = _unpack(packed)
        else:
            raw = self.path.read_bytes()
        whole, _, rest = raw.rpartition(b"\n")
        if rest and repair:
            self._cut(len(raw) - len(rest))
            logger.warning(
                "The last line of %s was not finished: it was cut off, and its cell runs again.",
                self.path,
            )
        records: dict[tuple[str, str, int], CellRecord] = {}
        known: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
            try:
                data = _opened(line.decode("utf-8", "replace"))
                if data.get("schema") == PROVENANCE_SCHEMA:
                    known[str(data.get("id"))] = _provenance_of(data)
                    continue
                record = CellRecord.from_json(data, known)
            except StateError as error:
                fix = f"or take the line out (sed -i {number}d) and its cell runs again"
                if PROVENANCE_SCHEMA.encode() in line:
                    fix = "without this line the records that refer to it cannot be read"
                raise StateError(
                    f"{self.path}, line {number}: {error}. Nothing was changed. Put a copy back, "
                    f"as from --storage; {fix}"
                ) from None
            records[record.key] = record
        self._known = set(known)
        return list(records.values())

    def _cut(self, length: int) -> None:
        self.close()
        with self.path.open("r+b") as file:
            file.truncate(length)

    def append(self, record: CellRecord) -> None:
        """Write one record; see `sync_every` for when it is on the disk.

        Raises:
            OSError: That is not possible now. The file is as it was before, or will be when
                it is opened again.
        """
        name = identity(record.provenance)
        data = record.to_json()
        data["provenance"] = {"of": name, "finished": record.provenance.get("finished")}
        lines = [seal(to_text(data))]
        if name not in self._known:
            what = {"schema": PROVENANCE_SCHEMA, "version": VERSION, "id": name}
            lasting = {k: v for k, v in record.provenance.items() if k != "finished"}
            lines.insert(0, seal(to_text({**what, "known": strict(lasting)})))
        self._write("".join(line + "\n" for line in lines).encode())
        self._known.add(name)

    def _write(self, data: bytes) -> None:
        """Add to the file all of it or nothing."""
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
            self._size = os.fstat(self._file.fileno()).st_size
        if os.fstat(self._file.fileno()).st_size > self._size:  # what could not be taken back
            self._file.truncate(self._size)
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            if time.monotonic() - self._synced >= self.sync_every:
                self._sync()
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(data)

    def _sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Wait until everything is on the disk, and close the file; a later append opens it.

        Raises:
            OSError: The disk says that it could not keep everything.
        """
        try:
            self._sync()
        finally:
            if self._file is not None:
                self._file.close()
            self._file = None

    def to_parquet(self, directory: str | Path) -> list[Path]:
        """Write the records as three tables; see `tune_ext.benchmark.export`.

        Args:
            directory: Where to; created when it does not exist.

        Returns:
            The files: cells, trials, incumbents.

        Raises:
            MissingDependencyError: pyarrow is not installed.
        """
        from tune_ext.benchmark.export import write_parquet

        return write_parquet(self.load(), Path(directory))


def _opened(line: str) -> dict[str, Any]:
    """What a line holds; StateError for one that is damaged."""
    data = parse(unseal(line))
    _check_sealed(line, data)
    return data


def _check_sealed(text: str, data: Mapping[str, Any]) -> None:
    version = data.get("version")
    if isinstance(version, int) and version >= _SEALED and not is_sealed(text):
        raise StateError("it ends without a checksum")


def _provenance_of(data: Mapping[str, Any]) -> dict[str, Any]:
    if data.get("version") not in _READ or not isinstance(data.get("known"), dict):
        raise StateError(f"a provenance that this tune_ext cannot read: {data.get('version')!r}")
    return dict(data["known"])


def _unpack(packed: Path) -> bytes:
    try:
        return lzma.decompress(packed.read_bytes())
    except lzma.LZMAError as error:
        raise StateError(f"{packed} is damaged: {error}") from None
