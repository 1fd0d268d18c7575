"""A cluster: what is checked before, who counts epochs, what is kept on the storage."""

from __future__ import annotations

import functools
import json
import pathlib
import time

import pytest

from tests import own_ray
from tests.benchmark.examples import make_study
from tests.benchmark.test_simulated_cells import Quiet
from tune_ext import cli
from tune_ext.benchmark import _preflight
from tune_ext.benchmark._cluster import on_cluster
from tune_ext.benchmark._ledger import Ledger
from tune_ext.benchmark._preflight import check_place, room
from tune_ext.benchmark._storage import Mirror, Storage
from tune_ext.benchmark.cell_run import Place
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.runner import run_study
from tune_ext.benchmark.study import TaskSpec
from tune_ext.errors import InvalidValueError, StateError

CPU_HEAD, GPU_NODE = {"CPU": 0}, {"CPU": 4, "GPU": 1}


@pytest.mark.parametrize(
    ("need", "nodes", "fit"),
    [
        ({"CPU": 1, "GPU": 0.25}, [(GPU_NODE, 2), (CPU_HEAD, 1)], 8),
        ({"CPU": 2, "GPU": 0.25}, [(GPU_NODE, 2)], 4),  # processors are what is short
        ({"CPU": 1, "GPU": 0.4}, [({"CPU": 8, "GPU": 2}, 1)], 4),  # no trial on two GPUs
        ({"CPU": 1, "GPU": 2}, [(GPU_NODE, 5)], 0),  # nor on two nodes
        ({"CPU": 1, "GPU": 0}, [(CPU_HEAD, 1)], 0),
        ({"CPU": 0.1, "GPU": 0.1}, [(GPU_NODE, 1)], 10),
    ],
)
def test_room_of_a_cluster(need, nodes, fit):
    assert room(need, nodes) == fit


def looked(monkeypatch, nodes, growth=None, unknown=False):
    seen = {"nodes": nodes, "growth": growth, "unknown_growth": unknown}
    monkeypatch.setattr(_preflight, "_look", lambda place: seen)


def test_what_can_never_run_is_told_at_once(monkeypatch):
    study = make_study(workers=4)
    place = Place("auto", "/shared", gpus_per_trial=0.5)
    looked(monkeypatch, [CPU_HEAD], [(GPU_NODE, 8)])
    assert check_place(place, study, 1) == []
    looked(monkeypatch, [CPU_HEAD, GPU_NODE])
    (hint,) = check_place(place, study, 1)
    assert "room for 2" in hint
    looked(monkeypatch, [CPU_HEAD], None, unknown=True)
    (hint,) = check_place(place, study, 1)
    assert "waits" in hint
    looked(monkeypatch, [CPU_HEAD], [(GPU_NODE, 8)])
    for gpus in (2, 9):
        with pytest.raises(InvalidValueError, match=rf"{gpus} GPU.*8 with 4 CPU and 1 GPU"):
            check_place(Place("auto", "/shared", gpus_per_trial=gpus), study, 1)
    with pytest.raises(InvalidValueError, match="ray job submit"):
        check_place(Place("ray://head:10001", "/shared"), study, 1)


def test_a_command_that_asks_for_too_much_ends_at_once(monkeypatch, tmp_path, capsys):
    looked(monkeypatch, [CPU_HEAD, GPU_NODE])
    (tmp_path / "study.toml").write_text(
        'title = "too much"\n[[tasks]]\nname = "diabetes"\n'
        '[compare]\nmethods = ["random"]\nseeds = 1\nbudget = 50\n'
    )
    where = ["--address", "auto", "--storage", str(tmp_path / "kept"), "--out", str(tmp_path / "o")]
    command = ["compare", str(tmp_path / "study.toml"), *where, "--gpus-per-trial", "9"]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert "a trial asks for 1 CPU and 9 GPU, and no node of the cluster has that" in told
    assert len(told.splitlines()) == 1


def test_gpus_without_a_cluster_are_counted(monkeypatch):
    study, place = make_study(workers=4), Place(gpus_per_trial=0.5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(InvalidValueError, match="need 2, and this machine has 1"):
        check_place(place, study, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert check_place(place, study, 1) == []
    with pytest.raises(InvalidValueError, match="--jobs 1"):
        check_place(place, study, 2)
    for none in ("", "-1", "-1,0", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        with pytest.raises(InvalidValueError, match="has 0"):
            check_place(place, study, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-8932f937,-1,2")
    assert check_place(place, study, 1) == []


def test_device_and_gpus_belong_together():
    def hints(device, gpus):
        tasks = (TaskSpec("digits-cnn", {"device": device}),)
        return _preflight.hints(Place(gpus_per_trial=gpus), make_study(tasks=tasks))

    assert hints("cpu", 0) == hints("cuda", 0.5) == []
    assert 'device = "cuda"' in hints("cpu", 0.5)[0]
    assert "--gpus-per-trial" in hints("cuda", 0)[0]


def test_what_does_not_answer_is_given_up(tmp_path, monkeypatch):
    """A cluster that hangs and a storage that cannot be written to; in the process that looks."""
    place = Place("192.0.2.1:9", str(tmp_path))  # an address that is kept for documentation
    with pytest.raises(InvalidValueError, match="within 6 s"):
        _preflight._look(place, patience=6)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidValueError, match="cannot write to the storage"):
        _preflight._look(Place("auto", str(tmp_path / "file" / "inside")), patience=300)


def test_growth_is_read_from_the_cluster_file(tmp_path):
    path = tmp_path / "ray_bootstrap_config.yaml"
    assert _preflight._growth([path]) is None
    types = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "gpu": {"resources": GPU_NODE, "max_workers": 8},
    }
    path.write_text(json.dumps({"head_node_type": "head", "available_node_types": types}))
    assert _preflight._growth([path]) == [(GPU_NODE, 8)]


def test_settings_of_a_submitted_job_are_not_named_again():
    job = json.dumps({"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "4"}}})
    environment = {"RAY_JOB_CONFIG_JSON_ENV_VAR": job, "OMP_NUM_THREADS": "4", "TUNE_EXT_DATA": "d"}
    handed = on_cluster("auto", environment)["runtime_env"]["env_vars"]
    assert handed == {"TUNE_EXT_DATA": "d", "TUNE_EXT_CACHE": "~/.cache/tune_ext"}


def test_ledger_gives_each_epoch_once_and_those_of_lost_nodes_again():
    now = [0.0]
    ledger = Ledger(3, grace=2.0, clock=lambda: now[0])
    assert [ledger.take(t) for t in "aabc"] == ["train"] * 4  # a asks again: it has one
    assert ledger.take("d") == "wait"
    ledger.trained("a")
    ledger.tell("a", 1)
    ledger.lose("b")
    assert ledger.take("d") == "train"
    ledger.give_back("c")  # it raised
    assert ledger.take("a") == "train"
    ledger.trained("a")
    ledger.trained("d")
    ledger.trained("b")  # it was lost: this is from before
    assert ledger.count() == 3
    assert ledger.take("c") == "wait"  # results may be on their way
    now[0] = 3.0
    assert ledger.take("c") == "over"
    ledger.lose("a")
    assert (ledger.catch_up("a"), ledger.catch_up("a"), ledger.catch_up("x")) == (1, 0, 0)
    ledger.close()
    assert Ledger(None).take("a") == "train"
    assert ledger.take("b") == "over"


@pytest.fixture
def run(tmp_path):
    """A study's records in one directory, kept in another, as a bucket would be."""
    kept = Storage((tmp_path / "bucket").as_uri()).inside("study")
    study = make_study(methods=("default",))

    def again(name):
        out = tmp_path / name
        return run_study(study, RecordStore(out), Quiet(), mirror=Mirror(out, kept))

    return again


def test_records_are_kept_on_the_storage_and_gone_on_from(run, tmp_path):
    first = run("here")
    Mirror(tmp_path / "here", Storage(tmp_path / "bucket" / "study")).finish()
    kept = tmp_path / "bucket" / "study" / "records.jsonl"
    assert kept.read_bytes() == (tmp_path / "here" / "records.jsonl").read_bytes()
    assert [r.to_json() for r in run("elsewhere")] == [r.to_json() for r in first]
    # half a line, and one record less than there is: what is there is longer
    lines = kept.read_bytes().splitlines(keepends=True)
    (tmp_path / "elsewhere" / "records.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])
    assert len(run("elsewhere")) == len(first)
    assert (tmp_path / "elsewhere" / "records.jsonl").read_bytes() == kept.read_bytes()
    (tmp_path / "elsewhere" / "records.jsonl").write_bytes(lines[0] + lines[2])
    with pytest.raises(StateError, match="different ways"):
        run("elsewhere")
    assert kept.read_bytes() == b"".join(lines)


def test_a_storage_that_fails_loses_nothing(run, tmp_path, monkeypatch):
    def full(self, name, data):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", full)
        assert len(run("here")) == 2
        mirror = Mirror(tmp_path / "here", Storage(tmp_path / "bucket" / "study"))
        with pytest.raises(StateError, match=r"whole in .* no space left"):
            mirror.finish()
    mirror.finish()
    assert (tmp_path / "bucket" / "study" / "records.jsonl").exists()


def test_two_runs_do_not_overwrite_each_others_records(tmp_path):
    kept = Storage(tmp_path / "bucket")
    one, two = (Mirror(tmp_path / name, kept) for name in ("one", "two"))
    one.fetch()
    two.fetch()
    (tmp_path / "one" / "records.jsonl").write_bytes(b"1\n")
    (tmp_path / "two" / "records.jsonl").write_bytes(b"of the other\n")
    one.put(now=True)
    two.put(now=True)
    with pytest.raises(StateError, match=r"whole in .*two.* another run"):
        two.finish()
    assert kept.read("records.jsonl") == b"1\n"
    (tmp_path / "one" / "records.jsonl").write_bytes(b"1\n2\n")
    one.finish()
    assert kept.read("records.jsonl") == b"1\n2\n"


def test_an_upload_that_arrived_and_seemed_to_fail_is_no_other_run(tmp_path, monkeypatch):
    kept, write = Storage(tmp_path / "bucket"), Storage.write
    mirror = Mirror(tmp_path / "here", kept)
    mirror.fetch()
    (tmp_path / "here" / "records.jsonl").write_bytes(b"1\n")

    def lost(self, name, data):
        write(self, name, data)
        raise OSError("timed out")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", lost)
        mirror.put(now=True)
    (tmp_path / "here" / "records.jsonl").write_bytes(b"1\n2\n")
    mirror.finish()
    assert kept.read("records.jsonl") == b"1\n2\n"


def test_an_attempt_that_fails_leaves_nothing_behind(tmp_path):
    storage = Storage(tmp_path)
    storage.write("a", b"1")
    (tmp_path / "b").mkdir()  # nothing can be moved there
    with pytest.raises(OSError, match="b"):
        storage.write("b", b"2")
    assert storage.names() == ["a"]


@pytest.mark.parametrize("where", ["nope://x", "/proc/none", "s3:/wrong"])
def test_unusable_storages_are_told(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage(where)
    if where == "s3:/wrong":  # a directory of that name, as it has no ://
        storage.check()
        assert storage.where == str(tmp_path / where)
        return
    with pytest.raises(InvalidValueError, match=r"cannot (use|write)"):
        storage.check()


def test_storage_names_keep_their_options():
    inside = Storage("s3://bucket/all/?region=eu-west-1").inside("digits")
    assert inside.where == "s3://bucket/all/digits?region=eu-west-1"


@pytest.mark.parametrize("out", ["..", ".", "results/digits/../digits"])
def test_a_study_is_kept_inside_the_storage_whatever_its_directory_is_called(out, monkeypatch):
    root = pathlib.Path("/a/digits")
    monkeypatch.setattr("os.getcwd", lambda: str(root / "x" if out == ".." else root))
    kept = cli._kept("s3://bucket/all", pathlib.Path(out))
    assert kept.where == "s3://bucket/all/digits"


def test_report_of_a_storage(run, tmp_path, monkeypatch):
    records = run("here")
    reported = []
    monkeypatch.setattr(cli, "_print_report", reported.append)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", (tmp_path / "bucket" / "study").as_uri()]) == 0
    (store,) = reported
    assert store.directory.resolve() == tmp_path / "results" / "study"
    assert [r.to_json() for r in store.load()] == [r.to_json() for r in records]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_nodes_and_half_a_gpu_a_trial(tmp_path, capsys, monkeypatch):
    """Trials and final trainings run on nodes with GPUs, none on the head; no epoch is extra."""
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setenv("TUNE_EXT_DATA", str(seen))  # handed on to all nodes
    patient = functools.partial(_preflight._look, patience=400)  # the machine may be busy
    monkeypatch.setattr(_preflight, "_look", patient)
    cluster = own_ray.start_nodes(*[{"num_cpus": 1, "num_gpus": 1}] * 2)
    try:
        tasks = (TaskSpec("tests.benchmark.fake:SeenTask", {"epochs": 4}),)
        study = make_study(tasks=tasks, methods=("random",), seeds=(0,), budget=9, workers=2)
        place = Place(cluster.address, str(tmp_path / "trials"), gpus_per_trial=0.5)
        with pytest.raises(InvalidValueError, match="2 with 1 CPU and 1 GPU"):
            check_place(Place(cluster.address, str(tmp_path), gpus_per_trial=2), study, 1)
        (record,) = run_study(study, RecordStore(tmp_path / "out"), Quiet(), place=place)
    finally:
        cluster.shutdown()
    assert record.failures == []
    assert record.epochs_used == len(record.history["trial"]) == 9
    assert len(record.tests) == 2
    assert list((tmp_path / "trials").iterdir()) == []
    nodes, devices = zip(*(p.read_text().split() for p in seen.iterdir()), strict=True)
    assert len(set(nodes)) == 2
    assert set(devices) == {"0"}


def test_slow_nodes_are_waited_for(monkeypatch):
    from types import SimpleNamespace

    from tune_ext.benchmark.tune_parts import Watch

    told = []
    watch = Watch(waiting=told.append)
    trials = [SimpleNamespace(status="PENDING"), SimpleNamespace(status="TERMINATED")]
    watch.on_step_end(0, trials)
    watch.on_step_end(1, trials)  # not again at once
    assert told == ["waiting for a node with room"]
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    watch.on_step_end(2, [*trials, SimpleNamespace(status="RUNNING")])
    assert len(told) == 1
    watch.on_step_end(3, trials)
