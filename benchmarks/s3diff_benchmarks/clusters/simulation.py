"""The scheduler of `upscale --ray`, run against workers that exist on paper, and die."""

import random
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

from s3diff_runtime.batch.shares import Shares


@dataclass(frozen=True)
class Simulated:
    """What is simulated; times in seconds."""

    pictures: int
    workers: int
    seconds: float
    """Of work for a picture."""
    spread: float = 0.2
    """Standard deviation of the logarithm of a share's time over its usual one."""
    between_deaths: float = float("inf")
    """Of a worker, on average."""
    restart: float = 0.0
    """From a worker's death, or the beginning, until it has opened the bundle."""
    poisoned: float = 0.0
    """Fraction of the pictures that kill whoever works on them."""
    batch: int = 4


@dataclass
class Course:
    """How a run went."""

    results: bytearray
    """Of each picture, how many ends it came to: 1, if the scheduler is right."""
    seconds: float = 0.0
    deaths: int = 0
    repeated: int = 0
    """Pictures that were done, and had to be done again, because their worker died before it told."""
    failed: int = 0
    busy: float = 0.0
    """Seconds of workers, of those that told what they had done."""


@dataclass
class _Worker:
    ready: bool = False
    ends_at: float = 0.0
    """When it dies by itself."""
    life: int = 0
    """Counts its lives: events of an earlier one mean nothing."""
    shares: deque[tuple[int, ...]] = field(default_factory=deque)
    began: float = 0.0


def simulate(given: Simulated, seed: int) -> Course:
    """Run the scheduler to its end.

    Workers die at exponentially distributed times, and of poisoned pictures, spread evenly over the numbers.

    Args:
        given: the run.
        seed: of the random numbers.
    """
    numbers = random.Random(seed)
    course = Course(bytearray(given.pictures))
    shares = Shares(range(given.pictures), given.batch, given.workers, given.pictures)
    every = round(1 / given.poisoned) if given.poisoned else 0
    workers = [_Worker() for _ in range(given.workers)]
    events: list[tuple[float, int, int, str]] = []  # time, worker, its life, what

    def opens(worker: int, now: float) -> None:
        heappush(events, (now + given.restart, worker, workers[worker].life, "open"))

    def works(worker: int, now: float) -> None:
        """Begin the first of its shares: when will it be done, or the worker dead?"""
        own = workers[worker]
        own.began = now
        share = own.shares[0]
        usual = len(share) * given.seconds
        takes = usual * numbers.lognormvariate(-(given.spread**2) / 2, given.spread)  # on average the usual
        ends = next((place for place, n in enumerate(share) if every and n % every == every - 1), None)
        poisoned = now + takes * (ends + 0.5) / len(share) if ends is not None else float("inf")
        dies = min(own.ends_at, poisoned)
        what, when = ("die", dies) if dies < now + takes else ("tell", now + takes)
        heappush(events, (when, worker, own.life, what))

    def supply(worker: int, now: float) -> None:
        own = workers[worker]
        idle = not own.shares
        while own.ready and (share := shares.take(own.shares)):
            own.shares.append(share)
        if idle and own.shares:
            works(worker, now)

    for worker in range(given.workers):
        opens(worker, 0.0)
    while not shares.ended:
        now, worker, life, what = heappop(events)
        own = workers[worker]
        if life != own.life:
            continue
        course.seconds = now
        if what == "open":
            own.ready, own.ends_at = True, now + _lifetime(numbers, given.between_deaths)
        elif what == "tell":
            share = own.shares.popleft()
            shares.done(share, now - own.began)
            course.busy += now - own.began
            for number in share:
                course.results[number] += 1
            if own.shares:
                works(worker, now)
        else:
            course.deaths += 1
            share = own.shares.popleft()
            usual = given.seconds * len(share)
            course.repeated += min(len(share) - 1, int(len(share) * (now - own.began) / usual))
            for number in shares.lost(share):
                course.results[number] += 1
                course.failed += 1
            for unbegun in own.shares:
                shares.unbegun(unbegun)
            workers[worker] = _Worker(life=own.life + 1)
            opens(worker, now)
        for each in range(given.workers) if what == "die" else (worker,):
            supply(each, now)
    return course


def _lifetime(numbers: random.Random, mean: float) -> float:
    return numbers.expovariate(1 / mean) if mean != float("inf") else mean
