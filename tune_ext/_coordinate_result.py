"""What a coordinate check found: sizes of activations, their slopes, a table and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tune_ext.errors import InvalidValueError, MissingDependencyError

__all__ = ["Coordinate", "CoordinateCheck"]

Verdict = Literal["stay", "grow", "vanish", "blow up"]

_SHARES = {"first layer": 0.0, "at 1/4": 0.25, "at 1/2": 0.5, "at 3/4": 0.75, "last layer": 1.0}


@dataclass(frozen=True)
class Coordinate:
    """The output of one layer of one network after one step.

    Attributes:
        size: Of the network.
        seed: Which of the networks of this size.
        step: After how many training steps; 0 is the start.
        layer: Its name; "(output)" is the whole model.
        mean_abs: Mean |x|.
        rms: √mean(x²).
        change_mean_abs: Mean |x - x₀|, x₀ the output at the start.
        change_rms: √mean((x - x₀)²).
    """

    size: float
    seed: int
    step: int
    layer: str
    mean_abs: float
    rms: float
    change_mean_abs: float
    change_rms: float


@dataclass(frozen=True)
class CoordinateCheck:
    """The result of `tune_ext.scaling.coordinate_check`.

    Networks of all sizes are compared layer by layer if their layers have the same names, as
    where the width is the size. Otherwise, as with depth, they are compared at five places: the
    first layer, the last one and those at a quarter, half and three quarters of the way, and at the
    output.

    Attributes:
        coordinates: Everything that was measured.
        tolerance: A slope within ±tolerance counts as staying.
    """

    coordinates: tuple[Coordinate, ...]
    tolerance: float = 0.25

    @property
    def sizes(self) -> tuple[float, ...]:
        """The sizes, ascending."""
        return tuple(sorted({c.size for c in self.coordinates}))

    @property
    def steps(self) -> int:
        """How many training steps there were."""
        return max(c.step for c in self.coordinates)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, or places, that are compared; the last one is the output."""
        return tuple(dict.fromkeys(name for name, *_ in self._values))

    @cached_property
    def _values(self) -> dict[tuple[str, int, float], np.ndarray[Any, np.dtype[np.float64]]]:
        """Per layer, step and size: the four measures, their geometric mean over the seeds."""
        order: dict[float, list[str]] = {}
        found: dict[tuple[str, int, float], list[list[float]]] = {}
        for c in self.coordinates:
            names = order.setdefault(c.size, [])
            if c.layer not in names:
                names.append(c.layer)
            four = [c.mean_abs, c.rms, c.change_mean_abs, c.change_rms]
            found.setdefault((c.layer, c.step, c.size), []).append(four)
        places = {size: _places(names) for size, names in order.items()}
        if len({tuple(sorted(names)) for names in order.values()}) == 1:
            places = {size: {name: name for name in names} for size, names in order.items()}
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            means = {key: np.exp(np.log(rows).mean(0)) for key, rows in found.items()}
        some = places[self.sizes[0]]
        return {
            (place, step, size): means[places[size][place], step, size]
            for place in some
            for step in range(self.steps + 1)
            for size in self.sizes
        }

    def value(
        self, layer: str, size: float, step: int, *, change: bool = False, mean_abs: bool = False
    ) -> float:
        """The size of a layer's output, or of its change since the start.

        Args:
            layer: One of `layers`.
            size: One of `sizes`.
            step: 0 … `steps`.
            change: Of the change.
            mean_abs: The mean of the absolute values instead of the RMS.

        Raises:
            InvalidValueError: There is no such layer, size or step.
        """
        if (layer, step, size) not in self._values:
            raise InvalidValueError(
                f"nothing was measured of layer {layer!r}, size {size!r}, step {step!r}: layers are"
                f" {', '.join(self.layers)}, sizes {self.sizes}, steps 0 to {self.steps}"
            )
        return float(self._values[layer, step, size][2 * change + (not mean_abs)])

    def slope(self, layer: str, step: int | None = None, *, change: bool = False) -> float:
        """The slope of log RMS against log size, by least squares.

        Args:
            layer: One of `layers`.
            step: None is the last one.
            change: Of the change since the start.

        Returns:
            0 where it stays, 1 where it grows in proportion to the size; infinite where a network
            is no longer finite, NaN where nothing moves at some size.
        """
        at = self.steps if step is None else step
        values = np.array([self.value(layer, size, at, change=change) for size in self.sizes])
        if not np.isfinite(values).all():
            return math.inf
        if not values.all():
            return math.nan
        return float(np.polyfit(np.log(self.sizes), np.log(values), 1)[0])

    def worst(self, *, change: bool = False) -> tuple[str, float]:
        """The layer that is furthest from staying after the last step, and its slope.

        Of the model's output only the change counts, unless there is nothing else: a read-out
        that starts the smaller the wider the network is does so on purpose. Where all is still at
        some size, the first such layer and NaN.
        """
        judged = self.layers if change else self.layers[:-1] or self.layers
        slopes = {layer: self.slope(layer, change=change) for layer in judged}
        moving = {layer: slope for layer, slope in slopes.items() if not math.isnan(slope)}
        if not moving:
            return next(iter(slopes.items()))
        return max(moving.items(), key=lambda item: abs(item[1]))

    def judge(self, *, change: bool) -> Verdict:
        """What the layer that is furthest from staying does after the last step."""
        slope = self.worst(change=change)[1]
        if math.isinf(slope):
            return "blow up"
        if math.isnan(slope) or abs(slope) <= self.tolerance:
            return "stay"
        return "grow" if slope > 0 else "vanish"

    @property
    def verdict(self) -> Verdict:
        """What activations and their changes do with the size, the worse of both.

        "blow up" where a network is no longer finite, before "grow", before "vanish".
        """
        both = {self.judge(change=False), self.judge(change=True)}
        return next(v for v in ("blow up", "grow", "vanish", "stay") if v in both)

    def summary(self) -> str:
        """Two sentences: what the activations do, and what their changes do."""
        return " ".join(self._sentence(change) for change in (False, True))

    def _sentence(self, change: bool) -> str:
        what = "Their changes since the start" if change else "The activations"
        layer, slope = self.worst(change=change)
        verdict = self.judge(change=change)
        if verdict == "blow up":
            return f"{what} blow up: {layer} is not finite after {self.steps} steps."
        if math.isnan(slope):
            return f"{what} are 0 at some size."
        where = f"(slope {slope:+.2f} at {layer})"
        if verdict == "stay":
            return f"{what} stay as they are when the size grows {where}."
        return f"{what} {verdict} with the size, ×{2**slope:.2f} at each doubling {where}."

    def table(self) -> str:
        """RMS per layer and size after the last step, slopes at the start and then, the verdict."""
        head = ["layer", *(f"{size:g}" for size in self.sizes), "slope", "slope at step 0"]
        parts = []
        for change in (False, True):
            title = "RMS of the change since the start" if change else "RMS of the output"
            rows = [head[: len(head) - change]]
            for layer in self.layers:
                values = [self.value(layer, n, self.steps, change=change) for n in self.sizes]
                row = [
                    layer,
                    *(f"{v:.3g}" for v in values),
                    _signed(self.slope(layer, change=change)),
                ]
                rows.append(row if change else [*row, _signed(self.slope(layer, 0))])
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines = [
                "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
                for row in rows
            ]
            parts.append("\n".join([f"{title}, after {self.steps} steps, by size", *lines]))
        return "\n\n".join([*parts, self.summary()])

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw RMS against size: a line a layer, a column a step; outputs above, changes below.

        Args:
            path: Where to save the picture; None does not save it.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        try:
            from matplotlib import colormaps
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError(
                "matplotlib is not installed, and draws the picture: pip install matplotlib"
            ) from error
        shown = sorted({0, 1, (self.steps + 1) // 2, self.steps})
        figure = Figure(figsize=(2.6 * len(shown) + 2.4, 6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, len(shown), sharex=True, sharey="row", squeeze=False)
        for row, change in enumerate((False, True)):
            for ax, step in zip(axes[row], shown, strict=True):
                for i, layer in enumerate(self.layers):
                    values = [self.value(layer, n, step, change=change) for n in self.sizes]
                    colour = colormaps["viridis"](0.9 * i / max(len(self.layers) - 1, 1))
                    values = [v if 0 < v < math.inf else math.nan for v in values]
                    ax.plot(self.sizes, values, ".-", color=colour, lw=1.2, label=layer)
                ax.set(xscale="log", yscale="log")
                ax.set_xticks(self.sizes, [f"{size:g}" for size in self.sizes])
                ax.minorticks_off()
            first = axes[row][int(change)]
            first.set_ylabel("RMS of the change" if change else "RMS of the output")
            first.tick_params(labelleft=True)
        for ax, step in zip(axes[0], shown, strict=True):
            ax.set_title(f"step {step}", fontsize=9)
        axes[1][0].set_axis_off()  # nothing has changed at the start
        for ax in axes[1]:
            ax.set_xlabel("size")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right", fontsize=7)
        figure.suptitle(
            f"Activations: {self.judge(change=False)}. Changes: {self.judge(change=True)}.",
            fontsize=10,
        )
        if path is not None:
            figure.savefig(path, dpi=130)
        return figure


def _places(names: list[str]) -> dict[str, str]:
    """From the places at which networks of different depths are compared to their layers."""
    hidden, output = names[:-1], names[-1]
    last = len(hidden) - 1
    places = {place: hidden[round(share * last)] for place, share in _SHARES.items() if hidden}
    return {**places, output: output}


def _signed(slope: float) -> str:
    return "-" if math.isnan(slope) else f"{slope:+.2f}"
