"""Names of devices, and several of them on one queue."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from PIL import Image
from tests.runtime.fake_bundle import dark_noise, enlarged, write_fake_bundle
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_engines import add_engines
from tests.runtime.fake_tensorrt import install_fakes

from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.batch.upscaling import run_upscale
from s3diff_runtime.command_line import command_of
from s3diff_runtime.engines.devices import Device, listed_devices
from s3diff_runtime.errors import RequestError
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Upscaler

# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpu", Device("cpu", 0)), ("cuda", Device("cuda", 0)), ("cuda:12", Device("cuda", 12))],
)
def test_devices_by_name(name: str, expected: Device) -> None:
    assert Device.parse(name) == expected


@pytest.mark.parametrize("name", ["", "all", "gpu", "cuda:", "cuda:-1", "cuda:1234", "cpu:0", "CUDA", " cpu"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(RequestError, match=rf"unknown device '{name}'; expected cpu, cuda, or cuda:N"):
        Device.parse(name)


def test_lists_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed_devices("cpu") == ["cpu"]
    assert listed_devices("cuda:1, cuda:0") == ["cuda:1", "cuda:0"]
    monkeypatch.setattr("cuda.bindings.runtime", FakeCuda(gpus=3))
    assert listed_devices("all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr("cuda.bindings.runtime", FakeCuda(gpus=0))
    with pytest.raises(RequestError, match=r"no usable GPU was found"):
        listed_devices("all")


@pytest.mark.parametrize("names", ["cpu,cpu", "cuda,cuda:0", "cuda:1,cuda:0,cuda:1"])
def test_no_device_twice(names: str) -> None:
    with pytest.raises(RequestError, match=r"--device names .* more than once"):
        listed_devices(names)


# --- a fleet --------------------------------------------------------------------------------------


class Worker:
    """Stands in for an upscaler: notes what it did, at its own pace."""

    manifest = SimpleNamespace(scale=4)
    options = UpscaleOptions()

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        self.device = self.engine = name
        self.seconds, self.done = seconds, list[int]()
        self.threads: set[threading.Thread] = set()

    def do(self, item: int) -> None:
        time.sleep(self.seconds)
        self.threads.add(threading.current_thread())
        self.done.append(item)


def fleet_of(*workers: Worker) -> Fleet:
    return Fleet([cast(Upscaler, worker) for worker in workers])


def work(upscaler: Upscaler, item: int) -> None:
    cast(Worker, upscaler).do(item)


def test_the_quicker_device_takes_more() -> None:
    slow, quick = Worker("cuda:0", 0.05), Worker("cuda:1", 0.005)
    fleet = fleet_of(slow, quick)
    fleet.drain(iter(range(30)), work)
    assert sorted(slow.done + quick.done) == list(range(30)), "each item once"
    assert len(quick.done) > 2 * len(slow.done) > 0
    assert (fleet.device, fleet.engine) == ("cuda:0,cuda:1", "cuda:0,cuda:1")


def test_one_device_works_in_the_calling_thread() -> None:
    worker = Worker("cpu")
    fleet_of(worker).drain(iter(range(3)), work)
    assert (worker.done, worker.threads) == ([0, 1, 2], {threading.current_thread()})


@pytest.mark.parametrize("where", ["work", "items"])
def test_an_error_ends_the_others(where: str) -> None:
    first, second = Worker("cuda:0", 0.002), Worker("cuda:1", 0.002)

    def items() -> Iterator[int]:
        for number in range(1000):
            if where == "items" and number == 10:
                raise RuntimeError("broken")
            yield number

    def failing(upscaler: Upscaler, item: int) -> None:
        if where == "work" and item == 10:
            raise RuntimeError("broken")
        work(upscaler, item)

    with pytest.raises(RuntimeError, match="broken"):
        fleet_of(first, second).drain(items(), failing)
    assert len(first.done + second.done) < 20


# --- the command line -----------------------------------------------------------------------------


def test_folders_are_shared_by_all_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(gpus=2)
    install_fakes(monkeypatch, cuda)
    bundle = write_fake_bundle(tmp_path / "bundle", "dynamic")
    add_engines(bundle)
    (tmp_path / "in").mkdir()
    pictures = [dark_noise(8 + number, 16, seed=number) for number in range(9)]
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    asked = ["--device", "all", "--engine", "tensorrt", "--color-fix", "none", "--noise", "0", "--blur", "0"]
    paths = [str(tmp_path / name) for name in ("in", "out", "bundle", "report.json")]
    arguments = [paths[0], "-o", paths[1], "--bundle", paths[2], "--report", paths[3], *asked]
    result = CliRunner().invoke(command_of(run_upscale, "upscale"), arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for number, pixels in enumerate(pictures):
        with Image.open(tmp_path / "out" / f"{number}.png") as image:
            assert image.tobytes() == enlarged(pixels).tobytes()
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert (report["engine"], report["device"]) == ("tensorrt", "cuda:0,cuda:1")
    assert [Path(image["input"]).name for image in report["images"]] == [f"{n}.png" for n in range(9)]
    assert {stream.device for stream in cuda.streams.values()} <= {0, 1}
    assert (cuda.violations, cuda.leaks()) == ([], [])
