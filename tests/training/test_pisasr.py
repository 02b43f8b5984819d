"""PiSA-SR's network computes what the released code computed, and its checkpoints are read or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.training.plain_lora import RANK_UNET, pisasr_content
from tests.training.small import fresh, relative
from torch import Tensor

from s3diff_runtime.errors import CheckpointError, RequestError
from s3diff_runtime.strengths import PASSES, Strengths
from s3diff_runtime.vocabulary import COLOR_FIXES
from s3diff_training.families.pisasr import PiSASR
from s3diff_training.families.table import read_weights
from s3diff_training.network.base import BaseModel
from s3diff_training.weights import ModelSource


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "reference-pisasr"


@pytest.fixture(scope="module")
def network(reference: Path) -> PiSASR:
    loaded = ModelSource(base=str(reference / "base"), checkpoint=reference / "pisa_sr.pkl").load()
    assert isinstance(loaded, PiSASR)
    return loaded


@pytest.fixture(scope="module")
def truth(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "reference.safetensors")


@pytest.fixture(scope="module")
def cases(reference: Path) -> list[dict[str, Any]]:
    """Return those of whole pictures: latent tiles of the released code are not taken over."""
    described = json.loads((reference / "reference.json").read_text())["cases"]
    return [case for case in described if "tiled" not in case["key"]]


def strengths_of(case: dict[str, Any]) -> Strengths:
    return Strengths(case.get("lambda_pix", 1.0), case.get("lambda_sem", 1.0))


@torch.no_grad()
def test_every_quantity_is_the_released_one(
    network: PiSASR, truth: dict[str, Tensor], cases: list[dict[str, Any]]
) -> None:
    text = network.encode_prompts(network.prompts)
    assert relative(text, truth["text"]) <= 1e-5
    assert network.one_step.timestep == int(truth["timestep"])
    for case in cases:
        key, picture = case["key"], case["key"].split(".")[0]
        before = truth[f"{picture}.prepared_u8"].permute(2, 0, 1)[None].float() / 255
        latent = network.encode(network.pad(before))
        assert relative(latent, truth[f"{picture}.latent"]) <= 1e-5, key
        strengths = strengths_of(case)
        predictions, x0 = network.step(latent, text, True, *strengths)
        assert len(predictions) == len(PASSES[strengths.passes])
        for name, kind in (("residual_both", "both"), ("residual_pixel", "pix")):
            if name in predictions:
                assert relative(predictions[name], truth[f"{picture}.{kind}"]) <= 1e-5, key
        assert relative(latent - x0, truth[f"{key}pred"]) <= 1e-5, key
        assert relative(x0, truth[f"{key}x0"]) <= 1e-5, key
        _, one_by_one = network.step(latent, text, False, *strengths)
        assert relative(one_by_one, x0) <= 1e-5
        if f"{key}decoded" in truth:
            assert relative(network.decode(x0), truth[f"{key}decoded"]) <= 1e-4, key


def test_files_of_the_released_script_are_met_where_they_are_asked_for(
    network: PiSASR, truth: dict[str, Tensor], cases: list[dict[str, Any]]
) -> None:
    for case in cases:
        pixel, semantic = strengths_of(case)
        for fix in COLOR_FIXES:
            expected = truth.get(f"{case['key']}final_{fix}_u8")
            if expected is None:
                continue
            found = network.restore_as_released(
                truth[f"{case['key'].split('.')[0]}.lr_u8"].numpy(),
                scale=case["upscale"],
                process_size=case["process_size"],
                color_fix=fix,
                pixel=pixel,
                semantic=semantic,
            )
            difference = np.abs(found.astype(int) - expected.numpy().astype(int))
            assert difference.max() <= 2, (case["key"], fix)
            assert np.mean(difference > 0) <= 5e-3, (case["key"], fix)


@pytest.mark.parametrize(
    ("pair", "passes"),
    [((1, 1), "both"), ((0.3, 0.3), "both"), ((2, 0), "pixel"), ((0, 0), "pixel"), ((0, 1), "two")],
)
def test_what_counts_nothing_is_left_out(pair: tuple[float, float], passes: str) -> None:
    assert Strengths(*pair).passes == passes


def misname(content: dict[str, Any]) -> None:
    content["unet_lora_others_modules_sem"] = content["unet_lora_others_modules_sem"][1:]


def lose_pixel(content: dict[str, Any]) -> None:
    name = next(name for name in content["state_dict_unet"] if name.endswith("_pix.weight"))
    content["state_dict_unet"].pop(name)


def lose_semantic(content: dict[str, Any]) -> None:
    name = next(name for name in content["state_dict_unet"] if name.endswith("_sem.weight"))
    content["state_dict_unet"].pop(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (misname, "has pixel and semantic LoRA on other layers"),
        (lose_pixel, "pixel LoRA does not fit the base model: 1 missing"),
        (lose_semantic, "does not fit the base model: 1 missing"),
        (lambda content: content.update(lora_rank_unet_pix=RANK_UNET + 1), r"pixel LoRA .* \d+ mis-shaped"),
        (lambda content: content.update(lora_rank_unet_sem=0), "lora_rank_unet_sem is 0, expected from 1"),
        (lambda content: content.pop("unet_lora_decoder_modules_pix"), "lacks unet_lora_decoder_modules_pix"),
    ],
)
def test_damaged_checkpoints_are_refused(
    sd_base: BaseModel, tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = pisasr_content(sd_base)
    path = tmp_path / "weights.pkl"
    torch.save(content, path)
    assert isinstance(read_weights(path, None, None)(fresh(sd_base)), PiSASR)
    damage(content)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_weights(path, None, None)(fresh(sd_base))
    with pytest.raises(RequestError):
        read_weights(path, tmp_path / "de_net.pth", "pisasr")
