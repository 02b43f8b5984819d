"""The manifest of a bundle: what it accepts, and what is said of bundles that are damaged or do not fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tests.runtime.fake_bundle import edit_manifest, file_records, write_fake_bundle

from s3diff_runtime.bundle.integrity import HASHED_BELOW
from s3diff_runtime.bundle.manifest import Manifest, Prompts
from s3diff_runtime.bundle.records import FileRecord
from s3diff_runtime.errors import BundleError, JobError
from s3diff_runtime.files import replacing
from s3diff_runtime.lora_modes import LoraMode
from s3diff_runtime.upscaler import Upscaler

Edit = Callable[[dict[str, Any]], object]
UNET = "onnx/unet.onnx"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("pristine"), "dynamic", external_data=True)


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def problem(folder: Path, **options: Any) -> str:  # noqa: ANN401
    with pytest.raises(BundleError) as raised:
        Manifest.read(folder, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert raised.value.exit_code == 2
    return message


@pytest.mark.parametrize("mode", ["merged", "dynamic", "fused"])
def test_written_is_what_is_read(tmp_path: Path, mode: LoraMode) -> None:
    manifest = Manifest.read(write_fake_bundle(tmp_path, mode, prompts="runtime"), "hashes")
    assert manifest.lora_mode == mode
    assert bool(manifest.bins) == (mode == "merged")
    manifest.write(tmp_path / "again")
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (tmp_path / "manifest.json").read_bytes()


def test_manifest_cannot_be_changed(bundle: Path) -> None:
    with pytest.raises(ValidationError, match=r"frozen"):
        Manifest.read(bundle).precision = "fp16"


def test_json_schema_names_every_field() -> None:
    schema = Manifest.model_json_schema()
    assert set(schema["properties"]) == set(Manifest.model_fields)
    json.dumps(schema)


# --- the text -------------------------------------------------------------------------------------


def test_folder_without_manifest(tmp_path: Path) -> None:
    assert "is not a bundle: it has no manifest.json" in problem(tmp_path)
    assert "does not exist" in problem(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b'{"format": "s3diff-bun', b"\xff\xfe\x00", b"not json"])
def test_damaged_text(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    assert "is damaged, it is not JSON" in problem(bundle)


def test_truncated_text(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:-100])
    assert "is damaged" in problem(bundle)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "other"}', "3"])
def test_json_of_something_else(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content)
    assert "is not the manifest of a bundle" in problem(bundle)


def test_manifest_that_is_no_file_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "manifest.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert "manifest.json is a link that leaves the bundle" in problem(bundle)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "manifest.json is a link that leaves the bundle" in problem(bundle)
    path.unlink()
    path.symlink_to("manifest.json")
    assert "manifest.json is a circle of links" in problem(bundle)
    path.unlink()
    os.mkfifo(path)
    assert "manifest.json is no regular file" in problem(bundle)


def test_manifest_of_many_bytes(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(65 * 2**20)
    assert "more than 64 MiB" in problem(bundle)


@pytest.mark.parametrize("depth", [200, 300, 1100, 200_000])
def test_nested_manifest(bundle: Path, depth: int) -> None:
    text = (bundle / "manifest.json").read_text().rstrip().removesuffix("}")
    nested = "[" * depth + "]" * depth
    (bundle / "manifest.json").write_text(
        text.replace('"reports": {}', f'"reports": {{"deep": {nested}}}') + "}"
    )
    assert "is damaged, it is not JSON (recursion limit" in problem(bundle)


def test_text_that_is_none(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"reports": {}', '"reports": {"name": "\\ud800"}'))
    assert "it is not JSON (unexpected end of hex escape" in problem(bundle)


def test_pipe_and_circle_in_the_place_of_files(bundle: Path) -> None:
    (bundle / UNET).unlink()
    os.mkfifo(bundle / UNET)
    (bundle / f"{UNET}.data").unlink()
    (bundle / f"{UNET}.data").symlink_to("unet.onnx.data")
    message = problem(bundle)
    assert f"{UNET} is no regular file" in message
    assert f"{UNET}.data is a circle of links" in message


def test_folder_of_graphs_that_lies_elsewhere_is_not_looked_into(bundle: Path, tmp_path: Path) -> None:
    (bundle / "onnx").rename(tmp_path / "onnx")
    (tmp_path / "onnx" / "secret.txt").touch()
    (bundle / "onnx").symlink_to(tmp_path / "onnx")
    assert "secret" not in problem(bundle)


def test_bundle_that_a_killed_build_moved_aside_comes_back(bundle: Path) -> None:
    aside = bundle.parent / ".s3diff-0123456789abcdef.partial" / "replaced"
    aside.mkdir(parents=True)
    bundle.rename(aside / "bundle")
    assert Manifest.read(bundle).lora_mode == "dynamic"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_newer_revision(bundle: Path) -> None:
    edit_manifest(bundle, lambda content: content.update(revision=2, novelty="unknown to us"))
    assert "has revision 2 and this version reads 1: update s3diff-export" in problem(bundle)


def test_all_problems_at_once(bundle: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        del content["precision"]
        content["extra"] = 1
        content["sources"]["checkpoint"]["sha256"] = "short"
        content["multiple"] = 10

    edit_manifest(bundle, spoil)
    message = problem(bundle)
    for part in ("precision: ", "extra: ", "sources.checkpoint.sha256: ", "multiple: ", "rebuild"):
        assert part in message


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda c: c.update(degradation_axes=["blur", "blur"]), "noise and blur, each once"),
        (lambda c: c.update(lora_mode="merged"), "lora_mode merged with 0 bins"),
        (lambda c: c.update(bins=[{"name": "a", "noise": 0, "blur": 2}]), "bins.0.blur: "),
        (lambda c: c.update(created="yesterday"), "created: "),
        (lambda c: c.update(created="2025-01-01T00:00:00+02:00"), "not an ISO 8601 time in UTC"),
        (lambda c: c["stages"].pop("vae_decoder"), "stage vae_decoder is missing"),
        (lambda c: c["stages"].pop("modulation"), "stage modulation is missing"),
        (lambda c: c["stages"].update(surprise=c["stages"]["unet"]), "stage surprise is not expected"),
        (lambda c: c["color_fixes"].remove("adain"), "stage finish_adain is not expected"),
        (lambda c: c["stages"]["unet"]["graphs"].update(n0="x"), "stage unet has graphs for"),
        (lambda c: c["files"].pop(UNET), f"graph '{UNET}' of stage unet is missing in files"),
        (lambda c: c["guidance"].update(mode="off"), "anything that makes its input guidance"),
        (lambda c: c["prompts"].update(mode="runtime"), "stage text_encoder is missing"),
        (lambda c: c["prompts"].update(mode="runtime"), "need tokenizer and max_length"),
        (lambda c: c["stages"]["unet"]["inputs"].pop(1), "stage unet lacks the input guidance"),
        (lambda c: c["stages"]["vae_encoder"]["outputs"].pop(), "stage vae_encoder lacks the output latent"),
        (
            lambda c: c["stages"]["finish_none"]["inputs"].pop(),
            "stage finish_none lacks the input enlarged or image",
        ),
        (
            lambda c: c["stages"]["estimator"]["inputs"][0].update(dtype="float32"),
            "image of stage estimator is float32 ['N', 'H', 'W', 3], expected uint8 ['batch', 'height', ",
        ),
        (
            lambda c: c["stages"]["estimator"]["outputs"][0].update(shape=["N", 3]),
            "degradation of stage estimator is float32 ['N', 3], expected float32 ['batch', 2]",
        ),
        (
            lambda c: c["stages"]["vae_decoder"]["inputs"].append(
                {"name": "skip", "dtype": "float32", "shape": ["N"]}
            ),
            "stage vae_decoder lacks anything that makes its input skip",
        ),
    ],
)
def test_inconsistent(bundle: Path, edit: Edit, expected: str) -> None:
    edit_manifest(bundle, edit)
    assert expected in problem(bundle)


def test_stages_may_pass_on_tensors_of_their_own(bundle: Path) -> None:
    def connect(content: dict[str, Any]) -> None:
        skip = {"name": "skip_0", "dtype": "float32", "shape": ["N", 8, "h", "w"]}
        content["stages"]["vae_encoder"]["outputs"].append(skip)
        content["stages"]["vae_decoder"]["inputs"].append(skip)

    edit_manifest(bundle, connect)
    assert Manifest.read(bundle).stages["vae_decoder"].inputs[-1].name == "skip_0"


def test_names_of_bins_must_differ(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    edit_manifest(tmp_path, lambda content: content["bins"].append(content["bins"][0]))
    assert "names of bins must differ" in problem(tmp_path)


# --- paths ----------------------------------------------------------------------------------------

OUTSIDE = [
    "../unet.onnx",
    "onnx/../../unet.onnx",
    "onnx/../unet.onnx",
    "/etc/passwd",
    "C:/unet.onnx",
    "onnx\\unet.onnx",
    "",
    ".",
    "./unet.onnx",
    "onnx//unet.onnx",
    "manifest.json",
    "onnx/unet\n.onnx",
    "onnx/unet.onnx\0",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_are_not_inside(bundle: Path, path: str) -> None:
    def point_outside(content: dict[str, Any]) -> None:
        content["stages"]["unet"]["graphs"]["shared"] = path
        content["files"][path] = content["files"][UNET]

    edit_manifest(bundle, point_outside)
    message = problem(bundle)
    assert message.count("is not a plain relative path inside the bundle") == 2


@pytest.mark.parametrize("path", OUTSIDE)
def test_tokenizer_must_be_inside(path: str) -> None:
    with pytest.raises(ValidationError, match=r"plain relative path"):
        Prompts(mode="runtime", positive="", negative="", max_length=8, tokenizer=path)


def test_link_that_leaves_the_bundle(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (bundle / UNET).rename(outside)
    (bundle / UNET).symlink_to(outside)
    assert f"{UNET} is a link that leaves the bundle" in problem(bundle)


def test_linked_folder_that_leaves_the_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / "onnx").rename(tmp_path / "onnx")
    (bundle / "onnx").symlink_to(tmp_path / "onnx")
    assert f"{UNET} is a link that leaves the bundle" in problem(bundle)


def test_links_of_the_hubs_cache(bundle: Path, tmp_path: Path) -> None:
    """`snapshots/<revision>` holds links to `blobs`, and to nothing else."""
    repository = tmp_path / "models--me--demo"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in bundle.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        for folder in (snapshot, tmp_path / "elsewhere"):
            link = folder / path.relative_to(bundle)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blobs / str(number))
    with Upscaler.open(snapshot) as upscaler:
        assert upscaler(np.full((8, 8, 3), 40, np.uint8)).pixels.shape == (32, 32, 3)
    leaves = "is a link that leaves the bundle; copy what it leads to (cp -rL BUNDLE COPY)"
    assert leaves in problem(tmp_path / "elsewhere")
    (repository / "other").mkdir()
    (blobs / "0").rename(repository / "other" / "0")
    link = next(path for path in snapshot.rglob("*") if path.is_symlink() and not path.exists())
    link.unlink()
    link.symlink_to(repository / "other" / "0")
    assert leaves in problem(snapshot)


def test_a_linked_bundle_is_fine(bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(bundle)
    assert Manifest.read(link)


# --- files ----------------------------------------------------------------------------------------


def test_every_damaged_file_is_named(bundle: Path) -> None:
    truncated, altered = bundle / UNET, bundle / "onnx" / "estimator.onnx"
    size = truncated.stat().st_size
    truncated.write_bytes(truncated.read_bytes()[:-1])
    altered.write_bytes(altered.read_bytes()[:-1] + b"!")
    (bundle / "onnx" / "vae_decoder.onnx").unlink()
    message = problem(bundle)
    assert f"{UNET} has {size - 1} bytes, expected {size}" in message
    assert "onnx/estimator.onnx was altered (sha256 " in message
    assert "onnx/vae_decoder.onnx is missing" in message
    assert "copy the bundle again or rebuild it" in message


def test_external_weights_are_checked(bundle: Path) -> None:
    data = bundle / f"{UNET}.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    assert f"{UNET}.data was altered" in problem(bundle)


def test_external_weights_must_be_recorded(bundle: Path) -> None:
    edit_manifest(bundle, lambda content: content["files"].pop(f"{UNET}.data"))
    assert f"{UNET}.data is not in the manifest" in problem(bundle)


def test_litter_of_desktops_is_ignored(bundle: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (bundle / "onnx" / name).write_bytes(b"litter")
    (bundle / "notes.txt").write_text("no graph lies beside this")
    assert Manifest.read(bundle)


def test_large_files_are_hashed_on_request(bundle: Path) -> None:
    large = bundle / "weights.bin"
    large.write_bytes(bytes(HASHED_BELOW))
    record = dict(file_records(bundle))["weights.bin"]
    edit_manifest(bundle, lambda content: content["files"].update({"weights.bin": record.model_dump()}))
    large.write_bytes(b"!" + bytes(HASHED_BELOW - 1))
    assert Manifest.read(bundle)
    assert "weights.bin was altered" in problem(bundle, check="hashes")


def test_folder_in_the_place_of_a_file(bundle: Path) -> None:
    (bundle / UNET).unlink()
    (bundle / UNET).mkdir()
    assert f"{UNET} is no regular file" in problem(bundle)


def test_size_cannot_be_negative() -> None:
    with pytest.raises(ValidationError):
        FileRecord(sha256="0" * 64, size=-1)


# --- atomic writing -------------------------------------------------------------------------------


def test_replacing_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    with replacing(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_replacing_says_why_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(JobError, match=r"could not write .*; check the disk"),
        replacing(tmp_path / "file" / "x"),
    ):
        pass
