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
from s3diff_training.checkpoints.checkpoint import Checkpoint, estimator_shapes, require_whole
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.tensor_files import (
    TensorFile,
    difference,
    first_few,
    open_tensor_file,
    refusing,
    unwrapped,
)

log = logging.getLogger(__name__)

_ADAPTERS = {"unet": "default", "vae": "vae_skip"}
_MLPS = {"de_mlp": "degradation_mlp", "block_mlp": "block_mlp", "fuse_mlp": "fuse"}
_PARTS = {
    key: prefix
    for part in _ADAPTERS
    for key, prefix in (
        (f"state_dict_{part}", f"{part}."),
        *((f"state_dict_{part}_{theirs}", f"modulation.{part}.{ours}.") for theirs, ours in _MLPS.items()),
    )
}
"""The dictionaries of a file, and what stands before their names in `S3Diff.state_dict()`."""
_EMBEDDINGS = {f"state_dict_{part}_block": f"modulation.{part}.block_embeddings." for part in _ADAPTERS}
"""Likewise those in its `state_embeddings`."""
_BLOCKS = {"unet": 10, "vae": 6}
"""Block embeddings that the released code has room for: four UNet levels, the encoder of a 4-level VAE."""
_CALLERS = ("positive_prompt", "negative_prompt", "guidance")
"""What the released code is told with every call instead of reading it from a file."""
_HEADER: dict[str, Any] = {
    "unet_lora_target_modules": list | tuple | set,
    "vae_lora_target_modules": str,
    "rank_unet": int,
    "rank_vae": int,
    "w": Tensor,
    "state_embeddings": Mapping,
}


def released_checkpoint(file: TensorFile) -> Checkpoint:
    """The content of `s3diff.pkl`, which has no estimator.

    The released file does not state alpha, prompts, guidance or the axis order: they are the released
    code's (`NetworkConfig`'s defaults).

    Raises:
        CheckpointError: when the file lacks a part, or holds it in another layout.
    """
    path, content = file.path, unwrapped(file.content)
    kinds = _HEADER | dict.fromkeys(_PARTS, Mapping)
    missing = [key for key in kinds if key not in content]
    if missing:
        if any(isinstance(key, str) and "fc_degree." in key for key in content):
            raise CheckpointError(f"{path} is an estimator; pass it as --estimator, and here s3diff.pkl")
        raise CheckpointError(f"{path} lacks {first_few(missing)}; expected the released s3diff.pkl")
    with refusing(path, f"{path} has the released parts in another layout", "the released s3diff.pkl"):
        wrong = [key for key, kind in kinds.items() if not isinstance(content[key], kind)]
        if wrong:
            raise TypeError(f"wrong kind of {', '.join(wrong)}")
        config, tensors = _translated(file, content)
    return Checkpoint(config, tensors, {"source": f"{path.name} (released format)"})


def read_estimator(path: Path) -> dict[str, Tensor]:
    """The tensors of `de_net.pth`, by their names in `S3Diff.state_dict()`.

    Raises:
        CheckpointError: when the file is missing, unsafe, damaged, or of another network.
    """
    file = open_tensor_file(path)
    if set(_HEADER) <= set(file.content):
        raise CheckpointError(f"{path} holds S3Diff's weights; pass it as --checkpoint, and here de_net.pth")
    tensors = {f"estimator.{n.removeprefix('estimator.')}": t for n, t in file.named_tensors().items()}
    differing = difference(estimator_shapes(), tensors)
    if differing:
        raise CheckpointError(f"{path} does not fit ({differing}); expected an estimator such as de_net.pth")
    return tensors


def load_estimator(estimator: DegradationEstimator, path: Path) -> None:
    """Fill an estimator with the weights of a `de_net.pth`; raises as `read_estimator`."""
    estimator.load_state_dict({n.removeprefix("estimator."): t for n, t in read_estimator(path).items()})


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
        JobError: when the disk refuses.
    """
    config = checkpoint.config
    _require_expressible(checkpoint)
    require_whole(checkpoint.tensors)
    options = [name for name in _CALLERS if getattr(config, name) != getattr(NetworkConfig, name)]
    if options:
        log.warning("%s cannot hold %s: pass them to the released code", path, ", ".join(options))

    tensors = {name: tensor.detach().cpu() for name, tensor in checkpoint.tensors.items()}

    def below(prefix: str, adapter: str = "") -> dict[str, Tensor]:
        named = {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}
        return {re.sub(r"(lora_[AB])\.", rf"\1.{adapter}.", name): tensor for name, tensor in named.items()}

    content: dict[str, Any] = {
        "unet_lora_target_modules": list(config.unet_targets),
        "vae_lora_target_modules": config.vae_targets,
        "rank_unet": config.rank_unet,
        "rank_vae": config.rank_vae,
        "w": tensors["modulation.embedding.frequencies"],
        "state_embeddings": {key: below(prefix) for key, prefix in _EMBEDDINGS.items()},
    }
    content |= {key: below(prefix, _ADAPTERS.get(prefix[:-1], "")) for key, prefix in _PARTS.items()}
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


def _translated(file: TensorFile, content: Mapping[str, Any]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    tensors = file.named_tensors({"modulation.embedding.frequencies": content["w"]})
    config = NetworkConfig(
        rank_unet=content["rank_unet"],
        rank_vae=content["rank_vae"],
        unet_targets=tuple(content["unet_lora_target_modules"]),
        vae_targets=content["vae_lora_target_modules"],
        fourier_features=len(content["w"]),
    )
    embeddings = content["state_embeddings"]
    places = [(prefix, content[key]) for key, prefix in _PARTS.items()]
    places += [(prefix, embeddings[key]) for key, prefix in _EMBEDDINGS.items()]
    for prefix, named in places:
        tensors |= {prefix + name: tensor for name, tensor in file.named_tensors(named).items()}
    return config, tensors
