"""The command line: `tune-ext compare`, `report`, `importance`, `export`, `list`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tune_ext._checks import check_folder
from tune_ext._text import one_line, visible
from tune_ext.benchmark import tasks
from tune_ext.benchmark._directory import check_directory
from tune_ext.benchmark._preflight import check_place
from tune_ext.benchmark._storage import Mirror, Storage
from tune_ext.benchmark.methods import METHODS, missing
from tune_ext.benchmark.progress import make_observer
from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.report import COLUMNS, TaskReport, not_run, write_report
from tune_ext.benchmark.runner import Place, default_jobs, run_study
from tune_ext.benchmark.study import parse_seeds
from tune_ext.benchmark.study_file import find_study, load_study
from tune_ext.errors import MissingDependencyError, TuneExtError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; None reads `sys.argv`.

    Returns:
        The exit status: 0, or 2 after an error in what was asked for, or 130 when stopped.
    """
    options = _parser().parse_args(arguments)
    if getattr(options, "task_modules", None):
        sys.path.append(os.getcwd())  # where a module of the user's own is, if not installed
    try:
        return _flushed(int(options.run(options)))
    except BrokenPipeError:
        # Whoever read, as `head` does, has seen enough. Python would complain once more when
        # it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TuneExtError as error:
        print(f"tune-ext: {visible(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a file that may not be read
        where = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        told = TuneExtError(
            f"{error.strerror or error}{where}. What was recorded is kept, and the same command "
            "goes on from it; or give other places"
        )
        print(f"tune-ext: {visible(str(told))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this one stopped.", file=sys.stderr)
        return 130


def _flushed(status: int) -> int:
    """The status, after everything was written: a broken pipe shows when it is used."""
    sys.stdout.flush()
    return status


class _Parser(argparse.ArgumentParser):
    """Its errors quote arguments: in one line, of bounded length, and nothing in them is obeyed."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        told = TuneExtError(f"{self.prog}: error: {one_line(message)}")
        self.exit(2, f"{told}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tune-ext", description="Compare searchers and schedulers under Ray Tune, fairly."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compare = commands.add_parser("compare", help="run a study, or go on with one")
    compare.add_argument("study", help="a TOML file, or the name of a study under ./experiments")
    compare.add_argument("--methods", help="instead of the study's: names with commas between")
    compare.add_argument("--seeds", help="instead of the study's: a count, or a list like 0,3")
    compare.add_argument("--budget", type=int, help="instead of the study's, in its unit")
    compare.add_argument("--workers", type=int, help="instead of the study's: trials at once")
    compare.add_argument("--jobs", type=int, help="cells at once (default: one a core, at most 8)")
    compare.add_argument(
        "--out", help="directory of the records (default: results/NAME, after the study's folder)"
    )
    compare.add_argument("--data-dir", help="where data sets are")
    compare.add_argument("--address", help="of a Ray cluster, such as auto; needs --storage")
    compare.add_argument(
        "--storage",
        help="a directory or URI (s3://, gs://, …) that every node reaches: for what trials "
        "save, and a copy of the records that the study goes on from",
    )
    compare.add_argument("--cpus-per-trial", type=float, default=1.0, help="default: 1")
    compare.add_argument("--gpus-per-trial", type=float, default=0.0, help="default: 0")
    _add_task_module(compare)
    compare.set_defaults(run=_compare)
    report = commands.add_parser("report", help="print a study's table and draw its plot again")
    report.add_argument("directory", help="the directory of the records, or its URI on a storage")
    report.set_defaults(run=_report)
    importance = commands.add_parser("importance", help="which hyper-parameters mattered")
    importance.add_argument("directory", help="the directory of the records")
    importance.add_argument(
        "--by", metavar="KEY", help="for each value of a key of the configurations: image_size"
    )
    _add_task_module(importance)
    importance.set_defaults(run=_importance)
    export = commands.add_parser("export", help="write the records as Parquet tables")
    export.add_argument("directory", help="the directory of the records")
    export.add_argument("--to", help="where to write (default: DIRECTORY/parquet)")
    export.set_defaults(run=_export)
    listing = commands.add_parser("list", help="tasks, methods and studies, and what is missing")
    listing.set_defaults(run=_list)
    return parser


def _add_task_module(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--task-module",
        metavar="MODULE",
        action="append",
        default=[],
        dest="task_modules",
        help="a module of your own that tasks may come from, which runs its code; can be repeated",
    )


def _need(*modules: str) -> None:
    """Say now what would be missing at the end."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    if lacking:
        raise MissingDependencyError(
            f"{' and '.join(lacking)} not installed: pip install 'tune-ext[compare]'"
        )


def _compare(options: argparse.Namespace) -> int:
    _need("rich", "vl_convert")
    path = find_study(options.study)
    study = load_study(path, options.task_modules).with_overrides(
        methods=None if options.methods is None else _names(options.methods),
        seeds=None if options.seeds is None else parse_seeds(options.seeds),
        budget=options.budget,
        workers=options.workers,
    )
    out = check_directory(options.out or Path("results", path.resolve().parent.name))
    storage = None if options.storage is None else _kept(options.storage, out)
    trials = None if storage is None else storage.inside("trials")
    place = Place(
        options.address,
        None if trials is None else trials.where,
        options.cpus_per_trial,
        options.gpus_per_trial,
    )
    if check_folder("--data-dir", options.data_dir):
        # The workers inherit it; it is no part of the study, which runs anywhere.
        os.environ["TUNE_EXT_DATA"] = str(Path(options.data_dir).resolve())
    simulated = all(task.create().simulated for task in study.tasks)
    store = RecordStore(out, sync_every=1.0 if simulated else 0.0)
    jobs = options.jobs
    if jobs is None:  # without a cluster, jobs know nothing of each other's GPUs
        jobs = 1 if options.gpus_per_trial and not options.address else default_jobs()
    for hint in check_place(place, study, jobs):
        print(f"note: {visible(hint)}", file=sys.stderr)
    if storage is not None and options.address is None:
        storage.check()  # a cluster's was used by all nodes just now
    mirror = None if storage is None else Mirror(out, storage)
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.nullcontext() if mirror is None else mirror.held():
        with make_observer() as observer:
            run_study(study, store, observer, jobs=jobs, place=place, mirror=mirror)
        _print_report(store)
        if mirror is not None and trials is not None:
            mirror.renew()  # another may have taken over while the report was drawn
            mirror.finish()
            with contextlib.suppress(OSError):  # what is left there costs room, no more
                trials.remove()
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _kept(storage: str, out: Path) -> Storage:
    """Where on a storage a study is kept: under the name of its directory, also if that is ".."."""
    return Storage(storage).inside(Path(os.path.abspath(out)).name)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _report(options: argparse.Namespace) -> int:
    _need("rich", "vl_convert")
    _print_report(_records(options.directory))
    return 0


def _records(directory: str) -> RecordStore:
    """A study's records; those on a storage are brought to ./results first."""
    if "://" not in directory:
        return RecordStore(directory)
    here = Path("results", directory.partition("?")[0].rstrip("/").rpartition("/")[2])
    Mirror(here, Storage(directory)).fetch()
    return RecordStore(here)


def _importance(options: argparse.Namespace) -> int:
    _need("matplotlib")
    from tune_ext.benchmark.importance_report import write_importance

    store = _records(options.directory)
    written = write_importance(store, options.by, modules=options.task_modules)
    print("Written: " + ", ".join(str(path) for path in written))
    return 0


def _export(options: argparse.Namespace) -> int:
    store = _records(options.directory)
    store.load_settings()
    written = store.to_parquet(options.to or store.directory / "parquet")
    print("Written: " + ", ".join(str(path) for path in written))
    return 0


def _print_report(store: RecordStore) -> None:
    parts, written = write_report(store)
    for part in parts:
        _print_table(part)
        print()
        for sentence in part.sentences:
            print(visible(sentence))
        for failure in part.failures:
            print(f"failure: {visible(failure)}")
    for line in not_run(store.load_settings()):
        print(f"not run: {visible(line)}")
    print()
    print(f"Written: {len(written)} files in {store.directory}, such as report.html and report.md")


_CHOSEN = COLUMNS.index("chosen (median, range)")
_FEW = 3
"""Up to how many recommended parameters a terminal's table shows."""


def _shortened(row: Sequence[str], parameters: int) -> list[str]:
    """A row of a table for the terminal, where many parameters would fill the screen."""
    if parameters <= _FEW or row[_CHOSEN] == "none":
        return [*row[:_CHOSEN], row[_CHOSEN].replace("), ", ")\n"), *row[_CHOSEN + 1 :]]
    return [*row[:_CHOSEN], f"{parameters} parameters: see report.html", *row[_CHOSEN + 1 :]]


def _print_table(part: TaskReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # As Text, brackets are brackets and no markup.
    table = Table(title=Text(visible(part.task)), title_justify="left")
    for place, column in enumerate(COLUMNS):
        # Two lines, so that the cells decide the widths and nothing in them is broken.
        heading = column.replace(" [", "\n[").replace(" (", "\n(").replace("error, ", "error,\n")
        table.add_column(
            heading, justify="left" if place in (0, _CHOSEN) else "right", no_wrap=True
        )
    for row in part.rows:
        table.add_row(*(Text(visible(told)) for told in _shortened(row, part.parameters)))
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    # A pipe has no width of its own: nothing may be cut off there. And when nobody reads from
    # it any longer, rich would end the program by itself.
    text = io.StringIO()
    Console(width=140, file=text).print(table)
    print(text.getvalue(), end="")


def _list(options: argparse.Namespace) -> int:
    _print_rows("Tasks", _task_rows())
    _print_rows("Methods", [(n, m.description, _needs(n)) for n, m in METHODS.items()])
    studies = []
    for path in sorted(Path("experiments").glob("*/study.toml")):
        try:
            study = load_study(path)
        except TuneExtError as error:
            studies.append((path.parent.name, "cannot be run as it is", str(error)))
            continue
        cells = f"{len(study.cells())} cells of {study.budget} {study.unit}"
        studies.append((path.parent.name, study.title, cells))
    _print_rows("Studies in ./experiments", studies)
    return 0


def _needs(method: str) -> str:
    lacking = missing(method)
    needs = ", ".join(METHODS[method].needs)
    return lacking or ("available" + (f" (with {needs})" if needs else ""))


_FAMILY = 4
"""From how many tasks with one description and state on they are listed together."""


def _task_rows() -> list[tuple[str, str, str]]:
    """A row a task; families of tasks that differ in their data alone have one together."""
    families: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name in tasks.names():
        task: Any = tasks.create(name)
        key = (name.partition("-")[0], task.missing() or "available")
        families.setdefault(key, []).append((name, task.description))
    rows = []
    for (family, state), members in families.items():
        if len(members) < _FAMILY:
            rows += [(name, description, state) for name, description in members]
            continue
        rows.append((f"{family}-*", f"{len(members)} tasks, such as: {members[0][1]}", state))
        rows += [(f"  {name}", "", "") for name, _ in members]
    return rows


def _print_rows(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    print(title)
    width = max((len(row[0]) for row in rows), default=0)
    for name, description, state in rows:
        name, told = visible(name), one_line(f"{description}: {state}" if description else "")
        print(f"  {name:<{width}}  {told}".rstrip() if told else f"  {name} ")
    if not rows:
        print("  none")
    print()


if __name__ == "__main__":
    sys.exit(main())
