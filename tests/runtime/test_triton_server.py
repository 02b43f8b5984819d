"""The model in a real Triton server, over HTTP and gRPC, mostly on bundles of a few kilobytes."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from tests.fuzz.mutations import bytes_changed
from tests.runtime.fake_bundle import dark_noise, enlarged, estimate_of, expected_shift, write_fake_bundle
from tests.runtime.pictures import exif_with, with_alpha
from tests.runtime.triton_process import Ask, Running, failures, running
from tools.triton_server import install

from s3diff_export import cli
from s3diff_runtime import Upscaler
from s3diff_runtime.pictures.formats import FORMATS, encode

PROTOCOLS = ("http", "grpc")
REFUSED = {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}
BUSY = {"http": "503", "grpc": "StatusCode.UNAVAILABLE"}
FAILED = {"http": "500", "grpc": "StatusCode.INTERNAL"}
PIXELS = dark_noise(16, 24)
LARGE = dark_noise(480, 480)
BUSY_FOR_A_WHILE = [Ask("http", {"pixels": LARGE[None]}) for _ in range(5)]


def png(image: Image.Image, **options: object) -> np.ndarray:
    """A picture as the input `image` takes it."""
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)[None]


PHOTO = png(Image.fromarray(data.astronaut()[:160, 150:350]))


def write_model(bundle: Path, repository: Path, name: str, *options: str) -> None:
    arguments = ["triton-repository", str(bundle), "-o", str(repository), "--name", name, *options]
    assert cli.run(cli.cli, arguments) == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("triton") / "plain", "dynamic")


@pytest.fixture(scope="module")
def triton(plain: Path) -> Iterator[Running]:
    """Return a server with the model `plain`; its repository has others that tests load."""
    repository = plain.parent / "repository"
    try:
        install()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"Triton cannot be set up here: {error}")
    merged = write_fake_bundle(plain.parent / "merged", "merged")
    write_model(
        plain, repository, "plain", "--queue", "6", "--max-pixels", str(LARGE.size // 3), "--delay", "20"
    )
    write_model(merged, repository, "merged", "--tile", "64", "--batch", "2", "--threads", "1")
    write_model(plain, repository, "on-gpus", "--device", "all")
    write_model(plain, repository, "damaged")
    write_model(plain, repository, "wrong-engine", "--engine", "tensorrt")
    (repository / "damaged" / "1" / "bundle" / "onnx" / "unet.onnx").write_bytes(b"other bytes")
    with running(repository, "plain") as found:
        yield found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_photograph_comes_back_as_the_upscaler_makes_it(
    triton: Running, plain: Path, protocol: str
) -> None:
    (answer,) = triton.ask(Ask(protocol, {"image": PHOTO}))
    with Upscaler.open(plain) as upscale:
        expected = upscale(PHOTO.tobytes())
    assert not answer.status, answer.message
    assert answer.outputs["upscaled"].tobytes() == encode(expected.image, FORMATS["png"])[0]
    assert set(answer.outputs) == {"upscaled", "noise", "blur"}
    for axis, score in expected.applied.items():
        assert answer.outputs[axis].tolist() == [[pytest.approx(score)]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pixels_come_back_as_pixels_with_the_scores_that_were_set(triton: Running, protocol: str) -> None:
    settings = {"noise": 0.5, "blur": "0.25", "guidance": "1", "color_fix": "none"}
    if protocol == "grpc":  # which has no fractions in parameters
        settings["noise"] = "0.5"
    (answer,) = triton.ask(Ask(protocol, {"pixels": np.stack([PIXELS, PIXELS // 2])}, settings))
    shift = expected_shift(0.5, 0.25)
    found = answer.outputs["upscaled_pixels"]
    assert found.tolist() == [enlarged(PIXELS, shift).tolist(), enlarged(PIXELS // 2, shift).tolist()]
    assert answer.outputs["noise"].tolist() == [[0.5], [0.5]]
    assert answer.outputs["blur"].tolist() == [[0.25], [0.25]]


def test_scores_are_estimated_where_none_is_set(triton: Running) -> None:
    (answer,) = triton.ask(Ask("http", {"pixels": PIXELS[None]}, {"noise": "0.125"}))
    assert answer.outputs["noise"].tolist() == [[0.125]]
    assert answer.outputs["blur"].tolist() == [[pytest.approx(estimate_of(PIXELS)["blur"], abs=1e-5)]]


@pytest.mark.parametrize("format", ["jpeg", "webp", "tiff", "png"])
def test_files_have_the_format_and_the_metadata_that_were_asked_for(triton: Running, format: str) -> None:
    picture = png(Image.fromarray(PIXELS), exif=exif_with(6))
    (answer,) = triton.ask(Ask("http", {"image": picture}, {"format": format, "quality": 60}))
    with Image.open(BytesIO(answer.outputs["upscaled"].tobytes())) as result:
        assert result.format == format.upper()
        assert result.size == (4 * 16, 4 * 24)  # turned upright
        assert result.getexif()[315] == "A. Photographer"


def test_transparency_is_kept_and_the_answer_takes_the_form_that_was_asked_for(triton: Running) -> None:
    picture = png(with_alpha("RGBA"))
    as_file, as_pixels = triton.ask(
        Ask("http", {"image": picture}, outputs=("upscaled",)),
        Ask("http", {"image": picture}, outputs=("upscaled_pixels", "noise")),
    )
    with Image.open(BytesIO(as_file.outputs["upscaled"].tobytes())) as result:
        assert result.mode == "RGBA"
        assert set(as_file.outputs) == {"upscaled"}
        assert np.asarray(result.convert("RGB")).tolist() == as_pixels.outputs["upscaled_pixels"][0].tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask("", {"image": PHOTO[:, :500]}), "cannot be read: image file is truncated"),
        (Ask("", {"image": PHOTO[:, 10:]}), "is not a PNG, JPEG"),
        (Ask("", {"image": PHOTO, "pixels": PIXELS[None]}), "inputs are image and pixels, expected one of"),
        (Ask("", {"image": np.repeat(PHOTO, 2, 0)}), "2 files in a request, expected one"),
        (Ask("", {"pixels": np.stack([PIXELS] * 2)}, outputs=("upscaled",)), "ask for upscaled_pixels"),
        (Ask("", {"pixels": np.zeros((1, 0, 4, 3), np.uint8)}), "empty"),
        (Ask("", {"pixels": np.zeros((1, 481, 480, 3), np.uint8)}), "480x481 pixels, more than the limit"),
        (Ask("", {"image": PHOTO}, {"nosie": "0.5"}), "unknown parameter 'nosie', expected noise"),
        (
            Ask("", {"image": PHOTO}, {"noise": "2", "blur": "x"}),
            "blur is 'x', expected a number",
        ),
        (Ask("", {"image": PHOTO}, {"noise": "nan"}), "noise is nan, expected from 0 to 1"),
        (Ask("", {"image": PHOTO}, {"quality": True}), "quality is 'True', expected a whole number"),
        (Ask("", {"image": PHOTO}, {"format": "gif"}), "format is 'gif', expected one of png"),
        (Ask("", {"image": PHOTO}, {"prompt": "a cat"}), "has its prompts folded in"),
        (Ask("", {"image": png(with_alpha("RGBA"))}, {"format": "jpeg"}), "JPEG holds no transparency"),
        (Ask("", {}), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_requests_are_refused_in_words(triton: Running, protocol: str, ask: Ask, message: str) -> None:
    (answer,) = triton.ask(Ask(protocol, ask.inputs, ask.parameters, ask.outputs))
    assert answer.status == REFUSED[protocol]
    assert message in answer.message
    assert "\n" not in answer.message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_picture_that_fails_takes_no_other_with_it(triton: Running, protocol: str) -> None:
    # So much guidance makes the fake network's pictures white, which is none where there were many levels.
    white = {"guidance": "9", "color_fix": "none"}
    some_levels, many_levels = dark_noise(16, 24, brightest=60)[None], dark_noise(16, 24, brightest=255)[None]
    asks = [Ask(protocol, {"pixels": pixels}, white) for pixels in (some_levels, many_levels, some_levels)]
    done, failed, also_done = triton.ask(*asks)
    assert failed.status == FAILED[protocol]
    assert "one flat colour" in failed.message
    for answer in (done, also_done):
        assert answer.outputs["upscaled_pixels"].min() == 255


def test_requests_of_any_size_and_setting_share_calls(triton: Running) -> None:
    sizes = [(12, 16), (20, 8), (9, 31), (12, 16), (20, 20)]
    pictures = [dark_noise(*size, seed=number) for number, size in enumerate(sizes)]
    calls, done = triton.count("s3diff_calls_total"), triton.count("s3diff_requests_total", outcome="done")
    asks = [
        Ask("http", {"pixels": picture[None]}, {"noise": str(number / 8), "blur": "0", "color_fix": "none"})
        for number, picture in enumerate(pictures)
    ]
    for number, answer in enumerate(triton.ask(*asks)):
        expected = enlarged(pictures[number], expected_shift(number / 8, 0))
        assert answer.outputs["upscaled_pixels"][0].tolist() == expected.tolist()
    assert triton.count("s3diff_requests_total", outcome="done") == done + len(asks)
    assert triton.count("s3diff_calls_total") < calls + len(asks)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_the_queue_cannot_hold_is_refused_at_once(triton: Running, protocol: str) -> None:
    asks = [Ask(protocol, {"pixels": LARGE[None]}) for _ in range(16)]
    answers = triton.ask(*asks)
    assert 6 <= sum(not answer.status for answer in answers) < 16
    assert set(failures(answers)) == {BUSY[protocol]}
    assert "Exceeds maximum queue size" in next(answer.message for answer in answers if answer.status)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_waits_too_long_is_refused(triton: Running, protocol: str) -> None:
    late = Ask(protocol, {"pixels": PIXELS[None]}, timeout=1000, after=0.3)
    *answers, refused = triton.ask(*BUSY_FOR_A_WHILE, late)
    assert not failures(answers)
    assert refused.status == BUSY[protocol]
    assert "timeout expired" in refused.message


def test_who_hangs_up_is_not_computed(triton: Running) -> None:
    def computed() -> float:
        """Count what is done of some pictures, one whose client hangs up meanwhile, and one more."""
        before = triton.count("s3diff_requests_total", outcome="done")
        gone = Ask("grpc", {"pixels": PIXELS[None]}, after=0.2, gone_after=0.1)
        triton.ask(*BUSY_FOR_A_WHILE, gone)
        triton.ask(Ask("http", {"pixels": PIXELS[None]}))
        return triton.count("s3diff_requests_total", outcome="done") - before

    # They may be done before the client has gone: then it is tried again.
    assert any(computed() == len(BUSY_FOR_A_WHILE) + 1 for _ in range(5))


def test_mutated_pictures_are_refused_or_upscaled_and_never_fail(triton: Running) -> None:
    chance, whole = random.Random(0), png(with_alpha("RGBA")).tobytes()
    damaged = [bytes_changed(whole, chance) or b"nothing" for _ in range(128)]
    asks = [Ask("grpc", {"image": np.frombuffer(each, np.uint8)[None]}) for each in damaged]
    answers = [answer for start in range(0, len(asks), 6) for answer in triton.ask(*asks[start : start + 6])]
    assert set(failures(answers)) == {REFUSED["grpc"]}


def test_memory_stays_flat(triton: Running) -> None:
    ask = [Ask(protocol, {"pixels": dark_noise(128, 128)[None]}) for protocol in PROTOCOLS for _ in range(3)]
    for _ in range(2):
        assert not failures(triton.ask(*ask))
    before = triton.model_memory()
    assert before > 2**20
    for _ in range(10):  # 60 results of 768 KiB
        assert not failures(triton.ask(*ask))
    assert triton.model_memory() < before + 16 * 2**20


def test_the_model_says_what_it_takes(triton: Running) -> None:
    told = json.loads(triton.get("v2/models/plain")[1])
    assert [each["name"] for each in told["inputs"]] == ["image", "pixels"]
    assert [each["name"] for each in told["outputs"]] == ["upscaled", "upscaled_pixels", "noise", "blur"]
    assert triton.count("s3diff_stage_seconds_total", stage="unet", device="cpu", model="plain") > 0
    assert triton.count("s3diff_pixels_total") > 0


def test_merged_bundles_run_with_their_options(triton: Running) -> None:
    assert triton.get("v2/repository/models/merged/load", post=True)[0] == 200
    (answer,) = triton.ask(
        Ask(
            "grpc", {"pixels": PIXELS[None]}, {"noise": "1", "blur": "0", "color_fix": "none"}, model="merged"
        )
    )
    assert answer.outputs["upscaled_pixels"][0].tolist() == enlarged(PIXELS, expected_shift(1, 0)).tolist()
    assert triton.get("v2/repository/models/merged/unload", post=True)[0] == 200


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("damaged", "onnx/unet.onnx has 11 bytes, expected"),
        ("wrong-engine", "engine tensorrt runs on NVIDIA GPUs, and device cpu is none"),
        ("on-gpus", "GPU"),
    ],
)
def test_what_cannot_run_does_not_become_ready(triton: Running, name: str, message: str) -> None:
    status, text = triton.get(f"v2/repository/models/{name}/load", post=True)
    assert status == 400
    assert message in text
    assert triton.get(f"v2/models/{name}/ready")[0] == 400


def test_nothing_of_ours_complains_in_the_log(triton: Running) -> None:
    assert "Traceback" not in triton.log.read_text(errors="replace")


@pytest.mark.slow
def test_the_small_model_answers_a_photograph(triton: Running, plain: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "demo.bundle"
    assert cli.run(cli.cli, ["build", "--demo", "-o", str(bundle), "--no-verify"]) == 0
    write_model(bundle, plain.parent / "repository", "demo")
    assert triton.get("v2/repository/models/demo/load", post=True)[0] == 200
    with Upscaler.open(bundle) as upscale:
        expected = upscale(PHOTO.tobytes())
    for protocol in PROTOCOLS:
        (answer,) = triton.ask(Ask(protocol, {"image": PHOTO}, outputs=("upscaled_pixels",), model="demo"))
        found = answer.outputs["upscaled_pixels"][0].astype(int)
        assert np.abs(found - expected.pixels).max() <= 1
        assert found.std() > 20
