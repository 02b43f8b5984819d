"""`s3diff-export upscale`, from the command line to the files, on a bundle of a few kilobytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.runtime.fake_bundle import enlarged, write_fake_bundle
from tests.runtime.pictures import GREY, PICTURE, exif_with, png

from s3diff_export import cli
from s3diff_runtime.command_line import Member

ROOT = cli.RootGroup({"upscale": Member("s3diff_runtime.batch.upscaling:run_upscale", "Upscale.", "cpu")})
EXACT = ["--noise", "0", "--blur", "0", "--color-fix", "none"]
"""Settings under which the fake network repeats pixels."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle", "dynamic")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Path:
    """The working folder: three good pictures in `in`, each of another kind; a bundle in the environment."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.fromarray(PICTURE).save(tmp_path / "in" / "colour.png")
    Image.fromarray(GREY).save(tmp_path / "in" / "grey.tif")
    Image.fromarray(PICTURE).save(tmp_path / "in" / "deep" / "turned.jpg", exif=exif_with(6), quality=100)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("S3DIFF_BUNDLE", str(bundle))
    return tmp_path


class Upscale(Protocol):
    """The type of the fixture below."""

    def __call__(self, *arguments: str) -> tuple[int, str, str]: ...


@pytest.fixture
def upscale(photos: Path, capsys: pytest.CaptureFixture[str]) -> Upscale:
    """Run the command; returns exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(ROOT, ["upscale", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def damage(photos: Path) -> None:
    (photos / "in" / "bad.png").write_bytes(b"not a picture")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- what is done ---------------------------------------------------------------------------------


def test_folder_is_upscaled_with_structure_modes_and_orientation(photos: Path, upscale: Upscale) -> None:
    code, out, err = upscale("in", "-o", "out", *EXACT)
    assert (code, err) == (0, "")
    assert out.startswith("3 upscaled in ")
    assert files(photos / "out") == {"colour.png", "grey.tif", "deep/turned.jpg"}
    with Image.open("out/colour.png") as colour, Image.open("out/grey.tif") as grey:
        assert np.array_equal(np.asarray(colour), enlarged(PICTURE))
        assert grey.mode == "L"
        assert np.array_equal(np.asarray(grey), GREY.repeat(4, 0).repeat(4, 1))
    with Image.open("out/deep/turned.jpg") as turned:
        assert turned.size == (160, 240)
        assert turned.getexif().get(274, 1) == 1


def test_single_result_is_named_on_standard_output(photos: Path, upscale: Upscale) -> None:
    code, out, err = upscale("in/colour.png", "-o", "big/one.webp", "--compare", *EXACT)
    assert (code, out) == (0, "big/one.webp\nbig/one.compare.png\n")
    assert err.startswith("1 upscaled in ")
    assert err.count("\n") == 1
    with Image.open("big/one.webp") as image, Image.open("big/one.compare.png") as sheet:
        assert image.size == (240, 160)
        assert sheet.size == (2 * 240 + 8, 160 + 32)


def test_comparison_of_a_grey_transparent_picture(photos: Path, upscale: Upscale) -> None:
    image = Image.fromarray(GREY)
    image.putalpha(0)
    image.save("in/ghost.png")
    assert upscale("in/ghost.png", "-o", "out", "--compare")[0] == 0
    with Image.open("out/ghost.compare.png") as sheet:
        assert sheet.mode == "L"
        assert np.asarray(sheet)[40:].min() == 255, "nothing shows of what is transparent"


def test_comparison_shows_the_middle_of_a_large_result(photos: Path, upscale: Upscale) -> None:
    wide = np.tile(PICTURE, (1, 10, 1))
    Image.fromarray(wide).save("in/wide.png")
    assert upscale("in/wide.png", "-o", "out", "--compare", *EXACT)[0] == 0
    with Image.open("out/wide.compare.png") as sheet:
        assert sheet.size == (2 * 2048 + 8, 160 + 32)
        after = np.asarray(sheet)[32:, 2056:]
    assert np.array_equal(after, enlarged(wide[:, 44:556]))


def test_report_says_what_was_done_to_each_picture(photos: Path, upscale: Upscale, bundle: Path) -> None:
    damage(photos)
    code, _, err = upscale("in", "-o", "out", "--report", "reports/r.json", "--noise", "0.5", "--compare")
    assert code == 1
    assert err.splitlines()[0].startswith("failed: in/bad.png is not a PNG")
    assert err.splitlines()[1].startswith("error: 1 of 4 images failed; the first: in/bad.png is not a PNG")
    report = json.loads(Path("reports/r.json").read_text())
    assert report["bundle"] == str(bundle)
    assert (report["engine"], report["device"]) == ("openvino", "cpu")
    assert report["precision"] in ("bf16", "f32")
    assert report["settings"]["noise"] == 0.5
    assert report["counts"] == {"done": 3, "skipped": 0, "failed": 1, "not done": 0}
    assert report["ended_by"] is None
    bad, colour, grey, turned = report["images"]
    assert bad["status"] == "failed"
    assert "not a PNG" in bad["error"]
    assert [entry["input"] for entry in (colour, grey, turned)] == [
        "in/colour.png", "in/grey.tif", "in/deep/turned.jpg",
    ]  # fmt: skip
    assert (turned["input_size"], turned["output_size"]) == ([40, 60], [160, 240])
    assert colour["comparison"] == "out/colour.compare.png"
    assert colour["degradation"]["applied"]["noise"] == 0.5
    blur = PICTURE.reshape(-1, 3).mean(0)[1] / 255
    assert colour["degradation"]["estimated"]["blur"] == pytest.approx(blur, abs=1e-5)
    assert {"read", "estimator", "unet", "finish_wavelet", "write"} <= set(colour["seconds"])


def test_what_is_left_out_is_told_and_names_need_not_be_text(photos: Path, upscale: Upscale) -> None:
    odd = os.fsdecode(b"\xff\xfe.png")
    Image.fromarray(PICTURE).save(photos / "in" / odd)
    (photos / "in" / "notes.txt").touch()
    (photos / "in" / ".hidden").touch()
    code, out, _ = upscale("in", "-o", "out", "--report", "r.json", *EXACT)
    assert code == 0
    assert out.splitlines()[1] == "left out: 1 hidden file (hidden); 1 .txt (not a picture that is read)"
    assert Path("out", odd).exists()
    report = json.loads(Path("r.json").read_text())
    assert {"kind": ".txt", "reason": "not a picture that is read", "count": 1} in report["left_out"]
    assert f"in/{odd}" in [entry["input"] for entry in report["images"]]


def test_dry_run_and_run_agree_on_transparency(photos: Path, upscale: Upscale) -> None:
    for name, alpha in (("opaque", 255), ("clear", 128)):
        Image.fromarray(np.dstack([PICTURE, np.full_like(GREY, alpha)])).save(photos / f"{name}.png")
    for arguments in ([], ["--dry-run"]):
        code, out, err = upscale(
            "opaque.png", "clear.png", "-o", "out", "--format", "jpeg", *arguments, *EXACT
        )
        assert code == 1
        assert "out/clear.jpg: JPEG holds no transparency" in out + err
        assert "opaque" not in err
        shutil.rmtree("out", ignore_errors=True)


def test_notes_tell_what_the_format_of_the_result_cannot_hold(photos: Path, upscale: Upscale) -> None:
    text = PngInfo()
    text.add_text("parameters", "Steps: 20")
    Image.fromarray(PICTURE).save(photos / "in" / "text.png", pnginfo=text, dpi=(300, 300))
    assert upscale("in/text.png", "-o", "out", "--format", "jpeg", "--report", "r.json")[0] == 0
    (entry,) = json.loads(Path("r.json").read_text())["images"]
    assert entry["notes"] == ["text (parameters) dropped: JPEG cannot hold it"]
    with Image.open("out/text.jpg") as result:
        assert result.info["dpi"] == (300, 300)


def test_dry_run_lists_and_writes_nothing(photos: Path, upscale: Upscale) -> None:
    upscale("in/colour.png", "-o", "out", *EXACT)
    (photos / "out" / "grey.tif").write_bytes(b"half of it")
    before = files(photos)
    code, out, err = upscale("in", "-o", "out", "--dry-run", "--resume")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "in/colour.png -> out/colour.png (60x40 -> 240x160, is whole)",
        "in/grey.tif -> out/grey.tif (60x40 -> 240x160, replaced)",
        "in/deep/turned.jpg -> out/deep/turned.jpg (40x60 -> 160x240, new)",
    ]
    damage(photos)
    code, out, err = upscale("in", "-o", "new", "--dry-run")
    assert code == 1
    assert "failing: in/bad.png is not a PNG" in out
    assert err == "error: 1 of 4 images would fail\n"
    assert files(photos) == before | {"in/bad.png"}


def test_resume_and_force(photos: Path, upscale: Upscale) -> None:
    upscale("in/colour.png", "-o", "out", *EXACT)
    stamp = Path("out/colour.png").stat().st_mtime_ns
    code, _, err = upscale("in", "-o", "out", *EXACT)
    assert code == 2
    assert err == (
        "error: out/colour.png exists; pass --force to replace them, or --resume to keep what is whole\n"
    )
    assert files(photos / "out") == {"colour.png"}
    code, out, _ = upscale("in", "-o", "out", "--resume", *EXACT)
    assert code == 0
    assert out.startswith("2 upscaled in ")
    assert out.endswith(", 1 skipped\n")
    assert Path("out/colour.png").stat().st_mtime_ns == stamp
    assert upscale("in", "-o", "out", "--force", *EXACT)[0] == 0
    assert Path("out/colour.png").stat().st_mtime_ns > stamp


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in", "-o", "in"], "the result of in/colour.png would replace the input in/colour.png"),
        (["missing", "-o", "out"], "missing does not exist, and matches nothing"),
        (["in", "-o", "out", "--force", "--resume"], "choose one"),
        (["in", "-o", "out", "--dry-run", "--report", "r.json"], "--dry-run writes nothing"),
        (
            ["in", "-o", "out", "--report", "in/grey.tif"],
            "--report in/grey.tif is an input, a result or a folder",
        ),
        (["in", "-o", "out", "--bundle", "in"], "in is not a bundle: it has no manifest.json"),
        (["in", "-o", "out", "--bundle", "in", "--dry-run"], "in is not a bundle: it has no manifest.json"),
        (["in", "-o", "out", "--noise", "1.5"], "noise is 1.5, expected from 0 to 1"),
        (["in", "-o", "out", "--noise", "nan"], "noise is nan"),
        (["in", "-o", "out", "--prompt", "sharp"], "prompts folded in"),
        (["in", "-o", "out", "--prompt", "sharp", "--dry-run"], "prompts folded in"),
        (["in", "-o", "out", "--engine", "magic"], "unknown engine 'magic'"),
        (["in", "-o", "out", "--device", "tpu"], "unknown device 'tpu'"),
        (["in", "-o", "out", "--tile", "-1", "--batch", "0"], "tile is -1"),
        (["in", "-o", "in/grey.tif/out"], "cannot write into in/grey.tif/out: Not a directory"),
        (["in", "-o", "out", "--report", "in/grey.tif/r"], "cannot write into in/grey.tif: "),
        (["in"], "Missing option '-o'"),
    ],
)
def test_wrong_requests_are_one_line_and_do_nothing(
    photos: Path, upscale: Upscale, arguments: list[str], message: str
) -> None:
    before = sorted(photos.rglob("*"))
    code, out, err = upscale(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(photos.rglob("*")) == before


def test_missing_bundle_is_explained(upscale: Upscale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S3DIFF_BUNDLE")
    code, _, err = upscale("in", "-o", "out")
    assert code == 2
    assert (
        err == "error: no bundle: pass --bundle BUNDLE, or set S3DIFF_BUNDLE; s3diff-export build makes one\n"
    )


def test_bomb_is_one_failed_image(photos: Path, upscale: Upscale) -> None:
    (photos / "in" / "bomb.png").write_bytes(png(60_000, 60_000, 8, 2, b"no such rows"))
    code, _, err = upscale("in", "-o", "out", *EXACT)
    assert code == 1
    assert "in/bomb.png has 60000x60000 pixels, more than the limit of 64000000" in err
    assert len(files(photos / "out")) == 3
    code, _, err = upscale("in/colour.png", "-o", "small", "--max-pixels", "2399")
    assert code == 1
    assert "more than the limit of 2399" in err


def test_limit_of_pillow_is_lifted_for_results_and_restored(
    photos: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # a result has 38400, and Pillow raises at twice
    assert upscale("in", "-o", "out", *EXACT)[0] == 0
    code, out, _ = upscale("in", "-o", "out", "--resume", *EXACT)
    assert code == 0
    assert out.endswith(", 3 skipped\n")
    assert Image.MAX_IMAGE_PIXELS == 5000


# --- interruptions --------------------------------------------------------------------------------


RUN = (
    "import sys; from s3diff_export import cli; from s3diff_runtime.command_line import Member; "
    "member = Member('s3diff_runtime.batch.upscaling:run_upscale', 'Upscale.', 'cpu'); "
    "root = cli.RootGroup({'upscale': member}); "
    "sys.exit(cli.run(root))"
)


def test_interruption_leaves_whole_results_and_a_report(photos: Path) -> None:
    big = Image.fromarray(np.tile(PICTURE, (8, 6, 1)))
    for number in range(60):
        big.save(photos / "in" / f"{number:02}.png", compress_level=1)
    # Shells start what runs in the background with interrupts ignored, and Python then leaves them so.
    program = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {RUN}"
    arguments = ["upscale", "in", "-o", "out", "--report", "r.json", "--threads", "1"]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(files(photos / "out")) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    summary, error = [line for line in err.splitlines() if line][-2:]
    assert "not done; --resume goes on from here" in summary
    assert error == "error: interrupted"
    assert "Traceback" not in err
    report = json.loads(Path("r.json").read_text())
    assert report["ended_by"] == "KeyboardInterrupt"
    done = {entry["output"] for entry in report["images"] if entry["status"] == "done"}
    assert 3 <= len(done) < 63
    assert {f"out/{name}" for name in files(photos / "out")} == done
    for name in done:
        with Image.open(name) as image:
            image.load()


def test_disk_that_takes_no_more_keeps_the_old_file(photos: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "in" / "noise.png")
    (photos / "out").mkdir()
    (photos / "out" / "noise.png").write_bytes(b"what was there")
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); {RUN}"
    arguments = ["in/noise.png", "-o", "out", "--force"]
    result = subprocess.run(
        [sys.executable, "-c", limited, "upscale", *arguments], capture_output=True, text=True, env=os.environ
    )
    assert result.returncode == 1
    assert "could not write out/noise.png: File too large; check the disk" in result.stderr
    assert "Traceback" not in result.stderr
    assert (photos / "out" / "noise.png").read_bytes() == b"what was there"
    assert files(photos / "out") == {"noise.png"}


# --- terminals ------------------------------------------------------------------------------------

MAIN = "from s3diff_export.cli import main; main()"


def test_ascii_terminal_gets_ascii(photos: Path) -> None:
    name = os.fsdecode(b"\xff\xe9.png")
    Image.fromarray(PICTURE).save(photos / name)
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    for arguments, words in (
        (["upscale", "--help"], b"Upscale every INPUT (x4,"),
        (["inspect", os.environ["S3DIFF_BUNDLE"]], b"| x4 "),
        (["upscale", name, "-o", "out"], rb"out/\udcff\udce9.png"),
    ):
        result = subprocess.run([sys.executable, "-c", MAIN, *arguments], capture_output=True, env=ascii_only)
        assert (result.returncode, result.stderr[:14]) in ((0, b""), (0, b"1 upscaled in "))
        assert words in result.stdout
        result.stdout.decode("ascii")
    names = [sys.executable, "-c", MAIN, "upscale", name, "-o", "out", "--force"]
    assert subprocess.run(names, capture_output=True).stdout == os.fsencode(f"out/{name}\n")


@pytest.mark.parametrize("arguments", [["inspect"], ["upscale", "in", "-o", "out", "--dry-run", "--bundle"]])
def test_reader_that_has_read_enough_ends_it_quietly(photos: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", MAIN, *arguments, os.environ["S3DIFF_BUNDLE"]]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert result.stderr == ""
