"""The check of a GPU machine: its steps, its time, what it makes of failures; its commands only pretend."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from s3diff_benchmarks import steps
from s3diff_benchmarks.steps import Ended, Outcome, run_steps

Told = Mapping[str, tuple[int, str, str]]
"""By words that stand in a command: code, output and error."""

PARITY = {"quantities": [{"quantity": "epsilon_positive", "relative": 1e-3}], "psnr": {"wavelet": 51.0}}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "tools" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Commands:
    """Stands for s3diff-export: each command takes ten seconds and does what it was told by its words."""

    def __init__(self, told: Told | None = None) -> None:
        self.told, self.now = told or {}, 0.0

    def clock(self) -> float:
        return self.now

    def __call__(self, command: Sequence[str], seconds: float) -> Ended:
        line = " ".join(command)
        if seconds < 10:
            self.now += seconds
            return Ended(None, "", "")
        self.now += 10
        for words, (code, output, error) in self.told.items():
            if words in line:
                return Ended(code, output, error)
        return Ended(0, json.dumps(PARITY if " verify " in line else {}), "")


def checked(tool: ModuleType, seconds: float = 1000, told: Told | None = None) -> list[Outcome]:
    commands = Commands(told)
    planned = list(tool.check_bundle("small", (), ("--demo",), Path("small.bundle"), "cuda"))
    with patch.multiple(steps, run_process=commands, monotonic=commands.clock):
        return run_steps(planned, lambda outcomes: None, seconds)


def test_every_engine_is_built_compared_and_measured(tool: ModuleType) -> None:
    outcomes = checked(tool)
    assert [each.status for each in outcomes] == ["ok"] * 9
    commands = [" ".join(each.command[1:]) for each in outcomes]
    assert commands[0].startswith("build --demo -o small.bundle")
    for flavour in tool.FLAVOURS:
        assert any(line.startswith(f"engines small.bundle --engine {flavour}") for line in commands)
    for engine in ("onnx", *tool.FLAVOURS):
        assert any(
            line.startswith("verify") and f"--engine {engine} --device cuda" in line for line in commands
        )
        assert any(
            line.startswith("bench latency") and f"--engine {engine} --device cuda" in line
            for line in commands
        )
    assert all(line.endswith("--json") for line in commands)
    assert tool.passed(outcomes)


def test_an_engine_that_is_not_there_is_skipped_with_its_reason(tool: ModuleType) -> None:
    missing = (2, "", "tensorrt is not installed: pip install 's3diff-export[tensorrt]'")
    outcomes = checked(tool, told={"--engine tensorrt --json": missing})
    found = {each.name: each for each in outcomes}
    assert found["small: build tensorrt engines"].reason == missing[2]
    assert found["small: tensorrt against PyTorch in fp32"].status == "skipped"
    assert found["small: tensorrt latency"].reason == "small: build tensorrt engines skipped"
    assert found["small: tensorrt-rtx latency"].status == "ok"
    assert tool.passed(outcomes)


def test_a_crash_is_a_finding_and_the_rest_goes_on(tool: ModuleType) -> None:
    outcomes = checked(tool, told={"--engine tensorrt-rtx --device cuda --json": (-11, "", "")})
    found = {each.name: each for each in outcomes}
    assert found["small: tensorrt-rtx against PyTorch in fp32"].reason == "the process ended with code -11"
    assert found["small: tensorrt-rtx latency"].status == "ok"
    assert not tool.passed(outcomes)


def test_nothing_starts_after_the_time_is_up(tool: ModuleType) -> None:
    outcomes = checked(tool, seconds=35)
    assert [each.status for each in outcomes] == ["ok", "ok", "ok", "failed", *["skipped"] * 5]
    assert outcomes[3].reason == "out of time"
    assert "35 s" in outcomes[-1].reason


def test_nothing_compared_is_no_pass(tool: ModuleType) -> None:
    assert not tool.passed(checked(tool, seconds=5))


def test_a_model_of_full_size_waits_for_its_weights(tool: ModuleType, tmp_path: Path) -> None:
    planned = {step.name: step for step in tool.plan(tmp_path, "cpu", True)}
    assert planned["full size: build"].needs == "full size: make random weights"
    assert f"--checkpoint={tmp_path / 'full-size' / 's3diff.pkl'}" in planned["full size: build"].command


def test_without_a_gpu_it_says_so(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tool.describe_machine().model_copy(update={"gpus": ()})
    monkeypatch.setattr(tool, "describe_machine", lambda: machine)
    result = CliRunner().invoke(tool.main, [str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "no NVIDIA GPU here" in result.output
    assert not (tmp_path / "out").exists()


def test_the_report_has_what_the_commands_said(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "run_process", Commands())
    result = CliRunner().invoke(tool.main, [str(tmp_path), "--device", "cpu", "--small-only"])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert report["passed"] and report["machine"]["processor"]
    assert [step["name"] for step in report["steps"]] == [
        "small: build",
        "small: onnx against PyTorch in fp32",
        "small: onnx latency",
        "full size",
    ]
    assert report["steps"][1]["result"] == PARITY
    assert report["steps"][3]["reason"] == "--small-only"


def test_the_table_shows_parity_and_the_time_of_a_call(tool: ModuleType) -> None:
    columns = [{"name": "method", "unit": ""}, {"name": "part", "unit": ""}, {"name": "median", "unit": "s"}]
    rows = [
        ["small.bundle", "call", 0.01234],
        ["small.bundle", "end to end", 0.2],
        ["PyTorch tuned", "call", 0.05],
    ]
    latency = {"tables": [{"name": "latency", "columns": columns, "rows": rows}]}
    outcomes = checked(tool, told={"latency": (0, json.dumps(latency), "")})
    found = {each.name: tool.figure_of(each) for each in outcomes}
    assert found["small: onnx latency"] == "small.bundle 0.0123 s, PyTorch tuned 0.05 s"
    assert found["small: onnx against PyTorch in fp32"] == "ε relative 1.0e-03, image 51.0 dB"
