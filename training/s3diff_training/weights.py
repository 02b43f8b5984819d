"""The weights that a command works with: the options that name them, and the network that is made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.manifest import Manifest, Source
from s3diff_runtime.errors import RequestError
from s3diff_runtime.families import FAMILIES, FamilyName
from s3diff_runtime.options import Options, option

if TYPE_CHECKING:
    from s3diff_training.families.family import Loader
    from s3diff_training.network.base import BaseModel
    from s3diff_training.network.model import S3Diff
    from s3diff_training.network.one_step_network import OneStepNetwork

_DEMO_MODEL = Path(__file__).parent / "demo_model"
"""The small model that ships; its card is `CARD.md` there."""
_OR_DEMO = "--demo for the small model that ships"


@dataclass(frozen=True)
class ModelSource(Options):
    """Where the weights of a network are. All may be left out, where a command can do without a network."""

    demo: bool = option(False, "Use the small model that ships with s3diff-export.")
    base: str | None = option(
        None, "SD-Turbo, for others SD 2.1-base: a diffusers folder or a hub id (stabilityai/sd-turbo)."
    )
    checkpoint: Path | None = option(
        None, "A .safetensors checkpoint, or the released s3diff.pkl, osediff.pkl."
    )
    estimator: Path | None = option(None, "The released de_net.pth, for a checkpoint of S3Diff without one.")
    family: FamilyName | None = option(
        None, "Whose checkpoint it is.", shown="what the checkpoint's content says"
    )

    def problems(self) -> Iterator[str]:
        """What does not go together."""
        if self.demo and (self.base or self.checkpoint or self.estimator):
            yield "--demo brings its own weights; drop --base, --checkpoint and --estimator"
        elif self.family and not self.checkpoint:
            yield "--family is that of a checkpoint; pass --base and --checkpoint"
        elif bool(self.base) != bool(self.checkpoint) or (self.estimator and not self.checkpoint):
            yield f"--base and --checkpoint go together; pass both, or {_OR_DEMO}"

    @property
    def named(self) -> bool:
        """Whether there are any."""
        return self.demo or self.base is not None

    def settled(self) -> ModelSource:
        """The same with the files of the small model in the place of `demo`.

        Raises:
            RequestError: when no weights are named.
        """
        if not self.named:
            raise RequestError(f"no weights: pass --base and --checkpoint, or {_OR_DEMO}")
        if not self.demo:
            return self
        return ModelSource(base=str(_DEMO_MODEL / "base"), checkpoint=_DEMO_MODEL / "checkpoint.safetensors")

    def load(self) -> OneStepNetwork:
        """The PyTorch network, in evaluation mode, fp32 on the CPU, without gradients.

        Raises:
            RequestError: when no weights are named.
            CheckpointError: when base and checkpoint are unreadable or do not fit each other.
        """
        adapt, base = self._read()
        return adapt(base)

    def load_s3diff(self, purpose: str) -> S3Diff:
        """As `load`, for what only S3Diff can serve.

        Raises:
            RequestError: for weights of another family; names the `purpose`.
        """
        from s3diff_training.network.model import S3Diff

        network = self.load()
        if not isinstance(network, S3Diff):
            title = FAMILIES[network.family].title
            raise RequestError(f"{purpose} is for S3Diff, and {self.checkpoint} is a checkpoint of {title}")
        return network

    def load_recorded(self) -> tuple[OneStepNetwork, dict[str, Source]]:
        """As `load`, with a record of every source, which tells the weights from others.

        That of the base is a hash of its tensors: a hub id has no folder, and the same weights may come in
        other files.
        """
        adapt, base = self._read()
        records = {"base": Source(name=Path(str(self.settled().base)).name, sha256=_hash_of(base))}
        return adapt(base), records | self.files()

    def files(self) -> dict[str, Source]:
        """Names and hashes of the files besides the base model."""
        source = self.settled()
        named = {"checkpoint": source.checkpoint, "estimator": source.estimator}
        return {role: Source(name=path.name, sha256=sha256(path)) for role, path in named.items() if path}

    def _read(self) -> tuple[Loader, BaseModel]:
        from s3diff_training.families.table import read_weights
        from s3diff_training.network.base import load_base

        source = self.settled()
        adapt = read_weights(Path(str(source.checkpoint)), source.estimator, source.family)
        return adapt, load_base(str(source.base))


def differing(sources: dict[str, Source], manifest: Manifest) -> list[str]:
    """The roles in which a bundle was built from something else, of those that both name."""
    theirs = manifest.sources
    return [role for role, own in sources.items() if role in theirs and theirs[role].sha256 != own.sha256]


def _hash_of(base: BaseModel) -> str:
    import torch

    digest = hashlib.sha256()
    parts = torch.nn.ModuleList([base.unet, base.vae, base.text_encoder])
    for name, tensor in sorted(parts.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()
