"""Write the photograph that `make demo` restores: a degraded quarter-size crop of scikit-image's `coffee`.

    python tools/demo_photo.py demo-output/input.png
    python tools/demo_photo.py bench-input/lr/coffee.png --truth bench-input/hr/coffee.png

The degradation is what a cheap camera and a messenger do: blur, ÷4 in size, sensor noise, JPEG. The same
file comes out every time.
"""

import io
from pathlib import Path

import click
import numpy as np
import skimage.data
from PIL import Image, ImageFilter

from s3diff_runtime.pictures.formats import save
from s3diff_runtime.vocabulary import SCALE

CROP_WIDTH, CROP_HEIGHT = 512, 384
BLUR_RADIUS = 1.5  # of the full-size crop, in pixels
NOISE_SIGMA = 4.0  # in grey levels of 255
JPEG_QUALITY = 75
SEED = 7
FILE = click.Path(dir_okay=False, path_type=Path)


def degraded(truth: Image.Image) -> Image.Image:
    """Return the low-resolution RGB image, a quarter of the truth in each direction."""
    blurred = truth.filter(ImageFilter.GaussianBlur(BLUR_RADIUS))
    small = blurred.resize((truth.width // SCALE, truth.height // SCALE), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(SEED).normal(0.0, NOISE_SIGMA, (small.height, small.width, 3))
    noisy = np.clip(np.rint(np.asarray(small) + noise), 0, 255).astype(np.uint8)
    compressed = io.BytesIO()
    Image.fromarray(noisy).save(compressed, "JPEG", quality=JPEG_QUALITY)
    return Image.open(compressed).convert("RGB")


@click.command(help=__doc__)
@click.argument("output", type=FILE)
@click.option("--truth", type=FILE, help="Also write what was degraded.")
def main(output: Path, truth: Path | None) -> None:
    """Write the photograph to OUTPUT, and print where the files are."""
    photograph = Image.fromarray(skimage.data.coffee())
    left, top = (photograph.width - CROP_WIDTH) // 2, (photograph.height - CROP_HEIGHT) // 2
    original = photograph.crop((left, top, left + CROP_WIDTH, top + CROP_HEIGHT))
    for image, path in ((degraded(original), output), (original, truth)):
        if path is not None:
            save(image, path)
            click.echo(path)


if __name__ == "__main__":
    main()
