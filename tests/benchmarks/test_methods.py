"""Whatever upscales: PyTorch in every form computes what the network computes, and all answer alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.runtime.fake_bundle import dark_noise, write_fake_bundle
from tests.training.small import SMALL_RANKS, random_checkpoint, small_base

from s3diff_benchmarks.methods import Input, open_bundles
from s3diff_benchmarks.pictures.pairs import Peer, PeerTimes
from s3diff_benchmarks.pytorch_method import (
    exact,
    merged_copy,
    released,
    trainable_millions,
    tuned,
    tuned_dtype,
)
from s3diff_runtime.engines.cpu_options import CpuPrecision
from s3diff_runtime.errors import RequestError
from s3diff_training.checkpoints.native import build_network
from s3diff_training.data import from_uint8, to_uint8
from s3diff_training.network.lora import lora_layers
from s3diff_training.network.model import S3Diff

IMAGES = [dark_noise(16, 16, seed=seed, brightest=250) for seed in (1, 2)]
INPUTS = [Input(image) for image in IMAGES]


@pytest.fixture(scope="module")
def network() -> S3Diff:
    base = small_base(3)
    return build_network(base, random_checkpoint(base, SMALL_RANKS, seed=3)).eval().requires_grad_(False)


def restored(network: S3Diff, image: np.ndarray) -> np.ndarray:
    return to_uint8(network.restore(from_uint8(image)[None]).image)


def test_the_released_way_computes_the_same(network: S3Diff) -> None:
    for image, result in zip(IMAGES, released(network)(INPUTS), strict=True):
        expected = restored(network, image)
        assert expected.std() > 1
        # One grey level: values near the middle between two levels may round either way.
        assert np.abs(result.pixels.astype(int) - expected).max() <= 1


def test_the_exact_way_takes_scores_and_tells_them(network: S3Diff) -> None:
    estimated, given = exact(network)(INPUTS[:1])[0], exact(network)(INPUTS[:1], noise=0.9)[0]
    np.testing.assert_array_equal(estimated.pixels, restored(network, IMAGES[0]))
    assert given.applied == {"noise": pytest.approx(0.9), "blur": estimated.applied["blur"]}
    assert np.abs(given.pixels.astype(int) - estimated.pixels).max() > 1


@pytest.mark.parametrize(("dtype", "most", "mean"), [(torch.float32, 1, 0.1), (torch.bfloat16, 40, 3)])
def test_the_tuned_way_computes_the_same_for_its_degradation(
    network: S3Diff, dtype: torch.dtype, most: int, mean: float
) -> None:
    found = tuned(network, IMAGES[0], dtype)(INPUTS[:1])[0].pixels.astype(int)
    same, other = (np.abs(found - restored(network, image)) for image in IMAGES[:2])
    assert same.max() <= most and same.mean() < mean
    assert other.mean() > 2 * same.mean()


@pytest.mark.parametrize(
    ("device", "has_bf16", "asked", "expected"),
    [
        ("cuda", True, "auto", torch.float16),
        ("cpu", True, "auto", torch.bfloat16),
        ("cpu", False, "auto", torch.float32),
        ("cpu", True, "f32", torch.float32),
        ("cpu", False, "bf16", torch.bfloat16),
    ],
)
def test_the_tuned_way_computes_in_what_the_device_has_or_openvino_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, device: str, has_bf16: bool, asked: CpuPrecision, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert tuned_dtype(torch.device(device), asked) == expected


def test_stages_are_timed(network: S3Diff) -> None:
    first, second = (result.seconds for result in released(network)(INPUTS))
    assert first == second
    assert list(first) == [
        "upload",
        "estimator",
        "enlarge",
        "modulation",
        "vae_encoder",
        "unet",
        "vae_decoder",
        "finish_wavelet",
        "download",
        "host",
    ]
    assert all(spent > 0 for spent in first.values())


def test_merging_shares_what_it_leaves_alone(network: S3Diff) -> None:
    before = restored(network, IMAGES[0])
    modulation = network.modulation(torch.tensor([[0.3, 0.6]]))
    merged = merged_copy(network, modulation, torch.float32)
    assert not lora_layers(merged.unet)
    assert not lora_layers(merged.vae)
    assert lora_layers(network.unet)
    shared = {id(parameter) for parameter in network.parameters()}
    own = [name for name, parameter in merged.named_parameters() if id(parameter) not in shared]
    assert {name.rpartition(".")[0] for name in own} == {
        f"{part}.{layer}"
        for part, model in (("unet", network.unet), ("vae", network.vae))
        for layer in lora_layers(model)
    }
    np.testing.assert_array_equal(restored(network, IMAGES[0]), before)


def test_half_precision_is_a_copy_too(network: S3Diff) -> None:
    before = restored(network, IMAGES[0])
    modulation = network.modulation(torch.tensor([[0.3, 0.6]]))
    half = merged_copy(network, modulation, torch.float16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    np.testing.assert_array_equal(restored(network, IMAGES[0]), before)


def test_trainable_parameters_are_those_of_the_checkpoint(network: S3Diff) -> None:
    checkpoint = random_checkpoint(small_base(3), SMALL_RANKS, seed=3)
    counted = sum(
        tensor.numel() for name, tensor in checkpoint.tensors.items() if not name.startswith("estimator.")
    )
    assert trainable_millions(network) == pytest.approx(counted / 1e6)


# --- bundles and other methods --------------------------------------------------------------------


def test_a_bundle_tells_scores_bin_and_stages(tmp_path: Path) -> None:
    folder = write_fake_bundle(tmp_path / "own.bundle", "merged")
    with open_bundles([folder], ["auto"], "cpu") as (methods, notes):
        (method,) = methods
        (result,) = method(INPUTS[:1], noise=0.9, blur=0.1)
    assert (method.name, notes) == ("own", [])
    assert result.pixels.shape == (64, 64, 3)
    assert result.applied == {"noise": 0.9, "blur": 0.1}
    assert result.bin is not None
    assert result.total_seconds == sum(result.seconds.values())


def test_an_engine_that_is_missing_is_told_unless_nothing_is_left(tmp_path: Path) -> None:
    folder = write_fake_bundle(tmp_path / "own.bundle", "fused")
    with open_bundles([folder], ["onnx", "none"], "cpu") as (methods, notes):
        assert [method.name for method in methods] == ["own, onnx"]
        assert len(notes) == 1
        assert notes[0].startswith("own was not measured on none: unknown engine 'none'")
    with pytest.raises(RequestError, match="unknown engine 'none'"), open_bundles([folder], ["none"], "cpu"):
        pass


def test_another_method_answers_with_its_files(tmp_path: Path) -> None:
    made = dark_noise(64, 64)
    Image.fromarray(made).save(tmp_path / "a.png")
    times = PeerTimes(machine="theirs", seconds={"a": 1.5})
    timed, untimed = (Peer("peer", {"a": tmp_path / "a.png"}, each) for each in (times, None))
    (result,) = timed([Input(IMAGES[0], "a")])
    np.testing.assert_array_equal(result.pixels, made)
    assert result.total_seconds == 1.5
    assert untimed([Input(IMAGES[0], "a")])[0].total_seconds is None
