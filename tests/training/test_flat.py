"""The loss that holds flat pictures flat."""

import pytest
import torch

from s3diff_training.losses.flat import flat_error

SIDE, CORNER, ERROR = 64, 8, 0.2


def flat_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Truths: one colour, and noise; restored: the first with a dark corner, the second far off."""
    noise = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    truth = torch.stack([torch.tensor([0.9, -0.3, 0.1])[:, None, None].expand(3, SIDE, SIDE), noise])
    restored = truth.clone()
    restored[0, :, :CORNER, :CORNER] -= ERROR
    restored[1] += 1
    return restored, truth


def test_a_dark_corner_counts_as_no_mean_counts_it() -> None:
    restored, truth = flat_batch()
    found = float(flat_error(restored, truth))
    mean = float((restored - truth)[0].abs().mean())
    assert ERROR / 2 / len(truth) < found < ERROR / len(truth)
    assert mean < ERROR / 50


def test_pictures_of_several_colours_do_not_count() -> None:
    restored, truth = flat_batch()
    assert float(flat_error(restored[1:], truth[1:])) == 0


@pytest.mark.parametrize("error", [0.0, 1e-4, 2.0])
def test_gradients_are_finite_and_lower_the_error(error: float) -> None:
    _, truth = flat_batch()
    restored = (truth[:1] + error).requires_grad_()
    (gradient,) = torch.autograd.grad(flat_error(restored, truth[:1]), restored)
    assert bool(gradient.isfinite().all())
    assert bool((gradient >= 0).all()) and bool(gradient.any()) == (error > 0)


def test_a_batch_without_flat_pictures_is_trained_on_too() -> None:
    restored, truth = flat_batch()
    noise = restored[1:].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(flat_error(noise, truth[1:]), noise)
    assert not gradient.any()
