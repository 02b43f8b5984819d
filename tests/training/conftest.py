"""The tiny base models and checkpoints that several test files of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data
from tests.training.small import SMALL_RANKS, random_checkpoint, save_small_base, small_base

from s3diff_training.checkpoints.checkpoint import Checkpoint
from s3diff_training.checkpoints.native import write_checkpoint
from s3diff_training.checkpoints.released import write_released
from s3diff_training.data import PhotographFolder
from s3diff_training.degradations.pipeline import DegradationPipeline, DegradedBatch
from s3diff_training.network.base import BaseModel, load_base


@pytest.fixture(scope="session", params=[3, 4], ids="{}-level VAE".format)
def base_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder, once with a 3-level VAE and once with SD's four levels."""
    return save_small_base(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="session")
def sd_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the diffusers folder of a base model with four VAE levels."""
    return save_small_base(tmp_path_factory.mktemp("sd-base"), 4)


@pytest.fixture(scope="session")
def sd_base(sd_base_folder: Path) -> BaseModel:
    """Return that base model, loaded; a network may have a `fresh` copy of it, never itself."""
    return load_base(sd_base_folder)


@pytest.fixture(scope="session")
def checkpoint(sd_base: BaseModel) -> Checkpoint:
    """Return a random checkpoint for `sd_base` in the released configuration."""
    return random_checkpoint(sd_base, SMALL_RANKS, seed=2)


@pytest.fixture(scope="session")
def native_file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `checkpoint` as a .safetensors file."""
    path = tmp_path_factory.mktemp("native") / "small.safetensors"
    write_checkpoint(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def released_folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `checkpoint` in the released formats, s3diff.pkl and de_net.pth."""
    folder = tmp_path_factory.mktemp("released")
    write_released(checkpoint, folder / "s3diff.pkl", folder / "de_net.pth")
    return folder


@pytest.fixture(scope="session")
def photograph_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two photographs: large enough to train on, small enough to be quick."""
    folder = tmp_path_factory.mktemp("photographs")
    Image.fromarray(data.astronaut()[:160, 100:290]).save(folder / "a.png")
    Image.fromarray(data.coffee()[100:228, 100:228]).save(folder / "b.png")
    return folder


@pytest.fixture(scope="session")
def tiny_base() -> BaseModel:
    """Return a base model with three VAE levels; a network may have a `fresh` copy of it, never itself."""
    return small_base(3)


@pytest.fixture(scope="session")
def batch(photograph_folder: Path) -> DegradedBatch:
    """Return four training pairs of 64 pixels a side."""
    pixels = PhotographFolder(photograph_folder, 64).crops(4, 64, torch.Generator().manual_seed(1))
    return DegradationPipeline()(pixels.float() / 255, torch.Generator().manual_seed(2))
