"""Records: one line of JSON for every finished cell, kept so that a study can go on.

A study's directory holds `study.json` (its settings) and `records.jsonl` (one cell a
line, in the order in which they finished). Lines are only ever appended. A last line that
was cut by a crash is dropped when the file is read, and its cell is run again; any other
damage is an error that leaves the file alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tune_ext.benchmark.study import Study
from tune_ext.errors import InvalidValueError, StateError

__all__ = ["CellRecord", "History", "RecordStore", "anytime", "best_trial", "provenance"]

SCHEMA = "tune-ext.cell"
VERSION = 1


@dataclass
class History:
    """Every training epoch of a cell's search, in the order in which it was trained.

    The columns have one entry an epoch; `configs[i]` is the configuration of trial i,
    numbered in the order in which the trials first reported.
    """

    configs: list[dict[str, Any]] = field(default_factory=list)
    trial: list[int] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    validation_error: list[float | None] = field(default_factory=list)
    validation_loss: list[float | None] = field(default_factory=list)
    response_mean: list[float | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.trial)

    def add(
        self, trial_id: str, config: Mapping[str, Any], result: Mapping[str, Any], seconds: float
    ) -> None:
        """Add one epoch: `result` has epoch and whatever metrics there are.

        A trial's configuration is that of its last epoch: one that finds its own learning rate
        tries several.
        """
        if trial_id not in self._numbers:
            self._numbers[trial_id] = len(self.configs)
            self.configs.append({})
        self.configs[self._numbers[trial_id]] = {k: _plain(v) for k, v in config.items()}
        self.trial.append(self._numbers[trial_id])
        self.epoch.append(int(result["epoch"]))
        self.validation_error.append(_finite(result.get("validation_error")))
        self.validation_loss.append(_finite(result.get("validation_loss")))
        self.response_mean.append(_finite(result.get("response_mean")))
        self.seconds.append(round(float(seconds), 3))

    def trials(self) -> list[dict[str, Any]]:
        """One summary a trial: its configuration and its last epoch."""
        last = {trial: row for row, trial in enumerate(self.trial)}
        return [
            {
                "trial": trial,
                "config": self.configs[trial],
                "epochs": self.epoch[row],
                "validation_error": self.validation_error[row],
                "validation_loss": self.validation_loss[row],
                "response_mean": self.response_mean[row],
            }
            for trial, row in sorted(last.items())
        ]

    def to_json(self) -> dict[str, Any]:
        """The columns as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type] # anything that is a number will do
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    """A numpy scalar as Python's own number."""
    return value.item() if hasattr(value, "item") else value


def best_trial(history: History) -> dict[str, Any] | None:
    """The trial that a validation-based method recommends, or None.

    The rule, the same for every method that does not name an answer of its own: the
    lowest validation error at the last epoch that a trial reached, over all trials however
    long (what Ray's `get_best_result(scope="last")` does). Ties go to the trial that was
    trained longer, then to the lower validation loss, then to the earlier trial. A trial
    whose last validation error is missing, NaN or infinite is never chosen.
    """
    finite = [t for t in history.trials() if t["validation_error"] is not None]
    return min(finite, key=_rank, default=None)


def _rank(trial: dict[str, Any]) -> tuple[float, int, float, int]:
    loss = trial["validation_loss"]
    return (
        trial["validation_error"],
        -trial["epochs"],
        math.inf if loss is None else loss,
        trial["trial"],
    )


def anytime(history: History) -> list[tuple[int, float]]:
    """Where the best validation error so far improved: (epochs used, error)."""
    curve: list[tuple[int, float]] = []
    for used, error in enumerate(history.validation_error, start=1):
        if error is not None and (not curve or error < curve[-1][1]):
            curve.append((used, error))
    return curve


@dataclass(frozen=True)
class CellRecord:
    """What a finished cell leaves behind.

    `failures` is empty for a cell in which everything went well; a cell with failures may
    still have a recommendation and test results, and says in `failures` what went wrong.

    Args:
        task: Name and options.
        method: The method's name.
        seed: The search seed.
        budget: Epochs that the search was allowed.
        epochs_used: Epochs that were trained in the search, every one counted.
        recommendation: `config`, `source` ("validation", "method" or "default") and, for
            "validation", the trial.
        tests: One entry a final training: its seed, test error, test loss and so on.
        failures: Reasons, in words.
        trials: Summaries of the search's trials.
        history: Columns, one entry a trained epoch.
        anytime: Points at which the best validation error improved.
        search_seconds: Wall-clock of the search.
        evaluation_seconds: Wall-clock of the final trainings.
        details: What the method itself has to tell.
        provenance: Versions, hardware, git revision, times.
    """

    task: dict[str, Any]
    method: str
    seed: int
    budget: int
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

    @property
    def key(self) -> tuple[str, str, int]:
        """The cell's identity, as `Cell.key`."""
        return (self.task["name"], self.method, self.seed)

    @property
    def test_error(self) -> float | None:
        """Mean test error over the final trainings; one that diverged counts as 1.

        None when the recommendation could not be evaluated at all.
        """
        if not self.tests:
            return None
        errors = [t.get("test_error") for t in self.tests]
        return sum(1.0 if e is None else e for e in errors) / len(errors)

    def to_line(self) -> str:
        """The record as one line of strict JSON."""
        data = {"schema": SCHEMA, "version": VERSION, **asdict(self)}
        return json.dumps(_strict(data), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> CellRecord:
        """Parse what `to_line` wrote.

        Raises:
            StateError: It is not a record, or one of another version.
        """
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise StateError(f"not JSON: {error}") from None
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise StateError("not a record of a comparison")
        version = data.pop("version", None)
        if version != VERSION:
            raise StateError(f"record version {version!r}; this tune_ext reads version {VERSION}")
        try:
            record = cls(**data)
        except TypeError as error:
            raise StateError(f"not a complete record: {error}") from None
        return record


def _strict(value: Any) -> Any:
    """Plain data in which NaN and infinities are None."""
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    value = _plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class RecordStore:
    """A study's directory.

    Args:
        directory: Created when it does not exist.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
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
        now = _strict(study.settings())
        if self.study_path.exists():
            before = self.load_settings()["settings"]
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
        temporary.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.study_path)
        return self.load(repair=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process, so that two runs cannot write one file.

        Raises:
            StateError: Another process holds it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
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
            data = json.loads(self.study_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StateError(
                f"{self.directory} is not the directory of a comparison: it has no study.json"
            ) from None
        except json.JSONDecodeError as error:
            raise StateError(f"{self.study_path} is damaged: {error}") from None
        if not isinstance(data, dict) or data.get("version") != VERSION or "settings" not in data:
            raise StateError(f"{self.study_path} is not a study of version {VERSION}")
        return data

    def load(self, *, repair: bool = False) -> list[CellRecord]:
        """Every whole record; the last one of a cell counts.

        Args:
            repair: Cut a half-written last line off the file.
        """
        if not self.path.exists():
            return []
        raw = self.path.read_bytes()
        whole, _, rest = raw.rpartition(b"\n")
        if rest and repair:
            with self.path.open("r+b") as file:
                file.truncate(len(raw) - len(rest))
        records: dict[tuple[str, str, int], CellRecord] = {}
        for number, line in enumerate(whole.decode("utf-8", "replace").splitlines(), start=1):
            try:
                record = CellRecord.from_line(line)
            except StateError as error:
                raise StateError(f"{self.path}, line {number}: {error}") from None
            records[record.key] = record
        return list(records.values())

    def append(self, record: CellRecord) -> None:
        """Write one record and wait until it is on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(record.to_line() + "\n")
            file.flush()
            os.fsync(file.fileno())


def provenance() -> dict[str, Any]:
    """Versions, hardware, git revision and the time, for a record."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "git": _git_revision(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in ("tune-ext", "ray", "torch", "numpy", "ConfigSpace", "hpbandster", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _git_revision() -> str | None:
    """The revision of the source tree that this package is imported from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
