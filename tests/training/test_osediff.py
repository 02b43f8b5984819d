"""OSEDiff's network computes what the released code computed, and its checkpoints are read or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.training.plain_lora import RANK_UNET, osediff_content
from tests.training.small import fresh, random_photograph, relative
from torch import Tensor

from s3diff_runtime.errors import CheckpointError, RequestError
from s3diff_runtime.vocabulary import COLOR_FIXES
from s3diff_training.families.osediff import OSEDiff
from s3diff_training.families.released_way import prepared
from s3diff_training.families.table import read_weights
from s3diff_training.network.base import BaseModel, OneStep
from s3diff_training.network.model import S3Diff
from s3diff_training.weights import ModelSource


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "reference-osediff"


@pytest.fixture(scope="module")
def network(reference: Path) -> OSEDiff:
    loaded = ModelSource(base=str(reference / "base"), checkpoint=reference / "osediff.pkl").load()
    assert isinstance(loaded, OSEDiff)
    return loaded


@pytest.fixture(scope="module")
def truth(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "reference.safetensors")


def cases(reference: Path) -> Iterator[dict[str, Any]]:
    """Yield those of whole pictures: latent tiles of the released code are not taken over."""
    described = json.loads((reference / "reference.json").read_text())["cases"]
    yield from (case for case in described if "tiled" not in case["key"])


@torch.no_grad()
def test_every_quantity_is_the_released_one(
    network: OSEDiff, reference: Path, truth: dict[str, Tensor]
) -> None:
    assert isinstance(network.one_step, OneStep)
    assert float(truth["alpha_cumprod_999"]) == pytest.approx(network.one_step.alpha_cumprod, rel=1e-6)
    for case in cases(reference):
        key, picture = case["key"], case["key"].split(".")[0]
        before = truth[f"{picture}.prepared_u8"].permute(2, 0, 1)[None].float() / 255
        text = network.encode_prompts([case["prompt"]])
        assert relative(text, truth[f"p{case['prompt_index']}.text"]) <= 1e-5
        latent = network.encode(network.pad(before))
        assert relative(latent, truth[f"{picture}.latent"]) <= 1e-5, key
        epsilon = network.predict(latent, text)
        assert relative(epsilon, truth[f"{key}eps"]) <= 1e-5, key
        x0 = network.one_step.denoise(latent, epsilon)
        assert relative(x0, truth[f"{key}x0"]) <= 1e-4, key
        decoded = network.decode(x0)
        for fix in COLOR_FIXES:
            expected = truth.get(f"{key}decoded" if fix == "none" else f"{key}float_{fix}")
            if expected is not None:
                found = decoded if fix == "none" else network.finish(decoded, before, fix)
                assert relative(found, expected) <= 1e-4, (key, fix)


def test_pictures_are_enlarged_as_the_released_code_does(
    network: OSEDiff, reference: Path, truth: dict[str, Tensor]
) -> None:
    picture = truth["s0.lr_u8"].permute(2, 0, 1)[None].float() / 255  # one that is neither small nor squeezed
    expected = truth["s0.prepared_u8"].permute(2, 0, 1)[None].float() / 255
    assert network.enlarge(picture).equal(expected)
    for case in cases(reference):
        picture_name = case["key"].split(".")[0]
        pixels = truth[f"{picture_name}.lr_u8"].numpy()
        found = prepared(pixels, case["upscale"], case["process_size"])
        np.testing.assert_array_equal(found, truth[f"{picture_name}.prepared_u8"].numpy())


def test_files_of_the_released_script_are_met_where_they_are_asked_for(
    network: OSEDiff, reference: Path, truth: dict[str, Tensor]
) -> None:
    for case in cases(reference):
        for fix in COLOR_FIXES:
            expected = truth.get(f"{case['key']}final_{fix}_u8")
            if expected is None:
                continue
            pixels = truth[f"{case['key'].split('.')[0]}.lr_u8"].numpy()
            found = network.restore_as_released(
                pixels,
                scale=case["upscale"],
                process_size=case["process_size"],
                color_fix=fix,
                positive_prompt=case["prompt"],
            )
            difference = np.abs(found.astype(int) - expected.numpy().astype(int))
            assert difference.max() <= 2, (case["key"], fix)
            assert np.mean(difference > 0) <= 1e-3, (case["key"], fix)


def test_results_have_the_size_that_was_asked_for(sd_base: BaseModel, tmp_path: Path) -> None:
    network = loaded(sd_base, osediff_content(sd_base), tmp_path)
    for scale in (1, 2, 3):
        restored = network.restore(random_photograph(2, 9, 13), scale=scale)
        assert restored.image.shape == (2, 3, 9 * scale, 13 * scale)
        assert restored.forward.decoded.shape[2] % network.multiple == 0
        assert restored.degradation is None
    assert not network.restore(random_photograph(1, 9, 9), positive_prompt="sky, ,").image.equal(
        network.restore(random_photograph(1, 9, 9)).image
    )


def loaded(base: BaseModel, content: dict[str, Any], folder: Path) -> OSEDiff:
    path = folder / "weights.pkl"
    torch.save(content, path)
    network = read_weights(path, None, None)(fresh(base))
    assert isinstance(network, OSEDiff)
    return network


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(key)


def rename_layer(content: dict[str, Any]) -> None:
    content["unet_lora_others_modules"].append("mid_block.attentions.9.proj_in")


def lose_tensor(content: dict[str, Any]) -> None:
    content["state_dict_unet"].pop("conv_in.base_layer.bias")


def add_layer_beyond_the_lists(content: dict[str, Any]) -> None:
    content["vae_lora_encoder_modules"] = content["vae_lora_encoder_modules"][1:] * 1
    content["vae_lora_encoder_modules"] = [
        name for name in content["vae_lora_encoder_modules"] if name != "quant_conv"
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("state_dict_vae"), "lacks state_dict_vae; expected the released osediff.pkl"),
        (without("unet_lora_others_modules"), "lacks unet_lora_others_modules"),
        (lambda content: content.update(rank_unet=True), "rank_unet is True, expected from 1 to 1024"),
        (lambda content: content.update(rank_vae=0), "rank_vae is 0, expected from 1 to 1024"),
        (
            lambda content: content.update(rank_unet=RANK_UNET + 1),
            r"not fit the base model: \d+ mis-shaped",
        ),
        (lambda content: content.update(rank_vae="4"), "rank_vae is a str"),
        (lambda content: content.update(unet_lora_encoder_modules=[3]), "is no list of layers"),
        (rename_layer, r"lacks 1 layers that have LoRA \(mid_block.attentions.9.proj_in\)"),
        (lose_tensor, r"1 missing \(conv_in.base_layer.bias\)"),
        (add_layer_beyond_the_lists, "2 unexpected"),
    ],
)
def test_damaged_checkpoints_are_refused(
    sd_base: BaseModel, tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = osediff_content(sd_base)
    damage(content)
    with pytest.raises(CheckpointError, match=message):
        loaded(sd_base, content, tmp_path)


def test_families_are_told_apart(
    sd_base: BaseModel, sd_base_folder: Path, native_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pkl"
    torch.save(osediff_content(sd_base), path)
    assert isinstance(ModelSource(base=str(sd_base_folder), checkpoint=native_file).load(), S3Diff)
    with pytest.raises(CheckpointError, match=r"is a checkpoint of OSEDiff; expected S3Diff's s3diff.pkl"):
        read_weights(path, None, "s3diff")
    with pytest.raises(CheckpointError, match="is a checkpoint of S3Diff; expected OSEDiff's"):
        read_weights(native_file, None, "osediff")
    with pytest.raises(RequestError, match="OSEDiff has no degradation estimator"):
        read_weights(path, tmp_path / "de_net.pth", None)
    source = ModelSource(base=str(sd_base_folder), checkpoint=path)
    with pytest.raises(RequestError, match=r"training is for S3Diff, and .* is a checkpoint of OSEDiff"):
        source.load_s3diff("training")
    with pytest.raises(RequestError, match="--family is that of a checkpoint"):
        ModelSource(demo=True, family="osediff")
