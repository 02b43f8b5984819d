"""Pictures, folders of them and bundles, for the tests of what is measured of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.runtime.fake_bundle import edit_manifest, write_fake_bundle

from s3diff_runtime.lora_modes import LoraMode

Pixels = np.ndarray


def noise(height: int, width: int, seed: int = 0, brightest: int = 80) -> Pixels:
    """Uniform noise, dark enough that no shift of the fake network clips it."""
    return np.random.default_rng(seed).integers(0, brightest, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> Pixels:
    """Noise enlarged with a smooth filter: edges of every direction and strength."""
    coarse = Image.fromarray(noise(max(height // 6, 2), max(width // 6, 2), seed, 256))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def write_folder(folder: Path, pictures: Mapping[str, Pixels]) -> Path:
    """Write pictures by file name; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / name)
    return folder


def shifting_bundle(folder: Path, lora_mode: LoraMode = "dynamic") -> Path:
    """A fake bundle whose default colour correction leaves the shift by the scores in the picture."""

    def leave(content: dict[str, Any]) -> None:
        stages = content["stages"]
        stages["finish_wavelet"]["graphs"] = stages["finish_none"]["graphs"]

    write_fake_bundle(folder, lora_mode)
    edit_manifest(folder, leave)
    return folder
