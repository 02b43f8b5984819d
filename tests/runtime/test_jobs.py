"""What is read, where each result goes, and what is refused before any work."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from s3diff_runtime.batch.jobs import output_folder, plan_jobs, refuse_existing
from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.formats import Format


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `in` of pictures, two of a name apart from their folders, beside files that are none."""
    for name in (
        "a.png",
        "b.JPG",
        "notes.txt",
        ".hidden.png",
        "trip/a.png",
        "trip/deep/c.webp",
        ".cache/d.png",
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(inputs: Sequence[str], output: str = "out", format: Format | None = None) -> dict[str, str]:
    return {str(job.source): str(job.target) for job in plan_jobs(inputs, Path(output), format)}


def test_folders_keep_their_structure() -> None:
    assert planned(["in"]) == {
        "in/a.png": "out/a.png",
        "in/b.JPG": "out/b.JPG",
        "in/trip/a.png": "out/trip/a.png",
        "in/trip/deep/c.webp": "out/trip/deep/c.webp",
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.png", {"in/a.png": "out/a.png"}),
        ("in/*/a.png", {"in/trip/a.png": "out/trip/a.png"}),
        ("in/**/*.png", {"in/a.png": "out/a.png", "in/trip/a.png": "out/trip/a.png"}),
        ("in/trip/d[aeiou]ep/c.*", {"in/trip/deep/c.webp": "out/deep/c.webp"}),
    ],
)
def test_patterns_keep_the_structure_below_their_fixed_part(pattern: str, expected: dict[str, str]) -> None:
    assert planned([pattern]) == expected


def test_file_with_the_signs_of_a_pattern_is_a_file(photos: Path) -> None:
    (photos / "in" / "[1].png").touch()
    assert planned(["in/[1].png"]) == {"in/[1].png": "out/[1].png"}


@pytest.mark.parametrize(
    ("format", "targets"),
    [("png", {"a.png", "b.png"}), ("jpeg", {"a.jpg", "b.JPG"}), ("webp", {"a.webp", "b.webp"})],
)
def test_format_changes_suffixes_that_are_not_its_own(format: Format, targets: set[str]) -> None:
    assert {Path(path).name for path in planned(["in/a.png", "in/b.JPG"], format=format).values()} == targets


def test_name_without_the_suffix_of_a_format_becomes_png() -> None:
    assert planned(["in/notes.txt"]) == {"in/notes.txt": "out/notes.txt.png"}


def test_single_file_may_name_its_result(photos: Path) -> None:
    assert planned(["in/a.png"], "new/result.webp") == {"in/a.png": "new/result.webp"}
    assert output_folder(Path("new/result.webp")) == Path("new")
    (photos / "folder.png").mkdir()
    assert planned(["in/a.png"], "folder.png") == {"in/a.png": "folder.png/a.png"}
    assert output_folder(Path("folder.png")) == Path("folder.png")


def test_inputs_named_twice_count_once(photos: Path) -> None:
    (photos / "link").symlink_to(photos / "in")
    assert len(planned(["in", "in/a.png", "./in/trip/../a.png", "link"])) == 4


def test_results_inside_an_input_folder_are_not_inputs(photos: Path) -> None:
    (photos / "in" / "out").mkdir()
    (photos / "in" / "out" / "a.png").touch()
    assert len(planned(["in"], "in/out")) == 4


def test_pattern_s_part_that_exists_as_it_stands_is_no_pattern(photos: Path) -> None:
    folder = photos / "scans [2019]" / "a*b"
    folder.mkdir(parents=True)
    for name in ("1.jpg", "2.jpg", "3.png"):
        (folder / name).touch()
    (photos / "scans 2").mkdir()
    (photos / "scans 2" / "4.jpg").touch()
    assert planned(["scans [2019]/*/*.jpg"]) == {
        f"scans [2019]/a*b/{name}.jpg": f"out/a*b/{name}.jpg" for name in "12"
    }
    assert planned(["scans [2019]/**/3.png"]) == {"scans [2019]/a*b/3.png": "out/a*b/3.png"}
    assert planned(["scans [0-9]/*.jpg"]) == {"scans 2/4.jpg": "out/scans 2/4.jpg"}


def test_linked_folders_are_followed_once_and_never_in_a_circle(photos: Path) -> None:
    (photos / "elsewhere" / "more").mkdir(parents=True)
    (photos / "elsewhere" / "more" / "e.png").touch()
    for link, target in (
        ("in/circle", "in"),
        ("in/trip/up", "."),
        ("in/0first", "in/trip"),
        ("in/link", "elsewhere"),
        ("in/again", "elsewhere"),
        ("elsewhere/back", "elsewhere"),
        ("in/dead.png", "nowhere"),
    ):
        (photos / link).symlink_to(photos / target)
    jobs = plan_jobs(["in"], Path("out"))
    assert {str(job.target) for job in jobs} == {
        "out/a.png", "out/b.JPG", "out/trip/a.png", "out/trip/deep/c.webp", "out/again/more/e.png",
    }  # fmt: skip
    counts = {(each.kind, each.reason): each.count for each in jobs.left_out}
    assert counts == {
        (".txt", "not a picture that is read"): 1,
        ("hidden file", "hidden"): 1,
        ("hidden folder", "hidden"): 1,
        ("link", "leads nowhere"): 1,
        ("linked folder", "searched already, or around itself"): 5,
    }


def test_what_is_not_taken_is_counted(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.TXT", "c.heic", "README"):
        (photos / "in" / name).touch()
    os.mkfifo(photos / "in" / "pipe.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    left_out = plan_jobs(["in"], Path("out")).left_out
    assert [each.as_json() for each in left_out if "hidden" not in each.kind] == [
        {"kind": ".txt", "reason": "not a picture that is read", "count": 2},
        {"kind": "no suffix", "reason": "not a picture that is read", "count": 1},
        {"kind": ".heic", "reason": "needs: pip install 's3diff-export[formats]'", "count": 1},
        {"kind": "pipe, socket or device", "reason": "not a regular file", "count": 1},
    ]


def test_formats_that_are_read_and_not_written_become_png(photos: Path) -> None:
    for name in ("x.bmp", "y.gif", "y.avif", "a.bmp", "p.jfif", "q.jpe"):
        (photos / "in" / name).touch()
    targets = planned(["in/x.bmp", "in/y.gif", "in/y.avif", "in/a.bmp", "in/a.png", "in/p.jfif", "in/q.jpe"])
    assert [Path(target).name for target in targets.values()] == [
        "x.png", "y.gif.png", "y.avif.png", "a.bmp.png", "a.png", "p.jfif", "q.jpe",
    ]  # fmt: skip
    with pytest.raises(RequestError, match="expected a folder, or a new file of"):
        planned(["in/x.bmp"], "in/x.bmp")


def test_comparisons_that_would_share_a_name_get_their_own(photos: Path) -> None:
    for name in ("a.jpg", "b.compare.png"):
        (photos / "in" / name).touch()
    jobs = plan_jobs(["in/a.png", "in/a.jpg", "in/b.JPG", "in/b.compare.png"], Path("out"), compare=True)
    assert [job.comparison and job.comparison.name for job in jobs] == [
        "a.png.compare.png", "a.jpg.compare.png", "b.JPG.compare.png", "b.compare.compare.png",
    ]  # fmt: skip


def test_names_that_become_too_long_are_refused_before_the_work(photos: Path) -> None:
    name = "n" * 244 + ".jpg"
    (photos / "in" / name).touch()
    assert planned([f"in/{name}"]) == {f"in/{name}": f"out/{name}"}
    with pytest.raises(RequestError, match=r"n\.compare\.png has 256 bytes, and file names end at 255"):
        plan_jobs([f"in/{name}"], Path("out"), compare=True)


def test_comparisons_lie_beside_the_results() -> None:
    jobs = plan_jobs(["in/b.JPG"], Path("out"), compare=True)
    assert jobs[0].outputs == (Path("out/b.JPG"), Path("out/b.compare.png"))


@pytest.mark.parametrize(
    ("inputs", "output", "format", "message"),
    [
        (["missing.png"], "out", None, "missing.png does not exist, and matches nothing"),
        (["in/*.tif"], "out", None, "in/*.tif does not exist, and matches nothing"),
        (["in/.cache"], "out", None, "in/.cache cannot"),
        (["in"], "in", None, "the result of in/a.png would replace the input in/a.png"),
        (["in/a.png"], "in/a.png", None, "the result of in/a.png would replace the input in/a.png"),
        (["in/a.png", "in/trip"], "in", None, "the result of in/trip/a.png would replace the input in/a.png"),
        (["in/a.png", "in/trip/a.png"], "out", None, "and in/trip/a.png would both be written to out/a.png"),
        (["in"], "out.png", None, "only one input file can go to a file"),
        (["in/a.png", "in/b.JPG"], "out.png", None, "only one input file can go to a file"),
        (["in/a.png"], "out.png", "jpeg", "out.png does not have a suffix of --format jpeg"),
        (["in/a.png"], "in/notes.txt", None, "in/notes.txt is a file; expected a folder"),
        (["x", "y", "z", "v", "w"], "out", None, "; and 2 more"),
    ],
)  # fmt: skip
def test_impossible_plans_are_refused(
    photos: Path, inputs: list[str], output: str, format: Format | None, message: str
) -> None:
    if inputs == ["in/.cache"]:  # named outright, a hidden folder is searched
        (photos / "in" / ".cache" / "d.png").unlink()
        message = "in/.cache holds no .avif, .bmp, .btf, .dib, .gif, "
    with pytest.raises(RequestError, match=re.escape(message)):
        planned(inputs, output, format)


def test_format_can_make_two_inputs_collide(photos: Path) -> None:
    (photos / "in" / "a.jpg").touch()
    assert len(planned(["in/a.png", "in/a.jpg"])) == 2
    with pytest.raises(RequestError, match=r"would both be written to out/a\.png"):
        planned(["in/a.png", "in/a.jpg"], format="png")


def test_link_to_an_input_is_the_input(photos: Path) -> None:
    (photos / "out").symlink_to(photos / "in")
    with pytest.raises(RequestError, match=r"would replace the input in/a\.png"):
        planned(["in/a.png"], "out")


def test_what_the_system_cannot_look_at_is_a_problem_of_that_input_alone(photos: Path) -> None:
    with pytest.raises(RequestError, match="x does not exist, and matches nothing"):
        planned(["in/a.png", "x" * 300])
    (photos / "in" / "far.png").symlink_to("x" * 300)
    assert len(planned(["in"])) == 4


def test_folder_in_the_place_of_a_result_is_refused(photos: Path) -> None:
    (photos / "out" / "a.png").mkdir(parents=True)
    with pytest.raises(RequestError, match=r"out/a\.png is a folder, where the result of in/a\.png would go"):
        planned(["in/a.png"])


def test_existing_outputs_are_refused(photos: Path) -> None:
    jobs = plan_jobs(["in"], Path("out"), compare=True)
    refuse_existing(jobs)
    (photos / "out").mkdir()
    (photos / "out" / "b.compare.png").touch()
    with pytest.raises(RequestError, match=r"^out/b\.compare\.png exists; pass --force .* or --resume"):
        refuse_existing(jobs)
    (photos / "out" / "a.png").touch()
    with pytest.raises(RequestError, match=r"^out/a\.png and 1 more exist; pass --force"):
        refuse_existing(jobs)


def test_links_to_files_are_pictures_and_circles_are_not(photos: Path) -> None:
    folder = Path("linked")
    folder.mkdir()
    shutil.copy(next(path for path in Path("in").rglob("*.png")), folder / "a.png")
    (folder / "b.png").symlink_to("a.png")
    (folder / "me").symlink_to("me")
    jobs = plan_jobs(["linked"], Path("out"))
    assert [job.target.name for job in jobs] == ["a.png", "b.png"]
    assert any("leads nowhere" in str(each) for each in jobs.left_out)


def test_formats_that_are_only_read_are_no_output(photos: Path) -> None:
    with pytest.raises(RequestError, match=r"x\.gif is of a format that is only read"):
        plan_jobs(["in"], Path("x.gif"))
