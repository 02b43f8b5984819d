"""What can be asked for of Ray, without Ray."""

from collections.abc import Iterator
from dataclasses import dataclass

from s3diff_runtime.options import Options, option

CORES = 4
"""CPU cores of a worker: two workers of 4 do more than one of 8, whose threads wait for each other."""


@dataclass(frozen=True)
class RayOptions(Options):
    """Whether and how a batch is shared out to the workers of a Ray cluster."""

    ray: bool = option(False, "Share the pictures out to workers of a Ray cluster.")
    ray_address: str | None = option(
        None, "The cluster's, such as auto or HOST:6379.", shown="RAY_ADDRESS, or one started for the run"
    )
    workers: int | None = option(
        None, "How many.", least=1, shown=f"one a GPU, or one for {CORES} cores, or --threads"
    )

    def problems(self) -> Iterator[str]:
        """Options that would do nothing."""
        if not self.ray and (idle := self.flags_of("ray_address", "workers")):
            yield f"{' and '.join(idle)} without --ray: nothing is shared out"
