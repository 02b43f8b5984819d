"""Which images belong together, and everything that can be wrong with a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.benchmarks.pictures import noise, write_folder

from s3diff_benchmarks.pictures import pairs
from s3diff_benchmarks.pictures.pairs import Case, find_cases, find_peer
from s3diff_runtime.errors import RequestError
from s3diff_runtime.errors import RequestError as ImageError

SMALL, LARGE = noise(8, 10), noise(32, 40)
HOSTILE = '"><img src=x> $(rm) %s {0}'


def folders(tmp_path: Path, lr: tuple[str, ...], hr: tuple[str, ...]) -> tuple[Path, Path]:
    return (
        write_folder(tmp_path / "lr", dict.fromkeys(lr, SMALL)),
        write_folder(tmp_path / "hr", dict.fromkeys(hr, LARGE)),
    )


def peer_folder(tmp_path: Path, seconds: object) -> tuple[Path, tuple[Case, ...]]:
    """Outputs for one case, with a `seconds.json` of that content."""
    lr, folder = folders(tmp_path, ("a.png",), ("a.png",))
    content = seconds if isinstance(seconds, bytes) else json.dumps(seconds).encode()
    (folder / "seconds.json").write_bytes(content)
    return folder, find_cases(lr, None)[0]


# --- inputs and truths ----------------------------------------------------------------------------


def test_pairs_match_by_stem_in_the_order_of_names(tmp_path: Path) -> None:
    lr, hr = folders(tmp_path, ("b.png", "a.png", "c.bmp.png"), ("a.tiff", "b.png", "c.bmp.png"))
    cases, notes = find_cases(lr, hr)
    assert cases == (
        Case("a", lr / "a.png", hr / "a.tiff"),
        Case("b", lr / "b.png", hr / "b.png"),
        Case("c.bmp", lr / "c.bmp.png", hr / "c.bmp.png"),
    )
    assert notes == ()
    assert [case.name for case in find_cases(lr, hr, limit=2)[0]] == ["a", "b"]


def test_without_truths_every_image_counts(tmp_path: Path) -> None:
    lr, _ = folders(tmp_path, ("b.png", "a.png"), ())
    (lr / "notes.txt").write_text("no image")
    (lr / ".hidden.png").write_bytes(b"no image")
    (lr / "folder.png").mkdir()
    cases, notes = find_cases(lr, None)
    assert [(case.name, case.hr) for case in cases] == [("a", None), ("b", None)]
    assert notes == ()


def test_images_without_a_partner_are_told(tmp_path: Path) -> None:
    lr, hr = folders(tmp_path, ("a.png", "x.png"), ("a.png", *(f"{i}.png" for i in range(5))))
    cases, notes = find_cases(lr, hr)
    assert [case.name for case in cases] == ["a"]
    assert notes == (
        f"1 images of {lr} have no partner: x",
        f"5 images of {hr} have no partner: 0, 1, 2, and 2 more",
    )


def test_a_name_may_hold_anything(tmp_path: Path) -> None:
    lr, hr = folders(tmp_path, (f"{HOSTILE}.png",), (f"{HOSTILE}.png",))
    assert find_cases(lr, hr)[0][0].name == HOSTILE
    assert find_peer("peer", hr, find_cases(lr, hr)[0]).outputs == {HOSTILE: hr / f"{HOSTILE}.png"}


@pytest.mark.parametrize(
    ("lr", "hr", "message"),
    [
        (("a.png", "a.jpg"), ("a.png",), "has two images named a; expected one: a.png"),
        (("a.png",), ("b.png",), "have no pairs: expected images with the same names in both, such as a in"),
        ((), ("b.png",), "holds no images; expected .*png"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    tmp_path: Path, lr: tuple[str, ...], hr: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        find_cases(*folders(tmp_path, lr, hr))


def test_missing_folders_are_refused(tmp_path: Path) -> None:
    lr, _ = folders(tmp_path, ("a.png",), ())
    for given in ((tmp_path / "none", None), (lr, tmp_path / "none"), (lr / "a.png", None)):
        with pytest.raises(RequestError, match="is not a folder; expected a folder of images"):
            find_cases(*given)


def test_truths_of_other_sizes_are_refused_all_at_once(tmp_path: Path) -> None:
    names = [f"{letter}.png" for letter in "abcde"]
    lr = write_folder(tmp_path / "lr", dict.fromkeys(names, SMALL))
    hr = write_folder(tmp_path / "hr", {name: noise(32, 39) for name in names[1:]} | {"a.png": LARGE})
    message = "HR must be 4 times as large as LR; not so: b 10×8 and 39×32; c .*; d .*; and 1 more"
    with pytest.raises(RequestError, match=message):
        find_cases(lr, hr)
    assert len(find_cases(lr, hr, limit=1)[0]) == 1  # what is left out is not looked at


def test_images_too_small_to_score_are_refused(tmp_path: Path) -> None:
    lr = write_folder(tmp_path / "lr", {"a.png": noise(7, 20)})
    hr = write_folder(tmp_path / "hr", {"a.png": noise(28, 80)})
    with pytest.raises(RequestError, match=r"LR must have at least 8 pixels .*: a 20×7$"):
        find_cases(lr, hr)


def test_a_damaged_image_is_refused(tmp_path: Path) -> None:
    lr, hr = folders(tmp_path, ("a.png",), ("a.png",))
    (hr / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.png"):
        find_cases(lr, hr)


# --- peers ----------------------------------------------------------------------------------------


def test_a_peer_brings_outputs_and_times(tmp_path: Path) -> None:
    given = {"machine": "a CPU", "software": "ncnn 1", "seconds": {"a": 1.5, "b": 2}, "method": "extra"}
    folder, cases = peer_folder(tmp_path, given)
    peer = find_peer("other", folder, cases)
    assert peer.outputs == {"a": folder / "a.png"}
    assert peer.times is not None
    assert (peer.times.machine, peer.times.software) == ("a CPU", "ncnn 1")
    assert peer.times.seconds["a"] == 1.5
    (folder / "seconds.json").unlink()
    assert find_peer("other", folder, cases).times is None


@pytest.mark.parametrize(
    "content",
    [
        {"seconds": {"a": 1.5}},
        {"machine": "m", "seconds": {"a": -1}},
        {"machine": "m", "seconds": {"a": float("nan")}},
        {"machine": "m", "seconds": [1, 2]},
        {"machine": "\x1b[2Jgone", "seconds": {}},
        {"machine": "two\nlines", "seconds": {}},
        {"machine": "m" * 1000, "seconds": {}},
        [],
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_wrong_times_are_refused(tmp_path: Path, content: object) -> None:
    folder, cases = peer_folder(tmp_path, content)
    with pytest.raises(RequestError, match=r"seconds\.json cannot be used .*expected {\"machine\"") as error:
        find_peer("other", folder, cases)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_huge_times_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_LARGEST_SECONDS", 100)
    folder, cases = peer_folder(tmp_path, {"machine": "m", "seconds": {str(i): i for i in range(100)}})
    with pytest.raises(RequestError, match="no file of at most 100 bytes"):
        find_peer("other", folder, cases)


def test_a_peer_must_have_every_output_in_the_right_size(tmp_path: Path) -> None:
    lr, outputs = folders(tmp_path, ("a.png", "b.png", "c.png"), ("a.png",))
    cases, _ = find_cases(lr, None)
    with pytest.raises(RequestError, match=r"\(other\) has no output for 2 of 3 images: b, c"):
        find_peer("other", outputs, cases)
    write_folder(outputs, {"b.png": SMALL, "c.png": LARGE})
    with pytest.raises(RequestError, match=r"what other made must be 4 times .*: b 10×8 and 10×8$"):
        find_peer("other", outputs, cases)


def test_results_are_known_by_their_names(tmp_path: Path) -> None:
    images = ("a_1.png", "a_2.png", "deep/a.png", "deeper/still/a.png", "b-x4.webp", "b_out/c.png", "ab.png")
    for name in images:
        write_folder((tmp_path / name).parent, {Path(name).name: SMALL})
    (tmp_path / "away").symlink_to(tmp_path / "deep")
    found = pairs.find_results(tmp_path, {"a", "b", "c", "d"})
    assert found == {
        "a": tmp_path / "deep" / "a.png",
        "b": tmp_path / "b-x4.webp",
        "c": tmp_path / "b_out" / "c.png",
    }
    assert pairs.find_results(tmp_path, {"a_1", "a"})["a_1"] == tmp_path / "a_1.png"
    write_folder(tmp_path / "other", {"a.png": SMALL})
    with pytest.raises(RequestError, match=r"two images for a; expected one: deep/a\.png, other/a\.png"):
        pairs.find_results(tmp_path, {"a"})
