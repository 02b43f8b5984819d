"""Image preparation and colour correction around the network: pure functions on `[N, 3, H, W]` float32."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from s3diff_runtime.errors import RequestError
from s3diff_runtime.vocabulary import COLOR_FIXES, SCALE, ColorFix

_WAVELET_LEVELS = 5
_CHANNELS = 3


def crop_padding(decoded: Tensor, image: Tensor) -> Tensor:
    """What the network decoded, without `reflect_to_multiple`'s padding: x4 the sides of `image`."""
    return decoded[..., : SCALE * image.shape[-2], : SCALE * image.shape[-1]]


def reflect_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Reflect-pad right and bottom to a multiple; images smaller than the padding reflect repeatedly."""
    rows, columns = (reflected(size, 0, -size % multiple, image.device) for size in image.shape[-2:])
    return image[..., rows, :][..., columns]


def reflected(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Indices of a line padded by reflection about its end pixels, as often as a short line needs."""
    # The period is a tensor, and so may come from a size that is free in an exported graph.
    period = (2 * torch.arange(size, device=device)[-1]).clamp(min=1)
    index = torch.arange(-before, size + after, device=device).remainder(period)
    return torch.minimum(index, period - index)


def wavelet_low(image: Tensor) -> Tensor:
    """The low frequencies of the a-trous wavelet: five binomial 3x3 blurs with dilation 1, 2, 4, 8, 16."""
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    kernel = torch.outer(taps, taps).expand(_CHANNELS, 1, 3, 3)
    for level in range(_WAVELET_LEVELS):
        radius = 2**level
        padded = F.pad(image, (radius,) * 4, mode="replicate")
        image = F.conv2d(padded, kernel, dilation=radius, groups=_CHANNELS)
    return image


def wavelet_fix(image: Tensor, reference: Tensor) -> Tensor:
    """Details of `image` over the colours of `reference` (StableSR's wavelet reconstruction).

    The blurs are linear, so one pass over the difference does what two would.
    """
    return image + wavelet_low(reference - image)


def adain_fix(image: Tensor, reference: Tensor) -> Tensor:
    """`image` with the mean and standard deviation of each of `reference`'s channels (AdaIN)."""

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(2)
        return flat.mean(2)[..., None, None], (flat.var(2) + 1e-5).sqrt()[..., None, None]

    (mean, std), (target_mean, target_std) = statistics(image), statistics(reference)
    return (image - mean) / std * target_std + target_mean


_FIXES: dict[ColorFix, Callable[[Tensor, Tensor], Tensor]] = {"wavelet": wavelet_fix, "adain": adain_fix}


def correct_color(image: Tensor, reference: Tensor, fix: ColorFix) -> Tensor:
    """Correct the colours of `image`, in [0, 1], and clamp it there.

    `reference` is the bicubic low-resolution image of the same size. Raises `RequestError` for a correction
    that is none of `COLOR_FIXES`.
    """
    if fix not in COLOR_FIXES:
        raise RequestError(f"unknown colour correction {fix!r}; expected one of {', '.join(COLOR_FIXES)}")
    corrected = _FIXES[fix](image, reference) if fix in _FIXES else image
    return corrected.clamp(0, 1)
