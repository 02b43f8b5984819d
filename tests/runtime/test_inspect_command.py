"""`s3diff-export inspect`: what it shows of a bundle, and what it finds wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.runtime.fake_bundle import edit_manifest, write_fake_bundle

from s3diff_export import cli
from s3diff_runtime.bundle.integrity import HASHED_BELOW
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.records import FileRecord
from s3diff_runtime.command_line import Member

ROOT = cli.RootGroup({"inspect": Member("s3diff_runtime.bundle.inspection:run_inspect", "Show.", "cpu")})
PARITY = {
    "passed": True,
    "stages": {"unet": {"relative": 4.2e-6}, "vae_decoder": {"relative": 6e-05}},
    "images": [{"psnr_db": 71.25}, {"psnr_db": 69.5}],
    "log": list(range(100)),
}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "160")
    folder = write_fake_bundle(tmp_path / "bundle", "merged")
    edit_manifest(folder, lambda content: content["reports"].update(parity=PARITY))
    return folder


def test_people_get_tables(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(ROOT, ["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "s3diff-bundle, revision 1",
        "merged",
        "fake (sha256 000000000000…)",
        "noise, blur (the estimator's order)",
        "folded into the graphs",
        "wavelet, adain, none",
        "latent float32 [N, 3, h, w]",
        "9, one per bin",
        "1, shared",
        "n2-b1",
        "Report: parity",
        "stages.unet.relative",
        "4.2e-06",
        "images[1].psnr_db",
        "100 entries, see --json",
    ):
        assert text in shown, text


def test_programs_get_the_manifest(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(ROOT, ["inspect", str(bundle), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads(Manifest.read(bundle).model_dump_json())
    assert content["reports"]["parity"] == PARITY


def test_markup_in_a_manifest_is_shown_as_it_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_manifest(bundle, lambda content: content["prompts"].update(positive="[red]sharp[/nonsense]"))
    assert cli.run(ROOT, ["inspect", str(bundle)]) == 0
    assert "[red]sharp[/nonsense]" in capsys.readouterr().out


def test_check_reads_large_files_too(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = bundle / "large.bin"
    large.write_bytes(bytes(HASHED_BELOW))
    record = FileRecord(sha256="0" * 64, size=HASHED_BELOW)
    edit_manifest(bundle, lambda content: content["files"].update({"large.bin": record.model_dump()}))
    assert cli.run(ROOT, ["inspect", str(bundle)]) == 0
    assert "all sizes and the hashes of small files compared" in capsys.readouterr().out
    assert cli.run(ROOT, ["inspect", str(bundle), "--check"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "large.bin was altered" in captured.err
    assert captured.err.count("\n") == 1


def test_every_hash_holds_of_an_untouched_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(ROOT, ["inspect", str(bundle), "--check"]) == 0
    assert "every hash compared" in capsys.readouterr().out


def test_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(ROOT, ["inspect", str(tmp_path), "--json"]) == 2
    assert "is not a bundle: it has no manifest.json" in capsys.readouterr().err
