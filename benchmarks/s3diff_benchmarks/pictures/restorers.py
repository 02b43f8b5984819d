"""Everything that can enlarge an image ×4 for a comparison: bicubic, a bundle, PyTorch, a peer's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from s3diff_benchmarks.pictures.pairs import Case, Peer, pixels_of
from s3diff_runtime.upscaler import Upscaler
from s3diff_runtime.vocabulary import Pixels

if TYPE_CHECKING:
    from s3diff_training.network import S3Diff

BICUBIC = "bicubic"
PYTORCH = "PyTorch fp32"


@dataclass(frozen=True)
class Facts:
    """How an image came about; None for what is not known."""

    seconds: float | None = None
    noise: float | None = None
    """The scores that were applied, in [0, 1]."""
    blur: float | None = None
    bin: str | None = None
    """Whose weights were used, of a merged bundle."""


class Restored(NamedTuple):
    """An enlarged image, uint8 RGB `[4H, 4W, 3]`, and how it came about."""

    pixels: Pixels
    facts: Facts


Restorer = Callable[[Case, Pixels], Restored]
"""From a case and its LR pixels, uint8 RGB `[H, W, 3]`."""


def bicubic(_case: Case, lr: Pixels) -> Restored:
    """The baseline: torch's bicubic interpolation (`align_corners=False`), clamped, as in the paper."""
    from s3diff_training.data import from_uint8, to_uint8
    from s3diff_training.train.validation import bicubic as interpolated

    return Restored(to_uint8(interpolated(from_uint8(lr)[None])), Facts())


def with_bundle(upscaler: Upscaler) -> Restorer:
    """Restore with an opened bundle, at its estimate."""

    def restore(_case: Case, lr: Pixels) -> Restored:
        result = upscaler.upscale_pixels([lr])[0]
        chosen = result.bin.name if result.bin else None
        return Restored(result.pixels, Facts(sum(result.seconds.values()), **result.applied, bin=chosen))

    return restore


def with_pytorch(network: S3Diff) -> Restorer:
    """Restore with the network in PyTorch, on its device, images whole."""

    def restore(_case: Case, lr: Pixels) -> Restored:
        start = perf_counter()
        pixels, scores = exact(network, lr)
        return Restored(pixels, Facts(perf_counter() - start, scores["noise"], scores["blur"]))

    return restore


def exact(
    network: S3Diff, lr: Pixels, noise: float | None = None, blur: float | None = None
) -> tuple[Pixels, dict[str, float]]:
    """What PyTorch makes of uint8 RGB `[H, W, 3]`, and the scores that it applied.

    Networks that start from noise draw it with seed 0.
    """
    from s3diff_training.data import from_uint8, to_uint8

    image = from_uint8(lr)[None].to(next(network.parameters()).device)
    seed = 0 if network.one_step.adds_noise else None
    restored = network.restore(image, noise=noise, blur=blur, seed=seed)
    scores = dict(zip(network.config.degradation_axes, restored.degradation[0].tolist(), strict=True))
    return to_uint8(restored.image), scores


def from_peer(peer: Peer) -> Restorer:
    """Read what another method made, with the seconds that its own script measured."""

    def restore(case: Case, _lr: Pixels) -> Restored:
        seconds = peer.times.seconds.get(case.name) if peer.times else None
        return Restored(pixels_of(peer.outputs[case.name]), Facts(seconds))

    return restore
