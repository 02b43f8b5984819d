"""Write the photograph that `make demo` restores: a degraded quarter-size crop of scikit-image's `coffee`.

    python tools/demo_photo.py demo-output/input.png

The degradation is what a cheap camera and a messenger do: blur, ÷4 in size, sensor noise, JPEG. The same
file comes out every time.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import click
import numpy as np
import skimage.data
from PIL import Image, ImageFilter

CROP_WIDTH, CROP_HEIGHT = 512, 384
SCALE = 4
BLUR_RADIUS = 1.5  # of the full-size crop, in pixels
NOISE_SIGMA = 4.0  # in grey levels of 255
JPEG_QUALITY = 75
SEED = 7


def degraded_crop() -> Image.Image:
    """Return the low-resolution RGB image, 128×96."""
    photograph = Image.fromarray(skimage.data.coffee())
    left, top = (photograph.width - CROP_WIDTH) // 2, (photograph.height - CROP_HEIGHT) // 2
    crop = photograph.crop((left, top, left + CROP_WIDTH, top + CROP_HEIGHT))
    blurred = crop.filter(ImageFilter.GaussianBlur(BLUR_RADIUS))
    small = blurred.resize((CROP_WIDTH // SCALE, CROP_HEIGHT // SCALE), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(SEED).normal(0.0, NOISE_SIGMA, (small.height, small.width, 3))
    noisy = np.clip(np.rint(np.asarray(small) + noise), 0, 255).astype(np.uint8)
    compressed = io.BytesIO()
    Image.fromarray(noisy).save(compressed, "JPEG", quality=JPEG_QUALITY)
    return Image.open(compressed).convert("RGB")


@click.command(help=__doc__)
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
def main(output: Path) -> None:
    """Write the photograph to OUTPUT."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    degraded_crop().save(partial, "PNG")
    os.replace(partial, output)
    click.echo(str(output))


if __name__ == "__main__":
    main()
