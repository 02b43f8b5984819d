"""Hands out pictures in shares to workers that may be lost, so that each comes to exactly one end."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

MOST_LOSSES = 3
"""Workers that a picture may take with it before it is given up."""
_SECONDS = 4.0
"""About how long a worker is busy with a share: what its loss costs, and how often progress is told."""
_LONGEST = 64
_HELD = 2
"""Shares that a worker has, so that it never waits for the next."""


class Shares:
    """Shares of numbered pictures, in order; what a lost worker had begun comes again, picture by picture.

    A picture that kills whoever works on it thus costs no other, and at most `MOST_LOSSES` workers. The
    caller tells of every share that was taken what became of it: `done`, `lost` or `unbegun`.

    Args:
        numbers: of the pictures, each once; taken as they are needed.
        least: pictures of a share, as many as a worker computes at once.
        workers: how many share the work.
        total: how many pictures there are; None where nobody knows yet.
    """

    def __init__(self, numbers: Iterable[int], least: int, workers: int, total: int | None = None) -> None:
        self._fresh: Iterator[int] = iter(numbers)
        self._least, self._workers, self._left, self._length = least, workers, total, least
        self._again = deque[tuple[int, ...]]()
        self._suspects = deque[int]()
        self._losses = Counter[int]()
        self._out = 0

    @property
    def ended(self) -> bool:
        """Whether every picture came to its end."""
        if self._out or self._again or self._suspects:
            return False
        following = self._fresh_share()
        if following:
            self._again.append(following)
        return not following

    def take(self, held: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """The next share of a worker; empty where it has enough, or there is none for it now.

        A picture that a worker was lost with is worked on alone: of what was done just before a death, the
        answer may be lost as well.

        Args:
            held: the shares that the worker has, the one that it works on first.
        """
        if len(held) >= _HELD or any(number in self._losses for number in (held[0] if held else ())):
            return ()
        share: tuple[int, ...]
        if self._suspects and not held:
            share = (self._suspects.popleft(),)
        elif self._again:
            share = self._again.popleft()
        else:
            share = self._fresh_share()
        self._out += bool(share)
        return share

    def done(self, share: Sequence[int], seconds: float) -> None:
        """A share came back after so many seconds of work, with an end for every picture in it."""
        self._out -= 1
        per_picture = max(seconds, 1e-6) / len(share)
        self._length = max(self._least, min(_LONGEST, int(_SECONDS / per_picture)))

    def unbegun(self, share: Sequence[int]) -> None:
        """A share was lost before anybody worked on it."""
        self._out -= 1
        self._again.append(tuple(share))

    def lost(self, share: Sequence[int]) -> list[int]:
        """A worker was lost with the share that it worked on; returns the pictures that are given up."""
        self._out -= 1
        self._losses.update(share)
        given_up = [number for number in share if self._losses[number] >= MOST_LOSSES]
        self._suspects.extend(number for number in share if self._losses[number] < MOST_LOSSES)
        return given_up

    def _fresh_share(self) -> tuple[int, ...]:
        """The next share of pictures that nobody had yet; shorter near the end, so that all end together."""
        if self._left is None:
            return tuple(islice(self._fresh, self._length))
        fair = self._left // (_HELD * self._workers)
        share = tuple(islice(self._fresh, max(self._least, min(self._length, fair))))
        self._left -= len(share)
        return share
