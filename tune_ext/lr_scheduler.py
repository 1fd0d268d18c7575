"""ExpTest for a torch training loop: find a learning rate, then lower it when it is time.

Source: Chaudhry, Mizuno, arXiv 2411.16975; what is completed is said in `tune_ext.exptest`,
where all decisions are made. Here are only losses, weights and rates.

`find_lr` trains a ladder of short runs and leaves no trace. `ExpTestLR` takes the loss of every
step of the training proper. `resolve_lr` is for the configurations of a search that leaves the
learning rate out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from tune_ext._checks import as_number, check_choice, check_count, check_flag, check_state
from tune_ext._find_lr import find_lr, resolve_lr
from tune_ext._ladder_result import LadderResult, LadderRung
from tune_ext._losses import LossBuffer
from tune_ext._rung_training import largest_rate, rate_ratios, set_rates
from tune_ext._torch_snapshot import Snapshot, all_finite, parameters_of
from tune_ext.errors import InvalidTypeError, NoLearningRateError, StateError
from tune_ext.exptest import Correction, Explanation, Tuner

__all__ = ["ExpTestLR", "LadderResult", "LadderRung", "find_lr", "resolve_lr"]

_VERSION = 1
_AT_LEAST_EVERY = 1024  # steps: so many losses, 8 bytes each, are kept at most


class ExpTestLR(LRScheduler):
    """Lowers the learning rate when the training loss stops decaying (arXiv 2411.16975).

    Call `step` with the training loss after every step of the optimiser. At the end of each
    window of steps a test for exponential decay looks at its losses. If they do not decay, and
    not over as many steps again either, the rate is multiplied by β and the next window is longer
    by 1/β; if `total_steps` is given, the rate falls linearly from there. `tune_ext.Tuner`
    decides, and says why. If a loss is not finite, the rate is multiplied by β at once and, if a
    `model` is given, its weights and the optimiser's state go back to the last snapshot.

    Snapshots are taken before the first step of the optimiser (when the statistics of a
    BatchNorm have seen the first batch) and at the end of a window, unless the weights are not
    finite or the loss rose during that window (p > 1 − α). One is kept; it takes the
    memory of the parameters, the buffers and the optimiser's state once more.

    A loss that is a tensor in the host's memory, or a number, is read at once. On a device it is
    copied there, and read together with others after `read_every` steps and at the end of a
    window, so that no step waits for the device. The decisions are the same for every
    `read_every`; a loss that is not finite is noticed up to ``read_every - 1`` steps later.

    It is a torch scheduler: `get_last_lr`, `state_dict`, `load_state_dict`, ``optimizer`` and
    ``base_lrs`` are what trainers expect. Chaining it with other schedulers (`SequentialLR`,
    `ChainedScheduler`) does not work, as these do not pass a loss on.

    Args:
        optimizer: Its parameter groups keep the ratios of their rates.
        lr: The rate to begin with, of the group with the largest rate; None for what the
            optimiser has.
        window: Steps of the first window, at least 3; one epoch, ``len(loader)``, as published.
        alpha: Level of the test, between 0 and 1.
        beta: Factor of the rate, between 0 and 1.
        min_lr: The rate never falls below (the largest group's).
        correction: For repeated testing, see `tune_ext.Tuner`.
        autocorrelation: See `tune_ext.DecayTest`.
        transform: "log", or "identity" for losses that may be negative.
        total_steps: The length of the training, if it is known.
        cooldown: The share of `total_steps` at its end over which the rate falls linearly to
            `min_lr` at the latest; earlier, from the first window that does not decay. 0 for none;
            None is 0.2 if `total_steps` is given.
        model: What to put back when a loss is not finite; None puts nothing back.
        snapshot: Where the snapshot is kept: "device" (where the weights are), "cpu", or False
            for none.
        save_snapshot: Include the snapshot in `state_dict`, which is otherwise plain JSON.
            Without it the first step after loading takes a new one.
        max_restores: After more restores than this in a row, without a whole window in between,
            `step` raises an error; None never does.
        read_every: Losses that wait on a device at most.

    Raises:
        InvalidTypeError: `optimizer` is no torch optimiser, or an argument has a wrong type.
        InvalidValueError: An argument has a value that cannot work.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = torch.optim.SGD([w], lr=0.1)
    >>> scheduler = ExpTestLR(optimizer, window=20)
    >>> for step in range(200):
    ...     optimizer.zero_grad()
    ...     loss = (w**2).sum() + 0.01 * (step % 7)     # decays, to a floor
    ...     loss.backward()
    ...     optimizer.step()
    ...     scheduler.step(loss)
    >>> scheduler.get_last_lr()[0] < 0.1
    True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr: float | None = None,
        *,
        window: int,
        alpha: float = 0.05,
        beta: float = 0.33,
        min_lr: float = 0.0,
        correction: Correction = "spending",
        autocorrelation: Literal["ar1", "none"] = "ar1",
        transform: Literal["log", "identity"] = "log",
        total_steps: int | None = None,
        cooldown: float | None = None,
        model: nn.Module | None = None,
        snapshot: Literal["device", "cpu", False] = "device",
        save_snapshot: bool = False,
        max_restores: int | None = 3,
        read_every: int = 16,
    ) -> None:
        # Not super().__init__(): it would take a step, for which there is no loss yet.
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidTypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
        if model is not None and not isinstance(model, nn.Module):
            raise InvalidTypeError(f"model must be a torch.nn.Module or None, got {model!r}")
        check_choice("snapshot", snapshot, ("device", "cpu", False))
        self._tuner = Tuner(
            largest_rate(optimizer) if lr is None else lr,
            window,
            alpha=alpha,
            beta=beta,
            min_lr=min_lr,
            correction=correction,
            autocorrelation=autocorrelation,
            transform=transform,
            total_steps=total_steps,
            cooldown=cooldown,
        )
        self.optimizer = optimizer
        self._ratios = rate_ratios(optimizer)
        self._model = model if snapshot else None
        self._snapshot_device = torch.device("cpu") if snapshot == "cpu" else None
        self._save_snapshot = check_flag("save_snapshot", save_snapshot)
        self._max_restores = (
            None if max_restores is None else check_count("max_restores", max_restores, 0)
        )
        self._losses = LossBuffer(check_count("read_every", read_every))
        self._in_window = 0
        self._restored = 0
        self._applied = math.nan
        self._cools = self._tuner.cooldown > 0
        self.last_epoch = 0
        self._due = min(window, _AT_LEAST_EVERY)
        self._apply()
        for group in optimizer.param_groups:
            if lr is not None:
                group["initial_lr"] = float(group["lr"])
            group.setdefault("initial_lr", float(group["lr"]))
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self._snapshot: Snapshot | None = None
        self._handle: RemovableHandle | None = None
        self._await_snapshot()

    @property
    def tuner(self) -> Tuner:
        """What decides, as of its last look at the losses; read it, do not feed it."""
        return self._tuner

    @property
    def snapshot_nbytes(self) -> int:
        """Memory that the snapshot takes now, in bytes."""
        return 0 if self._snapshot is None else self._snapshot.nbytes

    def explain(self) -> Explanation:
        """Every window that has ended and what followed from it; `str()` is a table."""
        return self._tuner.explain()

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of each parameter group for the next step."""
        return [self._rate() * ratio for ratio in self._ratios]

    def _rate(self) -> float:
        """The largest group's rate for the next step."""
        return self._tuner.lr_at(self._tuner.step + len(self._losses))

    def step(self, loss: Any = None) -> None:
        """Take the loss of the step that the optimiser has just made.

        Args:
            loss: The training loss from before the update: a number, or a tensor of one number.
                It is not kept alive, and may be overwritten afterwards. With gradient
                accumulation, the mean of the batches' losses, once for each step.

        Raises:
            InvalidTypeError: There is no loss, or it is not a number.
            InvalidValueError: It is a tensor of more than one number.
            NoLearningRateError: A loss was not finite, again and again (see `max_restores`).
        """
        if loss is None:
            raise InvalidTypeError(
                "ExpTestLR.step needs the loss of the training step: scheduler.step(loss)"
            )
        losses = self._losses
        losses.add(loss)
        self.last_epoch += 1
        self._due -= 1
        if self._due <= 0 or not losses.finite:
            self._look()
        if self._cools:
            self._apply()

    def _look(self) -> None:
        """Give the tuner all losses so far, and do what it says."""
        self._stop_waiting()
        losses, diverged = self._losses.take(), False
        while losses and not diverged:  # what comes after belongs to weights that are given up
            taken, action = self._tuner.update_many(losses)
            losses = losses[taken:]
            self._in_window += taken
            if action is not None:
                diverged = action.kind == "restore"
                rose = action.result.p_value > 1 - self._tuner.alpha
                self._end_window(diverged, renew=not rose)
            elif self._tuner.cooling and self._in_window >= self._tuner.window:
                self._end_window(False, renew=True)
        left = self._tuner.window - self._in_window
        self._due = left if 0 < left < _AT_LEAST_EVERY else _AT_LEAST_EVERY
        self._apply(again=diverged)  # a snapshot has the rates of its time
        if diverged:
            self._report()

    def _end_window(self, diverged: bool, renew: bool) -> None:
        """Go back to the snapshot, or renew it where the weights are worth going back to."""
        self._in_window = 0
        self._restored = self._restored + 1 if diverged else 0
        if diverged:
            if self._snapshot is not None:
                self._snapshot.restore()
        elif self._model is not None and renew and all_finite(parameters_of([self._model])):
            if self._snapshot is None:
                self._snapshot = self._take()
            else:
                self._snapshot.update()

    def _report(self) -> None:
        """Say that a loss was not finite and what followed; an error if nothing helps."""
        said = f"the loss of step {self.last_epoch} was not finite"
        done = "weights and optimiser are back at the last snapshot"
        if self._snapshot is None:
            done = "the weights stay as they are, as there is no snapshot"
            done += " (give model=)" if self._model is None else " before the first step"
        if self._max_restores is not None and self._restored > self._max_restores:
            raise NoLearningRateError(
                f"{said} (time {self._restored} without a whole window in between), and the "
                f"learning rate is {self._applied:.3g} now; {done}. The rate is hardly the "
                "cause: look for NaN in a batch, for a loss that is infinite for some inputs, "
                "and for overflow in half precision."
            )
        warnings.warn(
            f"{said}: {done}, and the learning rate is {self._applied:.3g}",
            RuntimeWarning,
            stacklevel=4,
        )

    def _apply(self, again: bool = False) -> None:
        """Give the parameter groups their rates; groups added meanwhile keep their ratio."""
        added = self.optimizer.param_groups[len(self._ratios) :]
        for group in added:
            self._ratios.append(float(group["lr"]) / (self._applied or self._tuner.base_lr))
        lr = self._rate()
        if self._applied != lr or again or added:
            self._applied = lr
            set_rates(self.optimizer, self._applied, self._ratios)
            self._last_lr = [lr * ratio for ratio in self._ratios]

    def _await_snapshot(self) -> None:
        """Take the first snapshot right before the optimiser's next step."""
        self._stop_waiting()
        if self._model is not None and self._snapshot is None:
            self._handle = self.optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, *_: object) -> None:
        if self._snapshot is None:
            self._snapshot = self._take()

    def _stop_waiting(self) -> None:
        if self._handle is not None:  # not from within the hook: torch iterates over hooks
            self._handle.remove()
            self._handle = None

    def _take(self) -> Snapshot:
        assert self._model is not None  # callers have checked
        return Snapshot([self._model], self.optimizer, self._snapshot_device)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, with which the optimiser's hooks do not go."""
        return {**vars(self), "_handle": self._handle is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _handle=None)
        if state["_handle"]:
            self._await_snapshot()

    def state_dict(self) -> dict[str, Any]:
        """Everything that it needs to go on exactly, also in the middle of a window.

        Plain JSON, unless it was made with ``save_snapshot=True``: then the entry "snapshot"
        holds tensors. Reads the losses that wait on a device.
        """
        unread = self._losses.take()
        for loss in unread:
            self._losses.add(loss)
        kept = self._snapshot if self._save_snapshot else None
        return {
            "version": _VERSION,
            "kind": "ExpTestLR",
            "tuner": self._tuner.state_dict(),
            "in_window": self._in_window,
            "unread": list(unread),
            "restored": self._restored,
            "ratios": list(self._ratios),
            "base_lrs": list(self.base_lrs),
            "last_epoch": self.last_epoch,
            **({} if kept is None else {"snapshot": kept.state_dict()}),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state; the optimiser gets the rates that belong to it.

        The options that concern decisions (α, β, window, …) are the state's.

        Raises:
            StateError: The state is damaged, of another version, or of something else, or it is
                for another number of parameter groups. Nothing has been changed.
        """
        check_state(state_dict, "ExpTestLR", _VERSION, "an ExpTestLR")
        try:
            tuner = Tuner.from_state_dict(state_dict["tuner"])
            ratios = [as_number("ratio", ratio) for ratio in state_dict["ratios"]]
            base_lrs = [as_number("base_lr", rate) for rate in state_dict["base_lrs"]]
            unread = [float(loss) for loss in state_dict["unread"]]
            in_window, restored, step = (
                check_count(name, state_dict[name], 0)
                for name in ("in_window", "restored", "last_epoch")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state of the ExpTestLR is damaged: {error!r}") from error
        if len(ratios) != len(self.optimizer.param_groups):
            raise StateError(
                f"the state is for {len(ratios)} parameter groups, the optimiser has "
                f"{len(self.optimizer.param_groups)}"
            )
        snapshot = None
        if "snapshot" in state_dict and self._model is not None:
            snapshot = self._take()
            snapshot.load_state_dict(state_dict["snapshot"])
        self._tuner, self._ratios, self.base_lrs = tuner, ratios, list(base_lrs)
        self._in_window, self._restored, self.last_epoch = in_window, restored, step
        self._losses.take()
        for loss in unread:
            self._losses.add(loss)
        self._applied = math.nan
        self._cools = tuner.cooldown > 0
        self._due = min(max(tuner.window - in_window - len(unread), 1), _AT_LEAST_EVERY)
        self._apply()
        self._snapshot = snapshot
        self._await_snapshot()
