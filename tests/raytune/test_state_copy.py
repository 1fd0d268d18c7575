"""Ray's state of an experiment is kept whole; one that begins again by mistake is ended."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem
from ray import tune

from tests.raytune.test_restore import Ends, let_ray_end
from tests.raytune.trainables import RATES, Counter, notes, response
from tune_ext import BOHBSearch, HyperBand, repair_experiment
from tune_ext.errors import InvalidTypeError, StateError
from tune_ext.raytune import _state_copy
from tune_ext.raytune._state_copy import FILE_NAME, StateCopy, is_whole

FIRST, SECOND = "2026-01-01_00-00-00", "2026-01-02_00-00-00"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Experiment:
    """Ray's controller, as far as it is looked at, with its two directories."""

    def __init__(self, home: Path, session: str = FIRST, staging: str = "staging") -> None:
        self.stored, self.staged = home / "experiment", home / staging
        self.stored.mkdir(exist_ok=True)
        self.staged.mkdir(exist_ok=True)
        self.resumed = False
        self.session = session
        self._storage = SimpleNamespace(
            storage_filesystem=LocalFileSystem(), experiment_fs_path=str(self.stored)
        )
        self.experiment_state_file_name = f"experiment_state-{session}.json"
        self.experiment_state_path = str(self.staged / self.experiment_state_file_name)

    @property
    def names(self) -> tuple[str, str]:
        return self.experiment_state_file_name, f"search_gen_state-{self.session}.json"

    def save(self, value: int, trials: int = 1) -> None:
        """As Ray saves it, and copies it."""
        state = {"x": value, "trial_data": [["", ""]] * trials}
        contents = json.dumps(state).encode(), pickle.dumps(value)
        for name, data in zip(self.names, contents, strict=True):
            (self.staged / name).write_bytes(data)
            (self.stored / name).write_bytes(data)
            os.utime(self.staged / name, ns=(value, value))  # a clock may be coarse

    def cut(self, kind: int) -> None:
        path = self.stored / self.names[kind]
        path.write_bytes(path.read_bytes()[:-2])

    def values(self) -> tuple[Any, Any]:
        state, search = ((self.stored / name).read_bytes() for name in self.names)
        return json.loads(state)["x"], pickle.loads(search)


@pytest.fixture
def saved(tmp_path: Path) -> Experiment:
    """An experiment that was saved, and kept, once."""
    experiment = Experiment(tmp_path)
    copy = StateCopy()
    copy.step(experiment)
    assert not (experiment.stored / FILE_NAME).exists()
    experiment.save(1)
    copy.step(experiment)
    return experiment


def again(experiment: Experiment, session: str = SECOND, staging: str = "again") -> Experiment:
    """The same, started once more."""
    return Experiment(experiment.stored.parent, session, staging)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_cut_file_is_put_back_and_the_start_that_could_not_read_it_ends(
    saved: Experiment, kind: int
) -> None:
    saved.cut(kind)
    second = again(saved, staging="staging" if kind else "again")  # whatever Ray read is staged
    with pytest.raises(StateError, match=r"begun again(?s:.*)Restore it once more"):
        StateCopy().step(second)
    assert saved.values() == (1, 1)
    second.resumed = True
    StateCopy().step(second)


def test_the_copy_is_as_new_as_the_last_saving(saved: Experiment) -> None:
    clock = Clock()
    copy = StateCopy(clock)
    saved.resumed = True
    for value in (2, 3):
        saved.save(value)
        copy.step(saved)
    saved.cut(0)
    saved.cut(1)
    assert repair_experiment(str(saved.stored)) == sorted(saved.names)
    assert saved.values() == (3, 3)
    assert repair_experiment(saved.stored.as_uri()) == []


def test_keeping_takes_a_twentieth_of_the_time(
    saved: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, kept = Clock(), []

    def write(*arguments: Any) -> None:
        clock.now += 1
        kept.append(clock.now)

    monkeypatch.setattr(_state_copy, "_write", write)
    copy = StateCopy(clock)
    saved.resumed = True
    for value in range(100):
        saved.save(value)
        copy.step(saved)
        clock.now += 1
    assert kept == [1, 21, 41, 61, 81, 101]


def test_what_was_saved_once_is_kept_once(
    saved: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(_state_copy, "_write", lambda *arguments: kept.append(arguments))
    copy = StateCopy(Clock())
    saved.resumed = True
    copy.step(saved)
    copy.step(saved)
    assert len(kept) == 1


def test_a_first_copy_of_a_later_start_that_was_cut_makes_way(saved: Experiment) -> None:
    later = again(saved)
    later.save(2)
    later.cut(0)
    third = again(saved, "2026-01-03_00-00-00", "third")
    with pytest.raises(StateError, match=f"experiment_state-{FIRST}.json, .* are back"):
        StateCopy().step(third)
    there = {path.name for path in saved.stored.iterdir()}
    assert there == {*saved.names, *(f"{name}.cut" for name in later.names), FILE_NAME}
    assert saved.values() == (1, 1)


def test_another_experiment_of_that_name_begins_as_ray_has_it(saved: Experiment) -> None:
    second = again(saved)
    StateCopy().step(second)
    second.save(2)
    assert repair_experiment(str(saved.stored)) == []


def test_without_a_copy_it_is_said_what_can_be_done(saved: Experiment) -> None:
    later = again(saved)
    later.save(2)
    later.cut(0)
    (saved.stored / FILE_NAME).unlink()
    said = f"{later.names[0]} is cut off(?s:.*)no copy(?s:.*)go on from {saved.names[0]}, remove"
    before = {path.name: path.read_bytes() for path in saved.stored.iterdir()}
    for _ in range(2):
        with pytest.raises(StateError, match=said):
            StateCopy().step(again(saved, "2026-01-03_00-00-00", "third"))
    assert before == {path.name: path.read_bytes() for path in saved.stored.iterdir()}


def test_a_restore_that_failed_for_another_reason_is_not_begun_again(saved: Experiment) -> None:
    with pytest.raises(StateError, match=r"overwritten(?s:.*)Failed to restore the run state"):
        StateCopy().step(again(saved, staging="staging"))


def test_a_copy_is_kept_on_local_file_systems_only(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path)
    handler = FSSpecHandler(fsspec.filesystem("file"))
    experiment._storage.storage_filesystem = PyFileSystem(handler)
    experiment.save(1)
    StateCopy().step(experiment)
    assert not (experiment.stored / FILE_NAME).exists()


def test_a_full_disk_ends_nothing(
    saved: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(archive: zipfile.ZipFile, *arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    before = (saved.stored / FILE_NAME).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "write", full)
        clock = Clock()
        copy = StateCopy(clock)
        saved.resumed = True
        saved.save(2)
        for _ in range(9):
            copy.step(saved)
            clock.now += 100
    assert caplog.text.count("No space left") == 1, "it is told for every saving, not every step"
    assert (saved.stored / FILE_NAME).read_bytes() == before
    assert not list(saved.stored.glob("*.tmp"))


def written(change: Callable[[zipfile.ZipFile], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            change(archive)

    return write


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"')), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.unlink(), "there is no copy of its state"),
        (written(lambda z: z.writestr("../x.json", "{}")), "no name of a file of Ray's state"),
        (written(lambda z: z.writestr(f"/a-{FIRST}.json", "{}")), "no name of a file"),
        (written(lambda z: z.writestr(f"a-{FIRST}.json", "{}")), "no state of an experiment"),
        (written(lambda z: None), "no state of an experiment"),
        (
            written(lambda z: z.writestr(f"a-{FIRST}.json", "0" * 9**6, zipfile.ZIP_DEFLATED)),
            "compr",
        ),
        (written(lambda z: z.writestr(f"experiment_state-{FIRST}.json", "{")), "is cut off"),
    ],
)
def test_a_damaged_copy_changes_nothing(saved: Experiment, write: Any, said: str) -> None:
    write(saved.stored / FILE_NAME)
    saved.cut(0)
    before = {path.name: path.read_bytes() for path in saved.stored.iterdir()}
    with pytest.raises(StateError, match=said):
        repair_experiment(str(saved.stored))
    assert before == {path.name: path.read_bytes() for path in saved.stored.iterdir()}


def test_where_nothing_is_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"nowhere.*there is no copy of its state"):
        repair_experiment(str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"file cannot be repaired"):
        repair_experiment(str(tmp_path / "file"))
    with pytest.raises(InvalidTypeError, match="path"):
        repair_experiment(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="filesystem"):
        repair_experiment(tmp_path, "local")  # type: ignore[arg-type]
    for odd in ("nowhere://x", "\0", "s3:///"):
        with pytest.raises(StateError):
            repair_experiment(odd)


def fails(*arguments: Any) -> None:
    raise OSError(5, "Input/output error")


def test_a_state_that_cannot_be_read_or_put_back_is_not_begun_again(
    saved: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(_state_copy, "_read", fails)
        with pytest.raises(StateError, match=r"cannot be read.*Input/output error"):
            StateCopy().step(again(saved))
    saved.cut(0)
    with monkeypatch.context() as patched:
        patched.setattr(_state_copy, "replace_file", fails)
        with pytest.raises(StateError, match=r"is cut off.*Input/output error"):
            StateCopy().step(again(saved, "2026-01-03_00-00-00", "third"))
    assert repair_experiment(saved.stored)


def test_a_listing_that_fails_ends_no_new_experiment(
    saved: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_state_copy, "_names", fails)
    StateCopy().step(again(saved))
    assert "Input/output error" in caplog.text


def test_what_is_staged_of_a_later_start_is_not_read_again(saved: Experiment) -> None:
    """Ray looks into the staging directory of the driver before, and removes nothing from it."""
    later = again(saved, staging="staging")
    later.save(2)
    later.cut(1)
    third = again(saved, "2026-01-03_00-00-00", "staging")
    with pytest.raises(StateError, match="once more"):
        StateCopy().step(third)
    assert {path.name for path in saved.staged.iterdir()} == {*saved.names}


def test_a_file_that_ray_was_about_to_rename_is_no_state(saved: Experiment) -> None:
    (saved.stored / f"tmp-{saved.names[1]}").write_bytes(b"")
    saved.save(5)
    assert repair_experiment(saved.stored) == []
    assert saved.values() == (5, 5)


def test_a_state_of_no_trial_is_none_where_one_of_trials_was_kept(saved: Experiment) -> None:
    later = again(saved)
    later.save(2, trials=0)
    with pytest.raises(StateError, match="once more"):
        StateCopy().step(again(saved, "2026-01-03_00-00-00", "third"))
    assert saved.values() == (1, 1)


def test_a_start_that_ended_before_its_first_trial_is_begun_again(tmp_path: Path) -> None:
    first = Experiment(tmp_path)
    first.save(1, trials=0)
    StateCopy().step(again(first))


def test_one_scheduler_for_two_experiments(saved: Experiment, tmp_path: Path) -> None:
    clock = Clock()
    copy = StateCopy(clock)
    (tmp_path / "other").mkdir()
    other = Experiment(tmp_path / "other")
    for experiment in (saved, other):
        experiment.save(7)
        copy.step(experiment)
    assert (other.stored / FILE_NAME).exists()
    saved.cut(0)
    with pytest.raises(StateError, match="once more"):
        copy.step(again(saved))


def test_a_clock_before_zip_was_made(saved: Experiment) -> None:
    for path in saved.staged.iterdir():
        os.utime(path, (0, 0))
    copy = StateCopy()
    saved.resumed = True
    copy.step(saved)
    saved.cut(0)
    assert repair_experiment(f"{saved.stored}/")


@pytest.mark.parametrize("name", ["experiment_state-a.json", "searcher-state-a.json", "a.pkl"])
def test_every_cut_is_seen(name: str) -> None:
    whole = json.dumps({"a": [1, 2]}).encode() if "json" in name else pickle.dumps({"a": [1, 2]})
    assert is_whole(name, whole)
    assert not any(is_whole(name, whole[:size]) for size in range(len(whole)))


# --- with Ray


SPACE = {"lr": tune.loguniform(1e-6, 1e-2)}


def start(
    home: Path, space: dict[str, Any] | None = None, after: int = 7, restore: bool | None = None
) -> Any:
    tuner = tune.Tuner(
        Counter,
        param_space={"home": str(home)} | ({} if space else SPACE),
        tune_config=tune.TuneConfig(
            search_alg=BOHBSearch(
                space and {**space, "home": str(home)},
                metric="response_mean",
                mode="max",
                seed=0,
                points_to_evaluate=[{"lr": rate} for rate in RATES],
            ),
            scheduler=HyperBand(metric="response_mean", mode="max", max_t=2, reduction_factor=2),
            num_samples=len(RATES),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="experiment", storage_path=str(home), verbose=0, callbacks=[Ends(home, after)]
        ),
    )
    if (home / "ended").exists() if restore is None else restore:
        tuner = tune.Tuner.restore(str(home / "experiment"), trainable=Counter)
    return tuner.fit()


@pytest.mark.parametrize(
    ("space", "said"), [(None, "has no search space.*repair_experiment"), (SPACE, "once more")]
)
def test_a_cut_state_loses_nothing(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Any, said: str
) -> None:
    """Each kind of file in turn: the next start says so, the one after it goes on."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0.05")
    monkeypatch.setattr(_state_copy, "_SHARE", 0.0)
    experiment = tmp_path / "experiment"
    with pytest.raises(Exception, match="the driver ends here"):
        start(tmp_path, space)
    let_ray_end(experiment)
    before = len(notes(tmp_path))
    for kind in ("experiment_state", "search_gen_state", "searcher-state"):
        path = max(experiment.glob(f"{kind}-*.json"))
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        with pytest.raises(Exception, match=said):
            start(tmp_path, space)
        assert len(list(experiment.glob("experiment_state-*.json"))) == 1
        assert bool(repair_experiment(experiment)) == (space is None)
        assert path.read_bytes() == whole
    assert len(notes(tmp_path)) == before, "something was trained again"
    results = start(tmp_path, space)
    assert not results.errors
    assert sorted(r.config["lr"] for r in results) == sorted(RATES)
    assert max(r.metrics["response_mean"] for r in results) == response(min(RATES))


@pytest.mark.parametrize("kind", ["search_gen_state", "searcher-state"])
def test_an_experiment_that_was_restored_before_is_not_begun_again(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Ray saves that it went on; a start that cannot would believe it, end, and save nothing."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0.05")
    monkeypatch.setattr(_state_copy, "_SHARE", 0.0)
    experiment = tmp_path / "experiment"
    for restore in (False, True):
        (tmp_path / "ended").unlink(missing_ok=True)  # so that Ends does it once more
        with pytest.raises(Exception, match="the driver ends here"):
            start(tmp_path, SPACE, after=3, restore=restore)
        let_ray_end(experiment)
    path = max(experiment.glob(f"{kind}-*.json"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(Exception, match="once more"):
        start(tmp_path, SPACE)
    results = start(tmp_path, SPACE)
    assert sorted(r.config["lr"] for r in results) == sorted(RATES)


def test_a_search_that_could_not_go_on_is_not_saved_over_the_one_that_was(tmp_path: Path) -> None:
    """Without a scheduler of ours, what Ray logs and leaves aside is told by the search."""
    search = BOHBSearch({"x": tune.uniform(0, 1)}, metric="loss", mode="min", seed=0)
    search.save_to_dir(str(tmp_path), "first")
    (path,) = tmp_path.glob("searcher-state-*")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StateError, match="left alone"):
        search.restore_from_dir(str(tmp_path))
    with pytest.raises(StateError, match=r"cannot go on(?s:.*)repair_experiment"):
        search.save_to_dir(str(tmp_path), "second")
    search.save(str(tmp_path / "elsewhere"))
    (tmp_path / "another").mkdir()
    search.save_to_dir(str(tmp_path / "another"), "second")
    (path.parent / "searcher-state-third.json").write_bytes((tmp_path / "elsewhere").read_bytes())
    search.restore_from_dir(str(tmp_path))
    search.save_to_dir(str(tmp_path), "second")
