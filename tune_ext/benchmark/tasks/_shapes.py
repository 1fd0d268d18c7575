"""Pictures of shapes with textures, made by a rule: a labelled data set that needs no download.

A picture shows one filled shape (disc, square, triangle, star or ring) with one texture (stripes
or checks) in front of a background with a gradient and grain. Place, scale, tilt, colours and the
texture's angle, phase and period are drawn for each picture. The class is the shape and the texture
together: ten in all. Scraps of both textures may lie about, so that the texture must be seen where
the shape is; the textures are fine, so that they fade as the pictures get smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import check_count
from tune_ext._random import check_seed, generator
from tune_ext.errors import InvalidTypeError

__all__ = ["CLASSES", "SIZE", "draw", "labels_of", "pictures"]

SIZE = 128
"""Height and width in which everything is drawn."""

VERSION = 2
"""Counted up when the same seed would give other pictures."""

_SCRAPS = (0, 3)
"""Fewer than the second number of them."""
_RADIUS = (0.24, 0.42)
"""Of a shape, as a share of the picture."""
_TILT = 0.4
"""Radians by which a shape is turned at most."""
_PERIOD = (8, 18)
"""Pixels of a texture's period."""
_CONTRAST = 0.4
"""By which the brightness of a shape's two colours differs at least, from 0 to 1."""
_GRAIN = (0.01, 0.05)
"""Deviation of the noise of each pixel."""

_Plane = NDArray[np.float32]
_SHAPES = ("disc", "square", "triangle", "star", "ring")
_TEXTURES = ("stripes", "checks")
CLASSES = tuple(f"{texture} {shape}" for shape in _SHAPES for texture in _TEXTURES)
"""Their names, in the order of the labels."""


def labels_of(count: int) -> NDArray[np.int64]:
    """The classes of the first so many pictures: in turn."""
    return np.arange(check_count("count", count), dtype=np.int64) % len(CLASSES)


def pictures(count: int, *, seed: int, part: str = "train") -> NDArray[np.uint8]:
    """The first so many pictures of a part, count × 3 × 128 × 128.

    Args:
        count: How many; each depends on the seed, the part and its number alone.
        seed: Decides all pictures.
        part: "train", "test" or any other name.

    Raises:
        InvalidTypeError: `count` or `seed` is no whole number.

    >>> pictures(3, seed=0).shape
    (3, 3, 128, 128)
    """
    out = np.empty((check_count("count", count), 3, SIZE, SIZE), np.uint8)
    for index, picture in enumerate(draw(count, seed=seed, part=part)):
        out[index] = picture
    return out


def draw(count: int, *, seed: int, part: str = "train") -> Iterator[NDArray[np.uint8]]:
    """The pictures of `pictures`, one by one, 3 × 128 × 128 each."""
    if check_seed(seed) is None:
        raise InvalidTypeError("seed must be a whole number, got None")
    for index, label in enumerate(labels_of(count)):
        rng = generator(seed, "shapes and textures", part, index)
        yield _picture(int(label), rng)


_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32)


def _picture(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    shape, texture = divmod(label, len(_TEXTURES))
    canvas = _background(rng)
    for _ in range(rng.integers(*_SCRAPS)):
        _add_scrap(canvas, rng)
    radius = SIZE * rng.uniform(*_RADIUS)
    place = rng.uniform(0.9 * radius, SIZE - 0.9 * radius, 2)
    x, y = _turned(place, rng.uniform(-_TILT, _TILT))
    mask = _mask(_DISTANCES[_SHAPES[shape]](x / radius, y / radius) * radius)
    _paint(canvas, mask, _pattern(texture, rng), _two_colours(rng, _CONTRAST))
    canvas += rng.normal(0, rng.uniform(*_GRAIN), canvas.shape).astype(np.float32)
    return np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator) -> _Plane:
    """A gradient between two colours, and coarse grain."""
    first, last = rng.uniform(0.1, 0.9, (2, 3, 1, 1)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * _COLUMNS + np.sin(angle) * _ROWS) / SIZE
    share = (along - along.min()) / np.ptp(along)
    coarse = rng.normal(0, 0.06, (3, SIZE // 8, SIZE // 8)).astype(np.float32)
    plane: _Plane = first + (last - first) * share + coarse.repeat(8, 1).repeat(8, 2)
    return plane


def _add_scrap(canvas: _Plane, rng: np.random.Generator) -> None:
    """A thin bar, plain or with one of the textures."""
    place = rng.uniform(0, SIZE, 2)
    x, y = _turned(place, rng.uniform(0, 2 * np.pi))
    length, width = SIZE * rng.uniform(0.1, 0.3), SIZE * rng.uniform(0.02, 0.07)
    mask = _mask(np.maximum(np.abs(x) - length, np.abs(y) - width))
    kind = int(rng.integers(0, len(_TEXTURES) + 1))
    pattern = np.zeros_like(x) if kind == len(_TEXTURES) else _pattern(kind, rng)
    _paint(canvas, mask, pattern, _two_colours(rng, 0.15))


def _turned(place: NDArray[np.float64], angle: float) -> tuple[_Plane, _Plane]:
    """Coordinates in pixels from a place, turned."""
    down, right = _ROWS - np.float32(place[0]), _COLUMNS - np.float32(place[1])
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * right + sine * down, cosine * down - sine * right


def _mask(distance: _Plane) -> _Plane:
    """1 inside, 0 outside, a pixel wide between them; distances in pixels, negative inside."""
    mask: _Plane = np.clip(0.5 - distance, 0, 1)
    return mask


def _pattern(texture: int, rng: np.random.Generator) -> _Plane:
    """From 0 to 1."""
    place = rng.uniform(0, SIZE, 2)
    x, y = _turned(place, rng.uniform(0, 2 * np.pi))
    wave = np.float32(2 * np.pi / rng.uniform(*_PERIOD))
    waves = np.sin(wave * x) if texture == 0 else np.sin(wave * x) * np.sin(wave * y)
    pattern: _Plane = np.clip(0.5 + 1.5 * waves, 0, 1)
    return pattern


def _two_colours(rng: np.random.Generator, least: float) -> _Plane:
    """Two colours whose brightness differs by `least` or more."""
    while True:
        colours = rng.uniform(0, 1, (2, 3)).astype(np.float32)
        if abs(float(colours[0].mean() - colours[1].mean())) >= least:
            return colours[:, :, None, None]


def _paint(canvas: _Plane, mask: _Plane, pattern: _Plane, colours: _Plane) -> None:
    canvas += mask * (colours[0] + (colours[1] - colours[0]) * pattern - canvas)


def _star(x: _Plane, y: _Plane) -> _Plane:
    """Five points: between the angles the edge runs straight, near enough."""
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    tooth = np.abs((angle / (2 * np.pi) * 5) % 1 - 0.5) * 2  # 0 in a notch, 1 at a point
    return cast("_Plane", distance - (0.42 + 0.58 * tooth**1.5))


def _triangle(x: _Plane, y: _Plane) -> _Plane:
    third = np.float32(np.sqrt(0.75))
    distance: _Plane = np.maximum(np.abs(x) * third + y * 0.5, -y) - np.float32(0.55)
    return distance


_DISTANCES: dict[str, Callable[[_Plane, _Plane], _Plane]] = {
    "disc": lambda x, y: np.hypot(x, y) - np.float32(0.9),
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - np.float32(0.8),
    "triangle": _triangle,
    "star": _star,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - np.float32(0.7)) - np.float32(0.27),
}
"""Distances to the edge in units of the radius, negative inside; near it, near enough."""
