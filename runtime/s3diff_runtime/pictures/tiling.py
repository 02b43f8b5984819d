"""Cuts large images into overlapping tiles and blends the restored tiles, row by row.

Neighbouring tiles meet in a seam in the middle of what they share. Around the seam one fades into the other
along half a period of a cosine, so that the weights of all tiles add up to one at every pixel, and a tile's
outermost pixels, which saw less of the picture, count for nothing. The starts of tiles (but the last of each
row and column, which end with the image) are multiples of tile minus overlap: where that is a multiple of the
network's own grid, all tiles have their phase on it in common, as an uncut image would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.vocabulary import Pixels

ESTIMATE_PIXELS = 512 * 512
"""Images of more pixels are estimated from `ESTIMATE_WINDOWS` windows of them, which are as many pixels."""
ESTIMATE_WINDOWS = 16
_ESTIMATE_SIDE = 128
_CHANNELS = 3


@dataclass(frozen=True)
class Cut:
    """Where one axis of an image is cut: tiles of `side` pixels that begin at `starts`."""

    length: int
    side: int
    starts: tuple[int, ...]

    @classmethod
    def of(cls, length: int, tile: int, overlap: int) -> Cut:
        """Cut `length` pixels into tiles of `tile` that share `overlap` or more; a short axis is one tile."""
        if length <= tile:
            return cls(length, length, (0,))
        return cls(length, tile, (*range(0, length - tile, tile - overlap), length - tile))

    def weights(self, fade: int, scale: int) -> list[NDArray[np.float32]]:
        """The share of every tile in each of its pixels: `len(starts)` times `[side * scale]` in [0, 1].

        Args:
            fade: pixels over which neighbours blend, at most what they share.
            scale: the factor by which tiles have grown.
        """
        seams = [(later + earlier + self.side) / 2 * scale for earlier, later in pairwise(self.starts)]
        shares = []
        for number, start in enumerate(self.starts):
            centres = np.arange(self.side * scale, dtype=np.float64) + (start * scale + 0.5)
            share: NDArray[np.floating] = np.ones(len(centres))
            if number > 0:
                share = _faded_in(centres, seams[number - 1], fade * scale)
            if number < len(seams):
                share = share - _faded_in(centres, seams[number], fade * scale)
            shares.append(share.astype(np.float32))
        return shares


def _faded_in(positions: NDArray[np.floating], seam: float, width: int) -> NDArray[np.floating]:
    """From 0 to 1 around `seam`, within `width`."""
    progress = np.clip((positions - seam) / max(width, 1) + 0.5, 0, 1) if width else positions >= seam
    return 0.5 - 0.5 * np.cos(np.pi * progress)


@dataclass(frozen=True)
class TilePlan:
    """How an image is cut into tiles of one shape."""

    rows: Cut
    columns: Cut
    overlap: int

    @classmethod
    def of(cls, height: int, width: int, tile: int, overlap: int) -> TilePlan:
        """Cut an image of `height` by `width` pixels."""
        return cls(Cut.of(height, tile, overlap), Cut.of(width, tile, overlap), overlap)

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)

    def cut(self, image: Pixels) -> Iterator[Pixels]:
        """The tiles of `image` `[H, W, 3]`, as views, row by row."""
        for top, left in product(self.rows.starts, self.columns.starts):
            yield image[top : top + self.rows.side, left : left + self.columns.side]

    def blend(self, tiles: Iterable[Pixels], scale: int) -> Pixels:
        """Put restored tiles together.

        One row of tiles is held as floats; what no further row touches is rounded into the result.

        Args:
            tiles: `[side * scale, side * scale, 3]` each, in the order of `cut`.
            scale: the factor by which they have grown.

        Returns:
            uint8 `[H * scale, W * scale, 3]`.
        """
        rows, columns = self.rows, self.columns
        result = np.empty((rows.length * scale, columns.length * scale, _CHANNELS), np.uint8)
        band = np.zeros((rows.side * scale, *result.shape[1:]), np.float32)
        share = np.empty((rows.side * scale, columns.side * scale, _CHANNELS), np.float32)
        across = [weights[:, None] for weights in columns.weights(self.overlap, scale)]
        downs = [weights[:, None, None] for weights in rows.weights(self.overlap, scale)]
        tiles = iter(tiles)
        for start, end, down in zip(rows.starts, (*rows.starts[1:], rows.length), downs, strict=True):
            for left, weights in zip(columns.starts, across, strict=True):
                np.multiply(next(tiles), weights, out=share)
                np.multiply(share, down, out=share)
                band[:, left * scale : (left + columns.side) * scale] += share
            done = (end - start) * scale
            result[start * scale : end * scale] = np.rint(band[:done], out=band[:done])
            band[:-done] = band[done:]
            band[-done:] = 0
        return result


def estimate_windows(
    height: int, width: int, least: int = 1, most: int | None = None
) -> list[tuple[slice, slice]]:
    """The parts of an image that its degradation is estimated from: rows and columns of each.

    All of it up to `ESTIMATE_PIXELS` and sides of `most`. Beyond, windows of 128 pixels (what the network was
    trained on), spread evenly from border to border, in rows and columns as the image is long: a sample whose
    cost and memory do not grow with the image. Degradations are properties of the whole photograph, so their
    mean serves. Engines may want windows larger than 128 pixels (`least`), or smaller ones (`most`).
    """
    side = max(_ESTIMATE_SIDE, least) if most is None else min(max(_ESTIMATE_SIDE, least), most)
    if height * width <= ESTIMATE_PIXELS and (most is None or max(height, width) <= most):
        return [(slice(0, height), slice(0, width))]
    rows = min(max(round((ESTIMATE_WINDOWS * height / width) ** 0.5), 1), ESTIMATE_WINDOWS)
    return list(product(_spread(height, side, rows), _spread(width, side, ESTIMATE_WINDOWS // rows)))


def _spread(length: int, side: int, count: int) -> list[slice]:
    side = min(side, length)
    starts = np.linspace(0, length - side, count).round().astype(int).tolist()
    return [slice(start, start + side) for start in sorted(set(starts))]
