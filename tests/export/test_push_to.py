"""`build --push-to`: what is built is published; a repository that refuses is told before hours of work."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.export.models import Files
from tests.runtime.fake_hub import fake_hub

from s3diff_export.cli import cli, run


def test_bundle_is_published_once_it_is_whole(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "b"
    command = [
        *("build", *files.arguments(), "-o", str(output), "--no-verify", "--lora-mode", "fused"),
        *("--precision", "fp32", "--color-fix", "wavelet", "--scales", "4"),
    ]
    with fake_hub() as hub:
        hub.serve_empty(monkeypatch, tmp_path)
        hub.commit("me/readable", {})
        hub.read_only.add("me/readable")
        assert run(cli, [*command, "--push-to", "me/readable"]) == 2
        assert "me/readable is refused by the Hub" in capsys.readouterr().err
        assert not output.exists()
        assert run(cli, [*command, "--push-to", "me/small", "--license", "apache-2.0"]) == 0
        assert (
            capsys.readouterr().out
            == f"{output}\n{hub.url}/me/small/commit/{hub.commits['me/small'][-1][0]}\n"
        )
        names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
        assert hub.files("me/small").keys() == {*names, "README.md", ".gitattributes"}
        assert b"license: apache-2.0" in hub.files("me/small")["README.md"]


def test_options_of_a_push_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["build", "--demo", "-o", "x", "--private"]) == 2
    assert "--private without --push-to; nothing is published" in capsys.readouterr().err
