"""What one flat colour must stay: a loss that sees the largest error where a mean sees none."""

from torch import Tensor

_POWER = 8
_TINY = 1e-20
"""Keeps the root's gradient finite where there is no error: its eighth root is 0.4 grey levels of [-1, 1]."""


def flat_error(restored: Tensor, truth: Tensor) -> Tensor:
    """About the largest error of a batch's flat pictures: convolutions pad with grey, which darkens corners.

    Corners are a hundredth of a picture, so no mean over pixels holds them; the 8-norm does, and its gradient
    reaches more than one pixel.

    Args:
        restored: `[N, 3, H, W]` in about [-1, 1].
        truth: likewise; pictures of one colour count, others do not.

    Returns:
        A scalar: the 8-norm of every flat picture's error, summed over these, over N; 0 where none is flat.
    """
    flat = (truth.amax((2, 3)) == truth.amin((2, 3))).all(dim=1)
    errors = (restored[flat].float() - truth[flat]).pow(_POWER).mean((1, 2, 3))
    norms: Tensor = (errors + _TINY).pow(1 / _POWER)
    return norms.sum() / len(truth)
