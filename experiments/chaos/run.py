"""Faults of every kind, injected into ours and into Ray's: what survives, what is lost.

    python experiments/chaos/run.py [--short] [--only WORD …] [--out DIR] [--seed N]
        [--patience TIMES]

Every case runs in a process of its own, which is stopped with all that it has started when its
time is over: a hang is a result. On a busy machine, be patient: `--patience 5`. A line in
DIR/chaos.jsonl says what came of a case; one that is there, from the same versions and the same
sources, is not run again. Writes DIR/chaos.md and DIR/chaos.json, the newest of every case. The
end is 1 if something of ours did not survive.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from experiments.chaos.outcome import Case, Outcome, load  # noqa: E402
from tune_ext.benchmark.processes import descendants  # noqa: E402
from tune_ext.benchmark.provenance import provenance  # noqa: E402

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_health_check_failure_threshold": "30",
    "RAY_prestart_worker_first_driver": "0",
}
"""As the tests set it: one thread a process, Ray patient and quiet."""


def versions(case: Case) -> dict[str, str]:
    """What decides whether a result still holds: versions, the package's sources, the case's."""
    known = provenance()["versions"]
    files = [*sorted((ROOT / "tune_ext").rglob("*.py")), *_sources(case)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    return {"python": known["python"], "ray": known["ray"], "sources": digest}


def _sources(case: Case) -> list[Path]:
    module = sys.modules[case.function.__module__]
    return [Path(module.__file__ or ""), HERE / "outcome.py"]


def run(case: Case, seed: int, directory: Path, log: Path | None = None) -> list[Outcome]:
    """The outcomes of a case, run in a process of its own within its time."""
    found = directory / "outcomes.jsonl"
    work = directory / "work"
    work.mkdir(parents=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--one", case.name]
    began = time.monotonic()
    with (log or directory / "log.txt").open("ab") as output:
        process = subprocess.Popen(
            [*command, "--seed", str(seed), "--out", str(directory)],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=case.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    lines = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    if code == 0:
        return outcomes
    ended = "hung" if code is None else "crashed"
    why = f"stopped after {case.seconds:g} s" if code is None else f"the case ended with {code}"
    seconds = time.monotonic() - began
    return [*outcomes, Outcome(case.name, "the case", 1, 0, ended=ended, seconds=seconds, note=why)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, its group, and everything that it has started."""
    victims = descendants(process.pid) if process.poll() is None else []
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for victim in victims:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(victim, signal.SIGKILL)
    process.wait()


def outcomes_of(case: Case, directory: Path, seed: int) -> Iterator[Outcome]:
    """What a case says, in this process; how long each took is added where the case does not."""
    began = time.monotonic()
    for outcome in case.function(directory, seed):
        seconds = outcome.seconds or time.monotonic() - began
        note = outcome.note.replace(str(directory), "…")  # a directory that is gone by then
        yield replace(outcome, seconds=round(seconds, 2), note=note)
        began = time.monotonic()


def run_one(case: Case, seed: int, directory: Path, *, ours: bool = False) -> None:
    """Run a case in this process; each outcome is a line as soon as it is known.

    Args:
        case: Which.
        seed: Of its faults.
        directory: With a directory "work".
        ours: Whether to end where Ray's begin.
    """
    with (directory / "outcomes.jsonl").open("a", encoding="utf-8") as file:
        for outcome in outcomes_of(case, directory / "work", seed):
            if ours and not outcome.is_ours:
                return
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()


def read(path: Path) -> list[dict[str, Any]]:
    """What came of cases before; a line that was cut short is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries


def newest(entries: list[dict[str, Any]], known: Sequence[str]) -> list[dict[str, Any]]:
    """The last entry of every case that there still is, in the order of the cases."""
    by_name = {entry["case"]: entry for entry in entries}
    return [by_name[name] for name in known if name in by_name]


COLUMNS = ("case", "what is hurt", "injected", "survived", "results lost", "trials run twice")


def table(entries: list[dict[str, Any]], cases: dict[str, Case]) -> str:
    """What came of every case, as Markdown."""
    head = [*COLUMNS, "same answer", "ended", "s", "note"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    told = {True: "yes", False: "**no**", None: "–"}
    for entry in entries:
        for o in (Outcome(**outcome) for outcome in entry["outcomes"]):
            row = (
                *(f"{o.case}: {cases[entry['case']].what}", o.system, o.injected, o.survived),
                *(o.lost_results, o.repeated_trials, told[o.same_answer], o.ended),
                *(f"{o.seconds:.1f}", o.note.replace("|", "\\|").replace("\n", " ")),
            )
            lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def summary(entries: list[dict[str, Any]]) -> str:
    """The sums of ours and Ray's, in a sentence each."""
    all_ = [Outcome(**outcome) for entry in entries for outcome in entry["outcomes"]]
    told = []
    for name, side in (
        ("Ours", [o for o in all_ if o.is_ours]),
        ("Ray's", [o for o in all_ if not o.is_ours]),
    ):
        told.append(
            f"{name}: {sum(o.injected for o in side)} faults injected, "
            f"{sum(o.survived for o in side)} survived, {sum(o.lost_results for o in side)} "
            f"results lost, {sum(o.repeated_trials for o in side)} trials run twice; of "
            f"{len(side)} rows {sum(o.ended == 'hung' for o in side)} hung and "
            f"{sum(o.ended == 'crashed' for o in side)} crashed."
        )
    return "\n\n".join(told)


def write(out: Path, cases: dict[str, Case]) -> list[dict[str, Any]]:
    """Write the table of the newest of every case."""
    entries = newest(read(out / "chaos.jsonl"), list(cases))
    seen = sorted({tuple(sorted(entry["versions"].items())) for entry in entries})
    under = "; ".join(", ".join(f"{k} {v}" for k, v in one if k != "sources") for one in seen)
    title = "# What was injected, what survived\n\n`python experiments/chaos/run.py`"
    body = f"{title} ({'; '.join(dict.fromkeys(under.split('; ')))})\n\n{summary(entries)}\n\n"
    (out / "chaos.md").write_text(body + table(entries, cases) + "\n", encoding="utf-8")
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    (out / "chaos.json").write_text(text + "\n", encoding="utf-8")
    return entries


def chosen(cases: dict[str, Case], short: bool, only: Sequence[str]) -> list[Case]:
    """The short ones, or those with a word in their names; all without either.

    The whole name of a case is that case and no other.
    """
    found = [c for c in cases.values() if c.short or not short]
    parts = [word for word in only if word not in cases]
    return [c for c in found if not only or c.name in only or any(w in c.name for w in parts)]


def is_known(entries: list[dict[str, Any]], case: Case, seed: int) -> bool:
    """Whether a case was run with these versions and sources, to its end."""
    return any(
        (entry["case"], entry["seed"], entry["versions"]) == (case.name, seed, versions(case))
        and not any(o["system"] == "the case" for o in entry["outcomes"])
        for entry in entries
    )


def run_all(cases: Sequence[Case], seed: int, out: Path) -> None:
    """Run those that are not known yet; a line for each."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "logs").mkdir(exist_ok=True)
    path = out / "chaos.jsonl"
    say = functools.partial(print, flush=True)
    for number, case in enumerate(cases, 1):
        if is_known(read(path), case, seed):
            say(f"[{number}/{len(cases)}] {case.name}: known")
            continue
        say(f"[{number}/{len(cases)}] {case.name}: {case.what} (at most {case.seconds:g} s)")
        with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
            log = out / "logs" / f"{case.name.replace(' ', '-').replace('/', '-')}.txt"
            log.unlink(missing_ok=True)
            outcomes = run(case, seed, Path(folder), log)
        entry = {"case": case.name, "seed": seed, "versions": versions(case)}
        entry["outcomes"] = [asdict(outcome) for outcome in outcomes]
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        for o in outcomes:
            mark = "" if o.is_well else "  <-- not well"
            say(f"    {o.system}: {o.survived}/{o.injected}, {o.ended}, {o.seconds:.1f} s{mark}")


def main(arguments: Sequence[str] | None = None) -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="only what the tests run, too")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="in a case's name")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=1.0, help="so many times as long")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cases = load()
    if options.one:
        run_one(cases[options.one], options.seed, options.out)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what it has started is ended
    those = [
        replace(case, seconds=case.seconds * options.patience)
        for case in chosen(cases, options.short, options.only)
    ]
    run_all(those, options.seed, options.out)
    entries = write(options.out, cases)
    print(f"\n{summary(entries)}\n\nThe table: {options.out / 'chaos.md'}")
    outcomes = [Outcome(**o) for entry in entries for o in entry["outcomes"]]
    return int(any(o.is_ours and not o.is_well for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
