"""What is fuzzed: for each kind the whole files to begin with, how they are changed, and what reads them."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tests.fuzz.mutations import Mutation, bytes_changed, json_changed, safetensors_changed, saved_changed

if TYPE_CHECKING:
    from s3diff_training.network.base import BaseModel


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    seeds: Callable[[Path], dict[str, bytes]]
    """Makes whole files in a folder of its own: their contents by name."""
    mutation: Callable[[str], Mutation]
    """How a file of that name is changed."""
    read: Callable[[Path, Path], object]
    """Reads a file as the product does; also given the folder of the seeds."""


def _pictures(_folder: Path) -> dict[str, bytes]:
    from tests.runtime.pictures import PICTURE, exif_with, sixteen_bit_png, with_alpha

    found: dict[str, bytes] = {}
    rgb, rgba, grey = Image.fromarray(PICTURE), with_alpha("RGBA"), Image.fromarray(PICTURE).convert("L")
    settings: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "rgb.png": (rgb, {"exif": exif_with(6), "dpi": (300, 300)}),
        "rgba.png": (rgba, {}),
        "palette.png": (rgb.convert("P"), {}),
        "bits.png": (grey.convert("1"), {}),
        "rgb.jpg": (rgb, {"exif": exif_with(3), "dpi": (300, 300), "comment": b"a comment"}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "grey.jpg": (grey, {}),
        "rgb.webp": (rgb, {"exif": exif_with(1)}),
        "lossless.webp": (rgba, {"lossless": True}),
        "rgb.tif": (rgb, {"exif": exif_with(6)}),
        "deflate.tif": (rgba, {"compression": "tiff_adobe_deflate"}),
        "lzw.tif": (grey, {"compression": "tiff_lzw"}),
    }
    for name, (image, options) in settings.items():
        file = io.BytesIO()
        form = {"jpg": "JPEG", "tif": "TIFF"}.get(name.rpartition(".")[2], name.rpartition(".")[2].upper())
        image.save(file, form, **options)
        found[name] = file.getvalue()
    pages = io.BytesIO()
    rgb.save(pages, "TIFF", save_all=True, append_images=[grey])
    found["pages.tif"] = pages.getvalue()
    found["sixteen.png"] = sixteen_bit_png(PICTURE.astype(np.uint16) * 257)
    return found


def _read_picture(path: Path, _folder: Path) -> object:
    from s3diff_runtime.pictures.photograph import open_photograph, photograph_size

    try:
        photograph_size(path)
    finally:
        photograph = open_photograph(path)
        photograph.finish(photograph.pixels)
    return photograph


def _manifests(folder: Path) -> dict[str, bytes]:
    from tests.runtime.fake_bundle import write_fake_bundle

    found = {}
    for mode in ("dynamic", "merged"):
        bundle = write_fake_bundle(folder / mode, mode, external_data=True, prompts="runtime")
        found[mode] = (bundle / "manifest.json").read_bytes()
    return found


def _read_bundle(path: Path, folder: Path) -> object:
    """As `inspect --json` and `Upscaler.open` do, on the bundle that the manifest is of."""
    from s3diff_runtime.bundle.manifest import Manifest
    from s3diff_runtime.upscaler import Upscaler

    bundle = folder / path.stem.partition("-")[0]
    shutil.copyfile(path, bundle / "manifest.json")
    manifest = Manifest.read(bundle)
    manifest.model_dump_json(indent=2)
    with Upscaler.open(bundle) as upscaler:
        return upscaler(np.full((8, 8, 3), 40, np.uint8))


def _checkpoints(folder: Path) -> dict[str, bytes]:
    from tests.training.small import SMALL_RANKS, random_checkpoint, small_base

    from s3diff_training.checkpoints.native import write_checkpoint
    from s3diff_training.checkpoints.released import write_released

    checkpoint = random_checkpoint(small_base(4), SMALL_RANKS)
    write_checkpoint(checkpoint, folder / "ours.safetensors")
    write_released(checkpoint, folder / "s3diff.pkl", folder / "de_net.pth")
    return {name: (folder / name).read_bytes() for name in ("ours.safetensors", "s3diff.pkl", "de_net.pth")}


@cache
def _base() -> BaseModel:
    from tests.training.small import small_base

    return small_base(4)


def _read_checkpoint(path: Path, folder: Path) -> object:
    """Read it, and use what was accepted: converted, built and merged."""
    import torch
    from tests.training.small import fresh

    from s3diff_training.checkpoints.native import build_network, read_checkpoint, write_checkpoint
    from s3diff_training.network.lora import lora_layers, merged_weight

    released, estimator = folder / "s3diff.pkl", folder / "de_net.pth"
    sources = {".pth": (released, path), ".pkl": (path, estimator)}.get(path.suffix, (path,))
    checkpoint = read_checkpoint(*sources)
    write_checkpoint(checkpoint, folder / "converted.safetensors")
    network = build_network(fresh(_base()), checkpoint)
    modulation = network.modulation(torch.tensor([[0.2, 0.7]]))
    return [
        merged_weight(layer, None if matrices is None else matrices[0, layer.block])
        for model, matrices in ((network.unet, modulation.unet), (network.vae, modulation.vae))
        for layer in lora_layers(model).values()
    ]


def _of_checkpoint(name: str) -> Mutation:
    return safetensors_changed if name.endswith(".safetensors") else saved_changed


def _of_picture(_name: str) -> Mutation:
    return bytes_changed


def _of_manifest(_name: str) -> Mutation:
    return json_changed


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "picture": Target(_pictures, _of_picture, _read_picture),
        "manifest": Target(_manifests, _of_manifest, _read_bundle),
        "checkpoint": Target(_checkpoints, _of_checkpoint, _read_checkpoint),
    }
)


def mutated(target: Target, seeds: Mapping[str, bytes], number: int, seed: int) -> tuple[str, bytes]:
    """Name and content of the file of that number: the same for the same seed."""
    chance = random.Random(f"{seed}/{number}")
    name = chance.choice(sorted(seeds))
    return name, target.mutation(name)(seeds[name], chance)
