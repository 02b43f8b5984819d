"""The three trainers: a resume changes nothing, what they learn, what they write, what they refuse.

On tiny networks and a tiny transformer in the place of DINO; the loop itself is tested in test_run.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.training.small import SMALL_RANKS, fresh
from tests.training.tiny_runs import (
    CROP,
    LOOP,
    ONE_STEP,
    FixedPairs,
    Seen,
    any_lpips,
    changed,
    discriminator,
    lora_trainer,
    losses,
    network,
    read_log,
    snapshot,
)
from torch import Tensor, nn

from s3diff_runtime.errors import RequestError
from s3diff_training.checkpoints.native import build_network, read_checkpoint
from s3diff_training.checkpoints.released import read_estimator
from s3diff_training.degradations.pipeline import DegradedBatch
from s3diff_training.network.base import BaseModel, load_base
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.train import estimator as estimating
from s3diff_training.train.base import BaseLosses, BaseTrainer
from s3diff_training.train.estimator import ESTIMATED, EstimatorTrainer, degraded_crops, rank_correlation
from s3diff_training.train.loop import Trainer, TrainLoop
from s3diff_training.train.lora import LoraOptions, LoraTrainer
from s3diff_training.train.pairs import HeldOut, PairOptions, TrainingPairs


class Interrupted(Exception):
    """Stands for the power cut."""


def make_base(photograph_folder: Path, base: BaseModel) -> Trainer:
    where = PairOptions(photograph_folder, CROP, photograph_folder, CROP)
    return BaseTrainer(fresh(base), BaseLosses(), TrainingPairs(where), HeldOut(where, None), any_lpips())


def make_estimator(photograph_folder: Path, base: BaseModel) -> Trainer:
    return EstimatorTrainer(DegradationEstimator(), PairOptions(photograph_folder, CROP, photograph_folder))


def make_lora(photograph_folder: Path, base: BaseModel) -> Trainer:
    objective = LoraOptions(negative_probability=0.5)
    noisy = SMALL_RANKS.but(start_step=250)  # draws of its own, besides those of the pairs
    return lora_trainer(network(base, noisy), photograph_folder, objective, judge=discriminator())


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
    photograph_folder: Path,
    tiny_base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimating, "_HELD_OUT_CROPS", 6)

    def trainer_and_loop(seed: int = LOOP.seed) -> tuple[TrainLoop, Trainer]:
        loop = TrainLoop(LOOP)
        torch.manual_seed(seed)
        return loop, make(photograph_folder, tiny_base)

    loop, trainer = trainer_and_loop()
    whole = loop.run(trainer, tmp_path / "whole")
    loop, cut_trainer = trainer_and_loop()
    with stopping_after(cut_trainer, 1):
        loop.run(cut_trainer, tmp_path / "cut")
    loop, resumed = trainer_and_loop(seed=99)  # every weight comes from the checkpoint
    cut = loop.run(resumed, tmp_path / "cut", on_existing="resume")

    assert len(losses(whole)) == LOOP.steps
    assert losses(cut) == losses(whole)
    assert read_log(cut, "validation") == read_log(whole, "validation")
    assert read_log(whole, "validation")[0]["scores"]
    products = [weights(run.path / trainer.product) for run in (whole, cut)]
    assert products[0].keys() == products[1].keys()
    assert all(torch.equal(products[0][name], products[1][name]) for name in products[0])


# --- base and estimator ---------------------------------------------------------------------------


def test_base_trains_vae_and_unet_whole(
    tiny_base: BaseModel, photograph_folder: Path, tmp_path: Path
) -> None:
    base = fresh(tiny_base)
    before = {part: snapshot(getattr(base, part)) for part in ("vae", "unet", "text_encoder")}
    where = PairOptions(photograph_folder, CROP)
    lpips = Seen()
    trainer = BaseTrainer(base, BaseLosses(), TrainingPairs(where), HeldOut(where, None), lpips)  # type: ignore[arg-type]
    run = TrainLoop(ONE_STEP.but(save_every=1)).run(trainer, tmp_path / "run")
    for part in ("vae", "unet"):
        model = getattr(base, part)
        assert changed(before[part], model) == before[part].keys()
    assert not changed(before["text_encoder"], base.text_encoder)
    assert losses(run)[0].keys() == {"l1", "low", "flat", "lpips", "stream"}
    assert read_log(run, "validation") == []  # training photographs are shown, never scored


def test_lpips_gets_its_weight_when_the_early_part_is_over(
    tiny_base: BaseModel, photograph_folder: Path, tmp_path: Path
) -> None:
    where = PairOptions(photograph_folder, CROP)
    weights = BaseLosses(lambda_lpips=4.0, lambda_lpips_early=1.0, early_fraction=0.5)
    lpips = Seen()
    pairs = TrainingPairs(where)
    trainer = BaseTrainer(fresh(tiny_base), weights, pairs, HeldOut(where, None), lpips)  # type: ignore[arg-type]
    run = TrainLoop(ONE_STEP.but(steps=4)).run(trainer, tmp_path / "run")
    distances = [float((x - y).abs().mean()) for x, y in lpips.pairs]
    found = [step["lpips"] / distance for step, distance in zip(losses(run), distances, strict=True)]
    assert found == pytest.approx([1, 1, 4, 4])


def test_the_estimator_learns_the_true_levels(
    photograph_folder: Path, batch: DegradedBatch, tmp_path: Path
) -> None:
    estimator = DegradationEstimator()
    trainer = EstimatorTrainer(estimator, PairOptions(photograph_folder, CROP))
    trainer._pairs = FixedPairs(batch)
    distance = (estimator(batch.lr) - batch.levels(ESTIMATED)).abs()
    smooth = torch.where(distance < 0.1, distance.square() / 0.2, distance - 0.05).mean(0)
    run = TrainLoop(ONE_STEP.but(steps=6)).run(trainer, tmp_path / "run")
    first, *_, last = losses(run)
    assert first == pytest.approx({"blur": smooth[0].item(), "noise": smooth[1].item()}, rel=1e-5)
    assert sum(last.values()) < 0.8 * sum(first.values())


def test_the_estimator_is_judged_by_ranks(photograph_folder: Path) -> None:
    class Oracle(nn.Module):
        """Knows the truth: blur as it is, noise the wrong way round."""

        def __init__(self, crops: list[DegradedBatch]) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.answers = iter([crop.levels(ESTIMATED) ** 2 * torch.tensor([1, -1]) for crop in crops])

        def forward(self, image: Tensor) -> Tensor:
            return next(self.answers)

    crops = degraded_crops(photograph_folder, 8, CROP)
    assert rank_correlation(Oracle(crops), crops) == pytest.approx({"blur": 1, "noise": -1})  # type: ignore[arg-type]
    again = degraded_crops(photograph_folder, 8, CROP)
    assert all(torch.equal(one.lr, other.lr) for one, other in zip(crops, again, strict=True))


# --- what is written ------------------------------------------------------------------------------


def test_the_product_holds_the_averaged_weights(
    tiny_base: BaseModel, photograph_folder: Path, tmp_path: Path
) -> None:
    model = network(tiny_base)
    trainer = lora_trainer(model, photograph_folder)
    run = TrainLoop(LOOP.but(validate_every=0)).run(trainer, tmp_path / "run")
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
    rebuilt = build_network(fresh(tiny_base), checkpoint)
    assert rebuilt.restore(torch.rand(1, 3, 16, 16)).image.isfinite().all()


@pytest.mark.parametrize("make", [make_base, make_estimator, make_lora])
def test_sheets_show_what_the_trainer_makes(
    make: Callable[[Path, BaseModel], Trainer], photograph_folder: Path, tiny_base: BaseModel, tmp_path: Path
) -> None:
    loop = TrainLoop(ONE_STEP.but(batch=1, sample_every=1))
    run = loop.run(make(photograph_folder, tiny_base), tmp_path / "run")
    with Image.open(run.samples / "step-000001.png") as sheet:
        assert sheet.width > 3 * CROP / 4
        assert len(sheet.getcolors(2**20) or ()) > 100


# --- refusals -------------------------------------------------------------------------------------


def test_losses_that_cannot_be_computed_are_refused(tiny_base: BaseModel, photograph_folder: Path) -> None:
    where = PairOptions(photograph_folder, CROP)
    with pytest.raises(RequestError, match="the LPIPS and GAN loss has a weight"):
        LoraTrainer(network(tiny_base), LoraOptions(), TrainingPairs(where), HeldOut(where, None))


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
    assert torch.equal(batch.levels(ESTIMATED), torch.stack([batch.blur, batch.noise], dim=1))
