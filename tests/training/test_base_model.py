"""Base models from a folder; their schedulers are corrected where that is right, else refused."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import (
    fresh,
    random_photograph,
    small_base,
)

from s3diff_runtime.errors import CheckpointError
from s3diff_training.checkpoints.native import Checkpoint, build_network
from s3diff_training.network.base import BaseModel, load_base, one_step_alphas

SD_TURBO_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}


def test_sd_turbos_scheduler_is_taken_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    alphas = one_step_alphas(SD_TURBO_SCHEDULER)
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - betas, 0)
    assert alphas.dtype == torch.float32
    assert ((alphas - expected).abs() / expected).max() < 1e-4
    assert math.sqrt(alphas[999]) == pytest.approx(0.068265, abs=1e-6)
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "corrected"),
    [
        ({"timestep_spacing": "leading"}, 'timestep_spacing "leading" -> "trailing"'),
        ({"clip_sample": True}, "clip_sample true -> false"),
        ({"clip_sample": None}, "clip_sample true -> false"),
        ({"thresholding": True}, "thresholding true -> false"),
    ],
)
def test_a_scheduler_that_would_change_the_result_is_corrected(
    caplog: pytest.LogCaptureFixture, change: dict[str, Any], corrected: str
) -> None:
    config: dict[str, Any] = {**SD_TURBO_SCHEDULER, **change}
    config = {key: value for key, value in config.items() if value is not None}
    with caplog.at_level(logging.WARNING):
        alphas = one_step_alphas(config)
    assert alphas.equal(one_step_alphas(SD_TURBO_SCHEDULER))
    assert f"scheduler configuration corrected: {corrected}" in caplog.text


def test_a_scheduler_that_cannot_serve_is_refused_with_all_reasons() -> None:
    wrong = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "num_train_timesteps": 500}
    for count, names in enumerate(
        (["prediction_type"], ["prediction_type", "num_train_timesteps"], list(wrong))
    ):
        with pytest.raises(CheckpointError) as refusal:
            one_step_alphas({**SD_TURBO_SCHEDULER, **{name: wrong[name] for name in names}})
        assert [name for name in wrong if name in str(refusal.value)] == [n for n in wrong if n in names], (
            count
        )


@pytest.fixture
def folder(sd_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd_base_folder, tmp_path / "base"))


def test_load_base_checks_the_scheduler_of_the_folder(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(CheckpointError, match="prediction_type is 'v_prediction', expected 'epsilon'"):
        load_base(folder)


def test_a_base_that_lacks_parts_is_refused(folder: Path) -> None:
    for part in ("vae", "scheduler"):
        shutil.rmtree(folder / part)
    with pytest.raises(CheckpointError, match="has no scheduler, vae; expected a diffusers folder"):
        load_base(folder)
    for name in ("nowhere", "./no/where", "a/b/c"):
        with pytest.raises(CheckpointError, match="does not exist; expected a diffusers folder or a hub id"):
            load_base(name)


@pytest.mark.parametrize("damage", ["vae/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_damaged_base_is_refused(folder: Path, damage: str) -> None:
    path = folder / damage
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="cannot load the base model"):
        load_base(folder)


def test_a_base_from_its_folder_computes_the_same(sd_base: BaseModel, checkpoint: Checkpoint) -> None:
    lr = random_photograph(1, 16, 16)
    loaded, made = (build_network(fresh(base), checkpoint) for base in (sd_base, small_base(4)))
    assert loaded.restore(lr).forward.x0.equal(made.restore(lr).forward.x0)
