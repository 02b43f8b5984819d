"""The three trainers: what they aim at, what they change, what they write, and that a resume changes nothing.

On tiny networks and a tiny transformer in the place of DINO; the loop itself is tested in test_run.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data
from tests.training.small import SMALL_RANKS, fresh, random_checkpoint, small_base
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from s3diff_training.checkpoints import build_network, read_checkpoint
from s3diff_training.checkpoints.released import read_estimator
from s3diff_training.degradations import DegradationPipeline, DegradedBatch
from s3diff_training.errors import RequestError
from s3diff_training.losses.adversarial import DinoDiscriminator
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.network import (
    ENCODER_AND_DECODER_TARGETS,
    DegradationEstimator,
    NetworkConfig,
    S3Diff,
    bicubic_upscale,
    load_base,
)
from s3diff_training.network.base import BaseModel
from s3diff_training.network.color import wavelet_fix
from s3diff_training.train import estimator as estimating
from s3diff_training.train.base import BaseLosses, BaseTrainer
from s3diff_training.train.estimator import EstimatorTrainer, degraded_crops, levels, rank_correlation
from s3diff_training.train.loop import LoopOptions, Trainer, TrainLoop
from s3diff_training.train.lora import LoraOptions, LoraTrainer
from s3diff_training.train.pairs import HeldOut, PairOptions, TrainingPairs
from s3diff_training.train.run import RunFolder

CROP = 64
LOOP = LoopOptions(
    steps=4,
    batch=2,
    accumulate=2,
    lr=1e-3,
    schedule="cosine",
    warmup_fraction=0.25,
    ema_decay=0.5,
    log_every=1,
    save_every=2,
    sample_every=0,
    validate_every=2,
    seed=3,
)
ONE_STEP = replace(LOOP, steps=1, batch=4, accumulate=1, save_every=0, validate_every=0)
NO_GAN = LoraOptions(lambda_gan=0)


class Interrupted(Exception):
    """Stands for the power cut."""


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


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    Image.fromarray(data.astronaut()[:160, 100:290]).save(folder / "a.png")
    Image.fromarray(data.coffee()[100:228, 100:228]).save(folder / "b.png")
    return folder


@pytest.fixture(scope="module")
def whole_base() -> BaseModel:
    return small_base(3)


@pytest.fixture(scope="module")
def batch(photographs: Path) -> DegradedBatch:
    options = PairOptions(photographs, CROP)
    pixels = TrainingPairs(options)._photographs.crops(4, CROP, torch.Generator().manual_seed(1))
    return DegradationPipeline(scale=4)(pixels.float() / 255, torch.Generator().manual_seed(2))


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


def discriminator() -> DinoDiscriminator:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    return DinoDiscriminator(frozen(lambda: ViTModel(config, add_pooling_layer=False)))


def lora_trainer(
    model: S3Diff,
    photographs: Path,
    options: LoraOptions = NO_GAN,
    pairs: TrainingPairs | None = None,
    lpips: Any = None,  # noqa: ANN401 - LPIPS, or what stands for it
    judge: Any = None,  # noqa: ANN401 - a discriminator, or what stands for it
) -> LoraTrainer:
    where = PairOptions(photographs, CROP, photographs, CROP)
    return LoraTrainer(
        model,
        options,
        pairs or TrainingPairs(where),
        HeldOut(where, None),
        lpips or any_lpips(),
        judge,
        {"made by": "tests"},
    )


def make_base(photographs: Path, base: BaseModel) -> Trainer:
    where = PairOptions(photographs, CROP, photographs, CROP)
    return BaseTrainer(fresh(base), BaseLosses(), TrainingPairs(where), HeldOut(where, None), any_lpips())


def make_estimator(photographs: Path, base: BaseModel) -> Trainer:
    return EstimatorTrainer(DegradationEstimator(), PairOptions(photographs, CROP, photographs))


def make_lora(photographs: Path, base: BaseModel) -> Trainer:
    objective = LoraOptions(negative_probability=0.5)
    noisy = replace(SMALL_RANKS, start_step=250)  # draws of its own, besides those of the pairs
    return lora_trainer(network(base, noisy), photographs, objective, judge=discriminator())


def losses(run: RunFolder) -> list[dict[str, float]]:
    return [record["losses"] for record in run.read_log("losses")]


def weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a product: a checkpoint, an estimator, or a base folder."""
    if path.suffix == ".safetensors":
        return dict(read_checkpoint(path).tensors)
    if path.suffix == ".pth":
        return read_estimator(path)
    base = load_base(path)
    return {f"unet.{k}": v for k, v in base.unet.state_dict().items()} | base.vae.state_dict()


@contextlib.contextmanager
def stopping_after(trainer: Trainer, steps: int) -> Iterator[None]:
    step: Callable[[TrainLoop], Any] = trainer.step

    def interrupted(loop: TrainLoop) -> Any:  # noqa: ANN401
        if loop.step == steps:
            raise Interrupted
        return step(loop)

    trainer.step = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        yield


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_base, make_estimator, make_lora])
def test_a_resumed_run_equals_an_uninterrupted_one(
    make: Callable[[Path, BaseModel], Trainer],
    photographs: Path,
    whole_base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimating, "_HELD_OUT_CROPS", 6)

    def trainer_and_loop(seed: int = LOOP.seed) -> tuple[TrainLoop, Trainer]:
        loop = TrainLoop(LOOP)
        torch.manual_seed(seed)
        return loop, make(photographs, whole_base)

    loop, trainer = trainer_and_loop()
    whole = loop.run(trainer, tmp_path / "whole")
    loop, cut_trainer = trainer_and_loop()
    with stopping_after(cut_trainer, 3):
        loop.run(cut_trainer, tmp_path / "cut")
    loop, resumed = trainer_and_loop(seed=99)  # every weight comes from the checkpoint
    cut = loop.run(resumed, tmp_path / "cut", on_existing="resume")

    assert len(losses(whole)) == LOOP.steps
    assert losses(cut) == losses(whole)
    assert cut.read_log("validation") == whole.read_log("validation")
    assert whole.read_log("validation")[0]["scores"]
    products = [weights(run.path / trainer.product) for run in (whole, cut)]
    assert products[0].keys() == products[1].keys()
    assert all(torch.equal(products[0][name], products[1][name]) for name in products[0])


# --- the targets of `train lora` ------------------------------------------------------------------


def prompts_of(model: S3Diff) -> list[Tensor]:
    """Filled, call by call, with the prompt embeddings that the network runs under."""
    calls: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, given: calls.append(given[2].clone()))
    return calls


def test_negative_targets_are_the_input_under_the_negative_prompt(
    whole_base: BaseModel, photographs: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    model, lpips, judge = network(whole_base), Seen(), Seen()
    calls = prompts_of(model)
    objective = LoraOptions(negative_probability=1)
    trainer = lora_trainer(model, photographs, objective, FixedPairs(batch), lpips, judge)
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
    whole_base: BaseModel, photographs: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    model, lpips = network(whole_base), Seen()
    calls = prompts_of(model)
    trainer = lora_trainer(
        model, photographs, replace(NO_GAN, negative_probability=0), FixedPairs(batch), lpips
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
    whole_base: BaseModel, photographs: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    model, lpips = network(whole_base), Seen()
    calls = prompts_of(model)
    mixed = replace(NO_GAN, negative_probability=0.5)
    trainer = lora_trainer(model, photographs, mixed, FixedPairs(batch), lpips)
    TrainLoop(replace(ONE_STEP, steps=4)).run(trainer, tmp_path / "run")
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
    whole_base: BaseModel,
    photographs: Path,
    batch: DegradedBatch,
    tmp_path: Path,
    axes: tuple[str, str],
    source: Any,  # noqa: ANN401 - a Literal
) -> None:
    model = network(whole_base, replace(SMALL_RANKS, degradation_axes=axes))
    given: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1].clone()))
    trainer = lora_trainer(model, photographs, replace(NO_GAN, degradation=source), FixedPairs(batch))
    TrainLoop(ONE_STEP).run(trainer, tmp_path / "run")
    by_hand = {"noise": batch.noise, "blur": batch.blur}
    expected = {
        "estimated": model.degradation(batch.lr),
        "true": torch.stack([by_hand[axis] for axis in axes], dim=1),
    }
    assert torch.equal(given[0], expected[source])
    assert not torch.allclose(expected["estimated"], expected["true"], atol=1e-2)


def test_losses_can_follow_the_colour_correction(
    whole_base: BaseModel, photographs: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    model, lpips = network(whole_base), Seen()
    outputs: list[Tensor] = []
    model.register_forward_hook(lambda *call: outputs.append(call[-1][0].detach().clone()))
    corrected = replace(NO_GAN, loss_color="wavelet")
    trainer = lora_trainer(model, photographs, corrected, FixedPairs(batch), lpips)
    TrainLoop(ONE_STEP).run(trainer, tmp_path / "run")
    reference = bicubic_upscale(batch.lr).clamp(0, 1) * 2 - 1
    assert torch.equal(lpips.pairs[0][0], wavelet_fix(outputs[0], reference))
    assert not torch.allclose(lpips.pairs[0][0], outputs[0], atol=1e-2)


# --- what is trained ------------------------------------------------------------------------------


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


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
    whole_base: BaseModel, photographs: Path, tmp_path: Path, variant: dict[str, Any]
) -> None:
    model = network(whole_base, replace(SMALL_RANKS, **variant))
    before = snapshot(model)
    trainer = lora_trainer(model, photographs)
    TrainLoop(replace(ONE_STEP, steps=2, batch=2)).run(trainer, tmp_path / "run")
    fixed = {"modulation.embedding.frequencies"}  # of the Fourier embedding: drawn once
    assert changed(before, model) == model.trainable_names() - fixed
    assert ("unet.conv_in.weight" in changed(before, model)) == (model.config.rank_unet > 0)


def test_the_discriminator_learns_with_its_heads_alone(
    whole_base: BaseModel, photographs: Path, tmp_path: Path
) -> None:
    judge = discriminator()
    before = snapshot(judge)
    trainer = lora_trainer(network(whole_base), photographs, LoraOptions(), judge=judge)
    run = TrainLoop(replace(ONE_STEP, batch=2)).run(trainer, tmp_path / "run")
    assert {name.split(".")[0] for name in changed(before, judge)} == {"heads"}
    assert losses(run)[0].keys() == {"l2", "lpips", "gan", "discriminator"}


def test_base_trains_vae_and_unet_whole(whole_base: BaseModel, photographs: Path, tmp_path: Path) -> None:
    base = fresh(whole_base)
    before = {part: snapshot(getattr(base, part)) for part in ("vae", "unet", "text_encoder")}
    where = PairOptions(photographs, CROP)
    lpips = Seen()
    trainer = BaseTrainer(base, BaseLosses(), TrainingPairs(where), HeldOut(where, None), lpips)  # type: ignore[arg-type]
    run = TrainLoop(replace(ONE_STEP, save_every=1)).run(trainer, tmp_path / "run")
    for part in ("vae", "unet"):
        model = getattr(base, part)
        unchanged = before[part].keys() - changed(before[part], model)
        # The posterior's variance has no part in its mode, and nothing else may stand still.
        assert not unchanged
    assert not changed(before["text_encoder"], base.text_encoder)
    assert losses(run)[0].keys() == {"l1", "low", "lpips"}
    assert run.read_log("validation") == []  # training photographs are shown, never scored


def test_the_estimator_learns_the_true_levels(
    photographs: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    estimator = DegradationEstimator()
    trainer = EstimatorTrainer(estimator, PairOptions(photographs, CROP))
    trainer._pairs = FixedPairs(batch)
    distance = (estimator(batch.lr) - levels(batch)).abs()
    smooth = torch.where(distance < 0.1, distance.square() / 0.2, distance - 0.05).mean(0)
    run = TrainLoop(replace(ONE_STEP, steps=8, warmup_fraction=0.0)).run(trainer, tmp_path / "run")
    first, *_, last = losses(run)
    assert first == pytest.approx({"blur": smooth[0].item(), "noise": smooth[1].item()}, rel=1e-5)
    assert sum(last.values()) < 0.8 * sum(first.values())


def test_the_estimator_is_judged_by_ranks(photographs: Path) -> None:
    class Oracle(nn.Module):
        """Knows the truth: blur as it is, noise the wrong way round."""

        def __init__(self, crops: list[DegradedBatch]) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.answers = iter([levels(crop) ** 2 * torch.tensor([1, -1]) for crop in crops])

        def forward(self, image: Tensor) -> Tensor:
            return next(self.answers)

    crops = degraded_crops(photographs, 8, CROP)
    assert rank_correlation(Oracle(crops), crops) == pytest.approx({"blur": 1, "noise": -1})  # type: ignore[arg-type]
    again = degraded_crops(photographs, 8, CROP)
    assert all(torch.equal(one.lr, other.lr) for one, other in zip(crops, again, strict=True))


# --- what is written ------------------------------------------------------------------------------


def test_the_product_holds_the_averaged_weights(
    whole_base: BaseModel, photographs: Path, tmp_path: Path
) -> None:
    model = network(whole_base)
    trainer = lora_trainer(model, photographs)
    run = TrainLoop(replace(LOOP, accumulate=1, validate_every=0)).run(trainer, tmp_path / "run")
    checkpoint = read_checkpoint(run.path / trainer.product)
    state = run.load_checkpoint()
    assert state is not None
    saved = state[1]["modules"]["generator"]
    for name, average in zip(saved["weights"], saved["average"], strict=True):
        assert torch.equal(checkpoint.tensors[name], average)
        assert torch.equal(model.state_dict()[name], saved["weights"][name])  # training goes on with these
    assert not torch.equal(checkpoint.tensors["unet.conv_in.weight"], model.unet.conv_in.weight)
    assert checkpoint.provenance == {"made by": "tests"}
    assert checkpoint.config == model.config
    rebuilt = build_network(fresh(whole_base), checkpoint)
    assert rebuilt.restore(torch.rand(1, 3, 16, 16)).image.isfinite().all()


@pytest.mark.parametrize("make", [make_base, make_estimator, make_lora])
def test_sheets_show_what_the_trainer_makes(
    make: Callable[[Path, BaseModel], Trainer], photographs: Path, whole_base: BaseModel, tmp_path: Path
) -> None:
    loop = TrainLoop(replace(ONE_STEP, batch=1, sample_every=1))
    run = loop.run(make(photographs, whole_base), tmp_path / "run")
    with Image.open(run.sample_path(1)) as sheet:
        assert sheet.width > 3 * CROP / 4
        assert len(sheet.getcolors(2**20) or ()) > 100


# --- refusals -------------------------------------------------------------------------------------


def test_losses_that_cannot_be_computed_are_refused(whole_base: BaseModel, photographs: Path) -> None:
    where = PairOptions(photographs, CROP)
    with pytest.raises(RequestError, match="the LPIPS and GAN loss has a weight"):
        LoraTrainer(network(whole_base), LoraOptions(), TrainingPairs(where), HeldOut(where, None))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (
            lambda: LoraOptions(lambda_l2=-1, negative_probability=2, degradation="guessed"),  # type: ignore[arg-type]
            ["lambda_l2 is -1", "negative_probability is 2", "degradation is 'guessed'"],
        ),
        (lambda: BaseLosses(lambda_l1=-1, lambda_low=float("nan")), ["lambda_l1 is -1", "lambda_low is nan"]),
        (lambda: PairOptions(Path(), crop=100, validation_crop=16), ["crop is 100", "validation_crop is 16"]),
    ],
)
def test_wrong_options_are_reported_at_once(options: Callable[[], object], names: list[str]) -> None:
    with pytest.raises(RequestError) as refusal:
        options()
    for name in names:
        assert name in str(refusal.value)


def test_levels_follow_the_axes(batch: DegradedBatch) -> None:
    assert torch.equal(levels(batch), torch.stack([batch.blur, batch.noise], dim=1))
