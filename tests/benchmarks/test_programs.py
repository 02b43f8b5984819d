"""`bench quality --run`: a method's own program, here a small script, and all that goes wrong."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.benchmarks.pictures import noise, shifting_bundle, write_folder
from tests.benchmarks.test_quality import bench, lines, report, table
from tests.benchmarks.test_scores import forbid_lpips

from s3diff_benchmarks.pictures.pairs import find_cases
from s3diff_benchmarks.pictures.programs import named_program, run_programs
from s3diff_runtime.errors import JobError, RequestError

LR = {"a.png": noise(8, 10, 1), "a_b.png": noise(9, 8, 2), "c.png": noise(8, 8, 3)}
FAKE = """
import json, sys, time
from pathlib import Path
from PIL import Image

source, target, *wishes = sys.argv[1:]
source, target = Path(source), Path(target)
wish = dict(each.split("=", 1) for each in wishes)
files = sorted(source.iterdir()) if source.is_dir() else [source]
for number, file in enumerate(files):
    if str(number) == wish.get("fails-at"):
        sys.exit("first line\\nRuntimeError: CUDA out of memory \\x1b[2J")
    if str(number) == wish.get("hangs-at"):
        print("waiting", file=sys.stderr, flush=True)
        time.sleep(60)
    if str(number) == wish.get("skips"):
        print("Error no memory for", file.name)
        continue
    image = Image.open(file)
    factor = int(wish.get("factor", 4))
    name = wish.get("name", "{}.png").format(file.stem)
    path = target if target.suffix else target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST).save(path)
if "seconds" in wish:
    (target / "seconds.json").write_text(wish["seconds"])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`s3.bundle`, `lr`, `hr` and `fake.py`, in the working folder."""
    monkeypatch.chdir(tmp_path)
    forbid_lpips(monkeypatch)
    shifting_bundle(tmp_path / "s3.bundle")
    write_folder(tmp_path / "lr", LR)
    write_folder(tmp_path / "hr", {name: lr.repeat(4, 0).repeat(4, 1) for name, lr in LR.items()})
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path


def fake(rest: str = "{input} {output}") -> str:
    return f"fake='{sys.executable}' fake.py {rest}"


def run(rest: str, seconds: float | None = None) -> dict[str, Any]:
    """Run the script on the pictures of `lr`, into `kept/fake`; its outputs as pixels, by name."""
    (peer,) = run_programs(
        [named_program(fake(rest))], find_cases(Path("lr"), None)[0], Path("kept"), seconds
    )
    return {name: np.asarray(Image.open(path)) for name, path in peer.outputs.items()}


def times() -> dict[str, Any]:
    return json.loads(Path("kept/fake/seconds.json").read_text())


# --- what a program may want ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    [
        "{input} {output}",
        "{input} {output} name={}_out.png",
        "{input} {output} name=sample00/{}.png",
        "{input} {output}/deep name={}-0.webp.png",
        "{input_file} {output_file}",
        "{input_file} {output} name={}_0.png",
    ],
)
def test_results_are_found_wherever_a_program_puts_them(folder: Path, rest: str) -> None:
    found = run(rest)
    assert found.keys() == {"a", "a_b", "c"}
    for name, pixels in found.items():
        np.testing.assert_array_equal(pixels, LR[f"{name}.png"].repeat(4, 0).repeat(4, 1))


def test_programs_get_upright_rgb_as_png_whatever_the_files_are(folder: Path) -> None:
    for file in Path("lr").iterdir():
        file.unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(noise(8, 12)[..., 0]).save("lr/grey.webp", lossless=True, exif=exif)
    assert run("{input} {output}")["grey"].shape == (48, 32, 3)


def test_times_are_shared_or_each_ones_own(folder: Path) -> None:
    run("{input} {output}")
    shared = times()
    assert set(shared["seconds"]) == {"a", "a_b", "c"}
    assert len(set(shared["seconds"].values())) == 1
    assert shared["run"] == {
        "command": fake().removeprefix("fake="),
        "images": 3,
        "seconds": pytest.approx(sum(shared["seconds"].values())),
    }
    assert "core" in shared["machine"]


def test_a_programs_own_times_are_kept(folder: Path) -> None:
    own = '{"machine": "its GPU", "software": "its engine", "seconds": {"a": 0.5}}'
    run(f"{{input}} {{output}} 'seconds={own}'")
    found = times()
    assert (found["machine"], found["seconds"]) == ("its GPU", {"a": 0.5})
    assert found["run"]["images"] == 3 and "fake.py" in found["run"]["command"]


# --- in the report --------------------------------------------------------------------------------


def test_a_run_stands_beside_ours_and_is_told(folder: Path) -> None:
    assert bench("--hr", "hr", "--run", fake(), "--run-output", "kept", "-o", "out") == 0
    rows = table(folder / "out", "quality")
    assert list(rows) == ["bicubic", "s3", "fake"]
    assert rows["fake"]["images"] == 3
    assert rows["fake"]["SSIM-Y"] == pytest.approx(1)
    programs = table(folder / "out", "programs")["fake"]
    assert programs["command"] == fake().removeprefix("fake=")
    assert programs["images"] == 3
    assert programs["whole run by image"] == pytest.approx(programs["whole run"] / 3)
    assert rows["fake"]["time"] == pytest.approx(programs["whole run by image"])
    assert {line["method"] for line in lines(folder / "out")} == {"bicubic", "s3", "fake"}
    assert report(folder / "out")["options"]["run"] == [["fake", fake().removeprefix("fake=")]]
    text = (folder / "out" / "report.md").read_text().replace("\\", "")
    assert "Other methods' programs" in text and "fake.py {input} {output}" in text

    assert bench("--hr", "hr", "--also", "fake=kept/fake", "-o", "again") == 0
    assert table(folder / "again", "programs")["fake"] == programs


def test_several_programs_see_only_the_pictures_that_are_measured(folder: Path) -> None:
    second = "other=" + fake("{input} {output} name={}_x4.png").removeprefix("fake=")
    assert bench("--limit", "2", "--run", fake(), "--run", second, "-o", "out") == 0
    rows = table(folder / "out", "quality")
    assert [rows[name]["images"] for name in ("s3", "fake", "other")] == [2, 2, 2]
    assert not list(folder.glob("kept*"))


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("{input} {output} fails-at=1", r"fake failed with exit code 1; its last words: RuntimeError: CUDA"),
        ("{input_file} {output} fails-at=0", r"fake failed with exit code 1; its last words: RuntimeError"),
        (
            "{input} {output} skips=2",
            r"no output for 1 of 3 images: c; its last words: Error no memory for c",
        ),
        ("{input} {output} factor=2", r"must be 4 times as large as LR; not so: a 10×8 and 20×16; a_b"),
        ("{input} {output} seconds=x", r"seconds\.json cannot be used"),
        ("{input} {output} name={}.txt/none.png", r"fake \(fake\) has no output for 3 of 3 images"),
    ],
)
def test_a_program_that_fails_says_why(folder: Path, rest: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        run(rest)


def test_a_program_that_was_killed_is_told(folder: Path) -> None:
    program = named_program("fake=sh -c 'kill -9 $$' {input} {output}")
    with pytest.raises(JobError, match=r"fake was ended by signal 9 \(Killed\); it said nothing"):
        run_programs([program], find_cases(Path("lr"), None)[0], Path("kept"), None)


def test_two_results_for_a_picture_are_told(folder: Path) -> None:
    Path("kept/fake").mkdir(parents=True)
    Image.fromarray(LR["c.png"]).save("kept/fake/c_old.png")
    with pytest.raises(JobError, match=r"two images for c; expected one: c_new\.png, c_old\.png"):
        run("{input} {output} name={}_new.png")


@pytest.mark.parametrize("rest", ["{input} {output} hangs-at=1", "{input_file} {output_file} hangs-at=0"])
def test_a_program_has_so_much_time(folder: Path, rest: str) -> None:
    start = time.monotonic()
    message = r"not done within the 0\.8 s of --run-limit; it had made [01] of 3 images; its last words: wait"
    with pytest.raises(JobError, match=message):
        run(rest, seconds=0.8)
    assert time.monotonic() - start < 15


def test_failures_are_one_line_and_exit_code_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--run", fake("{input} {output} fails-at=0"), "-o", "out") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: fake failed with exit code 1; its last words: RuntimeError: CUDA")
    assert "\x1b" not in error
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "expected NAME='command with"),
        ("=ls {input} {output}", "expected NAME='command with"),
        ("x=", "expected NAME='command with"),
        ("x=ls", "expected NAME='command with"),
        ("x=ls {input}", "expected NAME='command with"),
        ("x=ls {input} {output_file}", "expected NAME='command with"),
        ("x=ls {input} {input_file} {output}", "expected NAME='command with"),
        ("x=ls {input} {output} {checkout}", "{checkout} stands for nothing; write what belongs there"),
        ("x=ls '{input} {output}", "the command cannot be read: no closing quotation"),
        ("x=no-such-program {input} {output}", "there is no program no-such-program here"),
        ("../x=ls {input} {output}", "the name '../x' cannot be a folder's"),
    ],
)
def test_commands_that_cannot_be_run_are_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        named_program(text)
    assert str(error.value).startswith(f"--run {text}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "lr=ls {input} {output}", "--also", "lr=lr"], "two rows would be called lr"),
        (["--run-limit", "5"], "--run-limit and --run-output are about programs; name one with --run"),
        (["--run", "x=ls {input} {output}", "--run-limit", "0"], "run_limit is 0.0, expected more than 0"),
        (
            ["--run", "lr=ls {input} {output}", "--run-output", "."],
            "lr exists; move it away, or score it with",
        ),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert bench(*arguments) == 2
    assert message in capsys.readouterr().err
