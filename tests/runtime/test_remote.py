"""Pictures in a store: `upscale s3://… -o s3://…`, on moto's S3 and a bundle of a few kilobytes."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from moto.core import set_initial_no_auth_action_count
from PIL import Image
from tests.runtime.fake_bundle import enlarged, write_fake_bundle
from tests.runtime.pictures import PICTURE
from tests.runtime.stores import SECRET, Bucket, s3_server

from s3diff_export import cli
from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.batch.listing import ListedJobs
from s3diff_runtime.batch.run import Batch, BatchOptions, Outcome
from s3diff_runtime.command_line import Member
from s3diff_runtime.errors import RequestError
from s3diff_runtime.remote import RemotePath, place_named, without_credentials
from s3diff_runtime.settings import PictureSettings
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Upscaler

ROOT = cli.RootGroup({"upscale": Member("s3diff_runtime.batch.upscaling:run_upscale", "Upscale.", "cpu")})
EXACT = ["--noise", "0", "--blur", "0", "--color-fix", "none"]
BOTH = ("s3://photos/in", "-o", "s3://photos/out")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle", "dynamic")


@pytest.fixture(scope="module")
def server() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as environment, s3_server(environment) as bucket:
        yield bucket


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path, server: Bucket) -> Bucket:
    """A bucket with pictures at two depths, and things beside that are none."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("S3DIFF_BUNDLE", str(bundle))
    server.empty()
    for key in ("in/a.png", "in/deep/b.png", "in/deep/er/c.png"):
        server.put(key, PICTURE)
    server.put("in/", b"")  # a folder's mark, as consoles make them
    server.put("in/notes.txt", b"text")
    server.put("in/.hidden.png", PICTURE)
    return server


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let no instance of s3fs outlive the test: it holds on to the methods and keys that it was made with."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def upscale(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(ROOT, ["upscale", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- what is done ---------------------------------------------------------------------------------


def test_folder_of_a_bucket_becomes_another(
    s3: Bucket, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    s3.put("in/bad.png", b"not a picture")
    s3.put("out/.s3diff-writable", b"")  # what a run leaves that may write and not remove
    caplog.set_level(logging.INFO, "werkzeug")
    caplog.clear()
    code, out, err = upscale(capsys, *BOTH, "--report", "s3://photos/r.json", "--compare", *EXACT)
    assert code == 1
    asked = [record.getMessage() for record in caplog.records if "/deep/er/c.png" in record.getMessage()]
    assert ["GET" in asked[0], "PUT" in asked[1], len(asked)] == [True, True, 2], "one request each way"
    assert err.splitlines()[0] == (
        "failed: s3://photos/in/bad.png is not a PNG, JPEG, WEBP, TIFF, BMP, DIB, GIF, AVIF, HEIF, JXL "
        "picture, or is damaged"
    )
    assert out.startswith("3 upscaled in ")
    assert "left out: 1 hidden file (hidden); 1 .txt (not a picture that is read)" in out
    results = [
        f"out/{name}{kind}" for name in ("a", "deep/b", "deep/er/c") for kind in (".compare.png", ".png")
    ]
    assert sorted(s3.keys("out/")) == sorted(results)
    assert np.array_equal(s3.picture("out/deep/er/c.png"), enlarged(PICTURE))
    report = json.loads(s3.get("r.json"))
    assert report["counts"] == {"done": 3, "skipped": 0, "failed": 1, "not done": 0}
    assert report["images"][0]["input"] == "s3://photos/in/a.png"
    assert report["images"][0]["comparison"] == "s3://photos/out/a.compare.png"
    assert {"kind": ".txt", "reason": "not a picture that is read", "count": 1} in report["left_out"]


@pytest.mark.usefixtures("fresh")
def test_resume_compares_names_and_sizes_and_reads_nothing(
    s3: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upscale(capsys, *BOTH, *EXACT)[0] == 0
    s3.delete("out/deep/b.png")
    s3.put("out/a.png", b"")
    read: list[str] = []
    cat = s3fs.S3FileSystem._cat_file

    async def noting(files: s3fs.S3FileSystem, path: str, *given: object, **named: object) -> bytes:
        read.append(path)
        content: bytes = await cat(files, path, *given, **named)
        return content

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", noting)
    s3fs.S3FileSystem.clear_instance_cache()
    code, out, _ = upscale(capsys, *BOTH, "--resume", *EXACT)
    assert (code, out.split(" in ")[0], out.splitlines()[0].split(", ")[1]) == (0, "2 upscaled", "1 skipped")
    assert sorted(read) == ["photos/in/a.png", "photos/in/deep/b.png"]
    assert np.array_equal(s3.picture("out/a.png"), enlarged(PICTURE))


@pytest.mark.parametrize(
    ("inputs", "output", "expected"),
    [
        (["s3://photos/in/a.png"], "s3://photos/one.png", {"one.png"}),
        (["s3://photos/in/a.png", "local.png"], "s3://photos/out/", {"out/a.png", "out/local.png"}),
        (["s3://photos/in/**/*.png"], "s3://photos/o", {"o/a.png", "o/deep/b.png", "o/deep/er/c.png"}),
        (["s3://photos/in/de*/b.png"], "s3://photos/out", {"out/deep/b.png"}),
        (["local.png"], "s3://photos", {"local.png"}),
        (["s3://photos/in/deep"], "s3://photos/in/x4", {"in/x4/b.png", "in/x4/er/c.png"}),
    ],
)  # fmt: skip
def test_files_patterns_and_both_kinds_of_places(
    s3: Bucket, capsys: pytest.CaptureFixture[str], inputs: list[str], output: str, expected: set[str]
) -> None:
    before = set(s3.keys())
    Image.fromarray(PICTURE).save("local.png")
    # A root that is not empty is refused without --force.
    force = ["--force"] if output == "s3://photos" else []
    code, _, err = upscale(capsys, *inputs, "-o", output, *force, *EXACT)
    assert code == 0, err
    assert set(s3.keys()) - before == expected
    for key in expected:
        assert np.array_equal(s3.picture(key), enlarged(PICTURE))


def test_results_on_this_machine_stay_in_their_folder(s3: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("in/../../evil.png", "in/..\\evil.png", "in//double.png", "in/./dot.png"):
        s3.put(key, PICTURE)
    for text, expected in (
        ("s3://photos/in", 0),
        ("s3://photos/in/**", 1),
    ):  # which matches more than pictures
        code, out, err = upscale(capsys, text, "-o", "x/out", "--resume", *EXACT)
        assert code == expected, err
        assert "a name that not all disks have" in out
    files = {str(path.relative_to(Path())) for path in Path().rglob("*") if path.is_file()}
    assert files == {"x/out/a.png", "x/out/deep/b.png", "x/out/deep/er/c.png"}
    assert not list(Path("..").glob("*evil*"))


def test_settings_of_single_pictures_are_found_by_url(s3: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    Path("each.csv").write_text("input,noise\ns3://photos/in/a.png,0.5\nb.png,1\n")
    assert upscale(capsys, *BOTH, "--each", "each.csv", "--report", "r.json", *EXACT)[0] == 0
    noise = [
        each["degradation"]["applied"]["noise"] for each in json.loads(Path("r.json").read_text())["images"]
    ]
    assert noise == [0.5, 1.0, 0.0]


def test_dry_run_writes_nothing(s3: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    before = s3.keys()
    code, out, _ = upscale(capsys, *BOTH, "--dry-run")
    assert code == 0
    assert out.splitlines()[0] == "s3://photos/in/a.png -> s3://photos/out/a.png (60x40 -> 240x160, new)"
    assert s3.keys() == before


def test_two_pictures_with_one_result_cost_the_second(s3: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    s3.put("in/deep/b.jpg", PICTURE)
    code, out, err = upscale(capsys, *BOTH, "--format", "webp")
    assert code == 1
    assert out.startswith("3 upscaled")
    message = (
        "s3://photos/in/deep/b.jpg and s3://photos/in/deep/b.png would both be written to s3://photos/out/"
    )
    assert err.startswith(f"failed: {message}deep/b.webp")


# --- how it is done -------------------------------------------------------------------------------


def test_folders_are_listed_while_pictures_are_upscaled(
    s3: Bucket, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        s3.put(f"in/{number}.png", PICTURE)
    settled = threading.Event()
    children = RemotePath.children

    def waiting(folder: RemotePath, missing_ok: bool = False) -> Iterator[tuple[RemotePath, bool]]:
        if folder.name == "er":
            assert settled.wait(30), "nothing is upscaled before everything is listed"
        yield from children(folder, missing_ok)

    monkeypatch.setattr(RemotePath, "children", waiting)
    jobs = ListedJobs(RemotePath("s3://photos/in"), RemotePath("s3://photos/out"), None, False, False)

    def note(outcome: Outcome) -> None:
        settled.set()

    with Upscaler.open(bundle, options=UpscaleOptions(batch=1)) as upscaler:
        options = BatchOptions(PictureSettings(noise=0, blur=0, color_fix="none"), threads=1)
        batch = Batch(Fleet([upscaler]), jobs, options, note)
        batch.run()
    assert [outcome.status for outcome in batch.outcomes] == ["done"] * 7


@pytest.mark.usefixtures("fresh")
def test_object_is_put_once_and_a_file_elsewhere_is_moved(
    s3: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    pipe, pipe_in_memory = s3fs.S3FileSystem._pipe_file, MemoryFileSystem.pipe_file

    async def noting(files: s3fs.S3FileSystem, path: str, *given: object, **named: object) -> None:
        written.append(path)
        await pipe(files, path, *given, **named)

    def noting_too(files: MemoryFileSystem, path: str, *given: object, **named: object) -> None:
        written.append(path)
        pipe_in_memory(files, path, *given, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", noting)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", noting_too)
    assert upscale(capsys, "s3://photos/in/a.png", "-o", "s3://photos/out", *EXACT)[0] == 0
    assert written == ["photos/out/.s3diff-writable", "photos/out/a.png"]
    assert sorted(s3.keys("out/")) == ["out/a.png"]
    assert upscale(capsys, "s3://photos/in/a.png", "-o", "memory://out", *EXACT)[0] == 0
    assert written[3].endswith(".partial.png")
    assert MemoryFileSystem().find("/out") == ["/out/a.png"]


@pytest.mark.usefixtures("fresh")
def test_keys_that_expire_end_the_batch(
    s3: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        s3.put(f"in/many/{number:02}.png", PICTURE)
    pipe = s3fs.S3FileSystem._pipe_file

    async def expiring(files: s3fs.S3FileSystem, path: str, *given: object, **named: object) -> None:
        if path.endswith("02.png"):
            raise PermissionError("The provided token has expired.")
        await pipe(files, path, *given, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", expiring)
    code, _, err = upscale(capsys, *BOTH, "--batch", "1", *EXACT)
    assert code == 1
    assert "may not be written with these credentials (The provided token has expired.); stopped" in err


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("s3://absent/in", "-o", "s3://photos/out"), "s3://absent/in does not exist, or its"),
        (("s3://photos/nothing", "-o", "out"), "s3://photos/nothing does not exist, or"),
        (("s3://photos/in/*.gif", "-o", "out"), "s3://photos/in/*.gif does not exist, and matches nothing"),
        (("s3://photos/in", "-o", "s3://absent/out"), "s3://absent/out does not exist, or its bucket"),
        (("s3://photos/in", "-o", "s3://photos/in"), "s3://photos/in holds something already; pass --force"),
        (("s3://photos/in", "-o", "s3://photos/in", "--force"), "s3://photos/in holds the input"),
        (("s3://photos/in", "-o", "s3://photos", "--force"), "s3://photos holds the input s3://photos/in"),
        (("s3://photos/in", "-o", "s3://photos/out.png"), "s3://photos/out.png names a file, and"),
        (("s3://photos/in", "-o", "s3://photos/o", "--report", "x.png"), "--report x.png is an input"),
        (("s3://photos/in/a.png", "-o", "s3://photos/in/a.png"), "would replace the input s3://"),
        (("s3://photos/in/deep/b.png", "-o", "s3://photos/in/deep/er/c.png"), "c.png exists; pass --force"),
        ((f"s3://key:{SECRET}@photos/in", "-o", "out"), "this s3 URL holds a password or a query"),
        ((f"https://host/in.png?sig={SECRET}", "-o", "out"), "this https URL holds a password or a query"),
        (("in", "-o", f"ftp://me:{SECRET}@host/out"), "this ftp URL holds a password or a query"),
        (("gopher://host/in", "-o", "out"), "gopher://host/in cannot be opened: Protocol not known: gopher"),
        (("abfs://c/in", "-o", "out"), "abfs://c/in needs more than is installed: Install adlfs"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_any_work(
    s3: Bucket, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    before = s3.keys()
    code, out, err = upscale(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert SECRET not in err
    assert s3.keys() == before


@pytest.mark.usefixtures("fresh")
def test_missing_permissions_are_told_before_any_work(
    s3: Bucket,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "s3diff_runtime")
    iam = boto3.client("iam")
    iam.create_user(UserName="reader")
    statement = {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="reader", PolicyName="reads", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]

    @set_initial_no_auth_action_count(0)
    def refused() -> None:
        for name, secret, told in (
            ("AKIANOBODY", SECRET, "s3://photos/in may not be looked up with these credentials"),
            (
                key["AccessKeyId"],
                key["SecretAccessKey"],
                "s3://photos/out may not be written",
            ),
        ):
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
            s3fs.S3FileSystem.clear_instance_cache()
            code, out, err = upscale(capsys, *BOTH)
            assert (code, out) == (2, "")
            assert told in err
            assert err.count("\n") == 1
            assert secret not in err + caplog.text

    refused()


@pytest.mark.usefixtures("fresh")
def test_missing_library_names_the_extra(
    s3: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = "s3://photos/in needs: pip install 's3diff-export[remote]'\n"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "fsspec.core", None)
        assert upscale(capsys, *BOTH) == (2, "", f"error: {needs}")
    monkeypatch.delitem(_registry, "s3")  # where fsspec keeps what it has imported
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert upscale(capsys, *BOTH) == (2, "", f"error: {needs}")


def test_what_a_store_says_is_told_without_credentials() -> None:
    said = 'no answer from "https://me:pass@store.example/b?X-Amz-Signature=abc&x=1" in 5 s'
    assert without_credentials(said) == 'no answer from "https://…store.example/b?…" in 5 s'


def test_names_as_paths_have_them() -> None:
    place = place_named("S3://photos/in/a.b/c.tar.png/")
    assert isinstance(place, RemotePath)
    assert (str(place), place.name, place.stem, place.suffix) == (
        "s3://photos/in/a.b/c.tar.png",
        "c.tar.png",
        "c.tar",
        ".png",
    )
    assert place.with_suffix(".webp").parent == RemotePath("s3://photos/in/a.b")
    assert place_named("file:///tmp/x.png") == Path("/tmp/x.png")
    assert place_named("in/a:b.png") == Path("in/a:b.png")


def test_a_large_object_is_not_read(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3diff_runtime.remote._MOST_BYTES", 10)
    with pytest.raises(RequestError, match=r"has \d+ bytes, more than the 10 that are read"):
        RemotePath("s3://photos/in/a.png").read()
