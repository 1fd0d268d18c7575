import json
import math

import numpy as np
import pytest

from tests.benchmark.examples import make_record, make_study
from tune_ext.benchmark.records import (
    CellRecord,
    History,
    RecordStore,
    anytime,
    best_trial,
    provenance,
)
from tune_ext.benchmark.study import TaskSpec
from tune_ext.errors import InvalidValueError, StateError


def history(*rows):
    """Rows of (trial, epoch, validation error[, validation loss])."""
    made = History()
    for trial, epoch, error, *loss in rows:
        result = {"epoch": epoch, "validation_error": error}
        if loss:
            result["validation_loss"] = loss[0]
        made.add(str(trial), {"lr": trial}, result, 1.0)
    return made


def test_a_record_survives_the_file(tmp_path):
    store = RecordStore(tmp_path / "new")
    store.open(make_study())
    record = make_record(details={"x": np.float64(2.5), "y": math.inf, "z": (1, 2)})
    store.append(record)
    (read,) = store.load()
    assert read.details == {"x": 2.5, "y": None, "z": [1, 2]}
    assert read.key == record.key
    assert read.anytime == [[2, 0.5], [5, 0.25]]
    assert "NaN" not in store.path.read_text()
    assert "Infinity" not in store.path.read_text()


def test_test_error_is_a_mean_in_which_divergence_counts_as_one():
    assert make_record().test_error == pytest.approx(0.2)
    assert make_record(test_errors=(0.2, None)).test_error == pytest.approx(0.6)
    assert make_record(test_errors=()).test_error is None


def test_a_half_written_last_line_is_cut_off(tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    store.append(make_record(seed=0))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + whole.splitlines()[-1][:200])
    assert [r.seed for r in store.load()] == [0]
    assert store.path.read_bytes() != whole  # reading alone changes nothing
    assert [r.seed for r in store.open(make_study())] == [0]
    assert store.path.read_bytes() == whole
    store.append(make_record(seed=1))
    assert [r.seed for r in store.load()] == [0, 1]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"schema": "something else", "version": 1}',
        '{"schema": "tune-ext.cell", "version": 99}',
        '{"schema": "tune-ext.cell", "version": 1, "method": "random"}',
        "[1]",
    ],
)
def test_damage_elsewhere_is_an_error_that_leaves_the_file_alone(tmp_path, line):
    store = RecordStore(tmp_path)
    store.open(make_study())
    store.append(make_record())
    text = line + "\n" + store.path.read_text()
    store.path.write_text(text)
    with pytest.raises(StateError, match="line 1"):
        store.open(make_study())
    assert store.path.read_text() == text


def test_a_line_that_records_refer_to_is_not_to_be_taken_out(tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    store.append(make_record(provenance={"git": "abc"}))
    store.path.write_text(store.path.read_text().replace("abc", "abd"))
    with pytest.raises(StateError, match=r"line 1.* checksum.* without this line") as caught:
        store.load()
    assert "sed" not in str(caught.value)


def test_a_changed_study_is_refused_but_more_methods_and_seeds_are_not(tmp_path):
    store = RecordStore(tmp_path)
    store.open(make_study())
    store.open(make_study(methods=("asha",), seeds=(7,), stall_seconds=1.0))
    for change in (
        {"budget": 11},
        {"final_seeds": 3},
        {"tasks": (TaskSpec("digits-cnn"),)},
    ):
        with pytest.raises(InvalidValueError, match="other settings"):
            store.open(make_study(**change))


def test_a_directory_without_a_study_is_refused(tmp_path):
    with pytest.raises(StateError, match=r"no study\.json"):
        RecordStore(tmp_path).load_settings()
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(StateError, match="damaged"):
        RecordStore(tmp_path).load_settings()
    (tmp_path / "study.json").write_text(json.dumps({"version": 2}))
    with pytest.raises(StateError, match="version"):
        RecordStore(tmp_path).load_settings()


def test_one_process_at_a_time(tmp_path):
    first, second = RecordStore(tmp_path), RecordStore(tmp_path)
    with first.locked(), pytest.raises(StateError, match="another process"), second.locked():
        pass
    with second.locked():
        pass


def test_the_last_epoch_of_a_trial_counts_not_its_best():
    made = history(("a", 1, 0.1), ("a", 2, 0.5), ("b", 1, 0.3))
    assert best_trial(made)["config"] == {"lr": "b"}


def test_ties_go_to_the_longer_then_the_lower_loss_then_the_earlier_trial():
    made = history(("a", 1, 0.3), ("b", 1, 0.3), ("b", 2, 0.3), ("c", 1, 0.3))
    assert best_trial(made)["trial"] == 1
    made = history(("a", 1, 0.3, 0.9), ("b", 1, 0.3, 0.7), ("c", 1, 0.3, math.nan))
    assert best_trial(made)["trial"] == 1
    assert best_trial(history(("a", 1, 0.3), ("b", 1, 0.3)))["trial"] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "x", True])
def test_what_is_not_finite_never_wins(bad):
    made = history(("a", 1, bad), ("b", 1, 0.8))
    assert best_trial(made)["trial"] == 1
    assert anytime(made) == [(2, 0.8)]
    assert best_trial(history(("a", 1, bad))) is None
    # not even when an earlier epoch of the trial was fine
    assert best_trial(history(("a", 1, 0.2), ("a", 2, bad), ("b", 1, 0.8)))["trial"] == 1


def test_anytime_counts_every_epoch_of_every_trial():
    made = history(("a", 1, 0.5), ("b", 1, 0.6), ("a", 2, 0.4), ("b", 2, 0.4), ("b", 3, 0.1))
    assert anytime(made) == [(1, 0.5), (3, 0.4), (5, 0.1)]


def test_history_holds_plain_numbers():
    made = History()
    made.add("t", {"lr": np.float64(0.5)}, {"epoch": 1, "validation_error": np.float32(0.5)}, 0.1)
    assert json.loads(json.dumps(made.to_json()))["configs"] == [{"lr": 0.5}]
    assert made.trials()[0]["validation_error"] == 0.5


def test_what_a_task_of_ones_own_says_of_itself_is_read_again():
    for told in ({"max_epochs": 81.0}, {"percent": 1}, {"percent": np.bool_(False)}):
        read = CellRecord.from_line(make_record(**told).to_line())
        assert {name: getattr(read, name) for name in told} == told


def test_a_line_is_a_line():
    assert "\n" not in make_record(failures=["two\nlines"]).to_line()
    assert CellRecord.from_line(make_record().to_line()).method == "random"


def test_provenance_names_versions_and_hardware():
    known = provenance()
    assert known["versions"]["numpy"] == np.__version__
    assert known["hardware"]["cores"] >= 1
    json.dumps(known, allow_nan=False)


def test_packed_records_are_read_but_not_gone_on_with(tmp_path):
    import lzma

    study = make_study()
    store = RecordStore(tmp_path)
    store.open(study)
    store.append(make_record())
    store.close()
    before = store.load()
    packed = tmp_path / "records.jsonl.xz"
    packed.write_bytes(lzma.compress(store.path.read_bytes()))
    store.path.unlink()
    again = RecordStore(tmp_path)
    assert again.load() == before
    with pytest.raises(StateError, match="unpack it"):
        again.open(study)
    packed.write_bytes(b"not packed")
    with pytest.raises(StateError, match="damaged"):
        again.load()
