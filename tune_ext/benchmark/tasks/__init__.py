"""What the methods are compared on: real data, a network, an optimiser, a space.

And what stands for it: published tables of trained networks, recorded trainings with the response
of their networks, and functions whose optimum is known. They are looked up on a simulated clock.

>>> from tune_ext.benchmark import tasks
>>> [name for name in tasks.names() if name.startswith("nasbench")]
['nasbench201-cifar10', 'nasbench201-cifar100', 'nasbench201-imagenet']
>>> task = tasks.create("digits-cnn", optimizer="sgd", parameters=["lr"])
>>> task.default_config
{'lr': 0.001, 'weight_decay': 0.0}
>>> tasks.create(task.name, **task.options).options == task.options
True

Creating a task is cheap; torch and the data are loaded by its first run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tune_ext._loss_monitor import SEARCHED
from tune_ext.benchmark.tasks._base import Task, TaskRun
from tune_ext.benchmark.tasks._invalid import InvalidRun
from tune_ext.benchmark.tasks._own_rate import OwnRateRun, RungPlan, no_ladder, plan_rungs
from tune_ext.benchmark.tasks.dag import DigitsDAG, FashionMNISTDAG
from tune_ext.benchmark.tasks.digits import DigitsCNN, DigitsMLP
from tune_ext.benchmark.tasks.fashion_mnist import FashionMNISTResNet
from tune_ext.benchmark.tasks.functions import FUNCTIONS, CountingOnesTask, FunctionTask
from tune_ext.benchmark.tasks.growth import GROWTH_TASKS
from tune_ext.benchmark.tasks.images import IMAGE_TASKS
from tune_ext.benchmark.tasks.joint import JOINT_TASKS
from tune_ext.benchmark.tasks.regression import CaliforniaHousing, Diabetes
from tune_ext.benchmark.tasks.response_table import (
    ResponseDigitsCNN,
    ResponseFashionCNN,
    ResponseFashionResNet,
)
from tune_ext.benchmark.tasks.tables import TABLES, TableTask
from tune_ext.errors import InvalidConfigurationError, InvalidValueError

__all__ = [
    "CaliforniaHousing",
    "CountingOnesTask",
    "Diabetes",
    "DigitsCNN",
    "DigitsDAG",
    "DigitsMLP",
    "FashionMNISTDAG",
    "FashionMNISTResNet",
    "FunctionTask",
    "OwnRateRun",
    "ResponseDigitsCNN",
    "ResponseFashionCNN",
    "ResponseFashionResNet",
    "RungPlan",
    "TableTask",
    "Task",
    "TaskRun",
    "create",
    "names",
    "no_ladder",
    "plan_rungs",
    "start",
]

_TASKS: dict[str, Callable[..., Task]] = {
    DigitsCNN.name: DigitsCNN,
    DigitsMLP.name: DigitsMLP,
    DigitsDAG.name: DigitsDAG,
    FashionMNISTDAG.name: FashionMNISTDAG,
    FashionMNISTResNet.name: FashionMNISTResNet,
    **{task.name: task for task in IMAGE_TASKS},
    **{task.name: task for task in GROWTH_TASKS},
    **{task.name: task for task in JOINT_TASKS},
    Diabetes.name: Diabetes,
    CaliforniaHousing.name: CaliforniaHousing,
    **{name: partial(TableTask, name) for name in TABLES},
    **{name: partial(FunctionTask, name) for name in FUNCTIONS},
    CountingOnesTask.name: CountingOnesTask,
    ResponseDigitsCNN.name: ResponseDigitsCNN,
    ResponseFashionCNN.name: ResponseFashionCNN,
    ResponseFashionResNet.name: ResponseFashionResNet,
}
"""What builds a task of a name from its options."""


def names() -> list[str]:
    """The names of all tasks, in alphabetical order."""
    return sorted(_TASKS)


def create(name: str, **options: Any) -> Task:
    """Build a task from its name and options.

    Args:
        name: One of `names()`.
        **options: Arguments of the task's class.

    Raises:
        InvalidValueError: There is no such task or option; the message lists those there are.
    """
    if not isinstance(name, str) or name not in _TASKS:
        raise InvalidValueError(f"there is no task {name!r}; choose from {', '.join(names())}")
    known = [option for option in inspect.signature(_TASKS[name]).parameters]
    for option in options:
        if option not in known:
            raise InvalidValueError(
                f"task {name!r} has no option {option!r}; it has {', '.join(known)}"
            )
    return _TASKS[name](**options)


def start(task: Task, config: Mapping[str, Any], *, seed: int) -> TaskRun:
    """Start a run; with "exptest" for the learning rate, one that finds its own.

    A configuration of the space that cannot be built is a run that trains nothing and ends as one
    that diverged.

    Args:
        task: What is trained.
        config: See `Task.start`; "lr" may be "exptest".
        seed: See `Task.start`.
    """
    if config.get("lr") != SEARCHED:
        try:
            return task.start(config, seed=seed)
        except InvalidConfigurationError as error:
            return InvalidRun(str(error))
    return OwnRateRun(task, {k: v for k, v in config.items() if k != "lr"}, seed=seed)
