"""A worker of a Ray cluster: `UpscaleFiles`, for `map_batches` of Ray Data and for `upscale --ray`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.batch.jobs import Job
from s3diff_runtime.batch.run import Batch, BatchOptions, Outcome
from s3diff_runtime.bundle.fetching import local_bundle
from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.records import MANIFEST_NAME
from s3diff_runtime.errors import BundleError, S3DiffError
from s3diff_runtime.pictures.reading import every_size_allowed
from s3diff_runtime.remote import place_named
from s3diff_runtime.upscale_options import UpscaleOptions


@dataclass(frozen=True)
class Answer:
    """What a worker tells of a share."""

    outcomes: list[Outcome]
    seconds: float
    error: S3DiffError | None = None
    """Why it stopped early: no other picture can be done either."""


class UpscaleFiles:
    """Upscales the files that rows name: a class for `ray.data.Dataset.map_batches`.

    ```
    rows = ray.data.from_items([{"input": "s3://b/in/a.jpg", "output": "s3://b/out/a.jpg"}, ...])
    done = rows.map_batches(UpscaleFiles, fn_constructor_args=("owner/name",), batch_size=16, num_gpus=1,
                            compute=ray.data.ActorPoolStrategy(size=8))
    ```

    The bundle is opened with the first rows; from the Hub or a store it is fetched once a machine.

    Args:
        bundle: see `Upscaler.open`; a folder must be on every machine.
        options: what is done to every picture.
        engine, device, upscale: see `Upscaler.open`. Of GPUs, Ray shows a worker its own as `cuda`.
        manifest: SHA-256 of the bundle's manifest in hexadecimal, which every worker must have; None for any.
    """

    def __init__(
        self,
        bundle: str | Path,
        options: BatchOptions | None = None,
        engine: str = "auto",
        device: str = "cpu",
        upscale: UpscaleOptions | None = None,
        manifest: str | None = None,
    ) -> None:
        self._bundle, self._engine, self._device, self._manifest = bundle, engine, device, manifest
        self._options, self._upscale = options or BatchOptions(), upscale or UpscaleOptions()
        self._fleet: Fleet | None = None

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Upscale the files of a batch of rows.

        Args:
            rows: the columns `input` and `output`: paths or URLs; the suffix of `output` is its format.

        Returns:
            A row for each: `input`, `output`, `status` (`done`, `skipped`, `failed`), `error` (empty where
            there is none) and `report`, the entry of docs/upscaling.md as JSON.

        Raises:
            S3DiffError: where no picture can be done: a bundle that does not open, a store that refuses.
        """
        jobs = [
            Job(place_named(str(source)), place_named(str(target)))
            for source, target in zip(rows["input"], rows["output"], strict=True)
        ]
        answer = self.upscale(jobs)
        if answer.error is not None:
            raise answer.error
        told = [outcome.as_json() for outcome in answer.outcomes]
        names = ("input", "output", "status", "error")
        columns = {name: [entry[name] or "" for entry in told] for name in names}
        columns["report"] = [json.dumps(entry) for entry in told]
        return {name: np.array(values, dtype=object) for name, values in columns.items()}

    def upscale(self, jobs: Sequence[Job], options: BatchOptions | None = None) -> Answer:
        """Do jobs as `Batch` does, with these options or its own. Raises `S3DiffError` for the bundle."""
        start = perf_counter()
        with every_size_allowed():
            batch = Batch(self._opened(), jobs, options or self._options)
            try:
                batch.run()
            except S3DiffError as error:
                return Answer(batch.outcomes, perf_counter() - start, error)
        return Answer(batch.outcomes, perf_counter() - start)

    def describe(self) -> tuple[str, str, str]:
        """Engine, device and precision of the opened bundle. Raises as `upscale`."""
        fleet = self._opened()
        return fleet.engine, fleet.device, fleet.precision

    def _opened(self) -> Fleet:
        if self._fleet is None:
            folder = local_bundle(self._bundle)
            found = manifest_hash(folder)
            if self._manifest not in (None, found):
                raise BundleError(
                    f"{self._bundle} on {os.uname().nodename} is another bundle (manifest {found[:12]}…, "
                    f"expected {str(self._manifest)[:12]}…); copy one to every machine, or name a revision"
                )
            self._fleet = Fleet.open(folder, self._engine, [self._device], self._upscale)
        return self._fleet


def manifest_hash(folder: Path) -> str:
    """SHA-256 of a bundle's manifest, by which alone its files have theirs. Raises `BundleError`."""
    try:
        return sha256(folder / MANIFEST_NAME)
    except OSError as error:
        raise BundleError(
            f"{folder} is no bundle on {os.uname().nodename}; name one that every machine has, "
            "of the Hub, or a URL"
        ) from error
