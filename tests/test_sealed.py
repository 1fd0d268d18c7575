"""No bit of what is kept as JSON flips unnoticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.examples import make_record, make_study
from tune_ext import AutoHyperSearch
from tune_ext._sealed import is_sealed, seal, unseal
from tune_ext.benchmark._run_files import read_run, write_run
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.errors import StateError
from tune_ext.raytune._base import read_json, write_json

DOCUMENTS = [{"lr": 0.1, "seeds": [1, 2]}, {"name": 'a "check": "b"}', "ä": None}]


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_sealed_document_is_json_with_an_entry_more(document, indent):
    text = seal(json.dumps(document, indent=indent))
    found = json.loads(text)
    assert len(found.pop("check")) == 16
    assert found == json.loads(unseal(text)) == document
    assert is_sealed(text + "\n")
    assert not is_sealed(json.dumps(document, indent=indent))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_bit_flips_unnoticed(document):
    """A flip in the word check may hide the checksum; then nothing else has changed."""
    whole = seal(json.dumps(document)).encode()
    for place in range(8 * len(whole)):
        hurt = bytearray(whole)
        hurt[place // 8] ^= 1 << place % 8
        try:
            found = json.loads(unseal(hurt.decode()))
        except ValueError:
            continue
        assert {key: value for key, value in found.items() if key in document} == document
        assert len(found) == len(document) + 1


def test_no_cut_goes_unnoticed(tmp_path: Path):
    path = tmp_path / "state.json"
    write_json(path, DOCUMENTS[0])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"line 1|checksum"):
            read_json(path)


def test_a_searcher_with_a_digit_changed_is_damaged(tmp_path: Path):
    search, path = AutoHyperSearch(seed=3), tmp_path / "searcher-state-now.json"
    search.save(str(path))
    path.write_text(path.read_text().replace("3", "5", 1))
    with pytest.raises(StateError, match="checksum"):
        AutoHyperSearch().restore(str(path))
    path.write_text("")
    with pytest.raises(StateError, match="left alone"):
        AutoHyperSearch().restore(str(path))


def test_no_bit_of_a_record_flips_unnoticed(tmp_path: Path):
    """But for a line's end: two lines are then one, and the last one is cut off and run again."""
    store = RecordStore(tmp_path)
    store.open(make_study())
    for seed in (0, 1):
        store.append(make_record(seed=seed))
    store.close()
    whole, random = store.path.read_bytes(), np.random.default_rng(0)
    for place in random.integers(0, len(whole) - 1, 300):
        hurt = bytearray(whole)
        hurt[place] ^= 1 << int(random.integers(8))
        store.path.write_bytes(hurt)
        with pytest.raises(StateError, match=r"line (1|[23]: .* runs again)"):
            store.load(repair=True)
        assert store.path.read_bytes() == hurt


def test_records_without_checksums_are_read_if_they_are_old(tmp_path: Path):
    store = RecordStore(tmp_path)
    line = unseal(make_record().to_line())
    with pytest.raises(StateError, match="without a checksum"):
        CellRecord.from_line(line)
    old = line.replace('"version":3', '"version":2')
    assert CellRecord.from_line(old).key == make_record().key
    store.path.write_text(old + "\n")
    assert len(store.load()) == 1


def test_no_bit_of_a_checkpoint_flips_unnoticed(tmp_path: Path):
    torch = pytest.importorskip("torch")
    write_run(tmp_path, {"weights": torch.zeros(9), "epoch": 3})
    (path,) = tmp_path.iterdir()
    whole, random = path.read_bytes(), np.random.default_rng(0)
    assert read_run(tmp_path)["epoch"] == 3
    for place in random.integers(0, len(whole), 100):
        hurt = bytearray(whole)
        hurt[place] ^= 1 << int(random.integers(8))
        path.write_bytes(hurt)
        with pytest.raises(StateError, match=r"no run that can be read|something else"):
            read_run(tmp_path)
    path.write_bytes(whole[:-1])
    with pytest.raises(StateError, match="without its checksum"):
        read_run(tmp_path)
