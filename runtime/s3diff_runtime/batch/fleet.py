"""Several devices working through one queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event, Lock
from typing import Self, TypeVar

from s3diff_runtime.bundle.fetching import local_bundle
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.engines.devices import listed_devices
from s3diff_runtime.engines.flavours import ENGINE_HELP
from s3diff_runtime.options import Options, group, option
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Upscaler

T = TypeVar("T")


class Fleet:
    """One upscaler a device, all of one bundle. Close it, or use it as a context manager.

    Attributes:
        upscalers: one or more.
        manifest: of the bundle.
        options: of the first upscaler.
    """

    def __init__(self, upscalers: Sequence[Upscaler]) -> None:
        """Take over upscalers that are open."""
        self.upscalers = tuple(upscalers)
        self.manifest: Manifest = self.upscalers[0].manifest
        self.options: UpscaleOptions = self.upscalers[0].options

    @classmethod
    def open(cls, bundle: str | Path, engine: str, devices: Sequence[str], options: UpscaleOptions) -> Self:
        """Open a bundle on every device; see `Upscaler.open` for what it raises."""
        folder = local_bundle(bundle)  # once, for all devices
        with ExitStack() as opened:
            upscalers = [
                opened.enter_context(Upscaler.open(folder, engine, device, options)) for device in devices
            ]
            opened.pop_all()
        return cls(upscalers)

    @property
    def engine(self) -> str:
        """What runs the graphs; several where the devices differ."""
        return ",".join(dict.fromkeys(upscaler.engine for upscaler in self.upscalers))

    @property
    def device(self) -> str:
        """The devices."""
        return ",".join(upscaler.device for upscaler in self.upscalers)

    @property
    def precision(self) -> str:
        """What the engines compute in; several where they differ."""
        return ",".join(dict.fromkeys(upscaler.precision for upscaler in self.upscalers))

    def check_size(self, height: int, width: int, scale: int | None = None) -> None:
        """Raise `RequestError` when one of the devices takes no image of this size, in pixels."""
        for upscaler in self.upscalers:
            upscaler.check_size(height, width, scale)

    def drain(self, items: Iterator[T], work: Callable[[Upscaler, T], None]) -> None:
        """Do `work` for every item; each upscaler takes the next one as soon as it is free.

        One upscaler works in the calling thread, several in threads of their own. After an error, or when the
        caller is interrupted, what was begun is finished and nothing else is started.

        Raises:
            Exception: the first that `work` or `items` raised.
        """
        if len(self.upscalers) == 1:
            for item in items:
                work(self.upscalers[0], item)
            return
        taking, stopped = Lock(), Event()

        def serve(upscaler: Upscaler) -> None:
            while True:
                with taking:
                    following = [] if stopped.is_set() else list(islice(items, 1))
                if not following:
                    return
                work(upscaler, following[0])

        with ThreadPoolExecutor(len(self.upscalers), "device") as threads:
            try:
                for done in as_completed([threads.submit(serve, upscaler) for upscaler in self.upscalers]):
                    done.result()
            finally:
                stopped.set()

    def close(self) -> None:
        """Close all upscalers."""
        for upscaler in self.upscalers:
            upscaler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class FleetOptions(Options):
    """What runs a bundle, for commands that upscale whatever they are given."""

    engine: str = option("auto", ENGINE_HELP)
    device: str = option("cpu", "cpu, cuda, or cuda:N; all GPUs with all, some with cuda:0,cuda:1.")
    options: UpscaleOptions = group(UpscaleOptions, only=("tile", "batch", "threads", "cpu_precision"))

    def fleet(self, bundle: str | Path) -> Fleet:
        """Open a bundle on these devices; see `Fleet.open`."""
        return Fleet.open(bundle, self.engine, listed_devices(self.device), self.options)
