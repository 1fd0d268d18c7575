"""Runs on the simulated clock that end after so many steps of Ray's loop, and go on from there.

What goes over is what Ray saves: of each trial the JSON that was made when the trial was last
marked for saving, the searcher's file, how many trials there were. Ray's own code puts the
trials back.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment
from ray.tune.schedulers import HyperBandForBOHB, HyperBandScheduler
from ray.tune.search import Searcher
from ray.tune.trainable.metadata import _TrainingRunMetadata
from ray.tune.tune_config import ResumeConfig
from ray.tune.utils.serialization import _loads_with_cloudpickle

from tune_ext.benchmark import simulation
from tune_ext.benchmark._simulated_actors import Actors
from tune_ext.raytune import HyperBand

Kind = ResumeConfig.ResumeType
R = 9
MINIMUM: dict[str, Any] = {"metric": "loss", "mode": "min"}


@dataclass
class Snapshot:
    """What Ray finds after an interruption."""

    trials: list[tuple[str, str]]
    generator: dict[str, Any]
    searcher: bytes


class _Saving(simulation._Controller):
    """As the simulation's, but trials are marked and saved as Ray does."""

    _mark_trial_to_checkpoint = TuneController._mark_trial_to_checkpoint
    retries = 0

    def add_trial(self, trial: Any) -> None:
        trial.max_failures = self.retries
        super().add_trial(trial)

    def _process_trial_failure(self, trial: Any, exception: Exception) -> None:
        """As Ray's, without the file of the error."""
        trial.run_metadata.num_failures += 1
        if trial.status == trial.RUNNING and trial.should_recover():
            self._has_errored = True
            self._try_recover(trial, exc=exception)
        else:
            super()._process_trial_failure(trial, exception)


class Run:
    """A run that may be interrupted.

    Args:
        trainable: As for `simulate`; so are the others.
        after: An interruption to go on from.
        errored: What becomes of trials that have failed before it.
        retries: How often a trial that fails is tried again.
    """

    def __init__(
        self,
        trainable: Callable[[dict[str, Any]], Any],
        searcher: Any,
        scheduler: Any,
        *,
        storage: Path,
        workers: int = 1,
        callbacks: Sequence[Any] = (),
        after: Snapshot | None = None,
        errored: Kind = Kind.SKIP,
        retries: int = 0,
    ) -> None:
        experiment = Experiment(
            "simulated", simulation._Placeholder, num_samples=10**6, storage_path=str(storage)
        )
        experiment.storage._get_session_path = simulation._Session(str(storage))
        self.searcher, self.scheduler = searcher, scheduler
        self.search = simulation._Generator(searcher)
        self.search.add_configurations([experiment])
        self.actors = Actors(trainable, workers)
        self.controller = _Saving(
            self.actors,
            search_alg=self.search,
            scheduler=scheduler,
            callbacks=list(callbacks),
            storage=experiment.storage,
            checkpoint_period=1e9,
            reuse_actors=False,
        )
        self.controller.retries = retries
        if after is None:
            self.controller.setup_experiments([experiment], self.search.total_samples)
        else:
            self._go_on(after, errored)

    def _go_on(self, after: Snapshot, errored: Kind) -> None:
        for name in ("counter", "total_samples", "finished"):
            setattr(self.search, f"_{name}", after.generator[name])
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(after.searcher)
            self.searcher.restore(file.name)
        config = ResumeConfig(errored=errored)
        self.controller._requeue_restored_trials([_trial(saved) for saved in after.trials], config)

    def step(self, steps: int | None = None) -> Snapshot | None:
        """Run so many steps of Ray's loop; None if the run ends before."""
        while not self.controller.is_finished():
            if steps == 0:
                return self._snapshot()
            self.controller.step()
            steps = None if steps is None else steps - 1
        return None

    def _snapshot(self) -> Snapshot:
        with tempfile.NamedTemporaryFile() as file:
            self.searcher.save(file.name)
            searcher = Path(file.name).read_bytes()
        trials = list(self.controller._get_trial_checkpoints().values())
        return Snapshot(trials, dict(self.search.get_state()), searcher)

    def trials(self) -> list[Any]:
        """All trials."""
        return list(self.controller._trials)


def _trial(saved: tuple[str, str]) -> Any:
    state = _loads_with_cloudpickle(saved[0])
    trial = simulation._Trial(state["trainable_name"], stub=True, _setup_default_resource=False)
    trial.__setstate__(state)
    trial.placement_group_factory = simulation._WORKER  # compared by identity
    trial.run_metadata = _TrainingRunMetadata.from_json_state(saved[1])
    return trial


class Listed(Searcher):
    """Suggests what it is given as `x`, and which one it is; may be told of pauses."""

    def __init__(self, values: Iterable[Any]) -> None:
        super().__init__(metric="loss", mode="min")
        self.left = list(enumerate(values))

    def suggest(self, trial_id: str) -> Any:
        if not self.left:
            return Searcher.FINISHED
        number, x = self.left.pop(0)
        return {"x": x, "number": number}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is learned."""

    def on_pause(self, trial_id: str) -> None:
        """HyperBandForBOHB wants to tell."""

    def on_unpause(self, trial_id: str) -> None:
        """Likewise."""

    def save(self, path: str) -> None:
        Path(path).write_text(json.dumps(self.left))

    def restore(self, path: str) -> None:
        self.left = json.loads(Path(path).read_text())


class Reached(Callback):
    """How far every configuration has come."""

    def __init__(self) -> None:
        self.epochs: dict[Any, int] = {}
        self.steps = 0

    def on_trial_result(self, result: dict[str, Any], **_: Any) -> None:
        x, epoch = result["config"]["x"], result["training_iteration"]
        self.epochs[x] = max(self.epochs.get(x, 0), epoch)
        self.steps += 1


def rays() -> Any:
    return HyperBandScheduler(max_t=R, **MINIMUM)


def rays_for_bohb() -> Any:
    return HyperBandForBOHB(max_t=R, **MINIMUM)


def ours(**options: Any) -> Any:
    return HyperBand(max_t=R, **MINIMUM, **options)


class Curve:
    """The loss is the configuration, or what its name says; no two are as fast."""

    fails_at = 9

    def __init__(self, config: dict[str, Any]) -> None:
        self.x, self.number, self.epoch = config["x"], config.get("number", 0), 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        if self.x == "fails" and self.epoch == self.fails_at:
            raise RuntimeError("as planned")
        losses = {"fails": 0.1, "nan": math.nan, "none": None}
        seconds = 3.0 if self.x == "fails" else 1 + self.number / 100
        return {"loss": losses.get(self.x, self.x), "seconds": seconds, "done": False}

    def state(self) -> int:
        return self.epoch

    def load(self, state: int) -> None:
        self.epoch = state
