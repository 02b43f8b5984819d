"""Hands out pictures in shares to workers that may be lost, so that each comes to exactly one end."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

MOST_LOSSES = 3
"""Workers that a picture may take with it before it is given up."""


class Shares:
    """Shares of numbered pictures, in order; what a lost worker had begun comes again, picture by picture.

    A picture that kills whoever works on it thus costs no other, and at most `MOST_LOSSES` workers. The
    caller tells of every share that was taken what became of it: `done`, `lost` or `unbegun`.

    Args:
        numbers: of the pictures, each once; taken as they are needed.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._fresh: Iterator[int] = iter(numbers)
        self._again = deque[tuple[int, ...]]()
        self._suspects = deque[int]()
        self._losses = Counter[int]()
        self._out = 0

    @property
    def ended(self) -> bool:
        """Whether every picture came to its end."""
        if self._out or self._again or self._suspects:
            return False
        following = next(self._fresh, None)
        if following is not None:
            self._again.append((following,))
        return following is None

    def is_suspect(self, share: Sequence[int]) -> bool:
        """Whether a worker was lost with one of these pictures, so that its next one must have nothing else:
        of what one did just before its end, the answer may be lost as well.
        """
        return any(number in self._losses for number in share)

    def take(self, length: int, alone: bool) -> tuple[int, ...]:
        """The next share, of at most so many pictures; empty where none is left for now.

        Args:
            length: of pictures that no worker was lost with.
            alone: whether the worker has no other share, and so may have a suspect.
        """
        share: tuple[int, ...]
        if self._suspects and alone:
            share = (self._suspects.popleft(),)
        elif self._again:
            share = self._again.popleft()
        else:
            share = tuple(islice(self._fresh, length))
        self._out += bool(share)
        return share

    def done(self) -> None:
        """A share came back, with an end for every picture in it."""
        self._out -= 1

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
