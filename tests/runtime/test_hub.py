"""Bundles on a small fake Hub and in a store: pushed, pinned, fetched once, checked by hash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import constants
from tests.runtime.fake_bundle import enlarged, write_fake_bundle
from tests.runtime.fake_hub import TOKEN, FakeHub, fake_hub
from tests.runtime.pictures import PICTURE
from tests.runtime.stores import SECRET, s3_server

from s3diff_export import cli
from s3diff_runtime.bundle.card import model_card
from s3diff_runtime.bundle.fetching import local_bundle
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import BundleError, JobError, RequestError
from s3diff_runtime.upscaler import Upscaler


@pytest.fixture(scope="module")
def server() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle", "merged", external_data=True)


@pytest.fixture
def hub(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """An empty Hub that the libraries of this process ask, with empty caches and a token."""
    monkeypatch.chdir(tmp_path)
    server.serve_empty(monkeypatch, tmp_path)
    return server


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(cli.cli, list(arguments))
    captured = capsys.readouterr()
    assert TOKEN not in captured.out + captured.err
    return code, captured.out, captured.err


def upscaled(name: str) -> np.ndarray:
    with Upscaler.open(name) as upscaler:
        return upscaler(PICTURE, noise=0, blur=0, color_fix="none").pixels


def content(bundle: Path) -> dict[str, bytes]:
    return {p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}


# --- there and back -------------------------------------------------------------------------------


def test_pushed_bundle_is_opened_by_its_name(
    hub: FakeHub, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(capsys, "push", str(bundle), "me/small", "--license", "apache-2.0", "--private")
    assert (code, out) == (0, f"{hub.url}/me/small/commit/{hub.commits['me/small'][-1][0]}\n"), err
    assert hub.private == {"me/small"}
    files = hub.files("me/small")
    assert files.keys() == {*content(bundle), "README.md", ".gitattributes"}
    assert np.array_equal(upscaled("me/small"), enlarged(PICTURE))
    hub.requests.clear()
    assert np.array_equal(upscaled("me/small"), enlarged(PICTURE))
    fetched = [request for request in hub.requests if request.startswith("GET")]
    assert not fetched, "what the cache has is not fetched again"
    assert command(capsys, "inspect", "me/small", "--check")[0] == 0


def test_push_removes_what_the_bundle_has_no_more(
    hub: FakeHub, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, "push", str(bundle), "me/small")[0] == 0
    first = hub.commits["me/small"][-1][0]
    other = write_fake_bundle(Path("other"), "dynamic")
    assert command(capsys, "push", str(other), "me/small")[::2] == (0, "")
    assert hub.files("me/small").keys() == {*content(other), "README.md", ".gitattributes"}
    # A revision stays what it was, and the branch is what it is now.
    for name, expected in ((f"me/small@{first}", bundle), ("me/small", other), ("me/small@main", other)):
        assert content(local_bundle(name)) == content(expected)


def test_pull_makes_the_folder(hub: FakeHub, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.commit("me/small", {**content(bundle), "weights.bin": b"not of the bundle"})
    assert command(capsys, "pull", "me/small", "-o", "here/copy")[:2] == (0, "here/copy\n")
    assert content(Path("here/copy")) == content(bundle)
    code, _, err = command(capsys, "pull", "me/small", "-o", "here/copy")
    assert (code, err) == (2, "error: here/copy exists; pass --force to replace it\n")
    assert command(capsys, "pull", "me/small", "-o", "here/copy", "--force")[0] == 0
    assert command(capsys, "pull", "me/small", "-o", "here", "--force")[0] == 2, "here is no bundle"


def test_offline_the_cache_serves(hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("me/small", content(bundle))
    folder = local_bundle("me/small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert local_bundle("me/small") == folder
    assert not hub.requests
    with pytest.raises(RequestError, match="me/other is not in the cache, and the Hub cannot be reached"):
        local_bundle("me/other")


def test_without_a_network_it_is_not_the_hub_that_refuses(
    hub: FakeHub, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    code, _, err = command(capsys, "push", str(bundle), "me/small")
    assert (code, err.count("\n")) == (2, 1)
    assert "me/small cannot be had, the Hub is not reached: " in err


def test_folders_are_folders(hub: FakeHub, bundle: Path) -> None:
    assert local_bundle(bundle) == local_bundle(str(bundle)) == local_bundle(f"file://{bundle}") == bundle
    assert not hub.requests


def test_a_new_process_needs_an_endpoint_and_a_name(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    hub.commit("me/small", content(bundle))
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    script = "from s3diff_runtime import Upscaler; Upscaler.open('me/small').close(); print('opened')"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "opened\n"), done.stderr


def test_bundle_in_a_store_is_fetched_once(
    hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch) as s3:
        for name, data in content(bundle).items():
            s3.put(f"bundles/small/{name}", data)
        folders = set[Path]()
        openers = [
            threading.Thread(target=lambda: folders.add(local_bundle("s3://photos/bundles/small")))
            for _ in range(3)
        ]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join()
        assert len(folders) == 1
        assert content(folders.pop()) == content(bundle)
        s3.put("bundles/small/onnx/estimator.onnx", b"x")
        assert np.array_equal(upscaled("s3://photos/bundles/small"), enlarged(PICTURE)), "it was kept"
        monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
        with pytest.raises(RequestError, match=r"estimator\.onnx has 1 bytes, expected \d+ bytes"):
            local_bundle("s3://photos/bundles/small")


@pytest.mark.parametrize("home", [None, "a file"])
def test_without_a_place_for_the_cache_it_says_so(
    hub: FakeHub,
    bundle: Path,
    home: str | None,
    leave_home: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.commit("me/small", content(bundle))
    leave_home()
    if home:
        Path(home).touch()
        monkeypatch.setenv("XDG_CACHE_HOME", home)
    with pytest.raises(JobError, match="set XDG_CACHE_HOME to a folder"):
        local_bundle("me/small")


# --- the card -------------------------------------------------------------------------------------


def test_card_says_what_the_manifest_says(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    parity = {
        "cases": 3,
        "quantities": [{"quantity": "epsilon", "relative": 1.5e-6, "limit": 1e-4}],
        "psnr": {"wavelet": 71.25, "none": None},
    }
    prompts = manifest.prompts.model_copy(update={"positive": "a | b `c`\n---\n<script>[x](y)"})
    bins = [{"bins": "3x3", "count": 9, "epsilon_relative_mean": 0.012, "image_psnr_mean": 41.5}]
    reports = {"parity": parity, "bins": bins}
    manifest = manifest.model_copy(update={"reports": reports, "prompts": prompts})
    card = model_card(manifest, "me/small", "apache-2.0")
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "s3diff-export",
        "pipeline_tag": "image-to-image",
        "license": "apache-2.0",
        "tags": ["super-resolution", "onnx", "s3diff"],
    }
    assert "| epsilon | 1.5e-06 | 1.0e-04 |" in text
    assert "| image (wavelet) | 71.2 dB |  |" in text
    assert "| image (none) | identical |  |" in text
    assert "| 3x3 (9) | 1.2e-02 | 41.5 dB |" in text
    assert "--bundle me/small" in text
    assert "<script>" not in text and "](y)" not in text and "a | b" not in text
    assert "no report of a comparison" in model_card(Manifest.read(bundle), "me/small", "other")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/absent", "me/absent is no folder here, and no repository of the Hub that may be read"),
        ("me/small@v9", "me/small@v9 is on the Hub, and has no such revision"),
        ("me/empty", "me/empty is a repository without manifest.json, so it holds no bundle"),
        ("me/a--b", "me/a--b is no name that a repository can have"),
        ("folder/absent", "folder/absent does not exist; expected the folder of a bundle"),
        ("absent", "absent does not exist; expected the folder of a bundle"),
        ("a/b/c", "a/b/c does not exist; expected the folder of a bundle"),
    ],
)
def test_names_that_stand_for_nothing(hub: FakeHub, bundle: Path, name: str, message: str) -> None:
    hub.commit("me/small", content(bundle))
    hub.commit("me/empty", {"README.md": b""})
    Path("folder").mkdir()
    with pytest.raises(RequestError) as refused:
        Upscaler.open(name)
    assert str(refused.value).startswith(message)
    assert ("folder" in name) <= (not hub.requests), "no name of a folder leaves this machine"


@pytest.mark.parametrize("damage", ["altered", "missing", "escaping", "no JSON"])
def test_damaged_bundles_are_refused_and_not_kept(
    hub: FakeHub, bundle: Path, tmp_path: Path, damage: str
) -> None:
    files = content(bundle)
    name = next(name for name in files if name.endswith(".onnx"))
    if damage == "altered":
        files[name] = files[name][:-1] + b"?"
    elif damage == "missing":
        del files[name]
    elif damage == "no JSON":
        files["manifest.json"] = b"<html>"
    else:
        manifest = json.loads(files["manifest.json"])
        manifest["files"]["../../../evil"] = {"sha256": "0" * 64, "size": 4}
        files["manifest.json"] = json.dumps(manifest).encode()
        files["../../../evil"] = b"evil"
    hub.commit("me/small", files)
    with pytest.raises(BundleError, match="me/small"):
        local_bundle("me/small")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock" and path.is_file()]
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("push", "absent", "me/small"), "absent does not exist; expected the folder of a bundle"),
        (("push", "BUNDLE", "small"), "small is no repository of the Hub; expected OWNER/NAME"),
        (("push", "BUNDLE", "me/small@main"), "me/small@main is no repository of the Hub"),
        (("push", "BUNDLE", "me/readable"), "me/readable is refused by the Hub: "),
        (("push", "BUNDLE", "me/small", "--license", "My own"), "license is 'My own', expected an"),
        (("pull", "folder", "-o", "x"), "folder is a folder of this machine; expected OWNER/NAME or a URL"),
        (("pull", f"s3://key:{SECRET}@bucket/x", "-o", "x"), "this s3 URL holds a password or a query"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    hub: FakeHub, bundle: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    hub.commit("me/readable", content(bundle))
    hub.read_only.add("me/readable")
    code, _, err = command(capsys, *[str(bundle) if each == "BUNDLE" else each for each in arguments])
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert SECRET not in err
    assert not Path("x").exists()


def test_missing_library_names_the_extra(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        RequestError, match=r"me/small is no folder here; .*pip install 's3diff-export\[hub\]'"
    ):
        Upscaler.open("me/small")
