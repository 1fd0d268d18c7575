"""Data that a machine reads once is the data that a process reads."""

import numpy as np
import pytest

from tune_ext.benchmark.tasks import _shared, fashion_mnist
from tune_ext.benchmark.tasks._data import Part, Split
from tune_ext.benchmark.tasks._datasets import DataSet, InMemory
from tune_ext.benchmark.tasks.images import _draw


@pytest.fixture
def data(tmp_path):
    """A data set of 60 pictures, and how often it was read."""
    (tmp_path / "file").write_bytes(b"pictures")
    reads = []

    def read(folder, part):
        reads.append(part)
        rng = np.random.default_rng(len(part))
        images = rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
        return InMemory(images, np.arange(60) % 3)

    return DataSet("Pictures", 1, 3, 8, lambda _: tmp_path, read, "fetch them"), tmp_path, reads


@pytest.mark.parametrize("sizes", [(None, None), (20, 10)])
def test_same_parts_and_read_once(data, sizes, tmp_path, monkeypatch):
    known, folder, reads = data
    arguments = (known, folder, 8, sizes, 3)
    parts = ("train", "validation", "test")
    own = _draw.__wrapped__(*arguments)
    alone = [getattr(own, name).inputs(slice(None)).copy() for name in parts]
    monkeypatch.setenv("TUNE_EXT_CACHE", str(tmp_path / "cache"))
    for images in (_shared._origin, *_caches()):
        images.cache_clear()
    reads.clear()
    for _ in range(2):  # as two processes would
        for cached in _caches():
            cached.cache_clear()
        drawn = _draw.__wrapped__(*arguments)
        for name, images in zip(parts, alone, strict=True):
            part = getattr(drawn, name)
            np.testing.assert_array_equal(part.inputs(slice(None)), images)
            np.testing.assert_array_equal(part.labels, getattr(own, name).labels)
            assert isinstance(part.images, np.memmap)
    assert sorted(set(reads)) == ["test", "train"]
    assert len(reads) == 4  # labels and images of each part, when the files were made


def _caches():
    from tune_ext.benchmark.tasks import images

    return images._all_images, images._test_images, images._draw


def test_fashion_mnist_is_scaled_once(tmp_path, monkeypatch):
    files = tuple(tmp_path / f"{n}" for n in range(4))
    for path in files:
        path.touch()
    calls = []

    def scaled(*key):
        calls.append(key)
        parts = [np.full((n, 1, 2, 2), n, np.float32) for n in (5, 3, 4)]
        return Split(*(Part(p, np.arange(len(p))) for p in parts))

    monkeypatch.setattr(fashion_mnist, "_scaled", scaled)
    monkeypatch.setenv("TUNE_EXT_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        split = fashion_mnist._fashion.__wrapped__(files, (5, 3), 2, "random", 0)
        got = [(len(p), float(p.images.min()), list(p.labels)) for p in vars(split).values()]
        assert got == [(5, 5, [0, 1, 2, 3, 4]), (3, 3, [0, 1, 2]), (4, 4, [0, 1, 2, 3])]
    assert len(calls) == 1
