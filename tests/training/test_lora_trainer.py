"""`train lora`: which target and prompt each image has, what turns the LoRA, and what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import SMALL_RANKS
from tests.training.tiny_runs import (
    NO_GAN,
    ONE_STEP,
    FixedPairs,
    Seen,
    changed,
    discriminator,
    lora_trainer,
    losses,
    network,
    snapshot,
)
from torch import Tensor

from s3diff_training.degradations.pipeline import DegradedBatch
from s3diff_training.network.base import BaseModel
from s3diff_training.network.bicubic import bicubic_upscale
from s3diff_training.network.color import wavelet_fix
from s3diff_training.network.config import ENCODER_AND_DECODER_TARGETS
from s3diff_training.network.model import S3Diff
from s3diff_training.train.loop import TrainLoop
from s3diff_training.train.lora import LoraOptions

# --- targets --------------------------------------------------------------------------------------


def prompts_of(model: S3Diff) -> list[Tensor]:
    """Filled, call by call, with the prompt embeddings that the network runs under."""
    calls: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, given: calls.append(given[2].clone()))
    return calls


def test_negative_targets_are_the_input_under_the_negative_prompt(
    tiny_base: BaseModel, photograph_folder: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    model, lpips, judge = network(tiny_base), Seen(), Seen()
    calls = prompts_of(model)
    objective = LoraOptions(negative_probability=1)
    trainer = lora_trainer(model, photograph_folder, objective, FixedPairs(batch), lpips, judge)
    TrainLoop(ONE_STEP).run(trainer, tmp_path / "run")

    positive, negative = model.encode_prompts([model.config.positive_prompt, model.config.negative_prompt])
    (_, target), *others = lpips.pairs
    assert not others
    assert torch.equal(target, bicubic_upscale(batch.lr).clamp(0, 1) * 2 - 1)
    reconstruction, deception = calls
    assert torch.equal(reconstruction, negative.expand(4, -1, -1))
    # The GAN knows positive targets only: the fake is made under the positive prompt, the real one is HR.
    assert torch.equal(deception, positive.expand(4, -1, -1))
    fake, real, fake_again = judge.images
    assert torch.equal(real, batch.hr * 2 - 1)
    assert torch.equal(fake_again, fake)


def test_positive_targets_are_the_truth_under_the_positive_prompt(
    tiny_base: BaseModel, photograph_folder: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    model, lpips = network(tiny_base), Seen()
    calls = prompts_of(model)
    trainer = lora_trainer(
        model, photograph_folder, NO_GAN.but(negative_probability=0), FixedPairs(batch), lpips
    )
    run = TrainLoop(ONE_STEP).run(trainer, tmp_path / "run")
    (restored, target), *others = lpips.pairs
    assert not others
    assert torch.equal(target, batch.hr * 2 - 1)
    assert torch.equal(calls[0], model.encode_prompts([model.config.positive_prompt]).expand(4, -1, -1))
    (logged,) = losses(run)
    assert logged["l2"] == pytest.approx(2 * (restored - target).square().mean().item(), rel=1e-5)
    assert logged["lpips"] == pytest.approx(5 * (restored - target).abs().mean().item(), rel=1e-5)
    assert logged.keys() == {"l2", "lpips"}


def test_each_image_has_its_own_prompt_and_target(
    tiny_base: BaseModel, photograph_folder: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    model, lpips = network(tiny_base), Seen()
    calls = prompts_of(model)
    mixed = NO_GAN.but(negative_probability=0.5)
    trainer = lora_trainer(model, photograph_folder, mixed, FixedPairs(batch), lpips)
    TrainLoop(ONE_STEP.but(steps=2)).run(trainer, tmp_path / "run")
    negative = model.encode_prompts([model.config.negative_prompt])[0]
    low, high = bicubic_upscale(batch.lr).clamp(0, 1) * 2 - 1, batch.hr * 2 - 1
    kinds = []
    for prompts, (_, targets) in zip(calls, lpips.pairs, strict=True):
        for row in range(4):
            is_negative = torch.equal(prompts[row], negative)
            assert torch.equal(targets[row], (low if is_negative else high)[row])
            kinds.append(is_negative)
    assert {True, False} == set(kinds)


@pytest.mark.parametrize("axes", [("blur", "noise"), ("noise", "blur")])
@pytest.mark.parametrize("source", ["estimated", "true"])
def test_the_lora_is_turned_by_the_levels_that_were_asked_for(
    tiny_base: BaseModel,
    photograph_folder: Path,
    batch: DegradedBatch,
    tmp_path: Path,
    axes: tuple[str, str],
    source: Any,  # noqa: ANN401 - a Literal
) -> None:
    model = network(tiny_base, SMALL_RANKS.but(degradation_axes=axes))
    given: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1].clone()))
    trainer = lora_trainer(model, photograph_folder, NO_GAN.but(degradation=source), FixedPairs(batch))
    TrainLoop(ONE_STEP).run(trainer, tmp_path / "run")
    by_hand = {"noise": batch.noise, "blur": batch.blur}
    expected = {
        "estimated": model.degradation(batch.lr),
        "true": torch.stack([by_hand[axis] for axis in axes], dim=1),
    }
    assert torch.equal(given[0], expected[source])
    assert not torch.allclose(expected["estimated"], expected["true"], atol=1e-2)


def test_losses_can_follow_the_colour_correction(
    tiny_base: BaseModel, photograph_folder: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    model, lpips = network(tiny_base), Seen()
    outputs: list[Tensor] = []
    model.register_forward_hook(lambda *call: outputs.append(call[-1].decoded.detach().clone()))
    corrected = NO_GAN.but(loss_color="wavelet")
    trainer = lora_trainer(model, photograph_folder, corrected, FixedPairs(batch), lpips)
    TrainLoop(ONE_STEP).run(trainer, tmp_path / "run")
    reference = bicubic_upscale(batch.lr).clamp(0, 1) * 2 - 1
    assert torch.equal(lpips.pairs[0][0], wavelet_fix(outputs[0], reference))
    assert not torch.allclose(lpips.pairs[0][0], outputs[0], atol=1e-2)


# --- what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"rank_vae": 0},
        {"rank_unet": 0},
        {"vae_targets": ENCODER_AND_DECODER_TARGETS, "skip_connections": True},
        {"modulation": "shared"},
        {"modulation": "none"},
        {"start_step": 500},
    ],
    ids=str,
)
def test_lora_changes_what_a_checkpoint_holds_and_nothing_else(
    tiny_base: BaseModel, photograph_folder: Path, tmp_path: Path, variant: dict[str, Any]
) -> None:
    model = network(tiny_base, SMALL_RANKS.but(**variant))
    before = snapshot(model)
    trainer = lora_trainer(model, photograph_folder)
    TrainLoop(ONE_STEP.but(batch=2)).run(trainer, tmp_path / "run")
    fixed = {"modulation.embedding.frequencies"}  # of the Fourier embedding: drawn once
    assert changed(before, model) == model.trainable_names() - fixed
    assert ("unet.conv_in.weight" in changed(before, model)) == (model.config.rank_unet > 0)


def test_the_discriminator_learns_with_its_heads_alone(
    tiny_base: BaseModel, photograph_folder: Path, tmp_path: Path
) -> None:
    judge = discriminator()
    before = snapshot(judge)
    trainer = lora_trainer(network(tiny_base), photograph_folder, LoraOptions(), judge=judge)
    run = TrainLoop(ONE_STEP.but(batch=2)).run(trainer, tmp_path / "run")
    assert {name.split(".")[0] for name in changed(before, judge)} == {"heads"}
    assert losses(run)[0].keys() == {"l2", "lpips", "gan", "discriminator"}
