"""What the service counts, for Prometheus."""

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)


class Metrics:
    """Counters in a registry of their own.

    Attributes:
        requests: answers by path and status.
        seconds: from a request's first byte to its answer, by path.
        inside: pictures that hold a place.
        refused: pictures for which none was free.
        batches: how many pictures ran together.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        named: dict[str, Any] = {"namespace": "s3diff", "registry": self.registry}
        self.requests = Counter("requests", "Answers.", ("path", "status"), **named)
        self.seconds = Histogram(
            "request_seconds", "From request to answer.", ("path",), buckets=_SECONDS, **named
        )
        self.inside = Gauge("pictures_inside", "Pictures that wait or are worked on.", **named)
        self.refused = Counter("pictures_refused", "Pictures for which there was no place.", **named)
        self.batches = Histogram(
            "batch_pictures", "Pictures that ran together.", buckets=(1, 2, 4, 8, 16), **named
        )
        self._pictures = Counter("pictures", "Pictures upscaled.", **named)
        self._pixels = Counter("pixels", "Pixels of pictures before upscaling.", **named)
        self._stages = Counter("stage_seconds", "Time of upscaled pictures, by stage.", ("stage",), **named)

    def count(self, size: tuple[int, int], seconds: dict[str, float]) -> None:
        """An upscaled picture: its `(width, height)`, and the time of its stages."""
        self._pictures.inc()
        self._pixels.inc(size[0] * size[1])
        for stage, spent in seconds.items():
            self._stages.labels(stage).inc(spent)
