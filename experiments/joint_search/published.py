r"""The published joint search on a Ray cluster: BOHB over architectures and hyper-parameters.

As in Zela, Klein, Falkner, Hutter (arXiv 1807.06906): 17 parameters of a residual network on
CIFAR-10, budgets of 400, 1,200, 3,600 and 10,800 seconds of training, of three configurations one
goes on, 32 brackets of Hyperband, ten workers, the published code's weights of Shake-Shake
("softmax"; its paper's are "uniform"). Other than there, who goes on is not trained from scratch
but continues, validation images are not augmented, and death_rate is searched only where a group
has one branch.

    python experiments/joint_search/published.py --address auto --gpus-per-trial 1 \
        --data /shared/cifar --storage /shared/ray --out joint-search
    python experiments/joint_search/published.py ... --resume          # after an interruption

It writes every evaluation as it comes into OUT/evaluations.jsonl, and all of them with the best
configuration and its test error into OUT/result.json. On one machine without a GPU:

    python experiments/joint_search/published.py --dataset fashion-mnist --limits small \
        --image-size 14 --train-size 2000 --budgets 2,6,18 --iterations 3 --workers 2 \
        --gpus-per-trial 0
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from evaluations import METRIC, TIME, Evaluations, best_evaluation, table  # beside this file

from tune_ext._checks import check_count
from tune_ext._random import check_seed
from tune_ext.benchmark._cluster import on_cluster
from tune_ext.benchmark.history import finite
from tune_ext.benchmark.provenance import provenance
from tune_ext.benchmark.study import TaskSpec
from tune_ext.brackets import bracket_table
from tune_ext.errors import DataNotFoundError, InvalidValueError, StateError, TuneExtError

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from experiments.lines import read  # noqa: E402

BUDGETS = (400.0, 1200.0, 3600.0, 10800.0)
ITERATIONS, WORKERS = 32, 10
_VERSION = 1


def reduction_factor(budgets: Sequence[float]) -> float:
    """What each budget is of the one before.

    Raises:
        InvalidValueError: They are fewer than two, or do not grow by one factor.
    """
    if len(budgets) < 2:
        raise InvalidValueError(f"--budgets must be two at least, got {list(budgets)}")
    factor = budgets[-1] / budgets[-2] if budgets[-2] > 0 else math.nan
    for low, high in pairwise(budgets):
        if not (low > 0 and factor > 1 and math.isclose(high, low * factor, rel_tol=1e-6)):
            raise InvalidValueError(
                "--budgets must grow by one factor, as 400,1200,3600,10800 do, got "
                + ",".join(f"{b:g}" for b in budgets)
            )
    return factor


def trials(budgets: Sequence[float], iterations: int) -> int:
    """How many configurations so many brackets start, one after another as published.

    >>> trials(BUDGETS, 32)  # 27, 9, 6 and 4, eight times
    368
    """
    table = bracket_table(
        budgets[-1], reduction_factor(budgets), min_budget=budgets[0], rounding="published"
    )
    return sum(table[i % len(table)][0].size for i in range(iterations))


def specification(args: argparse.Namespace) -> TaskSpec:
    """The task that the trials train; what was not given is as the task has it."""
    given = {
        "data_dir": args.data,
        "image_size": args.image_size,
        "train_size": args.train_size,
        "validation_size": args.validation_size,
    }
    options = {k: v for k, v in given.items() if v is not None}
    return TaskSpec(
        f"{args.dataset}-joint",
        {**options, "limits": args.limits, "budgets": list(args.budgets), "unit": "seconds",
         "coefficients": args.coefficients, "device": args.device},
    )  # fmt: skip


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--address", help="of a Ray cluster: auto, or host:port; without, a Ray of its own")
    add("--workers", type=int, default=WORKERS, help="trials at a time (%(default)s)")
    add("--gpus-per-trial", type=float, default=1.0, help="may be a fraction (%(default)g)")
    add("--cpus-per-trial", type=float, default=1.0, help="(%(default)g)")
    add("--storage", help="where Ray keeps checkpoints: shared by all nodes, or a bucket")
    add("--name", default="joint-search", help="of the experiment in there (%(default)s)")
    add("--out", type=Path, default=Path("joint-search"), help="for results (%(default)s)")
    add("--resume", action="store_true", help="go on with an interrupted search")
    add("--dataset", default="cifar10", choices=("cifar10", "fashion-mnist", "digits"))
    add("--data", help="where the data set is, on every node")
    add("--limits", default="published", choices=("published", "small"), help="of the space")
    add("--coefficients", default="softmax", choices=("softmax", "uniform"),
        help="the weights that Shake-Shake draws (%(default)s)")  # fmt: skip
    add("--image-size", type=int)
    add("--train-size", type=int)
    add("--validation-size", type=int)
    add("--budgets", type=_numbers, default=BUDGETS, help="seconds of training, with commas")
    add("--iterations", type=int, default=ITERATIONS, help="brackets (%(default)s)")
    add("--seed", type=int, default=0, help="of the search and of the split (%(default)s)")
    add("--device", help="cuda or cpu; by default what the trials have")
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if args.gpus_per_trial else "cpu")
    return args


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers with commas between, not {text!r}") from None


def where(args: argparse.Namespace) -> str:
    """The directory, or bucket, of Ray's checkpoints and snapshots."""
    storage: str = args.storage or str(Path.home() / "ray_results")
    if "://" not in storage:
        storage = str(Path(storage).expanduser().absolute())
    return storage.rstrip("/")


def lines_of(args: argparse.Namespace) -> Path:
    """The file of evaluations; a restored search writes there wherever it is resumed from."""
    path: Path = args.out.absolute() / "evaluations.jsonl"
    return path


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """What the search depends on, after a look at what is there already.

    Raises:
        InvalidTypeError: An option is not of its type.
        InvalidValueError: An option has an impossible value.
        StateError: OUT holds a search although none is resumed, or one with other settings.
    """
    check_count("--iterations", args.iterations)
    check_count("--workers", args.workers)
    check_seed(args.seed, "--seed")
    settings = args.out / "settings.json"
    now: dict[str, Any] = json.loads(json.dumps({**specification(args).to_json(), "seed": args.seed,
                                 "iterations": args.iterations}))  # fmt: skip
    if settings.exists():
        if not args.resume:
            raise StateError(
                f"{args.out} holds a search: go on with it by --resume, or give another --out"
            )
        before = json.loads(settings.read_text(encoding="utf-8"))
        if before != now:
            raise StateError(f"{args.out} holds a search with other settings: {before}")
    elif args.resume:
        raise StateError(f"{args.out} holds no search that could be resumed")
    return now


def start_ray(args: argparse.Namespace) -> None:
    """Connect to the cluster, or start a Ray of its own, unless one is there.

    Raises:
        StateError: There is no cluster at the address.
        InvalidValueError: It has less than one trial needs.
    """
    import ray

    if not ray.is_initialized():
        cpus = math.ceil(args.workers * args.cpus_per_trial)
        own = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        there = on_cluster(args.address) if args.address else own
        try:
            ray.init(**there, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise StateError(
                f"no Ray cluster at --address {args.address}: {error}; start one with "
                "`ray start --head`, or leave --address out"
            ) from None
    total = ray.cluster_resources()
    for kind, wanted in (("GPU", args.gpus_per_trial), ("CPU", args.cpus_per_trial)):
        if wanted > total.get(kind, 0.0):
            raise InvalidValueError(
                f"a trial needs {wanted:g} {kind}, and the cluster has {total.get(kind, 0.0):g}: "
                f"change --{kind.lower()}s-per-trial"
            )


def check_nodes(args: argparse.Namespace, spec: TaskSpec) -> None:
    """See that every node that can train has the data set and this package.

    Raises:
        DataNotFoundError: One has no data set: all trials there would fail.
        StateError: One cannot run any.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def missing() -> str | None:
        return spec.create().missing()

    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("GPU", 0.0) >= args.gpus_per_trial:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            remote = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(missing)
            asked[node["NodeManagerAddress"]] = remote.remote()
    for address, answer in asked.items():
        try:
            problem = ray.get(answer)
        except ray.exceptions.RayError as error:
            raise StateError(f"no trial can run on node {address}: {last_line(error)}") from None
        if problem:
            raise DataNotFoundError(f"on node {address}: {problem}")


def last_line(error: BaseException) -> str:
    r"""What an error says, without where it came from.

    >>> last_line(ValueError("a\nb")), last_line(ValueError())
    ('b', 'ValueError()')
    """
    text = str(error).strip()
    return text.splitlines()[-1] if text else repr(error)


def make_tuner(args: argparse.Namespace, spec: TaskSpec) -> Any:
    """A new search, or the one that was interrupted, where its snapshot was.

    Raises:
        StateError: There is no snapshot; or one of another search.
    """
    from ray import tune

    from tune_ext.benchmark.timed import TimedTrainable
    from tune_ext.raytune import BOHBSearch, HyperBand

    needs = {"cpu": args.cpus_per_trial, "gpu": args.gpus_per_trial}
    trainable = tune.with_resources(
        tune.with_parameters(TimedTrainable, task=spec, seed=args.seed), needs
    )
    storage = where(args)
    saved = f"{storage}/{args.name}"
    there = tune.Tuner.can_restore(saved)
    if args.resume:
        if not there:
            raise StateError(f"Ray has no search in {saved}: give its --storage and --name")
        return tune.Tuner.restore(saved, trainable, resume_unfinished=True, restart_errored=True)
    if there:
        raise StateError(f"{saved} holds another search: give another --name or --storage")
    budgets = args.budgets
    scheduler = HyperBand(
        TIME,
        max_t=budgets[-1],
        min_t=budgets[0],
        reduction_factor=reduction_factor(budgets),
        rounding="published",
    )
    count, space = trials(budgets, args.iterations), spec.create().space
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            search_alg=BOHBSearch(space, METRIC, "min", time_attr=TIME, seed=args.seed),
            scheduler=scheduler,
            num_samples=count,
            max_concurrent_trials=args.workers,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=args.name,
            storage_path=storage,
            callbacks=[Evaluations(str(lines_of(args)), tuple(budgets), count)],
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_frequency=1, checkpoint_at_end=True
            ),
            verbose=0,
        ),
    )


def tested(args: argparse.Namespace, spec: TaskSpec, trial: str, results: Any) -> float | None:
    """The best trial's error on the test images, from its last checkpoint; where trials train."""
    import ray

    from tune_ext.benchmark.timed import load_run

    found = [r for r in results if (r.metrics or {}).get("trial_id") == trial]
    if not found or found[0].checkpoint is None:
        return None

    @ray.remote(num_cpus=args.cpus_per_trial, num_gpus=args.gpus_per_trial)
    def test(config: dict[str, Any], checkpoint: Any) -> float | None:
        run = spec.create().start(config, seed=args.seed)
        with checkpoint.as_directory() as folder:
            run.load_state_dict(load_run(folder))
        return finite(run.test()["test_error"])

    error: float | None = ray.get(test.remote(found[0].config, found[0].checkpoint))
    return error


def search(args: argparse.Namespace) -> dict[str, Any]:
    """Run the search to its end; returns what is in OUT/result.json.

    Raises:
        TuneExtError: The data, the cluster or an interrupted search is not there; or an option
            has an impossible value.
    """
    planned = trials(args.budgets, args.iterations)
    spec, settings = specification(args), prepare(args)
    if problem := spec.create().missing():
        raise DataNotFoundError(problem)
    start_ray(args)
    if args.address:
        check_nodes(args, spec)
    tuner, begun = make_tuner(args, spec), time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings, indent=1) + "\n"
    (args.out / "settings.json").write_text(text, encoding="utf-8")
    results = tuner.fit()
    records = read(lines_of(args))
    ended = results.num_terminated + results.num_errors
    if ended < max(planned, len(results)):  # Ray comes back from Ctrl-C as if nothing were
        raise StateError(f"interrupted when {ended} of {planned} had ended: go on with --resume")
    errors = [last_line(e) for e in results.errors]
    try:
        best = best_evaluation(records)
    except StateError as nothing:
        raise StateError("; ".join([str(nothing), *errors[:1]])) from None
    error = tested(args, spec, best["trial"], results)
    out = {
        "schema": "tune-ext.joint-search",
        "version": _VERSION,
        "settings": settings,
        "versions": provenance(),
        "hours": round((time.time() - begun) / 3600, 4),
        "trials": len(results),
        "errors": errors,
        "best": {**best, "test_error": error},
        "evaluations": records,
    }
    text = json.dumps(out, indent=1, allow_nan=False) + "\n"
    (args.out / "result.json").write_text(text, encoding="utf-8")
    print(table(records, error))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = arguments(argv)
    try:
        search(args)
    except TuneExtError as error:
        print(f"published.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
