"""`s3diff-export train …`: its defaults, the paper's variants as options, and what the terminal shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.training.small import save_small_base
from tests.training.tiny_runs import CROP, losses, read_log, tiny_vit

from s3diff_export.cli import cli, run
from s3diff_training.checkpoints.native import read_checkpoint
from s3diff_training.checkpoints.released import read_estimator, write_estimator
from s3diff_training.network.config import (
    DECODER_TARGETS,
    ENCODER_AND_DECODER_TARGETS,
    ENCODER_TARGETS,
    NetworkConfig,
)
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.network.model import S3Diff
from s3diff_training.train import commands
from s3diff_training.train.base import BaseLosses, BaseTrainer
from s3diff_training.train.commands import BASE_LOOP, ESTIMATOR_LOOP, LORA_LOOP
from s3diff_training.train.loop import TrainLoop
from s3diff_training.train.new_base import BaseArchitecture, new_base
from s3diff_training.train.pairs import HeldOut, PairOptions, TrainingPairs
from s3diff_training.train.run import RunFolder

SHORT = ["--steps", "2", "--batch", "1", "--accumulate", "1", "--crop", str(CROP), "--log-every", "1"]
QUIET = ["--sample-every", "0", "--validation-crop", str(CROP)]
TINY_BASE = ["--latent-channels", "3", "--vae-widths", "8,8", "--unet-widths", "8,8,8", "--head-width", "8"]
NO_LPIPS = ["--lambda-lpips", "0"]
NO_GAN = ["--lambda-gan", "0"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The options that name a base and an estimator."""
    folder = tmp_path_factory.mktemp("sources")
    write_estimator(DegradationEstimator(), folder / "de_net.pth")
    return ["--base", save_small_base(folder / "base", 3), "--estimator", folder / "de_net.pth"]


def train(*arguments: object) -> int:
    return run(cli, ["train", *map(str, arguments)])


def test_defaults_are_the_papers_and_the_small_models() -> None:
    assert LORA_LOOP.batch * LORA_LOOP.accumulate == 64
    assert (LORA_LOOP.steps, LORA_LOOP.lr, LORA_LOOP.schedule) == (30_000, 2e-5, "constant")
    assert (BASE_LOOP.lr, BASE_LOOP.lr_final, BASE_LOOP.ema_decay) == (6e-4, 1e-5, 0.998)
    assert ESTIMATOR_LOOP.schedule == BASE_LOOP.schedule == "cosine"


def test_base_trains_as_the_classes_do(photograph_folder: Path, tmp_path: Path) -> None:
    """What `train base` puts together is no other run than the same parts put together by hand."""
    held_out = ["--validation", photograph_folder, *QUIET]
    options = [*SHORT, *TINY_BASE, *NO_LPIPS]
    assert train("base", photograph_folder, "-o", tmp_path / "a", *options, *held_out) == 0

    loop = TrainLoop(BASE_LOOP.but(steps=2, batch=1, log_every=1, save_every=0, sample_every=0))
    base = new_base(BaseArchitecture(3, (8, 8), (8, 8, 8), head_width=8))
    where = PairOptions(photograph_folder, CROP, photograph_folder, CROP)
    pairs, weights = TrainingPairs(where), BaseLosses(lambda_lpips=0)
    expected = loop.run(BaseTrainer(base, weights, pairs, HeldOut(where, None), None), tmp_path / "b")
    found = RunFolder(tmp_path / "a")
    assert losses(found) == losses(expected)
    assert read_log(found, "validation") == read_log(expected, "validation") != []


def test_lora_trains_against_a_local_dino(
    photograph_folder: Path, sources: list[object], tmp_path: Path
) -> None:
    tiny_vit().save_pretrained(tmp_path / "dino")
    network = ["--rank-unet", 5, "--rank-vae", 3, "--negative-prompt", "dull", "--guidance", 1.5]
    options = [*sources, *network, *SHORT, *QUIET, *NO_LPIPS, "--dino", tmp_path / "dino"]
    assert train("lora", photograph_folder, "-o", tmp_path / "run", *options) == 0
    folder = RunFolder(tmp_path / "run")
    assert losses(folder)[0].keys() == {"l2", "gan", "discriminator"}
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert checkpoint.config == NetworkConfig(5, 3, negative_prompt="dull", guidance=1.5)
    estimator = read_estimator(Path(str(sources[-1])))
    assert all(checkpoint.tensors[name].equal(tensor) for name, tensor in estimator.items())
    recorded = json.loads((folder.path / "config.json").read_text())["options"]
    assert recorded["sources"]["dino"] == str(tmp_path / "dino")
    assert recorded["network"]["rank_unet"] == 5
    assert recorded["objective"]["lambda_gan"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--lora-on", "unet"], {"rank_vae": 0}),
        (["--lora-on", "encoder"], {"rank_unet": 0, "vae_targets": ENCODER_TARGETS}),
        (["--lora-on", "unet+decoder"], {"vae_targets": DECODER_TARGETS}),
        (["--lora-on", "unet+encoder+decoder"], {"vae_targets": ENCODER_AND_DECODER_TARGETS}),
        (
            ["--skip-connections", "--modulation", "shared"],
            {"skip_connections": True, "modulation": "shared"},
        ),
        (["--start-step", "250"], {"start_step": 250}),
    ],
)
def test_the_papers_variants_are_options(
    monkeypatch: pytest.MonkeyPatch,
    photograph_folder: Path,
    sources: list[object],
    tmp_path: Path,
    arguments: list[str],
    expected: dict[str, Any],
) -> None:
    asked: list[NetworkConfig] = []

    class AskedError(Exception):
        exit_code = 1

    def network(base: object, config: NetworkConfig) -> S3Diff:
        asked.append(config)
        raise AskedError

    monkeypatch.setattr(commands, "S3Diff", network)
    options = [*sources, *NO_GAN, *NO_LPIPS, *arguments]
    assert train("lora", photograph_folder, "-o", tmp_path / "run", *options) == 1
    assert asked == [NetworkConfig(**expected)]


def test_dino_that_is_not_there_is_refused(
    photograph_folder: Path, sources: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*sources, "--dino", "/no/dino", *NO_LPIPS, *SHORT]
    assert train("lora", photograph_folder, "-o", tmp_path / "run", *options) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: no DINO backbone at /no/dino: there is no such folder")
    assert "--lambda-gan 0" in message


def test_the_terminal_shows_this_projects_words_alone(photograph_folder: Path, tmp_path: Path) -> None:
    """In a process of its own: the libraries write when they are loaded, too."""
    data = Path(shutil.copytree(photograph_folder, tmp_path / "data"))
    Image.new("RGB", (20, 20)).save(data / "tiny.png")
    (data / "broken.jpg").write_bytes(b"no picture")
    script = Path(sys.executable).with_name("s3diff-export")
    options = [*SHORT, *QUIET, *TINY_BASE, *NO_LPIPS, "--steps", "1"]
    done = subprocess.run(
        [script, "train", "base", data, "-o", tmp_path / "run", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{tmp_path / 'run' / 'base'}\n"
    *warnings, progress = done.stderr.splitlines()
    assert [line.startswith(f"warning: {data}: skipped") for line in warnings] == [True, True]
    assert "skipped 2 images, the first is" in warnings[0]
    assert re.fullmatch(r"100 % done, 0 min left, step 1 +.* steps/s +l1 .* low .*", progress)
