"""What a ladder on a torch model found: the rate, every rung, a table and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tune_ext._explanation import Explanation
from tune_ext._rung import RungResult
from tune_ext.errors import InvalidValueError, MissingDependencyError

__all__ = ["LadderResult", "LadderRung"]


@dataclass(frozen=True)
class LadderRung:
    """One rung that was trained.

    Attributes:
        index: Its rate is bound·β^(−index).
        lr: The largest learning rate of the parameter groups.
        losses: The loss of each step; the last one is not finite if it diverged.
        result: What the test says.
    """

    index: int
    lr: float
    losses: tuple[float, ...]
    result: RungResult

    def __str__(self) -> str:
        end = self.result.end_loss
        loss = "" if end is None else f", loss {end:.4g} at the end"
        return f"lr {self.lr:.3g}: {self.result.verdict} (p = {self.result.p_value:.2g}){loss}"


@dataclass(frozen=True)
class LadderResult:
    """What `tune_ext.find_lr` found.

    Attributes:
        lr: The learning rate; for several parameter groups, the largest one's. NaN only in the
            ``result`` of a `tune_ext.errors.NoLearningRateError`.
        bound: The rate where the ladder started.
        source: Where the bound came from.
        rungs: Every rung that was trained, in that order.
        explanation: The ladder's account of its decisions.
    """

    lr: float
    bound: float
    source: str
    rungs: tuple[LadderRung, ...]
    explanation: Explanation

    @classmethod
    def given(cls, lr: float) -> Self:
        """The result of a search that was not needed."""
        return cls(lr, lr, "given", (), Explanation(()))

    @property
    def steps(self) -> int:
        """All training steps that the search took."""
        return sum(len(rung.losses) for rung in self.rungs)

    def explain(self) -> Explanation:
        """A table of the rungs and of what followed from each; `str()` prints it."""
        return self.explanation

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the losses of every rung, and where each ended.

        Args:
            path: Where to save the picture; None does not save it.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            InvalidValueError: There is no rung to draw: the rate was given, not searched for.
        """
        if not self.rungs:
            raise InvalidValueError("there is nothing to draw: the learning rate was given")
        try:
            from matplotlib import colormaps
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError(
                "matplotlib is not installed, and draws the picture: pip install matplotlib"
            ) from error
        figure = Figure(figsize=(10, 4), layout="constrained")
        FigureCanvasAgg(figure)
        curves, ends = figure.subplots(1, 2, width_ratios=(1.2, 1))
        rungs = sorted(self.rungs, key=lambda rung: rung.lr)
        colours = [
            colormaps["viridis"](0.95 * i / max(len(rungs) - 1, 1)) for i in range(len(rungs))
        ]
        self._draw_curves(curves, rungs, colours)
        self._draw_ends(ends, rungs, colours)
        if path is not None:
            figure.savefig(path, dpi=130)
        return figure

    def _draw_curves(self, axes: Any, rungs: list[LadderRung], colours: list[Any]) -> None:
        for rung, colour in zip(rungs, colours, strict=True):
            chosen = rung.lr == self.lr
            shown = [loss if math.isfinite(loss) else math.nan for loss in rung.losses]
            axes.plot(
                shown, color=colour, lw=2.4 if chosen else 1.0, zorder=3 if chosen else 2,
                label=f"{rung.lr:.2g}" + (" (chosen)" if chosen else ""),
            )  # fmt: skip
        if all(loss > 0 or not math.isfinite(loss) for r in rungs for loss in r.losses):
            axes.set_yscale("log")
        axes.set(xlabel="step", ylabel="training loss", ylim=_limits(rungs))
        axes.legend(title="learning rate", fontsize=8, title_fontsize=8)

    def _draw_ends(self, axes: Any, rungs: list[LadderRung], colours: list[Any]) -> None:
        top = _limits(rungs)[1]
        for rung, colour in zip(rungs, colours, strict=True):
            end = rung.result.end_loss
            marker = "X" if end is None else "o"
            filled = rung.result.passes or end is None
            axes.plot(
                rung.lr, min(top, top if end is None else end), marker, ms=9, color=colour,
                mfc=colour if filled else "none", clip_on=False,
            )  # fmt: skip
        if math.isfinite(self.lr):
            axes.axvline(self.lr, color="0.6", lw=1, zorder=0)
        axes.set_xscale("log")
        if all(r.result.end_loss is None or r.result.end_loss > 0 for r in rungs):
            axes.set_yscale("log")
        axes.set(xlabel="learning rate", ylabel="loss at the end", ylim=_limits(rungs))
        axes.set_title("filled: decays; hollow: does not; ×: diverged", fontsize=9)


def _limits(rungs: list[LadderRung]) -> tuple[float, float]:
    """Around the losses that are worth seeing: a diverging rung may go to 1e30."""
    finite = [loss for rung in rungs for loss in rung.losses if math.isfinite(loss)]
    if not finite:
        return 0.1, 1.0
    first = max(abs(rung.losses[0]) for rung in rungs if math.isfinite(rung.losses[0]))
    lowest, highest = min(finite), min(max(finite), 5 * first)
    if lowest > 0:
        return lowest / 1.15, highest * 1.15
    margin = 0.05 * (highest - lowest) or 1.0
    return lowest - margin, highest + margin
