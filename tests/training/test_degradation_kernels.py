"""Blur kernels against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from s3diff_runtime.errors import RequestError
from s3diff_training.degradations import kernels as making
from s3diff_training.degradations.kernels import (
    draw_final_sinc_kernels,
    draw_kernels,
    filter_images,
    kernel_area,
)
from s3diff_training.degradations.settings import KernelSettings

KernelShape = Literal["gaussian", "generalized", "plateau"]


def numbers(*values: Tensor | float) -> tuple[Tensor, ...]:
    """One number per kernel, of numbers and of tensors of them."""
    return torch.broadcast_tensors(*(torch.atleast_1d(torch.as_tensor(value)) for value in values))


def gaussian_kernel(
    size: int,
    sigma_x: float,
    sigma_y: float,
    theta: Tensor | float,
    *,
    shape: KernelShape = "gaussian",
    beta: float = 1.0,
    padded_size: int = 21,
) -> Tensor:
    exponent = 1.0 if shape == "gaussian" else beta
    sizes, *rest = numbers(size, float(sigma_x), float(sigma_y), theta, exponent)
    return making.gaussian_kernel(sizes, *rest, plateau=shape == "plateau", padded_size=padded_size)


def sinc_kernel(size: int, cutoff: float, padded_size: int = 21) -> Tensor:
    sizes, cutoffs = numbers(size, float(cutoff))
    return making.sinc_kernel(sizes, cutoffs, padded_size)


def second_moments(kernel: Tensor) -> tuple[float, float, float]:
    """Moments xx, yy, xy of one kernel [k, k] about its centre pixel."""
    line = torch.arange(kernel.shape[-1], dtype=torch.float32) - kernel.shape[-1] // 2
    x, y = line[None, :], line[:, None]
    return float((kernel * x * x).sum()), float((kernel * y * y).sum()), float((kernel * x * y).sum())


@given(
    size=st.sampled_from(range(7, 23, 2)),
    sigmas=st.tuples(st.floats(0.2, 3.0), st.floats(0.2, 3.0)),
    theta=st.floats(-math.pi, math.pi),
    shape=st.sampled_from(["gaussian", "generalized", "plateau"]),
    beta=st.floats(0.5, 2.0),
)
@settings(max_examples=40, deadline=None)
def test_family_sums_to_one_is_symmetric_and_stays_in_its_support(
    size: int, sigmas: tuple[float, float], theta: float, shape: KernelShape, beta: float
) -> None:
    kernel = gaussian_kernel(size, *sigmas, theta, shape=shape, beta=beta)
    assert kernel.shape == (1, 21, 21)
    assert kernel.dtype == torch.float32
    assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(kernel, kernel.flip(1, 2))
    margin = (21 - size) // 2
    assert kernel[:, margin : 21 - margin, margin : 21 - margin].sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", ["gaussian", "generalized", "plateau"])
def test_equal_deviations_are_isotropic_at_any_angle(shape: KernelShape) -> None:
    kernel = gaussian_kernel(21, 1.5, 1.5, torch.tensor([0.0, 0.7]), shape=shape, beta=1.3)
    torch.testing.assert_close(kernel[0], kernel[1], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(kernel[0], kernel[0].T, atol=1e-6, rtol=1e-4)


def test_second_moments_are_the_rotated_covariance() -> None:
    theta = 0.6
    xx, yy, xy = second_moments(gaussian_kernel(41, 3.0, 1.5, theta, padded_size=41)[0])
    assert xx == pytest.approx(9 * math.cos(theta) ** 2 + 2.25 * math.sin(theta) ** 2, rel=1e-3)
    assert yy == pytest.approx(9 * math.sin(theta) ** 2 + 2.25 * math.cos(theta) ** 2, rel=1e-3)
    assert xy == pytest.approx((9 - 2.25) * math.sin(theta) * math.cos(theta), rel=1e-3)


def test_shapes_follow_their_formulas() -> None:
    # Two pixels right of the centre of sigma 1.6, relative to the centre.
    q = (2 / 1.6) ** 2
    for shape, expected in (
        ("gaussian", math.exp(-q / 2)),
        ("generalized", math.exp(-(q**0.7) / 2)),
        ("plateau", 1 / (1 + q**0.7)),
    ):
        kernel = gaussian_kernel(21, 1.6, 1.6, 0.0, shape=shape, beta=0.7)[0]  # type: ignore[arg-type]
        assert (kernel[10, 12] / kernel[10, 10]).item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(
        gaussian_kernel(21, 1.6, 0.9, 0.4), gaussian_kernel(21, 1.6, 0.9, 0.4, shape="generalized", beta=1.0)
    )


def test_low_pass_keeps_below_its_cutoff_and_stops_above() -> None:
    cutoff = math.pi / 2
    kernel = sinc_kernel(101, cutoff, 101)[0].double()
    response = torch.fft.fft2(torch.fft.ifftshift(kernel)).real
    frequency = 2 * math.pi * torch.fft.fftfreq(101, dtype=torch.float64)
    radius = (frequency[:, None].square() + frequency[None, :].square()).sqrt()
    passed, stopped = response[radius < 0.85 * cutoff], response[radius > 1.15 * cutoff]
    assert (passed - 1).abs().max() < 0.06
    assert stopped.abs().max() < 0.06


def test_low_pass_is_its_bessel_formula() -> None:
    # J1(2) from tables; cut-off 1 rad/pixel at distance 2, relative to the centre's 1 / (4 pi).
    kernel = sinc_kernel(21, 1.0)[0]
    expected = 0.5767248078 / (2 * math.pi * 2) * (4 * math.pi)
    assert (kernel[10, 12] / kernel[10, 10]).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "make", [lambda size: gaussian_kernel(size, 1, 1, 0), lambda size: sinc_kernel(size, 2)]
)
@pytest.mark.parametrize("size", [8, 23, 0])
def test_sizes_that_do_not_fit_are_refused(make: Callable[[int], Tensor], size: int) -> None:
    with pytest.raises(RequestError, match="expected odd sizes"):
        make(size)


def test_area_of_known_kernels() -> None:
    box = torch.zeros(21, 21)
    box[8:13, 8:13] = 1 / 25
    kernels = torch.stack([box, gaussian_kernel(21, 2.0, 1.2, 0.3)[0], gaussian_kernel(7, 0.05, 0.05, 0)[0]])
    torch.testing.assert_close(
        kernel_area(kernels), torch.tensor([25.0, 4 * math.pi * 2.4, 1.0]), rtol=0.01, atol=0
    )
    wide = sinc_kernel(101, math.pi / 3, 101)
    assert kernel_area(wide).item() == pytest.approx(4 * math.pi / (math.pi / 3) ** 2, rel=0.08)


def test_drawn_kernels_reproduce_and_follow_the_probabilities() -> None:
    count = 4000
    kernels = draw_kernels(KernelSettings(), count, torch.Generator().manual_seed(3))
    assert torch.equal(kernels, draw_kernels(KernelSettings(), count, torch.Generator().manual_seed(3)))
    assert not torch.equal(kernels, draw_kernels(KernelSettings(), count, torch.Generator().manual_seed(4)))
    assert kernels.shape == (count, 21, 21)
    torch.testing.assert_close(kernels.sum(dim=(1, 2)), torch.ones(count), atol=1e-4, rtol=0)
    assert kernel_area(kernels).min() >= 0.999
    # Only low-passes have negative lobes.
    sinc_share = (kernels.amin(dim=(1, 2)) < -1e-4).float().mean().item()
    assert sinc_share == pytest.approx(0.1, abs=0.02)
    # The isotropic kinds and the low-passes equal their transpose: 0.1 + 0.9 * (0.45 + 0.12 + 0.12).
    isotropic = ((kernels - kernels.transpose(1, 2)).abs().amax(dim=(1, 2)) < 1e-5).float().mean().item()
    assert isotropic == pytest.approx(0.721, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "isotropic"), [(0, True), (1, False), (2, True), (3, False), (4, True), (5, False)]
)
def test_each_kind_can_be_drawn_alone(kind: int, isotropic: bool) -> None:
    chosen = tuple(float(index == kind) for index in range(6))
    options = KernelSettings(kind_probabilities=chosen, sinc_probability=0.0, sigma_range=(0.8, 2.0))
    kernels = draw_kernels(options, 32, torch.Generator().manual_seed(kind))
    difference = (kernels - kernels.transpose(1, 2)).abs().amax(dim=(1, 2))
    assert bool((difference < 1e-5).all()) is isotropic
    assert (kernels >= 0).all()


def test_final_low_passes_are_cut_at_a_third_of_pi_or_higher() -> None:
    kernels = draw_final_sinc_kernels(KernelSettings(smallest_size=21), 200, torch.Generator().manual_seed(0))
    area = kernel_area(kernels)
    assert area.min() > 1.2
    assert area.max() < 1.1 * 4 * math.pi / (math.pi / 3) ** 2


def test_filter_uses_each_images_own_kernel_and_reflects_the_border() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 9, 14, generator=generator)  # smaller than the kernel's half side of 10
    impulse = torch.zeros(21, 21)
    impulse[10, 10] = 1
    kernels = torch.stack(
        [impulse, gaussian_kernel(21, 4.0, 1.0, 0.5)[0], gaussian_kernel(7, 1.0, 1.0, 0.0)[0]]
    )
    filtered = filter_images(images, kernels)
    torch.testing.assert_close(filtered[0], images[0])
    reflected = torch.nn.functional.pad(images[2:], (3, 3, 3, 3), mode="reflect")
    small = kernels[2, 7:14, 7:14].expand(3, 1, 7, 7)
    torch.testing.assert_close(filtered[2:], torch.nn.functional.conv2d(reflected, small, groups=3))
    torch.testing.assert_close(
        filter_images(torch.full_like(images, 0.4), kernels), torch.full_like(images, 0.4)
    )


def test_bad_kernel_settings_list_all_problems() -> None:
    with pytest.raises(RequestError) as caught:
        KernelSettings(
            sinc_probability=1.5,
            generalized_beta_range=(0.0, 1.0),
            plateau_beta_range=(float("nan"), 1.0),
        )
    for name in ("sinc_prob", "generalized_beta", "plateau_beta"):
        assert name in str(caught.value)
    with pytest.raises(RequestError, match=r"kind_prob.*sigma_range.*kernel sizes"):
        KernelSettings(kind_probabilities=(0.5, 0.5, 0.5, 0, 0, 0), sigma_range=(2.0, 1.0), smallest_size=8)
