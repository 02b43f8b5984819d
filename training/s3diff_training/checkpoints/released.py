"""The formats of the released S3Diff weights: `s3diff.pkl` and `de_net.pth`, read and written."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3diff_runtime.errors import CheckpointError
from s3diff_runtime.files import replacing
from s3diff_training.checkpoints.native import Checkpoint, require_whole
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.estimator import DegradationEstimator

log = logging.getLogger(__name__)

_ADAPTERS = {"unet": "default", "vae": "vae_skip"}
_MLPS = {"de_mlp": "degradation_mlp", "block_mlp": "block_mlp", "fuse_mlp": "fuse"}
_BLOCKS = {"unet": 10, "vae": 6}
"""Block embeddings that the released code has room for: four UNet levels, the encoder of a 4-level VAE."""
_CALLERS = ("positive_prompt", "negative_prompt", "guidance")
"""What the released code is told with every call instead of reading it from a file."""
_HEADER = (
    "unet_lora_target_modules",
    "vae_lora_target_modules",
    "rank_unet",
    "rank_vae",
    "w",
    "state_embeddings",
)


def read_released(path: Path) -> Checkpoint:
    """Read `s3diff.pkl`, which has no estimator, without running what a pickle may carry.

    The released file does not state alpha, prompts, guidance or the axis order: they are the released
    code's (`NetworkConfig`'s defaults).

    Raises:
        CheckpointError: when the file is missing, unsafe, damaged or lacks a part.
    """
    content = _load(path)
    parts = [f"state_dict_{part}{kind}" for part in _ADAPTERS for kind in ("", *(f"_{mlp}" for mlp in _MLPS))]
    missing = [key for key in (*_HEADER, *parts) if key not in content]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; expected the released s3diff.pkl")
    try:
        config, tensors = _translated(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has the released parts in another layout ({error}); expected the released s3diff.pkl"
        ) from error
    return Checkpoint(config, tensors, {"source": f"{path.name} (released format)"})


def read_estimator(path: Path) -> dict[str, Tensor]:
    """The tensors of `de_net.pth`, by their names in `S3Diff.state_dict()`.

    Raises:
        CheckpointError: when the file is missing, unsafe or damaged.
    """
    content = _load(path)
    if not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{path} holds more than tensors; expected the released de_net.pth")
    return {f"estimator.{name}": tensor.detach().float() for name, tensor in content.items()}


def load_estimator(estimator: DegradationEstimator, path: Path) -> None:
    """Fill an estimator with a `de_net.pth`; raises as `read_estimator`, and for another network."""
    tensors = {name.removeprefix("estimator."): tensor for name, tensor in read_estimator(path).items()}
    try:
        estimator.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit; expected an estimator such as de_net.pth") from error


def write_estimator(estimator: DegradationEstimator, path: Path) -> None:
    """Write an estimator as `de_net.pth`, atomically."""
    with replacing(path) as partial:
        torch.save({name: tensor.detach().cpu() for name, tensor in estimator.state_dict().items()}, partial)


def write_released(checkpoint: Checkpoint, path: Path, estimator: Path) -> None:
    """Write `s3diff.pkl` and `de_net.pth` that the released code reads: both or neither.

    Prompts and guidance have no place in them: the released code takes those as options, and a warning
    says which it needs.

    Raises:
        CheckpointError: when the released code could not compute the same from them (variants of the
            paper's ablations, another alpha, a base model of other levels), a value is not finite, or
            there is no estimator.
    """
    config = checkpoint.config
    _require_expressible(checkpoint)
    require_whole(checkpoint.tensors)
    options = [name for name in _CALLERS if getattr(config, name) != getattr(NetworkConfig, name)]
    if options:
        log.warning("%s cannot hold %s: pass them to the released code", path, ", ".join(options))

    tensors = {name: tensor.detach().cpu() for name, tensor in checkpoint.tensors.items()}

    def below(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    content: dict[str, Any] = {
        "unet_lora_target_modules": list(config.unet_targets),
        "vae_lora_target_modules": config.vae_targets,
        "rank_unet": config.rank_unet,
        "rank_vae": config.rank_vae,
        "w": tensors["modulation.embedding.frequencies"],
        "state_embeddings": {},
    }
    for part, adapter in _ADAPTERS.items():
        content[f"state_dict_{part}"] = {
            re.sub(r"(lora_[AB])\.", rf"\1.{adapter}.", name): tensor
            for name, tensor in below(f"{part}.").items()
        }
        for mlp, ours in _MLPS.items():
            content[f"state_dict_{part}_{mlp}"] = below(f"modulation.{part}.{ours}.")
        content["state_embeddings"][f"state_dict_{part}_block"] = below(
            f"modulation.{part}.block_embeddings."
        )
    with replacing(path) as partial, replacing(estimator) as partial_estimator:
        torch.save(content, partial)
        torch.save(below("estimator."), partial_estimator)


def _require_expressible(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    lost = {
        "modulation": config.modulation != "per-block",
        "skip_connections": config.skip_connections,
        "lora_alpha": config.lora_alpha != NetworkConfig.lora_alpha,
        "start_step": config.start_step is not None,
        "rank_unet or rank_vae": not (config.rank_unet and config.rank_vae),
        "degradation_axes": config.degradation_axes != NetworkConfig.degradation_axes,
        "fourier_features": config.fourier_features != NetworkConfig.fourier_features,
    }
    for part, blocks in _BLOCKS.items():
        embeddings = checkpoint.tensors.get(f"modulation.{part}.block_embeddings.weight")
        if embeddings is not None:
            lost[f"{len(embeddings)} {part} blocks (it has {blocks})"] = len(embeddings) != blocks
    if any(lost.values()):
        fields = ", ".join(name for name, is_lost in lost.items() if is_lost)
        raise CheckpointError(
            f"the released format cannot hold this checkpoint's {fields}; keep it as .safetensors"
        )


def _translated(content: Mapping[str, Any]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    config = NetworkConfig(
        rank_unet=int(content["rank_unet"]),
        rank_vae=int(content["rank_vae"]),
        unet_targets=tuple(content["unet_lora_target_modules"]),
        vae_targets=str(content["vae_lora_target_modules"]),
        fourier_features=len(content["w"]),
    )
    tensors: dict[str, Tensor] = {"modulation.embedding.frequencies": content["w"]}
    for part, adapter in _ADAPTERS.items():
        for name, tensor in content[f"state_dict_{part}"].items():
            tensors[f"{part}.{name.replace(f'.{adapter}.', '.')}"] = tensor
        for mlp, ours in _MLPS.items():
            for name, tensor in content[f"state_dict_{part}_{mlp}"].items():
                tensors[f"modulation.{part}.{ours}.{name}"] = tensor
        embeddings = content["state_embeddings"][f"state_dict_{part}_block"]
        tensors[f"modulation.{part}.block_embeddings.weight"] = embeddings["weight"]
    return config, {name: tensor.detach().float() for name, tensor in tensors.items()}


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a file of the released weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail in whatever way they lead the reader
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({reason}); "
            "expected the released file, and none that runs code"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    return content
