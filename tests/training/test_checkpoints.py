"""Checkpoint files and base models: what is written comes back, and what is broken is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import (
    SMALL_RANKS,
    fresh,
    random_checkpoint,
    small_base,
)
from torch import Tensor

from s3diff_export.cli import cli, run
from s3diff_runtime.errors import CheckpointError, JobError
from s3diff_training.checkpoints.checkpoint import Checkpoint
from s3diff_training.checkpoints.native import build_network, capture, read_checkpoint, write_checkpoint
from s3diff_training.checkpoints.released import write_estimator, write_released
from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import ENCODER_AND_DECODER_TARGETS
from s3diff_training.network.estimator import DegradationEstimator


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not found[name].equal(tensor)] == []


def with_tensor(checkpoint: Checkpoint, name: str, tensor: Tensor) -> Checkpoint:
    return replace(checkpoint, tensors={**checkpoint.tensors, name: tensor})


# --- round trips ----------------------------------------------------------------------------------


def test_native_file_holds_everything(checkpoint: Checkpoint, native_file: Path, sd_base: BaseModel) -> None:
    found = read_checkpoint(native_file)
    assert found.config == checkpoint.config
    assert found.provenance == {"made by": "tests"}
    assert_same(found.tensors, checkpoint.tensors)
    assert_same(capture(build_network(fresh(sd_base), found)).tensors, checkpoint.tensors)


def test_half_precision_on_disk_keeps_the_frequencies(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    write_checkpoint(checkpoint, path, torch.float16)
    rounded = {
        name: tensor if name == "modulation.embedding.frequencies" else tensor.half().float()
        for name, tensor in checkpoint.tensors.items()
    }
    found = read_checkpoint(path)
    assert_same(found.tensors, rounded)
    assert path.stat().st_size < 2.2 * sum(tensor.numel() for tensor in found.tensors.values())


def test_released_files_hold_everything(checkpoint: Checkpoint, released_folder: Path) -> None:
    found = read_checkpoint(released_folder / "s3diff.pkl", released_folder / "de_net.pth")
    assert found.config == checkpoint.config
    assert_same(found.tensors, checkpoint.tensors)
    alone = read_checkpoint(released_folder / "s3diff.pkl")
    assert not [name for name in alone.tensors if name.startswith("estimator.")]


def test_released_layout_is_the_released_codes(released_folder: Path) -> None:
    content = torch.load(released_folder / "s3diff.pkl", weights_only=True)
    parts = ["unet", "vae", *(f"{p}_{mlp}_mlp" for p in ("vae", "unet") for mlp in ("de", "block", "fuse"))]
    header = ["unet_lora_target_modules", "vae_lora_target_modules", "rank_unet", "rank_vae"]
    assert set(content) == {*header, *(f"state_dict_{p}" for p in parts), "w", "state_embeddings"}
    assert content["state_dict_unet"]["mid_block.attentions.0.proj_in.lora_A.default.weight"].shape[0] == 5
    assert content["state_dict_vae"]["encoder.conv_in.lora_B.vae_skip.weight"].shape[1] == 3
    assert content["state_dict_unet"].keys() >= {"conv_in.weight", "conv_in.bias"}
    assert content["state_embeddings"]["state_dict_vae_block"]["weight"].shape == (6, 64)
    assert content["state_embeddings"]["state_dict_unet_block"]["weight"].shape == (10, 64)
    assert set(content["state_dict_vae_de_mlp"]) == {"0.weight", "0.bias"}
    assert set(content["state_dict_vae_fuse_mlp"]) == {"weight", "bias"}
    estimator = torch.load(released_folder / "de_net.pth", weights_only=True)
    DegradationEstimator().load_state_dict(estimator)


def test_reference_layout_comes_back(shared: Path, tmp_path: Path) -> None:
    """What the released code wrote, through our format and back, is what it was."""
    source = shared / "reference"
    write_checkpoint(
        read_checkpoint(source / "s3diff.pkl", source / "de_net.pth"), tmp_path / "a.safetensors"
    )
    write_released(read_checkpoint(tmp_path / "a.safetensors"), tmp_path / "b.pkl", tmp_path / "b.pth")

    def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in content.items():
            leaves |= flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
        return leaves

    for theirs, ours in (("s3diff.pkl", "b.pkl"), ("de_net.pth", "b.pth")):
        expected = flat(torch.load(source / theirs, weights_only=True))
        found = flat(torch.load(tmp_path / ours, weights_only=True))
        assert found.keys() == expected.keys()
        tensors = {name: value for name, value in expected.items() if isinstance(value, Tensor)}
        assert_same({name: found[name] for name in tensors}, tensors)
        plain = expected.keys() - tensors.keys()
        assert {name: found[name] for name in plain} == {name: expected[name] for name in plain}


def test_another_estimator_replaces_the_checkpoints_own(
    checkpoint: Checkpoint, native_file: Path, tmp_path: Path
) -> None:
    other = DegradationEstimator()
    write_estimator(other, tmp_path / "de_net.pth")
    found = read_checkpoint(native_file, tmp_path / "de_net.pth").tensors
    expected = {f"estimator.{name}": tensor for name, tensor in other.state_dict().items()}
    assert_same({name: t for name, t in found.items() if name.startswith("estimator.")}, expected)
    rest = {name: t for name, t in checkpoint.tensors.items() if not name.startswith("estimator.")}
    assert_same({name: found[name] for name in rest}, rest)


# --- checkpoints that do not fit ------------------------------------------------------------------


def test_every_tensor_that_does_not_fit_is_counted(sd_base: BaseModel, checkpoint: Checkpoint) -> None:
    network = build_network(fresh(sd_base), checkpoint)
    names = sorted(checkpoint.tensors)
    missing, misshaped = names[3:9], names[20:22]
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in missing}
    tensors |= {name: torch.ones(7, 1) for name in misshaped}
    tensors |= {
        "unet.nonsense": torch.ones(1),
        "vae.decoder.conv_in.weight": torch.ones(1),
        "": torch.ones(1),
    }
    with pytest.raises(CheckpointError) as refusal:
        build_network(fresh(sd_base), replace(checkpoint, tensors=tensors))
    message = str(refusal.value)
    assert f"6 missing ({', '.join(missing[:3])}, …)" in message
    assert "3 unexpected ('', unet.nonsense, vae.decoder.conv_in.weight)" in message
    shapes = {name: list(network.state_dict()[name].shape) for name in misshaped}
    assert "2 mis-shaped (" in message
    assert all(f"{name} [7, 1] for {shape}" in message for name, shape in shapes.items())
    assert message.endswith("expected a checkpoint trained on this base model")


def test_a_checkpoint_of_another_base_is_refused(checkpoint: Checkpoint) -> None:
    other = small_base(3)
    expected = random_checkpoint(other, checkpoint.config).tensors
    with pytest.raises(CheckpointError) as refusal:
        build_network(other, checkpoint)
    given = checkpoint.tensors
    unexpected = given.keys() - expected.keys()
    misshaped = [n for n in expected.keys() & given.keys() if given[n].shape != expected[n].shape]
    faults = {"missing": expected.keys() - given.keys(), "unexpected": unexpected, "mis-shaped": misshaped}
    assert all(faults.values())
    assert all(f"{len(names)} {kind} (" in str(refusal.value) for kind, names in faults.items())


def test_a_checkpoint_without_estimator_says_where_it_is(sd_base: BaseModel, released_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing \(estimator\..*pass de_net\.pth$"):
        build_network(fresh(sd_base), read_checkpoint(released_folder / "s3diff.pkl"))


# --- nothing broken is written --------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_values_that_are_not_finite_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, value: float, suffix: str
) -> None:
    name = "modulation.unet.fuse.bias"
    broken = with_tensor(checkpoint, name, torch.full_like(checkpoint.tensors[name], value))
    path = tmp_path / f"kept{suffix}"
    path.write_text("what was there")
    if suffix == ".pkl" and value == 1e30:
        write_released(broken, path, tmp_path / "de_net.pth")  # large, but float32 holds it
        return
    with pytest.raises(CheckpointError, match=rf"1 tensors are not finite as float\d\d \({name}\)"):
        if suffix == ".pkl":
            write_released(broken, path, tmp_path / "de_net.pth")
        else:
            write_checkpoint(broken, path, torch.float16)
    assert path.read_text() == "what was there"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_incomplete_checkpoint_is_not_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = {name: t for name, t in checkpoint.tensors.items() if not name.startswith("estimator.")}
    incomplete = replace(checkpoint, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"no estimator to write; pass .*--estimator"):
        write_checkpoint(incomplete, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"no estimator to write; pass .*--estimator"):
        write_released(incomplete, tmp_path / "a.pkl", tmp_path / "de_net.pth")
    assert list(tmp_path.iterdir()) == []


def test_both_released_files_or_neither(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(JobError, match="could not write"):
        write_released(checkpoint, tmp_path / "s3diff.pkl", tmp_path / "file" / "de_net.pth")
    with pytest.raises(JobError, match="could not write"):
        write_checkpoint(checkpoint, tmp_path / "file" / "a.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"modulation": "shared"}, "modulation"),
        ({"modulation": "none"}, "modulation"),
        ({"skip_connections": True}, "skip_connections"),
        ({"lora_alpha": 4.0}, "lora_alpha"),
        ({"start_step": 250}, "start_step"),
        ({"rank_vae": 0}, "rank_unet or rank_vae"),
        ({"degradation_axes": ("noise", "blur")}, "degradation_axes"),
        ({"fourier_features": 8}, "fourier_features"),
        ({"vae_targets": ENCODER_AND_DECODER_TARGETS}, "12 vae blocks"),
        (
            {"skip_connections": True, "lora_alpha": 4.0, "start_step": 0},
            "skip_connections, lora_alpha, start",
        ),
    ],
)
def test_what_the_released_format_cannot_hold_is_refused(
    sd_base: BaseModel, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    variant = random_checkpoint(sd_base, SMALL_RANKS.but(**options))
    with pytest.raises(CheckpointError, match=f"cannot hold this checkpoint's {named}") as refusal:
        write_released(variant, tmp_path / "s3diff.pkl", tmp_path / "de_net.pth")
    assert "keep it as .safetensors" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_vae_of_three_levels_does_not_fit_the_released_code(tmp_path: Path) -> None:
    variant = random_checkpoint(small_base(3), SMALL_RANKS)
    with pytest.raises(CheckpointError, match=r"5 vae blocks \(it has 6\)"):
        write_released(variant, tmp_path / "s3diff.pkl", tmp_path / "de_net.pth")


def test_prompts_and_guidance_are_warned_of(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_released(checkpoint, tmp_path / "s3diff.pkl", tmp_path / "de_net.pth")
    assert not caplog.records
    other = replace(checkpoint, config=checkpoint.config.but(guidance=1.1, positive_prompt="sharp"))
    write_released(other, tmp_path / "s3diff.pkl", tmp_path / "de_net.pth")
    assert "cannot hold positive_prompt, guidance" in caplog.text


# --- the command ----------------------------------------------------------------------------------


def test_the_command_converts_either_way(
    checkpoint: Checkpoint, released_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "back" / "s3diff.pkl"
    source, estimator = str(released_folder / "s3diff.pkl"), str(released_folder / "de_net.pth")
    assert run(cli, ["convert-checkpoint", source, "--estimator", estimator, "-o", str(ours)]) == 0
    assert capsys.readouterr().out == f"{ours}\n"
    assert_same(read_checkpoint(ours).tensors, checkpoint.tensors)

    assert run(cli, ["convert-checkpoint", str(ours), "-o", str(theirs)]) == 0
    assert capsys.readouterr().out == f"{theirs}\n{theirs.with_name('de_net.pth')}\n"
    found = read_checkpoint(theirs, theirs.with_name("de_net.pth"))
    assert found.config == checkpoint.config
    assert_same(found.tensors, checkpoint.tensors)


def test_the_command_refuses_what_it_should(
    native_file: Path, released_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*arguments: str | Path) -> str:
        assert run(cli, ["convert-checkpoint", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    assert "suffix .safetensors or .pkl" in refusal(native_file, "-o", tmp_path / "a.onnx")
    assert "suffix .safetensors or .pkl" in refusal(native_file, "-o", tmp_path / "a")
    assert "does not exist" in refusal(tmp_path / "none.pkl", "-o", tmp_path / "a.safetensors")
    assert "--estimator" in refusal(released_folder / "s3diff.pkl", "-o", tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "de_net.pth").write_text("mine")
    message = refusal(native_file, "-o", tmp_path / "a.pkl")
    assert message == f"error: {tmp_path / 'de_net.pth'} exists; pass --force to replace it\n"
    assert (tmp_path / "de_net.pth").read_text() == "mine"
    assert run(cli, ["convert-checkpoint", str(native_file), "-o", str(tmp_path / "a.pkl"), "--force"]) == 0
    assert read_checkpoint(tmp_path / "a.pkl", tmp_path / "de_net.pth").tensors
    capsys.readouterr()
    assert "a.pkl exists; pass --force" in refusal(native_file, "-o", tmp_path / "a.pkl")
