"""Base models from a folder; their schedulers are corrected where that is right, else refused."""

from __future__ import annotations

import fnmatch
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tests.training.small import (
    fresh,
    random_photograph,
    small_base,
)

from s3diff_runtime.errors import CheckpointError
from s3diff_training.checkpoints.checkpoint import Checkpoint
from s3diff_training.checkpoints.native import build_network
from s3diff_training.network.base import BaseModel, load_base, one_step_alphas

SD_TURBO_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}


def test_sd_turbos_scheduler_is_taken_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    alphas = one_step_alphas(SD_TURBO_SCHEDULER)
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - betas, 0)
    assert alphas.dtype == torch.float32
    assert ((alphas - expected).abs() / expected).max() < 1e-4
    assert math.sqrt(alphas[999]) == pytest.approx(0.068265, abs=1e-6)
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "corrected"),
    [
        ({"timestep_spacing": "leading"}, 'timestep_spacing "leading" -> "trailing"'),
        ({"clip_sample": True}, "clip_sample true -> false"),
        ({"clip_sample": None}, "clip_sample true -> false"),
        ({"thresholding": True}, "thresholding true -> false"),
    ],
)
def test_a_scheduler_that_would_change_the_result_is_corrected(
    caplog: pytest.LogCaptureFixture, change: dict[str, Any], corrected: str
) -> None:
    config: dict[str, Any] = {**SD_TURBO_SCHEDULER, **change}
    config = {key: value for key, value in config.items() if value is not None}
    with caplog.at_level(logging.WARNING):
        alphas = one_step_alphas(config)
    assert alphas.equal(one_step_alphas(SD_TURBO_SCHEDULER))
    assert f"scheduler configuration corrected: {corrected}" in caplog.text


def test_a_scheduler_that_cannot_serve_is_refused_with_all_reasons() -> None:
    wrong = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "num_train_timesteps": 500}
    for count, names in enumerate(
        (["prediction_type"], ["prediction_type", "num_train_timesteps"], list(wrong))
    ):
        with pytest.raises(CheckpointError) as refusal:
            one_step_alphas({**SD_TURBO_SCHEDULER, **{name: wrong[name] for name in names}})
        assert [name for name in wrong if name in str(refusal.value)] == [n for n in wrong if n in names], (
            count
        )


@pytest.fixture
def folder(sd_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd_base_folder, tmp_path / "base"))


def test_load_base_checks_the_scheduler_of_the_folder(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(CheckpointError, match="prediction_type is 'v_prediction', expected 'epsilon'"):
        load_base(folder)


def test_a_base_that_lacks_parts_is_refused(folder: Path) -> None:
    for part in ("vae", "scheduler"):
        shutil.rmtree(folder / part)
    with pytest.raises(CheckpointError, match="has no scheduler, vae; expected a diffusers folder"):
        load_base(folder)
    for name in ("nowhere", "./no/where", "a/b/c"):
        with pytest.raises(CheckpointError, match="does not exist; expected a diffusers folder or a hub id"):
            load_base(name)


@pytest.mark.parametrize("damage", ["vae/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_damaged_base_is_refused(folder: Path, damage: str) -> None:
    path = folder / damage
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="cannot load the base model"):
        load_base(folder)


def test_a_base_from_its_folder_computes_the_same(sd_base: BaseModel, checkpoint: Checkpoint) -> None:
    lr = random_photograph(1, 16, 16)
    loaded, made = (build_network(fresh(base), checkpoint) for base in (sd_base, small_base(4)))
    assert loaded.restore(lr).forward.x0.equal(made.restore(lr).forward.x0)


# --- every tensor of a base is the file's ---------------------------------------------------------

WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
Tensors = dict[str, torch.Tensor]


def with_weights(folder: Path, part: str, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / part / WEIGHTS[part]
    save_file(change(load_file(path)), path, {"format": "pt"})


def same(found: BaseModel, expected: BaseModel, tolerance: float = 0.0) -> bool:
    return all(
        torch.allclose(tensor, getattr(expected, part).state_dict()[name], rtol=tolerance, atol=tolerance)
        for part in WEIGHTS
        for name, tensor in getattr(found, part).state_dict().items()
    )


@pytest.mark.parametrize("part", list(WEIGHTS))
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_missing_tensor_is_named(folder: Path, part: str, place: float) -> None:
    names = sorted(load_file(folder / part / WEIGHTS[part]))
    dropped = names[int(place * len(names)) if place > 0 else int(place)]
    with_weights(folder, part, lambda tensors: {n: t for n, t in tensors.items() if n != dropped})
    with pytest.raises(CheckpointError, match=rf"{part} are not those.*: 1 missing \({dropped}\)"):
        load_base(folder)


@pytest.mark.parametrize("part", list(WEIGHTS))
def test_unexpected_and_misshaped_tensors_are_named(folder: Path, part: str) -> None:
    name = min(load_file(folder / part / WEIGHTS[part]))
    with_weights(folder, part, lambda tensors: {**tensors, name: torch.ones(3, 1), "more": torch.ones(1)})
    message = rf"{part} are not those.*: 1 unexpected \(more\); 1 mis-shaped \({name} \[3, 1\] for "
    with pytest.raises(CheckpointError, match=message):
        load_base(folder)


@pytest.mark.parametrize("part", list(WEIGHTS))
def test_weights_of_a_base_that_are_none_are_refused(folder: Path, part: str) -> None:
    with_weights(folder, part, lambda tensors: tensors | {min(tensors): tensors[min(tensors)] * math.nan})
    with pytest.raises(CheckpointError, match="not finite"):
        load_base(folder)
    (folder / part / WEIGHTS[part]).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"cannot load the base .*a Git LFS pointer.*git lfs pull"):
        load_base(folder)
    (folder / part / WEIGHTS[part]).unlink()
    with pytest.raises(CheckpointError, match=rf"{part} has no weights; expected .*\.fp16\.safetensors"):
        load_base(folder)


def test_parts_of_several_bases_are_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    (folder / "text_encoder" / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    name = "embeddings.token_embedding.weight"
    with_weights(folder, "text_encoder", lambda tensors: tensors | {name: tensors[name][:100].clone()})
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens and the text encoder 100"):
        load_base(folder)


# --- folders as they come -------------------------------------------------------------------------


def only_half(folder: Path) -> None:
    for part, name in WEIGHTS.items():
        tensors = load_file(folder / part / name)
        half = {name: tensor.half() for name, tensor in tensors.items()}
        save_file(half, folder / part / name.replace(".safe", ".fp16.safe"))
        (folder / part / name).unlink()


def as_pickles_of_old(folder: Path) -> None:
    """As diffusers and transformers wrote them in 2022, names of layers too."""
    for part, name in WEIGHTS.items():
        tensors = load_file(folder / part / name)
        if part == "text_encoder":
            tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
            tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            if part == "vae":
                tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
        stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        torch.save(tensors, folder / part / f"{stem}.bin")
        (folder / part / name).unlink()


def in_two_files(folder: Path) -> None:
    for part, name in WEIGHTS.items():
        tensors = load_file(folder / part / name)
        names = sorted(tensors)
        for number, own in enumerate((names[::2], names[1::2]), start=1):
            shard = folder / part / name.replace(".safe", f"-0000{number}-of-00002.safe")
            save_file({name: tensors[name] for name in own}, shard)
        (folder / part / name).unlink()


FORMS: dict[str, Callable[[Path], None]] = {
    "half": only_half,
    "pickles": as_pickles_of_old,
    "shards": in_two_files,
}


@pytest.mark.parametrize("form", list(FORMS))
def test_weights_are_read_as_they_come(
    folder: Path, sd_base: BaseModel, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    FORMS[form](folder)
    found = load_base(folder)
    assert same(found, sd_base, tolerance=1e-3 if form == "half" else 0.0)
    assert found.text_encoder(torch.arange(77)[None])[0].isfinite().all()
    assert capfd.readouterr() == ("", "")


def test_a_missing_shard_is_noticed(folder: Path) -> None:
    in_two_files(folder)
    next((folder / "unet").glob("*-00002-of-00002.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"unet are not those.*: \d+ missing"):
        load_base(folder)


def vocabulary(folder: Path) -> dict[str, str]:
    """Take the files of a plain CLIP tokenizer out of the fast one's."""
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "vocab.json": json.dumps(model["vocab"]),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
    }


def test_a_tokenizer_of_vocabulary_and_merges_alone_is_read(
    folder: Path, sd_base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    files = vocabulary(folder)
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(files["vocab.json"])
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.json and merges\.txt"):
        load_base(folder)
    (folder / "tokenizer" / "merges.txt").write_text(files["merges.txt"])
    with caplog.at_level(logging.WARNING):
        found = load_base(folder).tokenizer
    assert "it is read as SD-Turbo's" in caplog.text
    texts = ["A sharp, clean photograph", "oil painting, blur"]
    assert found(texts).input_ids == sd_base.tokenizer(texts).input_ids
    padded = found(texts[0], padding="max_length", max_length=77).input_ids
    assert padded[-1] == json.loads(files["vocab.json"])["!"]
    assert found.model_max_length == sd_base.tokenizer.model_max_length == 77


@pytest.mark.parametrize("content", ["[]", "{", "[" * 3000])
def test_configurations_that_are_none_are_refused(folder: Path, content: str) -> None:
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text(content)
        with pytest.raises(CheckpointError, match=rf"cannot load the base model .*{name} (is|holds)"):
            load_base(folder)
        (folder / name).write_text(whole)


# --- the hub --------------------------------------------------------------------------------------


def test_a_complete_cache_is_enough_offline(
    folder: Path, sd_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, change in {"whole": lambda _: None, "half": only_half}.items():
        cached = tmp_path / "hub" / f"models--owner--{name}"
        snapshot = shutil.copytree(folder, cached / "snapshots" / ("a" * 40))
        change(Path(snapshot))
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert same(load_base("owner/whole"), sd_base)
    assert same(load_base("owner/half"), sd_base, tolerance=1e-3)
    with pytest.raises(CheckpointError, match=r"owner/other is not in the hub's cache.*mirror.*local"):
        load_base("owner/other")


@pytest.mark.parametrize("form", [None, *FORMS])
def test_only_the_best_weights_are_downloaded(
    folder: Path, sd_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str | None
) -> None:
    if form:
        FORMS[form](folder)
    for name in ("v1.ckpt", "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/flax_model.msgpack"):
        (folder / name).write_bytes(bytes(9))
    target = tmp_path / "snapshot"

    def download(_repository: str, allow_patterns: list[str]) -> str:
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)
        return str(target)

    monkeypatch.setattr("s3diff_training.network.base.snapshot_download", download)
    assert same(load_base("owner/base"), sd_base, tolerance=1e-3)
    assert not [
        path for path in target.rglob("*") if path.suffix in (".ckpt", ".msgpack") or "ema" in path.name
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RepositoryNotFoundError, "is not on the hub: deleted, renamed, private, or misspelt"),
        (GatedRepoError, "only after its licence is accepted"),
        (LocalEntryNotFoundError, "the hub cannot be reached"),
        (OSError, "cannot be had from the hub: no luck"),
    ],
)
def test_a_hub_id_that_is_gone_names_other_ways(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], words: str
) -> None:
    def download(_repository: str, allow_patterns: list[str]) -> str:
        if issubclass(error, RepositoryNotFoundError):
            request = httpx2.Request("GET", "https://hub")
            raise error("no luck", response=httpx2.Response(404, request=request))
        raise error("no luck")

    monkeypatch.setattr("s3diff_training.network.base.snapshot_download", download)
    with pytest.raises(CheckpointError, match=rf"owner/gone .*{words}.*a mirror.*a local diffusers folder"):
        load_base("owner/gone")
