"""Photographs: a folder of them as a source of random crops, single images, and contact sheets.

Images are uint8 RGB in memory and on disk, float32 `[3, H, W]` in [0, 1] everywhere else.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.formats import SUFFIXES, save
from s3diff_runtime.pictures.photograph import open_photograph, photograph_size
from s3diff_runtime.pictures.reading import every_size_allowed
from s3diff_runtime.vocabulary import Pixels

MAX_PIXELS = 200_000_000
"""Photographs above this are refused before they are decoded."""
_MARGIN, _CAPTION = 8, 22
_LOG = logging.getLogger(__name__)


class PhotographFolder:
    """The photographs of a folder, and random crops of them.

    Opening reads only the headers. Decoded photographs are kept up to a budget of memory, the least recently
    used leaving first, so a set that fits is decoded once.

    Args:
        folder: holds files with one of `SUFFIXES`, at any depth.
        min_side: photographs with a shorter side are skipped; the crop size.
        memory_mib: budget for decoded photographs in MiB; 0 decodes every time.

    Attributes:
        paths: the usable photographs, sorted.
        skipped: `(path, reason)` of the images that cannot serve: unreadable, too large, or smaller than the
            crop. Files whose damage shows only when they are decoded join it then.

    Raises:
        RequestError: when the folder does not exist or holds no usable photograph.
    """

    def __init__(self, folder: Path, min_side: int = 1, memory_mib: int = 2048) -> None:
        if not folder.is_dir():
            raise RequestError(f"{folder} is not a folder; expected a folder of photographs")
        self.folder, self.min_side = folder, min_side
        self.skipped: list[tuple[Path, str]] = []
        areas = dict(self._scan())
        self.paths = list(areas)
        if self.skipped:
            path, reason = self.skipped[0]
            count = len(self.skipped)
            _LOG.warning("%s: skipped %d images, the first is %s: %s", folder, count, path, reason)
        if not areas:
            raise RequestError(
                f"{folder} holds no usable photograph ({len(self.skipped)} skipped); expected "
                f"{', '.join(sorted(SUFFIXES))} files with sides of {min_side} pixels or more"
            )
        self._areas = np.cumsum(list(areas.values()))
        self._decoded: OrderedDict[int, Pixels] = OrderedDict()
        self._budget, self._held = memory_mib * 2**20, 0
        self._broken: set[int] = set()

    def __len__(self) -> int:
        """Number of usable photographs."""
        return len(self.paths)

    @property
    def pixels(self) -> int:
        """Pixels of all usable photographs together."""
        return int(self._areas[-1])

    def pixels_of(self, index: int) -> Pixels:
        """Photograph number `index`, uint8 `[H, W, 3]`, decoded or from memory. Do not write to it.

        Raises `RequestError` when the file turns out to be damaged.
        """
        if index in self._decoded:
            self._decoded.move_to_end(index)
            return self._decoded[index]
        with every_size_allowed():
            pixels = np.array(open_photograph(self.paths[index], MAX_PIXELS).pixels)
        self._decoded[index] = pixels
        self._held += pixels.nbytes
        while self._held > self._budget:
            self._held -= self._decoded.popitem(last=False)[1].nbytes
        return pixels

    def crops(self, n: int, size: int, generator: torch.Generator) -> Tensor:
        """`n` random crops, uint8 `[n, 3, size, size]`.

        Photographs are drawn in proportion to their area and positions uniformly, so every pixel of the
        folder is about equally likely; each crop takes one of the eight flips and transposes. All draws come
        from `generator` (on the CPU) and depend on nothing else: its state alone resumes the sequence.

        Raises:
            RequestError: when `size` exceeds `min_side`, or every photograph is damaged.
        """
        if size > self.min_side:
            raise RequestError(f"crops of {size} from a folder opened with min_side={self.min_side}")
        return torch.stack([self._crop(size, generator) for _ in range(n)])

    def _crop(self, size: int, generator: torch.Generator) -> Tensor:
        while True:
            which, down, right, turn = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            pixels = self._undamaged(int(np.searchsorted(self._areas, which * self.pixels, side="right")))
            if pixels is not None:
                break
        top, left = int(down * (pixels.shape[0] - size + 1)), int(right * (pixels.shape[1] - size + 1))
        crop = torch.from_numpy(pixels[top : top + size, left : left + size]).permute(2, 0, 1)
        flips = int(turn * 8)
        if flips & 1:
            crop = crop.flip(2)
        if flips & 2:
            crop = crop.flip(1)
        return (crop.transpose(1, 2) if flips & 4 else crop).contiguous()

    def _undamaged(self, index: int) -> Pixels | None:
        """The pixels, or None for a damaged file: the caller draws anew, in a resumed run as in this one."""
        if index in self._broken:
            return None
        try:
            return self.pixels_of(index)
        except RequestError as error:
            _LOG.warning("skipped: %s", error)
            self.skipped.append((self.paths[index], str(error)))
            self._broken.add(index)
            if len(self._broken) == len(self):
                raise RequestError(f"every photograph in {self.folder} is damaged") from error
            return None

    def _scan(self) -> Iterator[tuple[Path, int]]:
        """Paths and areas of the usable photographs, by path."""
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                continue
            try:
                with every_size_allowed():
                    width, height = photograph_size(path, MAX_PIXELS)
            except RequestError as error:
                self.skipped.append((path, str(error)))
                continue
            if min(width, height) < self.min_side:
                self.skipped.append((path, f"{width}x{height} is smaller than the crop of {self.min_side}"))
            else:
                yield path, height * width


def from_uint8(pixels: Pixels) -> Tensor:
    """Uint8 `[H, W, 3]` as float32 `[3, H, W]` in [0, 1]."""
    writable = np.require(pixels, requirements="W")  # torch insists on it
    return torch.from_numpy(writable).permute(2, 0, 1).to(torch.float32).div(255).contiguous()


def to_uint8(image: Tensor) -> Pixels:
    """`[3, H, W]` (or `[1, 3, H, W]`) in [0, 1], clamped and rounded to uint8 `[H, W, 3]`."""
    image = image.squeeze(0) if image.ndim == 4 else image
    levels = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels: Pixels = levels.permute(1, 2, 0).cpu().numpy()
    return pixels


def contact_sheet(rows: Sequence[Sequence[Tensor]], labels: Sequence[str], path: Path) -> None:
    """Draw images side by side for the eye to compare, and write them as one PNG.

    Args:
        rows: of images `[3, H, W]` in [0, 1], one image per label in every row. The images of a row are
            enlarged to the tallest by repeating pixels, so a low-resolution input is shown as it is.
        labels: the columns' captions.
        path: of the PNG, written atomically.

    Raises:
        RequestError: for no rows, or rows that do not match the labels.
    """
    if not rows or any(len(row) != len(labels) for row in rows):
        raise RequestError(
            f"a contact sheet needs rows of {len(labels)} images; got {[len(row) for row in rows]}"
        )
    cells = [[Image.fromarray(to_uint8(image)) for image in row] for row in rows]
    heights = [max(cell.height for cell in row) for row in cells]
    for row, height in zip(cells, heights, strict=True):
        sizes = [(round(cell.width * height / cell.height), height) for cell in row]
        row[:] = [cell.resize(size, Image.Resampling.NEAREST) for cell, size in zip(row, sizes, strict=True)]
    widths = [max(row[column].width for row in cells) for column in range(len(labels))]
    lefts = np.cumsum([_MARGIN] + [width + _MARGIN for width in widths]).tolist()
    tops = np.cumsum([_MARGIN + _CAPTION] + [height + _MARGIN for height in heights]).tolist()
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for left, label in zip(lefts, labels, strict=False):
        draw.text((left, _MARGIN), label, fill="black", font=ImageFont.load_default(size=14))
    for top, row in zip(tops, cells, strict=False):
        for left, cell in zip(lefts, row, strict=False):
            sheet.paste(cell, (left, top))
    save(sheet, path)
