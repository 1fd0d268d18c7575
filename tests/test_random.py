"""Owned randomness: seeds are checked, derived seeds are stable everywhere."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tune_ext._random import check_seed, derive_seed, generator
from tune_ext.errors import InvalidTypeError, InvalidValueError, TuneExtError


@pytest.mark.parametrize("seed", [0, 7, np.int64(7), None])
def test_good_seeds_come_back_as_plain_values(seed):
    checked = check_seed(seed)
    assert checked == seed
    assert checked is None or type(checked) is int


@pytest.mark.parametrize("seed", [True, 1.0, "1", [1]])
def test_a_seed_of_a_wrong_type_is_refused_by_name(seed):
    with pytest.raises(InvalidTypeError, match="split_seed"):
        check_seed(seed, "split_seed")


def test_a_negative_seed_is_refused():
    with pytest.raises(InvalidValueError, match="-1"):
        check_seed(-1)
    assert issubclass(InvalidValueError, TuneExtError)


def test_paths_separate_streams_and_types():
    seeds = {
        derive_seed(0),
        derive_seed(1),
        derive_seed(0, "a"),
        derive_seed(0, "b"),
        derive_seed(0, 1),
        derive_seed(0, "1"),
        derive_seed(0, "a", "b"),
        derive_seed(0, "ab"),
    }
    assert len(seeds) == 8
    assert all(0 <= s < 2**63 for s in seeds)


def test_derived_seeds_are_the_same_in_every_process():
    code = "from tune_ext._random import derive_seed; print(derive_seed(3, 'weights', 4))"
    for hash_seed in ("0", "1"):
        out = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(out.stdout) == derive_seed(3, "weights", 4)


def test_generators_repeat_and_leave_the_global_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what is checked
    first = generator(0, "points").random(4)
    assert np.array_equal(first, generator(0, "points").random(4))
    assert not np.array_equal(first, generator(1, "points").random(4))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
