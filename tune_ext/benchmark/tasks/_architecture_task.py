"""What the tasks that search the architecture of a network have in common."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tune_ext.benchmark.tasks._training_task import TrainingTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tune_ext.benchmark.tasks._data import Parts
    from tune_ext.scaling import Plan

__all__ = ["ArchitectureTask"]


class ArchitectureTask(TrainingTask):
    """Images of another task, and a network that the configuration describes.

    A configuration may have ``initialization="scaled"``: then the weights are drawn as the plan of
    its network says (`tune_ext.scaling`).

    Args:
        data: A task with the data.
        shape: Channels, height and width of an image.
        training: The options of `TrainingTask`.
    """

    searches_architecture: ClassVar[bool] = True

    def __init__(self, data: TrainingTask, shape: tuple[int, int, int], **training: Any) -> None:
        super().__init__(parameters=("lr",), measure_response=False, **training)
        self._data, self._shape = data, shape

    def missing(self) -> str | None:
        """None, unless the data is not here."""
        return self._data.missing()

    def _split(self, seed: int) -> Parts:
        return self._data._split(seed)

    @property
    def example_input(self) -> Tensor:
        """One image of zeros; see `Task.example_input`."""
        import torch

        return torch.zeros(1, *self._shape)

    @abstractmethod
    def _plan(self, values: Mapping[str, Any], network: nn.Module) -> Plan:
        """How the network of a configuration is initialised where it says "scaled"."""

    def _network(self) -> nn.Module:
        return self.build(self.default_config)

    def _weighted(self, values: Mapping[str, Any], seed: int) -> nn.Module:
        import torch

        from tune_ext import scaling
        from tune_ext.benchmark.tasks._networks import build

        network = build(lambda: self.build(values), seed=seed)
        if values["initialization"] == "scaled":
            with warnings.catch_warnings():  # what the theory does not cover is the report's
                warnings.simplefilter("ignore", scaling.ScalingWarning)
                plan = self._plan(values, network)
            plan.initialize_(network, generator=torch.Generator().manual_seed(seed))
        return network
