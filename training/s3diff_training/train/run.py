"""One training run on disk: its configuration, losses, checkpoints and samples."""

import json
import logging
import re
import shutil
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from s3diff_runtime.errors import CheckpointError, JobError, RequestError
from s3diff_runtime.files import is_vacant, replacing, write_text

OnExisting = Literal["refuse", "resume", "replace"]
_PACKAGES = ("torch", "accelerate", "diffusers", "peft", "transformers", "numpy", "pillow", "kornia")
_CHECKPOINT = re.compile(r"step-(\d{6,})")
_LOGS = ("losses.jsonl", "validation.jsonl")
_LOG = logging.getLogger(__name__)


class RunFolder:
    """A folder `runs/<name>` with everything that one training run writes.

    ```
    config.json                          the options, and the versions of the libraries
    losses.jsonl, validation.jsonl       one JSON object per line
    checkpoints/step-000123/state.pt     the full training state; only the last few are kept
    samples/step-000123.png              contact sheets
    ```
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"

    def open(
        self, config: Mapping[str, Any], on_existing: OnExisting = "refuse", changeable: Collection[str] = ()
    ) -> None:
        """Start a new run, or open one to resume it.

        Args:
            config: all options, of JSON types (tuples and paths are converted); nested mappings are allowed.
            on_existing: what a folder that already holds something means: `refuse` it, `resume` the run in it
                (there must be one), or `replace` the run in it, deleting its files.
            changeable: dotted names of options that may differ on resuming, as they leave the result alone.

        Raises:
            RequestError: for a folder in the way, no run to resume, or a resumed configuration that differs.
        """
        self.require(on_existing)
        options = json.loads(json.dumps(config, default=str))
        versions = {package: version(package) for package in _PACKAGES}
        if on_existing == "resume":
            self._check_same(options, versions, changeable)
        elif on_existing == "replace":
            for folder in (self.checkpoints, self.samples):
                shutil.rmtree(folder, ignore_errors=True)
            for name in ("config.json", *_LOGS):
                (self.path / name).unlink(missing_ok=True)
        content = {"options": options, "versions": versions}
        write_text(self.path / "config.json", json.dumps(content, indent=2) + "\n")

    def require(self, on_existing: OnExisting) -> None:
        """Raise `RequestError` where what is in the folder, or is not, forbids what `open` is asked for."""
        vacant = is_vacant(self.path)
        if on_existing == "resume" or (on_existing == "replace" and not vacant):
            self._recorded()
        elif not vacant:
            raise RequestError(
                f"{self.path} is not empty; resume the run in it, replace it, or give the new run another "
                "folder"
            )

    def log(self, name: Literal["losses", "validation"], record: Mapping[str, Any]) -> None:
        """Append one record, which has a `step` and only finite numbers, to `<name>.jsonl`."""
        path = self.path / f"{name}.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise JobError(f"could not write {path}: {error.strerror}; check the disk") from error

    def rewind(self, step: int) -> None:
        """Drop the log records after `step`, so that a resumed run writes each record once."""
        for path in (self.path / name for name in _LOGS if (self.path / name).exists()):
            kept = []
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # a crash cut it short
                    break
                if record["step"] <= step:
                    kept.append(line + "\n")
            write_text(path, "".join(kept))

    def save_checkpoint(self, step: int, state: Mapping[str, Any], keep: int) -> None:
        """Write `state` (tensors and plain Python values) as the checkpoint of `step`, atomically.

        Afterwards only the last `keep` checkpoints remain; all that were there, when the disk refuses.
        """
        path = self.checkpoints / f"step-{step:06d}"
        with replacing(path) as temporary:
            temporary.mkdir()
            torch.save(dict(state), temporary / "state.pt")
        for outdated in self._steps()[:-keep]:
            shutil.rmtree(self.checkpoints / f"step-{outdated:06d}")

    def load_checkpoint(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state (on the CPU) of the newest checkpoint; None when the run has not written one yet.

        Raises:
            CheckpointError: when it cannot be read.
        """
        steps = self._steps()
        if not steps:
            return None
        path = self.checkpoints / f"step-{steps[-1]:06d}" / "state.pt"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds for damaged files
            raise CheckpointError(
                f"{path} cannot be read: {error}; remove {path.parent.name} to resume from the one before"
            ) from error
        return steps[-1], state

    def _steps(self) -> list[int]:
        names = [entry.name for entry in self.checkpoints.iterdir()] if self.checkpoints.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name)))

    def _recorded(self) -> dict[str, Any]:
        """Options and versions of the run that is in the folder. Raises `RequestError` where none is."""
        try:
            content = json.loads((self.path / "config.json").read_text())
            return {name: content[name] for name in ("options", "versions")}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RequestError(
                f"{self.path} holds no run to resume or replace (config.json: {error})"
            ) from error

    def _check_same(
        self, options: dict[str, Any], versions: dict[str, str], changeable: Collection[str]
    ) -> None:
        before = self._recorded()
        old, new = _flat(before["options"]), _flat(options)
        differing = [
            f"{key} was {old.get(key, 'absent')!r} and is {new.get(key, 'absent')!r}"
            for key in sorted(old.keys() | new.keys())
            if key not in changeable and old.get(key, "absent") != new.get(key, "absent")
        ]
        if differing:
            raise RequestError(
                f"{self.path} was started with other options: {'; '.join(differing)}; resume it with its own"
            )
        if before["versions"] != versions:
            _LOG.warning(
                "%s was started with other library versions: %s, now %s",
                *(self.path, before["versions"], versions),
            )


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
