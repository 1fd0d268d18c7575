"""What all tests share: one thread for torch, one Ray a process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# Ray starts its workers with niceness 15: beside other work they would hardly get a turn.
os.environ.setdefault("RAY_worker_niceness", "0")
# On a busy machine a worker or an agent takes its time; Ray's limits would end it, or the node.
os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
os.environ.setdefault("RAY_health_check_failure_threshold", "30")
# Workers started beforehand are never used: trials need some of their own.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with tests that wait for Ray or are slow go first where several processes share
    the files out: what comes last is short, and no process waits long for another.
    """
    if not hasattr(config, "workerinput"):
        return
    long = {i.path for i in items if "cluster" in i.fixturenames or i.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread, as a trial runs; as many as before afterwards."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ray_of_this_process() -> Iterator[None]:
    """What ends the Ray that `cluster` starts."""
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def cluster(ray_of_this_process: None) -> str:
    """One local Ray for all tests of a process; its address.

    It has two CPUs and a GPU that only Ray believes in, and all of them are free.
    """
    import ray

    from tests import own_ray

    if ray.is_initialized() and not own_ray.is_free(CPU=2, GPU=1):
        ray.shutdown()
    if not ray.is_initialized():
        own_ray.start(num_gpus=1, configure_logging=False)
    return str(ray.get_runtime_context().gcs_address)
