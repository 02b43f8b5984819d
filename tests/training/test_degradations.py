"""The degradation pipeline: reproducible, well-formed pairs whose levels follow what was done to them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Generator, Tensor

from s3diff_runtime.errors import RequestError
from s3diff_training.degradations.pipeline import BLUR_FULL_SCALE, NOISE_FULL_SCALE, DegradationPipeline
from s3diff_training.degradations.settings import DegradationSettings, KernelSettings, StageSettings

OFF = StageSettings(
    blur_probability=0.0,
    resize_probabilities=(0.0, 0.0, 1.0),
    gaussian_probability=1.0,
    noise_sigma_range=(0.0, 0.0),
    jpeg_quality_range=None,
)
ALL_OFF = DegradationSettings(
    first=OFF, second=OFF, final_sinc_probability=0.0, no_degradation_probability=0.0, resize_modes=("area",)
)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Four crops [4, 3, 128, 128] of two photographs."""
    crops = [
        torch.from_numpy(image[top : top + 128, left : left + 128].copy()).permute(2, 0, 1)
        for image in (data.astronaut(), data.chelsea())
        for top, left in ((40, 150), (120, 200))
    ]
    return torch.stack(crops).float() / 255


def gaussian_blur(sigma: float) -> KernelSettings:
    return KernelSettings(
        kind_probabilities=(1, 0, 0, 0, 0, 0),
        sinc_probability=0.0,
        sigma_range=(sigma, sigma),
        smallest_size=21,
    )


def test_output_is_well_formed(photographs: Tensor) -> None:
    generator = seeded(0)
    pipeline = DegradationPipeline()
    for _ in range(12):
        batch = pipeline(photographs, generator)
        assert batch.lr.shape == (4, 3, 32, 32)
        assert batch.lr.dtype == torch.float32
        assert batch.lr.isfinite().all()
        assert batch.lr.min() >= 0
        assert batch.lr.max() <= 1
        torch.testing.assert_close(batch.lr * 255, (batch.lr * 255).round(), atol=1e-4, rtol=0)
        assert torch.equal(batch.hr, photographs)
        for level in (batch.noise, batch.blur):
            assert level.shape == (4,)
            assert ((level >= 0) & (level <= 1)).all()


def test_seed_reproduces_and_global_state_plays_no_part(photographs: Tensor) -> None:
    before = photographs.clone()
    pipeline = DegradationPipeline()
    torch.manual_seed(1)
    first = pipeline(photographs, seeded(7))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = pipeline(photographs, seeded(7))
    other = pipeline(photographs, seeded(8))
    for name in ("lr", "noise", "blur"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(photographs, before)


def test_everything_off_is_the_plain_downscale(photographs: Tensor) -> None:
    batch = DegradationPipeline(ALL_OFF)(photographs, seeded(0))
    torch.testing.assert_close(
        batch.lr, (F.avg_pool2d(photographs, 4) * 255).round() / 255, atol=1 / 254, rtol=0
    )
    assert batch.noise.max() == 0
    assert batch.blur.max() == 0


def test_no_degradation_spares_whole_samples(photographs: Tensor) -> None:
    harsh = DegradationSettings().but(no_degradation_probability=1.0)
    batch = DegradationPipeline(harsh)(photographs, seeded(0))
    assert batch.noise.max() == 0
    assert batch.blur.max() < 0.1
    assert (batch.lr - F.avg_pool2d(photographs, 4)).abs().mean() < 0.04
    some = harsh.but(no_degradation_probability=0.5)
    noise = torch.cat([DegradationPipeline(some)(photographs, seeded(seed)).noise for seed in range(6)])
    assert 0 < (noise == 0).sum() < len(noise)


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("stage", ["first", "second"])
def test_more_noise_is_a_higher_noise_level(
    photographs: Tensor, gaussian: bool, grey: bool, stage: str
) -> None:
    def level(strength: float) -> Tensor:
        noisy = OFF.but(
            gaussian_probability=float(gaussian),
            grey_probability=float(grey),
            noise_sigma_range=(12 * strength, 12 * strength),
            poisson_scale_range=(strength, strength),
        )
        settings = ALL_OFF.but(**{stage: noisy})
        batch = DegradationPipeline(settings)(photographs, seeded(0))
        assert batch.blur.max() == 0
        colourful = (batch.lr - F.avg_pool2d(photographs, 4)).std(dim=1).mean()
        assert (colourful < 0.003) == (grey or strength == 0)
        return batch.noise

    none, little, much = level(0.0), level(0.5), level(1.0)
    assert (none < little).all()
    assert (little < 0.75 * much).all()


def test_noise_level_is_the_noise_left_in_the_lr_image(photographs: Tensor) -> None:
    grey = torch.full_like(photographs, 0.5)
    late = ALL_OFF.but(second=OFF.but(noise_sigma_range=(9.0, 9.0)))
    early = ALL_OFF.but(first=OFF.but(noise_sigma_range=(9.0, 9.0)))
    # Noise of the LR image itself stays; of HR, the mean of 16 pixels leaves a quarter.
    assert DegradationPipeline(late)(grey, seeded(0)).noise.mean() * NOISE_FULL_SCALE == pytest.approx(
        9, rel=0.05
    )
    assert DegradationPipeline(early)(grey, seeded(0)).noise.mean() * NOISE_FULL_SCALE == pytest.approx(
        9 / 4, rel=0.05
    )


def test_stronger_jpeg_is_a_higher_noise_level(photographs: Tensor) -> None:
    def level(quality: float) -> Tensor:
        coded = OFF.but(jpeg_quality_range=(quality, quality))
        return DegradationPipeline(ALL_OFF.but(second=coded))(photographs, seeded(0)).noise

    assert (level(90) > 0).all()
    assert (level(90) < level(30)).all()


def test_blur_level_is_the_gaussians_deviation_in_lr_pixels(photographs: Tensor) -> None:
    def level(sigma: float, stage: str) -> Tensor:
        settings = ALL_OFF.but(**{stage: OFF.but(blur_probability=1.0, kernels=gaussian_blur(sigma))})
        batch = DegradationPipeline(settings)(photographs, seeded(0))
        assert batch.noise.max() == 0
        return batch.blur

    levels = [level(sigma, "first") for sigma in (0.6, 1.2, 2.4)]
    assert (levels[0] < levels[1]).all()
    assert (levels[1] < levels[2]).all()
    # 2.4 HR pixels are 0.6 LR pixels.
    torch.testing.assert_close(levels[2], torch.full((4,), 0.6 / BLUR_FULL_SCALE), rtol=0.02, atol=0)


def test_blurs_add_in_quadrature_and_coarse_grids_count(photographs: Tensor) -> None:
    blurred = OFF.but(blur_probability=1.0, kernels=gaussian_blur(2.0))
    twice = DegradationPipeline(ALL_OFF.but(first=blurred, second=blurred))(photographs, seeded(0))
    # The second stage blurs the first one's size, which "off" left at HR.
    expected = math.sqrt(2) * 2 / 4 / BLUR_FULL_SCALE
    torch.testing.assert_close(twice.blur, torch.full((4,), expected), rtol=0.02, atol=0)
    shrunk = OFF.but(resize_probabilities=(0.0, 1.0, 0.0), resize_range=(0.5, 1.0))
    coarse = DegradationPipeline(ALL_OFF.but(second=shrunk))(photographs, seeded(1))
    assert coarse.blur.min() > 0.05
    assert (coarse.blur == coarse.blur[0]).all()


def test_more_blur_leaves_less_detail(photographs: Tensor) -> None:
    """The level agrees with the picture: over random draws it falls with the detail of the noise-free LR."""
    quiet = DegradationSettings(
        first=StageSettings(noise_sigma_range=(0, 0), gaussian_probability=1.0, jpeg_quality_range=None),
        second=OFF.but(blur_probability=0.5, kernels=gaussian_blur(2.5)),
        no_degradation_probability=0.0,
    )
    generator = seeded(0)
    batches = [DegradationPipeline(quiet)(photographs, generator) for _ in range(40)]
    blur = torch.stack([batch.blur for batch in batches])
    detail = torch.stack([batch.lr.diff(dim=-1).abs().mean(dim=(1, 2, 3)) for batch in batches])
    for sample in range(4):
        correlation = torch.corrcoef(torch.stack([blur[:, sample], detail[:, sample]]))[0, 1]
        assert correlation < -0.5


def test_released_settings_spread_over_the_levels(photographs: Tensor) -> None:
    generator = seeded(0)
    batches = [DegradationPipeline()(photographs, generator) for _ in range(50)]
    for level in (
        torch.cat([batch.noise for batch in batches]),
        torch.cat([batch.blur for batch in batches]),
    ):
        assert 0.2 < level.median() < 0.6
        assert level.quantile(0.05) < 0.25
        assert level.quantile(0.95) > 0.6


@pytest.mark.parametrize(("height", "width"), [(32, 32), (36, 100), (64, 48)])
def test_small_and_oblong_images(photographs: Tensor, height: int, width: int) -> None:
    generator = seeded(0)
    for _ in range(8):
        batch = DegradationPipeline()(photographs[:2, :, :height, :width], generator)
        assert batch.lr.shape == (2, 3, height // 4, width // 4)
        assert batch.lr.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hr: hr[0], "shape"),
        (lambda hr: hr[:, :1], "shape"),
        (lambda hr: hr[:0], "shape"),
        (lambda hr: hr[..., :127], "multiples of 4"),
        (lambda hr: hr[..., :28, :], "at least 32"),
        (lambda hr: hr.double(), "float32"),
        (lambda hr: (hr * 255).byte(), "float32"),
        (lambda hr: hr * 255, "expected \\[0, 1\\]"),
        (lambda hr: hr.log(), "expected \\[0, 1\\]"),
        (lambda hr: hr.to("meta"), "device"),
    ],
)
def test_unfit_images_are_refused(
    photographs: Tensor, change: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        DegradationPipeline()(change(photographs), seeded(0))


def test_several_faults_of_an_image_are_reported_together(photographs: Tensor) -> None:
    with pytest.raises(RequestError, match=r"multiples of 4.*float32"):
        DegradationPipeline()(photographs[..., :127].double(), seeded(0))


def test_released_numbers_and_json() -> None:
    text = json.loads(json.dumps(asdict(DegradationSettings())))
    assert text["first"]["resize_probabilities"] == [0.2, 0.7, 0.1]
    assert text["first"]["kernels"]["sigma_range"] == [0.2, 1.5]
    assert text["second"]["kernels"]["sigma_range"] == [0.2, 1.0]
    assert text["second"]["noise_sigma_range"] == [1.0, 12.0]
    assert text["second"]["jpeg_quality_range"] == [60.0, 100.0]
    assert (text["final_sinc_probability"], text["no_degradation_probability"]) == (0.8, 0.01)


def test_bad_settings_list_all_problems() -> None:
    with pytest.raises(RequestError) as caught:
        StageSettings(
            blur_probability=-0.1,
            gaussian_probability=2.0,
            poisson_scale_range=(-1.0, 1.0),
            grey_probability=float("nan"),
            jpeg_quality_range=(0.0, 101.0),
        )
    for name in ("blur", "gaussian", "poisson", "grey", "jpeg"):
        assert name in str(caught.value)
    with pytest.raises(RequestError, match=r"resize_prob.*resize_range.*noise_sigma.*contain 1"):
        StageSettings(
            resize_probabilities=(0.5, 0.5, 0.5), resize_range=(1.5, 1.2), noise_sigma_range=(5.0, 1.0)
        )
    with pytest.raises(RequestError, match=r"final_sinc.*no_degradation.*resize_modes"):
        DegradationSettings(
            final_sinc_probability=2,
            no_degradation_probability=-1,
            resize_modes=("cubic",),  # type: ignore[arg-type]
        )
    with pytest.raises(RequestError, match="resize_modes is empty"):
        DegradationSettings(resize_modes=())
