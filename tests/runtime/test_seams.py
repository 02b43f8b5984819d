"""Tiles leave no visible seam in photographs that the shipped model upscales: minutes, so marked slow."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from s3diff_export.build import BuildRequest, build
from s3diff_export.graphs.options import GraphOptions
from s3diff_runtime.pictures.tiling import Cut, TilePlan
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Upscaler
from s3diff_training.weights import ModelSource

SIDE, TILE = 512, 128
WHOLE = 224  # pixels a side that fit into memory uncut
SHIFT = 48  # between two ways of cutting a picture: seams of one fall within tiles of the other
NEAR = range(-24, 25)  # pixels of the result from a seam to the lines that it is compared with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("seams") / "demo.bundle"
    weights, graphs = ModelSource(demo=True), GraphOptions(precision="fp32")
    return build(BuildRequest(output, weights, graphs, color_fixes=("wavelet",), verify=False)).path


def photographs() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Squares of 512 pixels of real photographs, the smaller ones enlarged a little."""
    for name in ("astronaut", "coffee", "rocket"):
        image = Image.fromarray(getattr(data, name)()[..., :3])
        factor = max(1.0, SIDE / min(image.size))
        image = image.resize(
            [round(side * factor) for side in image.size], Image.Resampling.BICUBIC
        ).crop((0, 0, SIDE, SIDE))  # fmt: skip
        yield name, np.asarray(image)


def energies(image: NDArray[np.uint8], cuts: tuple[Cut, Cut], start: int, scale: int) -> NDArray[np.float64]:
    """Mean squared steps along the seams, and along the lines `NEAR` them, summed over all seams.

    Of an image from which `start` pixels were cut at top and left.
    """
    found = np.zeros(len(NEAR))
    for axis, cut in enumerate(cuts):
        energy = np.mean(np.diff(image.astype(np.float64).mean(-1), axis=axis) ** 2, axis=1 - axis)
        for earlier, later in pairwise(cut.starts):
            seam = ((earlier + later + cut.side) // 2 - start) * scale - 1
            found += energy[seam + NEAR.start : seam + NEAR.stop]
    return found


def test_seams_are_not_visible(bundle: Path) -> None:
    """The same lines of the same picture, once along seams and once within tiles, as photographs vary; and
    beside lines near them, as tiles differ in tone. Without an overlap seams have 2.5 times the energy."""
    with Upscaler.open(bundle, options=UpscaleOptions(tile=TILE)) as upscaler:
        plan = TilePlan.of(SIDE, SIDE, TILE, upscaler.options.overlap_of(TILE))
        cuts, scale = (plan.rows, plan.columns), upscaler.manifest.scale
        for name, pixels in photographs():
            scores = upscaler(pixels[:TILE, :TILE]).applied  # equal for both
            noise, blur = scores["noise"], scores["blur"]
            cut_here = upscaler(pixels, noise=noise, blur=blur).pixels[SHIFT * scale :, SHIFT * scale :]
            cut_elsewhere = upscaler(pixels[SHIFT:, SHIFT:], noise=noise, blur=blur).pixels
            on, off = (energies(image, cuts, SHIFT, scale) for image in (cut_here, cut_elsewhere))
            ratios = on / off
            seam = ratios[-NEAR.start] / np.median(ratios)
            report = f"{name}: energy along the seams is {seam:.3f} of that of lines near them"
            print(report)  # noqa: T201 - with -s, for notes and documents
            assert seam <= 1.1, report


def test_tiles_give_what_the_whole_image_gives(bundle: Path) -> None:
    results = []
    for tile in (None, TILE):  # one after the other: attention over a whole image takes much memory
        with Upscaler.open(bundle, options=UpscaleOptions(tile=tile)) as upscaler:
            results.append([upscaler(pixels[:WHOLE, :WHOLE]).pixels for _, pixels in photographs()])
    for (name, _), expected, found in zip(photographs(), *results, strict=True):
        psnr = 10 * np.log10(255**2 / np.mean((found.astype(np.float64) - expected) ** 2))
        report = f"{name}: tiles are {psnr:.1f} dB from the whole image"
        print(report)  # noqa: T201 - with -s, for notes and documents
        assert psnr >= 35, report
