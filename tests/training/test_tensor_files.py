"""Files of weights as others make them, as they break, and as somebody would make them to do harm."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fuzz.mutations import hostile_tensors

from s3diff_runtime.errors import CheckpointError
from s3diff_training.checkpoints.checkpoint import Checkpoint
from s3diff_training.checkpoints.native import read_checkpoint
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.tensor_files import open_tensor_file

Renaming = Callable[[str], str]


@pytest.fixture
def released(released_folder: Path) -> dict[str, Any]:
    """Return the content of `s3diff.pkl`."""
    content: dict[str, Any] = torch.load(released_folder / "s3diff.pkl", weights_only=True)
    return content


@pytest.fixture
def estimator(released_folder: Path) -> dict[str, torch.Tensor]:
    """Return the content of `de_net.pth`."""
    content: dict[str, torch.Tensor] = torch.load(released_folder / "de_net.pth", weights_only=True)
    return content


def saved(content: object, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def same(found: Checkpoint, expected: Checkpoint) -> bool:
    return found.tensors.keys() == expected.tensors.keys() and all(
        tensor.equal(expected.tensors[name]) for name, tensor in found.tensors.items()
    )


# --- as others write them -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "_fsdp_wrapped_module.", "net."],
)
def test_what_programs_write_before_names_is_taken_off(
    released: dict[str, Any],
    estimator: dict[str, Any],
    checkpoint: Checkpoint,
    native_file: Path,
    tmp_path: Path,
    prefix: str,
) -> None:
    def prefixed(content: dict[str, Any]) -> dict[str, Any]:
        return {prefix + name: tensor for name, tensor in content.items()}

    nested = {k: prefixed(v) if k.startswith("state_dict_") else v for k, v in released.items()}
    found = read_checkpoint(
        saved(nested, tmp_path / "s3diff.pkl"), saved(prefixed(estimator), tmp_path / "de_net.pth")
    )
    assert same(found, checkpoint)
    metadata = open_tensor_file(native_file).metadata
    save_file(prefixed(load_file(native_file)), tmp_path / "a.safetensors", dict(metadata or {}))
    assert same(read_checkpoint(tmp_path / "a.safetensors"), checkpoint)


@pytest.mark.parametrize("adapter", [".default_0", ".default", ".my_vae", ""])
def test_adapters_of_any_name_are_read(
    released: dict[str, Any], checkpoint: Checkpoint, released_folder: Path, tmp_path: Path, adapter: str
) -> None:
    vae = {name.replace(".vae_skip", adapter): tensor for name, tensor in released["state_dict_vae"].items()}
    path = saved({**released, "state_dict_vae": vae}, tmp_path / "s3diff.pkl")
    assert same(read_checkpoint(path, released_folder / "de_net.pth"), checkpoint)


def test_two_adapters_are_no_one_network(released: dict[str, Any], tmp_path: Path) -> None:
    vae = released["state_dict_vae"]
    vae |= {name.replace(".vae_skip", ".default"): tensor for name, tensor in vae.items()}
    with pytest.raises(CheckpointError, match=r"lora_A\.weight twice, as .*vae_skip.* and .*default"):
        read_checkpoint(saved(released, tmp_path / "s3diff.pkl"))


@pytest.mark.parametrize("wrapper", ["params", "params_ema", "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_are_taken_off(
    released: dict[str, Any],
    estimator: dict[str, Any],
    checkpoint: Checkpoint,
    tmp_path: Path,
    wrapper: str,
    zipped: bool,
) -> None:
    inner, outer = ({wrapper: content, "step": 3} for content in (estimator, released))
    found = read_checkpoint(
        saved(outer, tmp_path / "s3diff.pkl", zipped),
        saved({"state_dict": inner}, tmp_path / "de_net.pth", zipped),
    )
    assert same(found, checkpoint)


def test_the_averaged_weights_are_preferred(
    estimator: dict[str, Any], released_folder: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    both = {"params": DegradationEstimator().state_dict(), "params_ema": estimator}
    found = read_checkpoint(released_folder / "s3diff.pkl", saved(both, tmp_path / "de_net.pth"))
    assert same(found, checkpoint)


def test_a_file_is_told_by_its_content(
    native_file: Path,
    released_folder: Path,
    checkpoint: Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copy(native_file, tmp_path / "ours.pkl")
    assert same(read_checkpoint(tmp_path / "ours.pkl"), checkpoint)
    assert "is a safetensors file, whatever its name says" in caplog.text
    shutil.copy(released_folder / "s3diff.pkl", tmp_path / "theirs.safetensors")
    with pytest.raises(CheckpointError, match=r"a pickle of torch\.save, whatever its name says; rename it"):
        read_checkpoint(tmp_path / "theirs.safetensors")


def test_files_that_were_swapped_are_named(released_folder: Path) -> None:
    s3diff, de_net = released_folder / "s3diff.pkl", released_folder / "de_net.pth"
    with pytest.raises(CheckpointError, match="is an estimator; pass it as --estimator"):
        read_checkpoint(de_net)
    with pytest.raises(CheckpointError, match="holds S3Diff's weights; pass it as --checkpoint"):
        read_checkpoint(s3diff, s3diff)


# --- not weights at all ---------------------------------------------------------------------------


def zip_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n",
            "a Git LFS pointer.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>", "a web page.*/resolve/"),
        (b"\xef\xbb\xbf<html>", "a web page"),
        (b"Entry not found", "a text that begins with 'Entry not found'"),
        (b'{"error": "no"}', "a text that begins with"),
        (b"", "is empty"),
        (bytes(4000), "full of zeros"),
        (gzip.compress(b"weights", mtime=0), "a gzip archive.*unpack it"),
        (zip_of(weights=b"1"), "a zip archive, and none that torch.save made.*unpack it"),
        (zip_of(**{"a/data.pkl": b"\x80\x02}." + bytes(10**6)}), "unpacks to more than it is"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (b"GGUF" + bytes(40), "a GGUF file"),
        (pickle.dumps({"a": 1}, 2), "a pickle that torch.save did not write"),
        (pickle.dumps({"a": 1}, 4), "a pickle that torch.save did not write"),
        (pickle.dumps(argparse.Namespace(), 2), r"other objects than tensors \(.*argparse\.Namespace"),
        (pickle.dumps(argparse.Namespace(), 4), r"other objects than tensors \(argparse\.Namespace"),
        (b"\x07\xfe\x11\x00" * 30, "no format that is read here|damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, content: bytes, words: str, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as refusal:
        read_checkpoint(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_torchs_advice_to_load_unsafely_is_kept_back(
    estimator: dict[str, Any], tmp_path: Path, zipped: bool
) -> None:
    for objects in (torch.nn.Linear(2, 2), {"state_dict": estimator, "args": argparse.Namespace(a=1)}):
        with pytest.raises(CheckpointError, match="other objects than tensors") as refusal:
            open_tensor_file(saved(objects, tmp_path / "de_net.pth", zipped))
        assert "weights_only" not in str(refusal.value)
        assert "safe_globals" not in str(refusal.value)


def test_folders_and_pipes_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pkl")
    for path in (tmp_path, tmp_path / "pipe.pkl"):
        with pytest.raises(CheckpointError, match="is no regular file"):
            read_checkpoint(path)


# --- made to do harm ------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", range(len(hostile_tensors(None))))
def test_tensors_that_are_not_plain_are_refused(
    released: dict[str, Any], tmp_path: Path, place: int, zipped: bool
) -> None:
    tensor = hostile_tensors(None)[place]
    try:
        path = saved({**released, "w": tensor}, tmp_path / "s3diff.pkl", zipped)
    except (RuntimeError, NotImplementedError):
        pytest.skip("torch does not write it so")
    with pytest.raises(CheckpointError) as refusal:  # none of them has the right shape, if it is a plain one
        read_checkpoint(path)
    assert "\n" not in str(refusal.value)
    kind = "sparse" if tensor.layout != torch.strided else "meta" if tensor.is_meta else ""
    assert kind in str(refusal.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_memory_is_bounded_by_the_size_of_the_file(
    released_folder: Path, tmp_path: Path, zipped: bool
) -> None:
    path = saved({"a": torch.zeros(1).expand(10**10)}, tmp_path / "de_net.pth", zipped)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert path.stat().st_size < 2048
    with pytest.raises(CheckpointError, match=r"claims to hold more than its .* bytes can"):
        read_checkpoint(released_folder / "s3diff.pkl", path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def program(path: Path, pickled: bytes) -> Path:
    """Write a file of torch.save that holds that pickle."""
    whole = io.BytesIO()
    torch.save({"a": 1}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return path


def test_pickles_that_grow_are_refused(tmp_path: Path) -> None:
    """Of a few hundred bytes each, one of which would be hashed for ever."""
    doubling: object = ("a",)
    for _ in range(60):
        doubling = (doubling, doubling)
    hashed = b"\x80\x02}(" + pickle.dumps(doubling, 2)[2:-1] + b"K\x01u."
    encoded = b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR."
    zeros = b"\x80\x02cbuiltins\nbytearray\n(J\x00\x00\x00\x7ftR."
    for pickled in (hashed, encoded, zeros):
        with pytest.raises(CheckpointError, match=r"tuples within tuples|other objects than tensors \("):
            open_tensor_file(program(tmp_path / "a.pkl", pickled))


@pytest.mark.parametrize("dtype", ["F4", "I64", "C64", "F8_E4M3", "BOOL", "nonsense"])
def test_other_types_of_safetensors_are_refused(native_file: Path, tmp_path: Path, dtype: str) -> None:
    content = native_file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    header[first]["dtype"] = dtype
    written = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"is of type|damaged"):
        read_checkpoint(path)


def test_values_that_are_not_finite_are_not_read(
    checkpoint: Checkpoint, native_file: Path, tmp_path: Path
) -> None:
    metadata, tensors = open_tensor_file(native_file).metadata, load_file(native_file)
    tensors["estimator.body.0.0.conv1.bias"][3] = float("nan")
    save_file(tensors, tmp_path / "a.safetensors", dict(metadata or {}))
    with pytest.raises(CheckpointError, match=r"estimator\.body\.0\.0\.conv1\.bias .* not finite"):
        read_checkpoint(tmp_path / "a.safetensors")
