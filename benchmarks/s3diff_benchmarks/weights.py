"""The weights whose network in PyTorch is measured beside a bundle: options that name them, and loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import RequestError

if TYPE_CHECKING:
    from s3diff_training.network import S3Diff

_FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class Weights:
    """Where the weights of a network are."""

    base: str
    """A diffusers folder or a hub id."""
    checkpoint: Path
    """Ours (.safetensors) or the released `s3diff.pkl`."""
    estimator: Path | None = None
    """The released `de_net.pth`, for a checkpoint without an estimator."""

    def unlike(self, manifest: Manifest) -> tuple[str, ...]:
        """Which of the files are not those that a bundle was built from, of those that its manifest names.

        The base is not compared: its hash covers tensors, and takes as long as loading them.
        """
        files = {"checkpoint": self.checkpoint, "estimator": self.estimator}
        return tuple(
            name
            for name, file in files.items()
            if file is not None and name in manifest.sources and manifest.sources[name].sha256 != sha256(file)
        )


def weights_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --demo, --base, --checkpoint, --estimator; the command takes them as `weights`, `Weights` or None.

    Raises:
        RequestError: from the command, for options that do not go together and files that do not exist.
    """

    @wraps(command)
    def wrapped(
        demo: bool,
        base: str | None,
        checkpoint: Path | None,
        estimator: Path | None,
        **given: Any,  # noqa: ANN401
    ) -> None:
        command(weights=_weights(demo, base, checkpoint, estimator), **given)

    for option in reversed(
        (
            click.option("--demo", is_flag=True, help="PyTorch beside it: the small model that ships."),
            click.option("--base", help="PyTorch beside it: SD-Turbo, a diffusers folder or a hub id."),
            click.option(
                "--checkpoint", type=_FILE, help="With --base: a .safetensors checkpoint, or s3diff.pkl."
            ),
            click.option(
                "--estimator", type=_FILE, help="The released de_net.pth, for a checkpoint without one."
            ),
        )
    ):
        wrapped = option(wrapped)
    return wrapped


def load_pytorch(weights: Weights) -> S3Diff:
    """The network in PyTorch: evaluation mode, fp32, on the CPU, without gradients.

    Raises:
        CheckpointError: when base and checkpoint are unreadable or do not fit.
    """
    from s3diff_training.checkpoints import build_network, read_checkpoint
    from s3diff_training.network import load_base

    checkpoint = read_checkpoint(weights.checkpoint, weights.estimator)
    return build_network(load_base(weights.base), checkpoint).eval().requires_grad_(False)


def _weights(demo: bool, base: str | None, checkpoint: Path | None, estimator: Path | None) -> Weights | None:
    if demo:
        if base or checkpoint or estimator:
            raise RequestError("--demo brings its own weights; drop --base, --checkpoint and --estimator")
        from s3diff_training.demo import demo_model

        model = demo_model()
        return Weights(str(model.base), model.checkpoint)
    if not (base or checkpoint or estimator):
        return None
    problems = [] if base and checkpoint else ["--base and --checkpoint go together; pass both, or --demo"]
    for file in (checkpoint, estimator):
        if file is not None and not file.is_file():
            problems.append(f"{file} is no file")
    if problems or base is None or checkpoint is None:
        raise RequestError("; ".join(problems))
    return Weights(base, checkpoint, estimator)
