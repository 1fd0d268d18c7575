"""Files that are cut short, or in which a bit flips: found out, or harmless, never another answer.

Every k-th byte of a file gets a seeded bit flipped, one at a time, and the file is read. Read as
before, or refused with an error that names the file, is survived; anything else is not.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.bohb import TuneBOHB

from experiments.chaos.outcome import Ended, Outcome, case
from tests.benchmark.examples import make_record, make_study
from tune_ext import _array_files
from tune_ext.benchmark._run_files import read_run, write_run
from tune_ext.benchmark.records import RecordStore
from tune_ext.errors import StateError
from tune_ext.raytune import AutoHyperSearch, BOHBSearch, ExpTestSearch, ImageGrowthSearch

SPACE = {"x": tune.uniform(0.0, 1.0)}
RATES = {"lr": tune.loguniform(1e-6, 1.0)}
MINIMUM: dict[str, Any] = {"metric": "loss", "mode": "min"}

Reader = Callable[[], Any]


def flipped(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """So many copies with one bit flipped, evenly over the bytes."""
    random = np.random.default_rng(seed)
    for place in np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)):
        hurt = bytearray(data)
        hurt[place] ^= 1 << int(random.integers(8))
        yield bytes(hurt)


def cut(data: bytes, count: int) -> Iterator[bytes]:
    """So many beginnings, evenly over the lengths."""
    for length in np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)):
        yield data[:length]


def hurt_and_read(
    name: str, system: str, path: Path, read: Reader, count: int, seed: int, *, how: str = "both"
) -> Outcome:
    """Hurt a file in every way, and read it each time; in the end it is whole again.

    Args:
        name: Of the case.
        system: What is hurt.
        path: The file.
        read: Gives what the file says, in a form that can be compared; a StateError says that it
            is damaged.
        count: How often, for bits and cuts each.
        seed: Of the bits.
        how: "flipped", "cut" or "both".
    """
    whole, expected = path.read_bytes(), read()
    ways: list[bytes] = []
    if how != "cut":
        ways += flipped(whole, count, seed)
    if how != "flipped":
        ways += cut(whole, count)
    ends = Counter[str]()
    for data in ways:
        path.write_bytes(data)
        ends[_end(read, expected)] += 1
    path.write_bytes(whole)
    ended: Ended = "crashed" if ends["crashed"] else "clear error"
    theirs = system.startswith("ray")  # an error of any kind is an answer
    told = [f"{ends[key]} {words}" for key, words in _WORDS.items() if ends[key]]
    return Outcome(
        name,
        system,
        injected=len(ways),
        survived=ends["told"] + ends["same"] + (ends["crashed"] if theirs else 0),
        same_answer=not ends["another"],
        ended=ended if len(ways) - ends["same"] else "finished",
        note=", ".join(told),
    )


_WORDS = {
    "told": "refused with an error that names the file",
    "same": "read as before",
    "crashed": "ended in an error that says nothing",
    "another": "read as something else, without a word",
}


def _end(read: Reader, expected: Any) -> str:
    try:
        found = read()
    except StateError:
        return "told"
    except Exception:  # whatever comes of it is the result
        return "crashed"
    return "same" if found == expected else "another"


def _fed(search: Any, count: int = 4) -> Any:
    """A searcher that has seen some trials."""
    search.set_search_properties(None, None, {})
    for number in range(count):
        config = search.suggest(f"t{number}")
        if not isinstance(config, dict) or isinstance(search, ExpTestSearch):
            break  # the rungs of ExpTest report more than a loss
        value = abs(config.get("x", config.get("lr", 0.0)) - 0.3)
        result = {"loss": value, "training_iteration": 1, "response_mean": value}
        result["hyperband_info"] = {"budget": 1}
        search.on_trial_result(f"t{number}", result)
        search.on_trial_complete(f"t{number}", result)
    return search


SEARCHERS: dict[str, Callable[[], Any]] = {
    "ours: AutoHyperSearch's state": lambda: AutoHyperSearch(RATES, probe_epochs=1),
    "ours: ExpTestSearch's state": lambda: ExpTestSearch(RATES, bound=0.01),
    "ours: BOHBSearch's state": lambda: BOHBSearch(SPACE, seed=0, **MINIMUM),
    "ours: ImageGrowthSearch's state": lambda: ImageGrowthSearch(
        "random", [(8, 4), (16, 4)], space=SPACE, seed=0, **MINIMUM
    ),
}


def searchers(name: str, directory: Path, seed: int, count: int) -> Iterator[Outcome]:
    """The states of our searchers, then Ray's."""
    for system, make in SEARCHERS.items():
        path = directory / "state"
        _fed(make()).save(str(path))

        def read(make: Callable[[], Any] = make, path: Path = path) -> Any:
            search = make()
            search.restore(str(path))
            return search.get_state()

        yield hurt_and_read(name, system, path, read, count, seed)


def rays_searcher(name: str, directory: Path, seed: int, count: int) -> Outcome:
    """What Ray's TuneBOHB saves, a pickle."""

    def make() -> Searcher:
        return TuneBOHB(TuneBOHB.convert_search_space(SPACE), **MINIMUM, seed=0)

    path = directory / "state"
    first = make()
    for number in range(4):
        config = first.suggest(f"t{number}")
        result = {**config, "loss": config["x"], "hyperband_info": {"budget": 1}}
        first.on_trial_result(f"t{number}", {**result, "training_iteration": 1})
        first.on_trial_complete(f"t{number}", {**result, "training_iteration": 1})
    first.save(str(path))

    def read() -> Any:
        search: Any = make()
        search.restore(str(path))
        known = search.bohber
        return repr((sorted(search.__dict__), known.configs, known.losses, search.trial_to_params))

    return hurt_and_read(name, "ray: TuneBOHB's state", path, read, count, seed)


def records(name: str, directory: Path, seed: int, count: int) -> Iterator[Outcome]:
    """A study's records, and what the study is."""
    store = RecordStore(directory / "study")
    store.open(make_study())
    for n in range(3):
        store.append(make_record(seed=n))
    store.close()
    whole = [r.to_json() for r in store.load()]

    def read() -> Any:
        """What compare goes on from; the cell of a line that was not finished runs again."""
        found = [r.to_json() for r in store.load(repair=True)]
        return whole if found == whole[: len(found)] and len(found) > 1 else found

    yield hurt_and_read(
        name, "ours: records.jsonl, bits", store.path, read, count, seed, how="flipped"
    )

    def beginning() -> Any:
        found = [r.to_json() for r in store.load(repair=True)]
        return whole if found == whole[: len(found)] else found

    yield hurt_and_read(
        name, "ours: records.jsonl, cut", store.path, beginning, count, seed, how="cut"
    )
    yield hurt_and_read(
        name, "ours: study.json", store.study_path, store.load_settings, count, seed
    )


def checkpoints(name: str, directory: Path, seed: int, count: int) -> Iterator[Outcome]:
    """What a comparison's trial goes on from; and a checkpoint as torch writes it."""
    import torch

    torch.manual_seed(seed)
    state = {"weights": torch.randn(50, 20), "epoch": 3, "rates": [0.1, 0.03]}
    write_run(directory, state)
    (path,) = [p for p in directory.iterdir() if p.suffix == ".pt"]

    def plain(found: Any) -> Any:
        return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in found.items()}

    yield hurt_and_read(
        name, "ours: a trial's checkpoint", path, lambda: plain(read_run(directory)), count, seed
    )
    bare = directory / "bare.pt"
    torch.save(state, bare)

    def read() -> Any:
        return plain(torch.load(bare, weights_only=True))

    yield hurt_and_read(name, "ray: a checkpoint by torch.save", bare, read, count, seed)


def arrays(name: str, directory: Path, seed: int, count: int) -> Iterator[Outcome]:
    """Arrays that are made once for all trials of a machine."""
    values = np.random.default_rng(seed).integers(0, 256, (20, 8, 8), dtype=np.uint8)

    def read() -> Any:
        _array_files._verified.clear()  # as in another process
        made = _array_files.open_or_make(
            "images", "origin", lambda: (values.shape, values.dtype, [values]), directory=directory
        )
        return made.tolist()

    read()
    (path,) = directory.glob("images-*.npy")
    yield hurt_and_read(name, "ours: cached arrays", path, read, count, seed)


def _here(directory: Path) -> Path:
    logging.getLogger("tune_ext").setLevel(logging.ERROR)  # each cut is told otherwise
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@case("files, short", "bits flip and files are cut: 40 places of each file", short=True, here=True)
def short(directory: Path, seed: int) -> Iterator[Outcome]:
    """Some places of each file."""
    yield from searchers("files, short", _here(directory), seed, 40)
    yield from records("files, short", directory, seed, 40)
    yield from arrays("files, short", _here(directory / "arrays"), seed, 40)


@case("files: states of searchers", "bits flip at 400 places, files are cut at 400")
def many_states(directory: Path, seed: int) -> Iterator[Outcome]:
    """Many places of the states of searchers."""
    name = "files: states of searchers"
    yield from searchers(name, _here(directory), seed, 400)
    yield rays_searcher(name, directory, seed, 400)


@case("files: records and arrays", "bits flip at 1,000 places, files are cut at 1,000")
def many_records(directory: Path, seed: int) -> Iterator[Outcome]:
    """Many places of records, settings and cached arrays."""
    name = "files: records and arrays"
    yield from records(name, _here(directory), seed, 1000)
    yield from arrays(name, _here(directory / "arrays"), seed, 1000)


@case("files: checkpoints", "bits flip at 400 places, files are cut at 400")
def many_checkpoints(directory: Path, seed: int) -> Iterator[Outcome]:
    """Many places of checkpoints."""
    yield from checkpoints("files: checkpoints", _here(directory), seed, 400)
