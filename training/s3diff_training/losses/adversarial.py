"""The adversary: a frozen DINO with a small classifier at each of several depths (paper section 3.3).

Follows vision-aided GAN training (Kumari et al. 2022): the backbone is fixed and pre-trained (DINO, Caron et
al. 2021), each depth has an independent head, and the loss is binary cross entropy on every head's logits
("sigmoid").
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm
from transformers import ViTConfig, ViTModel

from s3diff_runtime.errors import RequestError, first_line, refuse
from s3diff_training.logs import quiet_libraries

DEFAULT_DINO = "facebook/dino-vits16"

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_HEAD_WIDTH = 256
_LEVELS = 4


class DinoDiscriminator(nn.Module):
    """Judges images by what a frozen vision transformer sees at several depths; only the heads are trained.

    Args:
        backbone: frozen here. Four of its blocks, evenly spaced, get a head (`levels`, 1 being the first
            block); images are resized to its own size (DINO: 224).

    Raises:
        RequestError: naming all that does not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: ViTModel) -> None:
        super().__init__()
        config = backbone.config
        _require_square_rgb(config)
        depth = config.num_hidden_layers
        count = min(_LEVELS, depth)
        self.levels = tuple(depth * (place + 1) // count for place in range(count))
        self.size, self.patches = config.image_size, config.image_size // config.patch_size
        self.backbone: nn.Module = backbone.requires_grad_(False)
        self.heads = nn.ModuleList(_head(config.hidden_size) for _ in self.levels)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.train()

    @classmethod
    @quiet_libraries()
    def from_pretrained(cls, path_or_id: str | Path) -> Self:
        """Build on a DINO in `transformers` format: a local folder, or a hub id, which is downloaded.

        Raises `RequestError` if it cannot be read or is not a ViT.
        """
        if Path(path_or_id).is_absolute() and not Path(path_or_id).is_dir():
            raise _unreadable(path_or_id, "there is no such folder")
        try:
            # With the report, the declared return type (a model) no longer holds.
            loaded: Any = ViTModel.from_pretrained(
                str(path_or_id),
                add_pooling_layer=False,
                dtype=torch.float32,
                local_files_only=Path(path_or_id).is_dir(),
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _unreadable(path_or_id, first_line(error).rstrip(".")) from error
        backbone, report = loaded
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise RequestError(
                f"{path_or_id!s} is not a whole ViT: {len(missing)} of its weights are missing, "
                f"such as {missing[0]}; expected a DINO such as {DEFAULT_DINO} (--dino)"
            )
        return cls(backbone)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of realness: [N, 3, H, W] in [-1, 1] -> for each level one [N, 1, patches, patches].

        Gradients reach the image and the heads, never the backbone.
        """
        resized = functional.interpolate(
            image, size=(self.size, self.size), mode="bicubic", align_corners=False, antialias=True
        )
        pixels = ((resized + 1.0) / 2.0 - self.mean) / self.std
        seen = self.backbone(pixels, output_hidden_states=True).hidden_states
        # hidden_states[0] is the embedding, so block k's output is entry k.
        return [
            head(self._patch_map(seen[level])) for head, level in zip(self.heads, self.levels, strict=True)
        ]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the heads; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def _patch_map(self, tokens: Tensor) -> Tensor:
        """[N, 1 + patches^2, width] with the class token first -> [N, width, patches, patches]."""
        # Token lengths grow with depth; normalised, every head meets inputs of one scale, which its spectral
        # norm needs.
        tokens = functional.layer_norm(tokens[:, 1:], tokens.shape[-1:])
        return tokens.transpose(1, 2).reshape(len(tokens), -1, self.patches, self.patches)


def generator_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """The generator's part of the GAN loss, -log D(fake).

    Summed over levels, averaged over images and positions. The non-saturating form of the paper's L_GAN
    (section 3.3). A list of logits per level -> scalar.
    """
    return torch.stack([functional.softplus(-logits).mean() for logits in fake_logits]).sum()


def discriminator_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """Binary cross entropy, -log D(real) - log(1 - D(fake)).

    Summed over levels, averaged over images and positions. Lists of logits per level, of the images of the
    truth and of detached outputs of the generator -> scalar.
    """
    return generator_loss(real_logits) + generator_loss([-logits for logits in fake_logits])


def _head(width: int) -> nn.Sequential:
    """A patch classifier on one level's features; spectral norm keeps it from winning outright."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(width, _HEAD_WIDTH, kernel_size=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(_HEAD_WIDTH, _HEAD_WIDTH, kernel_size=3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(_HEAD_WIDTH, 1, kernel_size=1)),
    )


def _require_square_rgb(config: ViTConfig) -> None:
    """Raise `RequestError`, naming all that does not fit, for a backbone that cannot judge."""
    patch, side = config.patch_size, config.image_size
    problems = []
    if config.num_channels != 3:
        problems.append(f"it reads {config.num_channels} channels instead of 3")
    if not isinstance(patch, int) or not isinstance(side, int):
        problems.append(f"image size {side} and patch size {patch} are not one number each (square)")
    elif side < patch or side % patch:
        problems.append(f"size {side} is not a positive multiple of the patch size {patch}")
    refuse(problems, "the discriminator does not fit its DINO backbone")


def _unreadable(path_or_id: str | Path, reason: str) -> RequestError:
    return RequestError(
        f"no DINO backbone at {path_or_id!s}: {reason}; name a transformers ViT folder or a hub id "
        f"with --dino (for example {DEFAULT_DINO}), or train without the adversary (--lambda-gan 0)"
    )
