"""A worker without Ray that misbehaves on demand: by method name and seed.

random: two trials of one epoch, the second better.   asha: one epoch, then hangs, with a child
process whose id it leaves in $FAKE_CHILD.             hyperband: one epoch, then dies.
bohb: raises.                                          one-epoch: only NaN.
autohyper: answers by itself.  Every search appends its cell to $FAKE_LOG.
"""

import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path


def epoch(pipe, trial, lr, error):
    result = {"epoch": 1, "validation_error": error}
    pipe.send(
        ("epoch", {"trial_id": trial, "config": {"lr": lr}, "result": result, "seconds": 0.1})
    )


def search(pipe, request):
    method = request["method"]
    with open(os.environ["FAKE_LOG"], "a", encoding="utf-8") as file:
        file.write(f"{method} {request['seed']}\n")
    if method == "bohb":
        pipe.send(("error", "ValueError: no"))
        return
    epoch(pipe, "a", 0.1, float("nan") if method == "one-epoch" else 0.5)
    if method == "asha":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        Path(os.environ["FAKE_CHILD"]).write_text(str(child.pid), encoding="utf-8")
        time.sleep(600)
    if method == "hyperband":
        os._exit(3)
    if method == "random":
        epoch(pipe, "b", 0.2, 0.25)
    answer = {"lr": 0.3} if method == "autohyper" else None
    pipe.send(("searched", {"answer": answer, "details": {}, "errors": []}))


def evaluate(pipe, request):
    pipe.send(("final", {"number": 0, "epoch": 1}))
    lr = request["config"]["lr"]
    pipe.send(("evaluated", [{"seed": s, "test_error": lr} for s in request["seeds"]]))


def main():
    pipe = Connection(int(sys.argv[1]))
    while True:
        try:
            kind, payload = pipe.recv()
        except EOFError:
            return
        if kind == "stop":
            return
        {"search": search, "evaluate": evaluate}[kind](pipe, payload)


if __name__ == "__main__":
    main()
