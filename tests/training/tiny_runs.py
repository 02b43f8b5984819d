"""What the tests of the trainers share: tiny networks, fixed pairs, and losses that keep what they see."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.training.small import SMALL_RANKS, fresh, random_checkpoint
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from s3diff_training.checkpoints.native import build_network
from s3diff_training.degradations.pipeline import DegradedBatch
from s3diff_training.losses.adversarial import DinoDiscriminator
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.model import S3Diff
from s3diff_training.train.loop import LoopOptions, TrainLoop
from s3diff_training.train.lora import LoraOptions, LoraTrainer
from s3diff_training.train.pairs import HeldOut, PairOptions, TrainingPairs
from s3diff_training.train.run import RunFolder

CROP = 64
LOOP = LoopOptions(
    steps=2,
    batch=2,
    accumulate=1,
    lr=1e-3,
    schedule="cosine",
    ema_decay=0.5,
    log_every=1,
    save_every=1,
    sample_every=0,
    validate_every=1,
    seed=3,
)
ONE_STEP = LOOP.but(steps=1, batch=4, save_every=0, validate_every=0)
NO_GAN = LoraOptions(lambda_gan=0)


class FixedPairs(TrainingPairs):
    """Always the same pairs, so that a test knows the targets."""

    def __init__(self, batch: DegradedBatch) -> None:
        self.batch = batch

    def draw(self, loop: TrainLoop) -> list[DegradedBatch]:
        return [self.batch] * loop.options.accumulate


class Seen(nn.Module):
    """Stands for LPIPS, and for the discriminator: keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.images: list[Tensor] = []

    def shifted(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        self.pairs.append((x.detach().clone(), y.clone()))
        return (x - y).abs().mean(dim=(1, 2, 3))

    def forward(self, image: Tensor) -> list[Tensor]:
        self.images.append(image.detach().clone())
        return [self.weight * image.mean(dim=(1, 2, 3))]


def network(base: BaseModel, config: NetworkConfig = SMALL_RANKS) -> S3Diff:
    """A network in the middle of its training: no update is zero."""
    return build_network(fresh(base), random_checkpoint(base, config))


def frozen(make: Callable[[], Any]) -> Any:  # noqa: ANN401
    """What stands for published weights: random, but the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return make()


def any_lpips() -> LPIPS:
    return frozen(lambda: LPIPS("alex"))


def tiny_vit() -> ViTModel:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    vit: ViTModel = frozen(lambda: ViTModel(config, add_pooling_layer=False))
    return vit


def discriminator() -> DinoDiscriminator:
    return DinoDiscriminator(tiny_vit())


def lora_trainer(
    model: S3Diff,
    photograph_folder: Path,
    options: LoraOptions = NO_GAN,
    pairs: TrainingPairs | None = None,
    lpips: Any = None,  # noqa: ANN401 - LPIPS, or what stands for it
    judge: Any = None,  # noqa: ANN401 - a discriminator, or what stands for it
) -> LoraTrainer:
    where = PairOptions(photograph_folder, CROP, photograph_folder, CROP)
    return LoraTrainer(
        model,
        options,
        pairs or TrainingPairs(where),
        HeldOut(where, None),
        lpips or any_lpips(),
        judge,
        {"made by": "tests"},
    )


def losses(run: RunFolder) -> list[dict[str, float]]:
    return [record["losses"] for record in read_log(run, "losses")]


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def read_log(run: RunFolder, name: str) -> list[dict[str, Any]]:
    path = run.path / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
