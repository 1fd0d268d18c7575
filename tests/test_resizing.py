"""Tests of images that are resized once and shared: right, whole, and made by one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tune_ext import _array_files, resizing
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.resizing import fingerprint_of_files, memory_use, resized


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 3, 24, 24), dtype=np.uint8)


@pytest.fixture
def made(monkeypatch):
    """The sizes of the pieces that were resized, in this process."""
    sizes = []
    resize = resizing.resize

    def counted(images, size):
        sizes.append(size)
        return resize(images, size)

    monkeypatch.setattr(resizing, "resize", counted)
    monkeypatch.setattr(_array_files, "_verified", {})
    return sizes


def the_file(folder):
    (path,) = folder.glob("*.npy")
    return path


def test_images_are_averaged_and_not_sampled(images, tmp_path):
    """Half the size: each pixel is a weighted mean of its four and their neighbours."""
    small = resized(images, 12, cache_dir=tmp_path)
    assert isinstance(small, np.memmap)
    assert (small.shape, small.dtype) == ((20, 3, 12, 12), np.uint8)
    triangle = np.zeros((12, 24))
    for row in range(12):
        weights = 1 - np.abs(np.arange(24) - (2 * row + 0.5)) / 2
        triangle[row] = np.maximum(weights, 0)
    triangle /= triangle.sum(axis=1, keepdims=True)
    expected = triangle @ images.astype(float) @ triangle.T
    assert np.abs(small - expected).max() <= 1.01  # bytes are rounded after each direction
    assert small.astype(float).std() < 0.6 * images.std()


def test_larger_the_same_and_grey_work_too(images, tmp_path):
    assert resized(images, 36, cache_dir=tmp_path).shape == (20, 3, 36, 36)
    np.testing.assert_array_equal(resized(images, 24, cache_dir=tmp_path), images)
    grey = resized(images[:, 0], 12, cache_dir=tmp_path)
    np.testing.assert_array_equal(grey, resized(images, 12, cache_dir=tmp_path)[:, 0])


def test_a_size_is_made_once_and_nobody_can_change_it(images, tmp_path, made):
    first = resized(images, 12, cache_dir=tmp_path)
    kept = first.copy()
    first[0] = 0  # a copy of the page, here
    assert made == [12]
    again = resized(images.copy(), 12, cache_dir=tmp_path)
    np.testing.assert_array_equal(again, kept)
    assert made == [12]
    resized(images, 8, cache_dir=tmp_path)
    resized(255 - images, 12, cache_dir=tmp_path)
    assert made == [12, 8, 12]
    assert len(list(tmp_path.glob("*.npy"))) == 3
    np.testing.assert_array_equal(np.load(the_file_of(tmp_path, 8)).shape, (20, 3, 8, 8))


def the_file_of(folder, size):
    (path,) = folder.glob(f"images-{size}-*.npy")
    return path


def test_a_function_is_called_only_where_the_file_is_missing(images, tmp_path):
    calls = []

    def load():
        calls.append(1)
        return images

    for _ in range(2):
        small = resized(load, 12, fingerprint="mine", cache_dir=tmp_path)
    assert calls == [1]
    np.testing.assert_array_equal(small, resized(images, 12, cache_dir=tmp_path))
    with pytest.raises(InvalidTypeError, match="fingerprint"):
        resized(load, 12, cache_dir=tmp_path)


def truncate(path):
    os.truncate(path, path.stat().st_size - 100)


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def another_shape(path):
    np.save(path, np.zeros((7, 3, 12, 12), np.uint8))


def of_other_images(path):
    """A whole file, of something else, under this name."""
    other = resized(np.zeros((20, 3, 24, 24), np.uint8), 12, cache_dir=path.parent / "other")
    path.write_bytes((path.parent / "other" / os.path.basename(other.filename)).read_bytes())


def no_array(path):
    path.write_text("<html>")


@pytest.mark.parametrize(
    "damage",
    [truncate, cut_in_half, empty, flip_a_bit, another_shape, of_other_images, no_array],
)
def test_a_file_that_is_not_what_it_should_be_is_made_again(images, tmp_path, made, damage):
    kept = np.array(resized(images, 12, cache_dir=tmp_path))
    damage(the_file(tmp_path))
    del made[:]
    np.testing.assert_array_equal(resized(images, 12, cache_dir=tmp_path), kept)
    assert made == [12]
    resized(images, 12, cache_dir=tmp_path)
    assert made == [12]


def test_a_mapped_array_outlives_its_file(images, tmp_path):
    first = resized(images, 12, cache_dir=tmp_path)
    kept = first.copy()
    the_file(tmp_path).unlink()
    second = resized(images, 12, cache_dir=tmp_path)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(second, kept)


CHILD = """
import sys, time
import numpy as np
from tune_ext import resizing
def slow(images, size):  # without torch, which takes its time to be there
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    return images[..., ::2, ::2]
resizing.resize = slow
images = np.random.default_rng(0).integers(0, 256, (20, 3, 24, 24), dtype=np.uint8)
print(int(resizing.resized(images, 12, cache_dir=sys.argv[1]).sum()))
"""


def child(folder, seconds):
    code = [sys.executable, "-c", CHILD, str(folder), str(seconds)]
    return subprocess.Popen(code, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_resizes_and_what_a_killed_one_left_is_removed(images, tmp_path):
    killed = child(tmp_path, 600)
    assert killed.stdout.readline() == "begun\n"
    (left,) = tmp_path.glob(".*.tmp")
    waiting = [child(tmp_path, 0), child(tmp_path, 0)]
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    told = "".join(p.communicate()[0] for p in waiting)
    assert [p.returncode for p in waiting] == [0, 0]
    assert told.count("begun") == 1
    assert not left.exists()
    small = resized(images, 12, cache_dir=tmp_path)
    np.testing.assert_array_equal(small, images[..., ::2, ::2])
    assert told.split().count(str(int(small.sum()))) == 2
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".npy"]


def test_an_error_while_it_is_made_leaves_nothing_behind(tmp_path):
    def load():
        raise KeyError("no such pictures")

    with pytest.raises(KeyError, match="no such pictures"):
        resized(load, 12, fingerprint="mine", cache_dir=tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]


def test_a_directory_that_cannot_be_written_is_a_clear_error(images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNE_EXT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(InvalidValueError, match=r"file/below cannot.*cache_dir.*TUNE_EXT_CACHE"):
        resized(images, 12)


def test_where_files_are(images, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_EXT_CACHE", str(tmp_path / "named"))
    resized(images, 12)
    assert the_file(tmp_path / "named")
    monkeypatch.delenv("TUNE_EXT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    resized(images, 12)
    assert the_file(tmp_path / "home" / "tune_ext")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _array_files.directory_of(None) == tmp_path / ".cache" / "tune_ext"


def test_memory_is_as_stated(images, tmp_path):
    small = resized(images, 12, cache_dir=tmp_path)
    assert memory_use(20, 12, channels=3) == small.nbytes
    assert 0 < the_file(tmp_path).stat().st_size - small.nbytes < 300


def test_files_that_change_have_another_fingerprint(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(b"1234")
        os.utime(path, ns=(0, 0))
    first = fingerprint_of_files(paths)
    assert first == fingerprint_of_files(map(str, paths))
    assert first != fingerprint_of_files(paths[::-1])
    os.utime(paths[0], ns=(0, 1))
    assert first != fingerprint_of_files(paths)


@pytest.mark.parametrize(
    ("images", "size", "error", "message"),
    [
        (np.zeros((2, 3, 8, 8)), 4, InvalidTypeError, "uint8.*float64"),
        ([[1]], 4, InvalidTypeError, "uint8.*list"),
        (np.zeros((8, 8), np.uint8), 4, InvalidValueError, r"\(8, 8\)"),
        (np.zeros((0, 3, 8, 8), np.uint8), 4, InvalidValueError, r"\(0, 3, 8, 8\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), 0, InvalidValueError, "size.*0"),
    ],
)
def test_what_cannot_be_resized_is_refused(images, size, error, message, tmp_path):
    with pytest.raises(error, match=message):
        resized(images, size, cache_dir=tmp_path)
    assert not list(tmp_path.glob("*.npy"))
