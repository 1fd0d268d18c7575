"""Record what the published code does: run once, its numbers are in tests/data.

    python -m tests.reference.record_autohyper CHECKOUT/src tests/data/autohyper_published.json

CHECKOUT is a clone of the code published with arXiv 2111.14056. Its search is run as it is;
only the training is replaced, by a response function of `reference_autohyper`. It works for
two parameters only: for one, the places that index a 3 × 3 array are turned, in memory, into
those that index an array of 3.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
import tempfile
import types
from pathlib import Path

from tests.reference.reference_autohyper import RESPONSES

ROUNDS = 150  # a run that is still going then never ends or is not worth recording


class _TooLongError(Exception):
    pass


class _Watch(logging.Handler):
    """Notes the search's state at the beginning of every round."""

    def __init__(self, parameters: dict) -> None:
        super().__init__(level=logging.INFO)
        self.parameters, self.rounds = parameters, []

    def emit(self, record: logging.LogRecord) -> None:
        if "Trust Region #" in record.getMessage():
            if len(self.rounds) == ROUNDS:
                raise _TooLongError
            values = self.parameters.values()
            self.rounds.append([*(p.current for p in values), *(p.scale for p in values)])


def _one_axis(module: types.ModuleType) -> types.ModuleType:
    source = Path(module.__file__).read_text()
    source = re.sub(r"\((\d), \1\)", r"(\1,)", source)
    source = source.replace("[index[0], :]", "[index[0]]")
    source = re.sub(r"\n +if index\[1\] == 0.*\n.*", "", source)
    patched = types.ModuleType(module.__name__ + "_one_axis")
    patched.__package__ = module.__package__
    sys.modules[patched.__name__] = patched
    exec(compile(source, "one_axis", "exec"), patched.__dict__)
    return patched


def record(module: types.ModuleType, components: types.ModuleType, name: str, d: int) -> dict:
    """One run of the published search on one response function."""
    hyper = components.HyperParameters()
    published = {
        "lr": components.HyperParameter(current=1e-4, scale=1.45, minimum=1e-6),
        "weight_decay": components.HyperParameter(current=0, scale=2.0, minimum=0),
    }
    hyper.parameters = dict(list(published.items())[:d])
    watch, probes = _Watch(hyper.parameters), []

    def trainer(hyper_parameters: dict, epochs: object) -> float:
        values = list(hyper_parameters.values())
        probes.append([*values, RESPONSES[name](*values)])
        return probes[-1][-1]

    module.compute_rank = lambda response: response
    module.logger.addHandler(watch)
    module.logger.setLevel(logging.INFO)
    final = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            module.optimize(trainer, hyper, output_path=folder)
        final = [p.current for p in hyper.parameters.values()]
    except _TooLongError:
        watch.rounds, probes = watch.rounds[:12], probes[:60]
    finally:
        module.logger.removeHandler(watch)
    return {"rounds": _short(watch.rounds), "probes": _short(probes), "final": final}


def _short(rows: list) -> list:
    return [[float(f"{x:.11g}") for x in row] for row in rows]


def main(checkout: str, out: str) -> None:
    sys.path.insert(0, checkout)
    module = importlib.import_module("autohyper.autohyper")
    components = importlib.import_module("autohyper.components")
    runs = {
        str(d): {name: record(m, components, name, d) for name in RESPONSES}
        for d, m in ((1, _one_axis(module)), (2, module))
    }
    data = {
        "origin": "the code published with arXiv 2111.14056, its default constants, run on the "
        "functions of tests/reference/reference_autohyper.py by record_autohyper.py",
        "rounds": "current values, then scales, at the beginning of each round",
        "probes": "values, then response, in the order of the calls; repetitions included",
        "final": f"the answer; null where {ROUNDS} rounds did not end the run (the first kept)",
        "runs": runs,
    }
    text = json.dumps(data)
    Path(out).write_text(re.sub(r'("(?:rounds|probes|final)": [\[n])', r"\n\1", text) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
