"""`bench peers`: facts of the paper's ten systems, what is missing here, and that every command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from tests.benchmarks.pictures import noise, write_folder

from s3diff_benchmarks import peers
from s3diff_benchmarks.machine import Gpu
from s3diff_benchmarks.pictures.pairs import find_cases
from s3diff_benchmarks.pictures.programs import named_program, run_programs
from s3diff_benchmarks.published import METHODS
from s3diff_export.cli import cli, run
from s3diff_runtime.pictures.photograph import open_photograph

KNOWN = peers.known_peers()
PROGRAMS = [peer for peer in KNOWN if not peer.bundle]
STAND_IN = f"""#!{sys.executable}
# In the place of a checkout's Python: finds the folders among the words, and writes where the program would.
import sys
from pathlib import Path
from PIL import Image

script, *words = sys.argv[1:]
source, target = (Path(word) for word in words if Path(word).is_absolute())
"""
BSRGAN_STAND_IN = f"""#!{sys.executable}
# As main_test_bsrgan.py does it: fixed folders, below the working folder.
from pathlib import Path

assert Path("model_zoo/BSRGAN.pth").exists()
source, target = Path("testsets/RealSRSet"), Path("testsets/RealSRSet_results_x4")
from PIL import Image
"""
WRITE = """
target.mkdir(exist_ok=True)
for path in source.iterdir():
    image = Image.open(path)
    image.resize((4 * image.width, 4 * image.height)).save(target / f"{path.stem}_made.png")
"""


def gpu(gib: int) -> Gpu:
    clocks: dict[str, Any] = {"sm_clock_mhz": 1, "memory_clock_mhz": 1, "power_limit_w": None}
    return Gpu(name="a GPU", driver="1", cuda="13.0", memory_mib=1024 * gib, **clocks)


def known(name: str) -> peers.KnownPeer:
    return next(peer for peer in KNOWN if peer.name == name)


def checkout(folder: Path, peer: peers.KnownPeer, python: str) -> Path:
    """A checkout that has all weights and a Python."""
    made = folder / peer.repository.rpartition("/")[2]
    for name in peer.weights.value or ():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).touch()
    (made / ".venv" / "bin").mkdir(parents=True)
    (made / ".venv" / "bin" / "python").write_text(python)
    (made / ".venv" / "bin" / "python").chmod(0o755)
    return made


def missing(peer: peers.KnownPeer, folder: Path | None, *gpus: Gpu) -> list[str]:
    return list(peers.Place.of(peer, folder).missing(peer, gpus))


# --- the data file --------------------------------------------------------------------------------


def test_every_system_of_the_papers_tables_is_there() -> None:
    assert {peer.published for peer in KNOWN} == set(METHODS) - {"S3Diff-1"}
    assert len({peer.published for peer in KNOWN}) == 10
    assert [peer.name for peer in KNOWN if peer.bundle] == ["OSEDiff"]


@pytest.mark.parametrize("peer", KNOWN, ids=lambda peer: peer.name)
def test_what_needs_a_gpu_tells_how_much_of_it(peer: peers.KnownPeer) -> None:
    assert peer.repository.startswith("https://github.com/")
    assert (peer.memory is not None) == bool(peer.gpu.value)
    assert peer.command.value and peer.packages.source and peer.gpu.source


def test_a_fact_has_a_source_or_a_reason() -> None:
    assert peers.Fact[str](value="MIT", source="LICENSE at 1234567").value == "MIT"
    for wrong in ({"value": "MIT"}, {"source": "x"}, {"value": "MIT", "source": "x", "unchecked": "y"}, {}):
        with pytest.raises(ValidationError, match="expected a value with its source, or why it is unchecked"):
            peers.Fact[str](**wrong)
    with pytest.raises(ValidationError, match="the paper has no row SUPIR"):
        peers.KnownPeer.model_validate(KNOWN[0].model_dump() | {"published": "SUPIR"})


@pytest.mark.parametrize("peer", PROGRAMS, ids=lambda peer: peer.name)
def test_every_command_runs_in_its_checkout(peer: peers.KnownPeer, tmp_path: Path) -> None:
    """With a stand-in for its Python: the placeholders, the quotes and where the pictures come and go."""
    stand_in = BSRGAN_STAND_IN if peer.name == "BSRGAN" else STAND_IN
    checkout(tmp_path / "with space", peer, stand_in + WRITE)
    place = peers.Place.of(peer, tmp_path / "with space")
    program = named_program(f"{peer.name}={place.fill(peer.command.value or '')}")
    lr = write_folder(tmp_path / "lr", {"a.png": noise(8, 10)})
    (made,) = run_programs([program], find_cases(lr, None)[0], tmp_path / "out", 60)
    assert open_photograph(made.outputs["a"]).pixels.shape == (32, 40, 3)


# --- what is missing ------------------------------------------------------------------------------


def test_missing_parts_are_told_from_the_checkout_on(tmp_path: Path) -> None:
    peer = known("StableSR")
    cloned = f"checkout: git clone https://github.com/IceClear/StableSR {tmp_path / 'StableSR'}"
    assert missing(peer, tmp_path, gpu(24)) == [cloned]
    made = checkout(tmp_path, peer, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (made / "stablesr_000117.ckpt").unlink()
    weights, packages = missing(peer, tmp_path, gpu(24))
    assert weights == "weights: stablesr_000117.ckpt"
    python = made / ".venv" / "bin" / "python"
    assert packages.startswith(f"packages of {python}: ")
    assert "taming" in packages and "torch," not in packages
    python.write_text("no program")
    assert f"executable: {python} does not run" in missing(peer, tmp_path, gpu(24))


def test_a_gpu_must_be_there_and_large_enough() -> None:
    assert missing(known("StableSR"), None) == ["an NVIDIA GPU with 10 GiB"]
    assert missing(known("StableSR"), None, gpu(8)) == ["an NVIDIA GPU with 10 GiB"]
    assert missing(known("StableSR"), None, gpu(8), gpu(12)) == []
    assert missing(known("SeeSR"), None) == ["an NVIDIA GPU"]
    assert missing(known("BSRGAN"), None) == []


def test_what_needs_no_checkout_misses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    told = missing(known("Real-ESRGAN-ncnn"), tmp_path)
    assert not any("checkout" in each for each in told)
    assert all(each.startswith(f"packages of {sys.executable}: ") for each in told)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of these tests has none."""
    monkeypatch.setattr(peers, "describe_machine", lambda: SimpleNamespace(gpus=()))


def test_the_list_shows_needs_commands_and_what_is_unchecked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["bench", "peers"]) == 0
    shown = capsys.readouterr().out
    for peer in KNOWN:
        assert peer.name in shown
        for fact, why in peer.unchecked.items():
            assert f"  not checked: {fact}: {why}" in shown
    assert "(--folder looks" in shown and "only Real-ESRGAN-ncnn was run by this project" in shown
    assert "--run 'SeeSR=env -C {checkout} {python} test_seesr.py" in shown
    assert "as in README.md at 303f9ef" in shown
    assert "  s3diff-export build --base sd-2.1-base --checkpoint {checkout}/preset" in shown


def test_json_has_everything_with_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["bench", "peers", "--folder", str(tmp_path), "--json"]) == 0
    told = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert list(told) == [peer.name for peer in KNOWN]
    assert told["SinSR"]["licence"]["source"] == "LICENSE at c70afb1"
    assert told["SinSR"]["run"].startswith(f"SinSR=env -C {tmp_path / 'SinSR'} CUDA_VISIBLE_DEVICES=0 ")
    assert told["SinSR"]["missing"][-1] == "an NVIDIA GPU"
    assert "run" not in told["OSEDiff"] and "osediff.pkl" in told["OSEDiff"]["build"]


def test_a_folder_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["bench", "peers", "--folder", "none"]) == 2
    assert "--folder none is no folder; make it, and clone" in capsys.readouterr().err
