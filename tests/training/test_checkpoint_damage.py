"""Checkpoint files that are broken, unsafe, of another version or of another kind: refused, never run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from s3diff_runtime.errors import CheckpointError, RequestError
from s3diff_training.checkpoints.native import read_checkpoint


def with_metadata(source: Path, path: Path, **changes: str | None) -> Path:
    """Write a copy of a checkpoint with some metadata replaced, or left out where None."""
    with safe_open(source, framework="pt") as file:
        metadata = {**file.metadata(), **changes}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {key: value for key, value in metadata.items() if value is not None})
    return path


class Malicious:
    """Unpickled carelessly, this makes a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("protocol", ["torch", "plain pickle"])
def test_a_pickle_that_runs_code_is_refused(released_folder: Path, tmp_path: Path, protocol: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "s3diff.pkl"
    content = {"state_dict_unet": Malicious(victim)}
    if protocol == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="none that runs code"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="none that runs code"):
        read_checkpoint(released_folder / "s3diff.pkl", path)
    assert not victim.exists()
    torch.load(path, weights_only=False) if protocol == "torch" else pickle.loads(path.read_bytes())
    assert victim.exists()  # so the file was as bad as it was meant to be


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.999])
@pytest.mark.parametrize("kind", ["native", "released", "estimator"])
def test_a_truncated_file_is_refused(
    native_file: Path, released_folder: Path, tmp_path: Path, kind: str, kept: float
) -> None:
    whole = {
        "native": native_file,
        "released": released_folder / "s3diff.pkl",
        "estimator": released_folder / "de_net.pth",
    }[kind]
    part = tmp_path / whole.name
    content = whole.read_bytes()
    part.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=part.name):
        read_checkpoint(native_file, part) if kind == "estimator" else read_checkpoint(part)


@given(content=st.binary(max_size=300), suffix=st.sampled_from([".safetensors", ".pkl", ""]))
@settings(max_examples=60)
def test_garbage_is_refused(content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / f"garbage{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@given(changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=80)
def test_damaged_bytes_raise_our_error_or_nothing(
    changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    torch.save({"rank_unet": 3, "w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)  # at best it lacks the other parts


def test_a_missing_file_and_other_contents_are_named(native_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist"):
        read_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match=r"de_net\.pth does not exist"):
        read_checkpoint(native_file, tmp_path / "de_net.pth")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is not an S3Diff checkpoint"):
        read_checkpoint(tmp_path / "other.safetensors")
    torch.save([1, 2], tmp_path / "list.pkl")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pkl")
    torch.save({"params": {"a": torch.ones(1)}}, tmp_path / "nested.pth")
    with pytest.raises(CheckpointError, match=r"80 missing.*1 unexpected \(estimator\.a\)"):
        read_checkpoint(native_file, tmp_path / "nested.pth")
    torch.save({"params": {"a": "b"}}, tmp_path / "nested.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors: 'a' is a str"):
        read_checkpoint(native_file, tmp_path / "nested.pth")


def test_released_files_that_lack_a_part_are_refused(released_folder: Path, tmp_path: Path) -> None:
    content = torch.load(released_folder / "s3diff.pkl", weights_only=True)
    path = tmp_path / "s3diff.pkl"
    torch.save({key: value for key, value in content.items() if key not in ("w", "state_dict_vae")}, path)
    with pytest.raises(CheckpointError, match="lacks w, state_dict_vae"):
        read_checkpoint(path)
    for key, wrong in {"rank_unet": "many", "state_dict_unet": [1], "state_embeddings": {}, "w": 3}.items():
        torch.save({**content, key: wrong}, path)
        with pytest.raises(CheckpointError, match="in another layout"):
            read_checkpoint(path)
    torch.save({**content, "rank_vae": -4}, path)
    with pytest.raises(RequestError, match="rank_vae is -4"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"revision": "2"}, "has format revision 2, this version reads up to 1; update"),
        ({"revision": "two"}, "metadata of .* is damaged"),
        ({"revision": None}, "metadata of .* is damaged"),
        ({"config": None}, "metadata of .* is damaged"),
        ({"config": "{"}, "metadata of .* is damaged"),
        ({"config": "[1]"}, "metadata of .* is damaged|unknown network option"),
        ({"config": '{"rank_unet": "5"}'}, "rank_unet is '5', expected a whole number"),
        ({"config": '{"rank_unet": -5, "guidance": -1}'}, "rank_unet is -5.*guidance is -1"),
        ({"config": '{"tomorrow": 1}'}, "unknown network option tomorrow; update"),
        ({"format": "another"}, "is not an S3Diff checkpoint"),
        ({"config": '{"rank_unet": Infinity}'}, "rank_unet is inf, expected a whole number"),
        ({"config": '{"rank_unet": 1.5}'}, "rank_unet is 1.5, expected a whole number"),
        ({"config": '{"rank_unet": 1000000}'}, "rank_unet is 1000000, expected from 0 to 1024"),
        ({"config": '{"rank_vae": 7}'}, r"not of its configuration: .*mis-shaped \("),
        ({"config": '{"rank_vae": 0}'}, r"not of its configuration: .*unexpected \("),
        ({"config": '{"lora_alpha": NaN}'}, "lora_alpha is nan"),
        ({"config": '{"lora_alpha": 1' + "0" * 400 + "}"}, "lora_alpha is 1|damaged"),
        ({"config": '{"unet_targets": []}'}, "unet_targets are no names of layers"),
        ({"config": '{"unet_targets": [7]}'}, "unet_targets are no names of layers"),
        (
            {"config": '{"rank_unet": 5, "rank_vae": 3, "unet_targets": ["to_q"]}'},
            r"\d+ unexpected \(unet\.",
        ),
        ({"config": '{"rank_unet": 5, "unet_targets": ["nothing"]}'}, "has no LoRA of the unet, though"),
        (
            {"config": '{"fourier_features": []}'},
            r"fourier_features is \(\), expected a whole number",
        ),
        ({"config": '{"rank_unet": [5]}'}, r"rank_unet is .5,., expected a whole number"),
        ({"config": '{"rank_unet": null}'}, r"rank_unet is None, expected a whole number"),
        ({"config": '{"start_step": [9]}'}, r"start_step is .9,., expected a whole number"),
        ({"config": '{"modulation": []}'}, r"modulation is .., expected one of per-block, shared, none"),
        ({"config": '{"degradation_axes": null}'}, "degradation_axes is None, expected a value"),
        ({"config": '{"guidance": []}'}, r"guidance is .., expected a number"),
        ({"config": '{"vae_targets": ""}'}, "vae_targets is no simple regular expression"),
        ({"config": '{"vae_targets": "("}'}, "vae_targets is no simple regular expression"),
        ({"config": '{"vae_targets": "(.+)+x"}'}, "vae_targets is no simple regular expression"),
        ({"config": '{"positive_prompt": "\\ud800"}'}, "positive_prompt is no text"),
        ({"config": '{"degradation_axes": [1, "blur"]}'}, "degradation_axes"),
        ({"config": "[" * 5000}, "metadata of .* is damaged"),
        ({"provenance": "7"}, "provenance is no dictionary of texts"),
        ({"provenance": '{"a": {"b": 1}}'}, "provenance is no dictionary of texts"),
    ],
)
def test_metadata_of_another_version_or_damaged_is_refused(
    native_file: Path, tmp_path: Path, metadata: dict[str, str | None], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        read_checkpoint(with_metadata(native_file, tmp_path / "changed.safetensors", **metadata))
