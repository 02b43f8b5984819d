"""What to do when memory runs out: smaller batches, then smaller tiles, and at last an error."""

import logging
from dataclasses import dataclass
from threading import Lock

from s3diff_runtime.engines.limits import Limits
from s3diff_runtime.errors import OutOfMemory

_logger = logging.getLogger("s3diff_runtime")


@dataclass(frozen=True)
class Sizes:
    """How much runs at once."""

    batch: int
    """Images or tiles."""
    tile: int
    """Longest side that is not cut, in low-resolution pixels; 0 never cuts."""

    def __str__(self) -> str:
        """For messages."""
        return f"batches of {self.batch}, {f'tiles of {self.tile}' if self.tile else 'uncut'}"


class Backoff:
    """The sizes in use. They only shrink, so that what was found to fit is not searched for again.

    Safe to use from several threads: where many run out of memory with the same sizes, these shrink once.

    Args:
        sizes: to begin with.
        limits: the least batch and tile that they shrink to, and what tiles are multiples of.
    """

    def __init__(self, sizes: Sizes, limits: Limits) -> None:
        self._sizes, self._limits, self._lock = sizes, limits, Lock()

    @property
    def sizes(self) -> Sizes:
        """What to run with."""
        return self._sizes

    def shrink(self, tried: Sizes, images: int, longest: int, reason: str) -> None:
        """Memory ran out with the sizes `tried`: halve the batch, or else the tile, with a warning.

        Args:
            tried: what the work ran with.
            images: how many it had; a batch was no larger, unless an image was cut.
            longest: the longest side of its images.
            reason: for the warning and the error. Text, because an error would keep alive, in whatever logs
                it, the memory of the frames that it came through.

        Raises:
            OutOfMemory: when nothing smaller is left.
        """
        with self._lock:
            if tried != self._sizes:  # another thread has shrunk them meanwhile
                return
            smaller = self._smaller(tried, images, longest)
            if smaller is None:
                raise OutOfMemory(
                    f"out of memory even with {tried}, the least there is ({reason}); free memory on the "
                    "device, or use another device"
                )
            _logger.warning("out of memory with %s; going on with %s (%s)", tried, smaller, reason)
            self._sizes = smaller

    def _smaller(self, tried: Sizes, images: int, longest: int) -> Sizes | None:
        limits, is_cut = self._limits, 0 < tried.tile < longest
        batch = tried.batch if is_cut else min(tried.batch, images)
        if batch > limits.least_batch:
            return Sizes(max(batch // 2, limits.least_batch), tried.tile)
        side = tried.tile if is_cut else longest
        half = max(side // 2 // limits.multiple * limits.multiple, limits.least_tile)
        return Sizes(tried.batch, half) if half < side else None
