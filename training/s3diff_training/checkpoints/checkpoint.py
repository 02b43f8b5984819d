"""What a checkpoint is, whatever its format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from s3diff_runtime.errors import CheckpointError
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.network.lora import targeted_names
from s3diff_training.network.modulation import ModulationNetwork
from s3diff_training.tensor_files import difference, first_few, shapes_of

_LONGEST_NAME = 200
_MOST_BLOCKS = 1000


@dataclass(frozen=True)
class Checkpoint:
    """LoRA, modulation, trained `conv_in`, estimator and configuration, free of any base model."""

    config: NetworkConfig
    tensors: Mapping[str, Tensor]
    """By name in `S3Diff.state_dict()`: `unet.<layer>.lora_A.weight`, `modulation.…`, `estimator.…`."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Free text on where it comes from: command, data, base model, steps."""


def require_whole(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to write an incomplete or broken checkpoint.

    Args:
        tensors: by their names in `S3Diff.state_dict()`, of the types that they will have on disk.

    Raises:
        CheckpointError: when a value is not finite, or there is no estimator.
    """
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        types = ", ".join(sorted({str(tensors[name].dtype).removeprefix("torch.") for name in broken}))
        raise CheckpointError(
            f"{len(broken)} tensors are not finite as {types} ({first_few(broken)}); nothing was written"
        )
    if not any(name.startswith("estimator.") for name in tensors):
        raise CheckpointError("there is no estimator to write; pass the released de_net.pth with --estimator")


def estimator_shapes() -> dict[str, Sequence[int]]:
    """The shapes of an estimator's tensors, by their names in `S3Diff.state_dict()`."""
    with torch.device("meta"):
        return shapes_of(DegradationEstimator(), "estimator.")


def require_consistent(checkpoint: Checkpoint, source: str) -> Checkpoint:
    """Refuse what fits no base model, because its tensors lack something or contradict its configuration.

    Args:
        checkpoint: as read; it may lack the estimator.
        source: what it was read from, for the message.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: with counts of what is missing, unexpected and mis-shaped.
    """
    config, given = checkpoint.config, checkpoint.tensors
    wanted: dict[str, Sequence[int]] = {}
    heads: dict[str, tuple[int, int]] = {}
    for part, rank, targets in (
        ("unet", config.rank_unet, config.unet_targets),
        ("vae", config.rank_vae, config.vae_targets),
    ):
        # Patterns are a file's, too: they are tried on names of a sensible length.
        named = {name.rpartition(".lora_")[0].removeprefix(f"{part}.") for name in given if ".lora_" in name}
        layers = targeted_names((name for name in named if len(name) < _LONGEST_NAME), targets)
        lora = [f"{part}.{name}" for name in layers if f"{part}.{name}.lora_A.weight" in given]
        if rank and not lora:
            raise CheckpointError(f"{source} has no LoRA of the {part}, though its rank is {rank}")
        for layer in lora if rank else ():
            down, up = (_shape(given, f"{layer}.lora_{side}.weight") for side in "AB")
            wanted[f"{layer}.lora_A.weight"] = (rank, *down[1:])
            wanted[f"{layer}.lora_B.weight"] = (*up[:1], rank, *(1 for _ in down[2:]))
        blocks = _shape(given, f"modulation.{part}.block_embeddings.weight")
        heads[part] = (min(blocks[0], _MOST_BLOCKS) if blocks else 1, rank)
    with torch.device("meta"):
        wanted |= shapes_of(
            ModulationNetwork(heads["vae"], heads["unet"], config.fourier_features, config.modulation),
            "modulation.",
        )
    if config.rank_unet:  # their sizes are the base model's
        wanted |= {name: _shape(given, name) for name in ("unet.conv_in.weight", "unet.conv_in.bias")}
    if config.skip_connections:
        wanted |= {name: _shape(given, name) for name in given if name.startswith("skips.convs.")}
    if any(name.startswith("estimator.") for name in given):
        wanted |= estimator_shapes()
    differing = difference(wanted, given)
    if differing:
        raise CheckpointError(f"{source} is not whole, or not of its configuration: {differing}")
    return checkpoint


def _shape(tensors: Mapping[str, Tensor], name: str) -> Sequence[int]:
    return tuple(tensors[name].shape) if name in tensors else ()
