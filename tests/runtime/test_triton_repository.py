"""`s3diff-export triton-repository`: what it writes, and what it refuses; the server that loads it is in
test_triton_server.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.fake_engines import add_engines

from s3diff_export import cli
from s3diff_runtime.bundle.engine_records import Profile
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import RequestError
from s3diff_runtime.serving.picture_request import read_texts
from s3diff_runtime.serving.served_model import ServedModel

SIZES = {"min": 8, "opt": 40, "max": 64}
TUNED = Profile.model_validate(
    {"batch": {"min": 1, "opt": 1, "max": 4}, "height": SIZES, "width": {**SIZES, "opt": 48}}
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", "dynamic")


def write(bundle: Path, *options: str) -> int:
    output = str(bundle.parent / "models")
    return cli.run(cli.cli, ["triton-repository", str(bundle), "-o", output, *options])


def configuration(bundle: Path, name: str = "s3diff") -> str:
    return (bundle.parent / "models" / name / "config.pbtxt").read_text()


def test_a_model_holds_the_files_of_the_bundle_and_no_others(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    assert write(bundle) == 0
    model = bundle.parent / "models" / "s3diff"
    copy = model / "1" / "bundle"
    assert Manifest.read(copy, check="hashes") == Manifest.read(bundle)
    assert not (copy / "notes.txt").exists()
    assert {path.name for path in model.iterdir()} == {"1", "config.pbtxt"}
    assert {path.name for path in (model / "1").iterdir()} == {"bundle", "model.py"}


def test_bundles_of_the_hubs_cache_become_files(bundle: Path) -> None:
    snapshot = bundle.parent / "models--owner--name" / "snapshots" / "1234"
    blobs = snapshot.parents[1] / "blobs"
    for index, path in enumerate(path for path in sorted(bundle.rglob("*")) if path.is_file()):
        link, blob = snapshot / path.relative_to(bundle), blobs / f"{index:040}"
        for folder in (link.parent, blobs):
            folder.mkdir(parents=True, exist_ok=True)
        path.replace(blob)
        link.symlink_to(blob)
    output = bundle.parent / "models"
    assert cli.run(cli.cli, ["triton-repository", str(snapshot), "-o", str(output)]) == 0
    assert not [path for path in output.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            (),
            ["max_batch_size: 4", "max_queue_size: 16", "_timeout_microseconds: 60000000", "kind: KIND_CPU"],
        ),
        (
            ("--batch", "2"),
            ["max_batch_size: 2", 'key: "batch" value { string_value: "2" }', "batch_size: 2"],
        ),
        (("--queue", "3", "--timeout", "0.5"), ["max_queue_size: 3", "default_timeout_microseconds: 500000"]),
        (("--delay", "1.5"), ["max_queue_delay_microseconds: 1500"]),
        (("--device", "all"), ["{ count: 1 kind: KIND_GPU }"]),
        (("--device", "cuda:0,cuda:2"), ["KIND_GPU gpus: [ 0 ] }", "KIND_GPU gpus: [ 2 ] }"]),
        (
            ("--tile", "64", "--engine", "onnx"),
            ['key: "tile"', 'key: "engine" value { string_value: "onnx" }'],
        ),
        (("--max-pixels", "9"), ['key: "max_pixels" value { string_value: "9" }']),
    ],
)
def test_options_become_configuration(bundle: Path, options: tuple[str, ...], expected: list[str]) -> None:
    assert write(bundle, *options) == 0
    text = configuration(bundle)
    assert not [each for each in expected if each not in text]
    given = set(re.findall(r'parameters { key: "(\w+)"', text))
    assert given == {option[2:].replace("-", "_") for option in options[::2]} & {
        "batch", "tile", "engine", "max_pixels",
    }  # fmt: skip


def test_warm_up_has_the_size_that_engines_are_tuned_for(bundle: Path) -> None:
    assert write(bundle) == 0
    assert "dims: [128, 128, 3] random_data: true" in configuration(bundle)
    add_engines(bundle, profile=TUNED)
    assert write(bundle, "--force") == 0
    assert "dims: [40, 48, 3] random_data: true" in configuration(bundle)


def test_other_models_stay_and_only_models_are_replaced(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(bundle, "--name", "first") == 0
    assert write(bundle, "--name", "second") == 0
    before = configuration(bundle, "first")
    assert write(bundle, "--name", "second", "--queue", "5") == 2
    assert "second exists; pass --force to replace it" in capsys.readouterr().err
    assert write(bundle, "--name", "second", "--queue", "5", "--force") == 0
    assert "max_queue_size: 5" in configuration(bundle, "second")
    assert configuration(bundle, "first") == before
    (bundle.parent / "models" / "photos" / "of mine").mkdir(parents=True)
    assert write(bundle, "--name", "photos", "--force") == 2
    assert "photos is no model of Triton" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--name", "../away"), "name is '../away', expected letters"),
        (("--name", ""), "name is '', expected letters"),
        (("--engine", "fast"), "unknown engine 'fast'; expected auto"),
        (("--device", "gpu"), "unknown device 'gpu'"),
        (("--device", "cuda:0,cuda"), "more than once"),
        (("--queue", "0", "--timeout", "0"), "queue is 0, expected 1 or more; timeout is 0.0"),
    ],
)
def test_wrong_requests_are_refused_and_write_nothing(
    bundle: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(bundle, *options) == 2
    assert message in capsys.readouterr().err
    assert not (bundle.parent / "models").exists()


def test_a_damaged_bundle_is_refused_and_leaves_nothing(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "onnx" / "unet.onnx").write_bytes(b"")
    assert write(bundle) == 2
    assert "onnx/unet.onnx has 0 bytes" in capsys.readouterr().err
    assert not (bundle.parent / "models").exists()


def test_a_configuration_says_what_it_does_not_know() -> None:
    served = read_texts(ServedModel, {"tile": "64", "engine": "onnx"}.items())
    assert (served.options.tile, served.engine) == (64, "onnx")
    assert served.options.given == {"tile"}
    with pytest.raises(RequestError, match=r"unknown parameter 'tiles', expected engine, max_pixels, t"):
        read_texts(ServedModel, [("tiles", "64")])
    with pytest.raises(RequestError, match="tile is 'large', expected a whole number"):
        read_texts(ServedModel, [("tile", "large")])
