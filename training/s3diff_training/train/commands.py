"""Subcommands of `train`: each puts loop, trainer and run folder together, as its request asks."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from s3diff_runtime.options import Options, argument, group, option
from s3diff_training.checkpoints.released import load_estimator
from s3diff_training.logs import set_up_logging
from s3diff_training.losses.adversarial import DEFAULT_DINO, DinoDiscriminator
from s3diff_training.network.base import load_base
from s3diff_training.network.config import (
    DECODER_TARGETS,
    ENCODER_AND_DECODER_TARGETS,
    ENCODER_TARGETS,
    NetworkConfig,
)
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.network.model import S3Diff
from s3diff_training.train.base import BaseLosses, BaseTrainer
from s3diff_training.train.estimator import EstimatorTrainer
from s3diff_training.train.loop import LoopOptions, Trainer, TrainLoop
from s3diff_training.train.lora import LoraOptions, LoraTrainer
from s3diff_training.train.new_base import BaseArchitecture, new_base
from s3diff_training.train.pairs import HeldOut, LpipsOptions, PairOptions, TrainingPairs
from s3diff_training.train.run import OnExisting, RunFolder
from s3diff_training.weights import ModelSource

BASE_LOOP = LoopOptions(
    steps=1500, accumulate=1, lr=6e-4, schedule="cosine", lr_final=1e-5, warmup_fraction=0.02, ema_decay=0.998
)
ESTIMATOR_LOOP = BASE_LOOP.but(
    steps=600, batch=8, lr=5e-4, lr_final=1e-6, warmup_fraction=0.05, ema_decay=0.99
)
LORA_LOOP = LoopOptions(accumulate=16)
"""64 images an update on one GPU, the paper's batch."""
SMALL_CROPS = PairOptions(Path(), crop=128)
_CROPS = ("crop", "validation", "halved_fraction", "toned_fraction", "candidates", "workers")
_PAIRS = (*_CROPS, "validation_crop", "drawn_fraction")

LoraOn = Literal["unet", "encoder", "unet+encoder", "unet+decoder", "unet+encoder+decoder"]
_VAE_TARGETS: Mapping[str, str] = {
    "encoder": ENCODER_TARGETS,
    "decoder": DECODER_TARGETS,
    "encoder+decoder": ENCODER_AND_DECODER_TARGETS,
}


@dataclass(frozen=True)
class RunRequest(Options):
    """What is trained on, where the run goes, and what it means that the folder exists already."""

    data: Path = argument("Folder of photographs of high resolution.")
    output: Path = option(help="The run's folder.", flags=("-o", "--output"))
    resume: bool = option(False, "Continue the run in OUTPUT from its newest checkpoint.")
    force: bool = option(False, "Replace the run in OUTPUT.")

    def problems(self) -> Iterator[str]:
        """Both at once."""
        if self.resume and self.force:
            yield "--resume continues the run and --force replaces it; pass one of them"

    @property
    def on_existing(self) -> OnExisting:
        """The same for `TrainLoop.run`."""
        return "resume" if self.resume else "replace" if self.force else "refuse"


@dataclass(frozen=True)
class BaseRequest(RunRequest):
    """What `train base` is asked for."""

    base: Path | None = option(None, "Start from this diffusers folder, whole, not from random weights.")
    pairs: PairOptions = group(SMALL_CROPS, only=_PAIRS)
    losses: BaseLosses = group(BaseLosses)
    lpips: LpipsOptions = group(LpipsOptions("alex"))
    architecture: BaseArchitecture = group(BaseArchitecture)
    loop: LoopOptions = group(BASE_LOOP)

    def problems(self) -> Iterator[str]:
        """Widths of a network that is there already."""
        yield from super().problems()
        if self.base is not None and (own := self.architecture.flags_of()):
            yield f"a base model brings its own widths; drop --base or {', '.join(own)}"


@dataclass(frozen=True)
class EstimatorRequest(RunRequest):
    """What `train estimator` is asked for."""

    estimator: Path | None = option(None, "Start from this de_net.pth, not from random weights.")
    pairs: PairOptions = group(SMALL_CROPS, only=_CROPS)
    loop: LoopOptions = group(ESTIMATOR_LOOP)


@dataclass(frozen=True)
class InitialWeights(ModelSource):
    """What LoRA is trained on: a base model, alone or with a checkpoint to go on with."""

    checkpoint: Path | None = option(None, "Start from this .safetensors or s3diff.pkl, with its network.")
    estimator: Path | None = option(None, "de_net.pth, of `train estimator` or the released one.")

    def problems(self) -> Iterator[str]:
        """None: a base model without a checkpoint is enough here."""
        return iter(())

    def network(self, config: NetworkConfig) -> S3Diff:
        """The checkpoint's network, or a new one; raises as `ModelSource.load_s3diff`."""
        if self.checkpoint is not None:
            return self.load_s3diff("training")
        network = S3Diff(load_base(str(self.base)), config)
        if self.estimator is not None:
            load_estimator(network.estimator, self.estimator)
        return network


@dataclass(frozen=True)
class LoraRequest(RunRequest):
    """What `train lora` is asked for."""

    weights: InitialWeights = group(InitialWeights, only=("base", "estimator", "checkpoint"))
    pairs: PairOptions = group(PairOptions(Path()), only=_PAIRS)
    objective: LoraOptions = group(LoraOptions)
    dino: str | None = option(None, f"For the GAN loss: a local folder, or {DEFAULT_DINO} to download it.")
    lpips: LpipsOptions = group(LpipsOptions)
    lora_on: LoraOn = option("unet+encoder", "What gets LoRA (the paper's Table 4).")
    network: NetworkConfig = group(
        NetworkConfig,
        only=(
            *("rank_unet", "rank_vae", "skip_connections", "modulation", "start_step"),
            *("positive_prompt", "negative_prompt", "guidance"),
        ),
    )
    loop: LoopOptions = group(LORA_LOOP)

    def problems(self) -> Iterator[str]:
        """Weights that are missing, and options of a network that comes with its checkpoint."""
        yield from super().problems()
        weights, own = self.weights, [*self.network.flags_of(), *self.flags_of("lora_on")]
        if weights.base is None:
            yield "Missing option '--base': SD-Turbo, or a base of `s3diff-export train base`"
        if weights.checkpoint is not None and own:
            yield f"a checkpoint brings its own network; drop --checkpoint or {', '.join(own)}"
        if weights.checkpoint is None and weights.estimator is None and self.network.modulation != "none":
            yield (
                "there is no estimator to turn the LoRA by: pass --estimator, made by `s3diff-export train "
                "estimator`, or a --checkpoint that has one, or train plain LoRA (--modulation none)"
            )
        if self.objective.lambda_gan and self.dino is None:
            yield (
                f"the GAN loss needs DINO: pass --dino with a local folder, or --dino {DEFAULT_DINO} to "
                "download it, or train without the GAN (--lambda-gan 0)"
            )

    def config(self) -> NetworkConfig:
        """The network to make, where there is no checkpoint."""
        on_unet, vae = self.lora_on.startswith("unet"), self.lora_on.removeprefix("unet").removeprefix("+")
        config = self.network if on_unet else self.network.but(rank_unet=0)
        return config.but(vae_targets=_VAE_TARGETS[vae]) if vae else config.but(rank_vae=0)


def base(request: BaseRequest) -> None:
    """Train a small VAE and UNet, whole, on DATA, for people without SD-Turbo.

    Writes OUTPUT/base, a diffusers folder for `train lora --base`.
    """
    pairs, loop = _begin(request, request.pairs, request.loop)
    model = load_base(request.base) if request.base else new_base(request.architecture)
    for part in (model.vae, model.unet, model.text_encoder):
        part.to(loop.device)
    lpips = request.lpips.load(request.losses.lambda_lpips, loop.device)
    trainer = BaseTrainer(model, request.losses, TrainingPairs(pairs), HeldOut(pairs, lpips), lpips)
    parts: dict[str, Options] = {"losses": request.losses, "lpips": request.lpips}
    if request.base is None:
        parts["architecture"] = request.architecture
    _run(request, loop, trainer, {"pairs": pairs, **parts}, {"base": request.base})


def estimator(request: EstimatorRequest) -> None:
    """Train the network that reads noise and blur off an image, on degraded crops of DATA.

    Writes OUTPUT/de_net.pth, for `train lora --estimator`.
    """
    pairs, loop = _begin(request, request.pairs, request.loop)
    network = DegradationEstimator()
    if request.estimator is not None:
        load_estimator(network, request.estimator)
    trainer = EstimatorTrainer(network, pairs)
    _run(request, loop, trainer, {"pairs": pairs}, {"estimator": request.estimator})


def lora(request: LoraRequest) -> None:
    """Train LoRA, modulation and the UNet's first convolution on DATA, as the paper does.

    Writes OUTPUT/checkpoint.safetensors, for `build`, `restore` and `convert-checkpoint`.
    """
    weights, objective = request.weights, request.objective
    pairs, loop = _begin(request, request.pairs, request.loop)
    model = weights.network(request.config()).to(loop.device)
    lpips = request.lpips.load(objective.lambda_lpips, loop.device)
    dino = request.dino if objective.lambda_gan else None
    provenance = {"base": str(weights.base), "data": request.data.name, "steps": str(loop.options.steps)}
    trainer = LoraTrainer(
        model,
        objective,
        TrainingPairs(pairs),
        HeldOut(pairs, lpips),
        lpips,
        None if dino is None else DinoDiscriminator.from_pretrained(dino),
        {"command": "train lora", **provenance},
    )
    sources = {"base": weights.base, "checkpoint": weights.checkpoint, "estimator": weights.estimator}
    parts = {"pairs": pairs, "objective": objective, "lpips": request.lpips, "network": model.config}
    _run(request, loop, trainer, parts, {**sources, "dino": request.dino})


def _begin(request: RunRequest, pairs: PairOptions, options: LoopOptions) -> tuple[PairOptions, TrainLoop]:
    """Refuse a folder in the way before anything is loaded; seed before weights are drawn."""
    set_up_logging()
    RunFolder(request.output).require(request.on_existing)
    return pairs.but(data=request.data), TrainLoop(options)


def _run(
    request: RunRequest,
    loop: TrainLoop,
    trainer: Trainer,
    parts: Mapping[str, Options],
    sources: Mapping[str, Any],
) -> None:
    """Train, and say where the product is; `parts` and `sources` are recorded in the run folder."""
    config = {name: asdict(part) for name, part in parts.items()}
    if any(sources.values()):
        config["sources"] = dict(sources)
    changeable = ("pairs.validation", "pairs.validation_crop", "pairs.workers")
    folder = loop.run(trainer, request.output, config, request.on_existing, changeable)
    if loop.accelerator.is_main_process:
        product = folder.path / trainer.product
        click.echo(product if product.exists() else folder.path)
