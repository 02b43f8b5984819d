"""The check of a GPU machine: its steps, its time, what it makes of failures; its commands only pretend."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import click
import pytest
from click.testing import CliRunner
from tests.runtime import fake_onnxruntime
from tests.runtime.fake_bundle import write_fake_bundle

from s3diff_benchmarks import steps
from s3diff_benchmarks.steps import Ended, Outcome, Step, run_steps
from s3diff_export.cli import cli
from s3diff_runtime.engines.flavours import BUILDER_FLAVOURS
from s3diff_runtime.engines.onnx_cuda import SETTINGS, CudaSide
from s3diff_runtime.lora_modes import LORA_MODES

Told = Mapping[str, tuple[int, str, str]]
"""By words that stand in a command: code, output and error."""

PARITY = {"quantities": [{"quantity": "epsilon_positive", "relative": 1e-3}], "psnr": {"wavelet": 51.0}}


def loaded(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return loaded("gpu_check")


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
    planned = list(tool.check_model("small", ("--demo",), (), Path("work"), "cuda"))
    with patch.multiple(steps, run_process=commands, monotonic=commands.clock):
        return run_steps(planned, lambda outcomes: None, seconds)


def test_every_engine_is_built_compared_and_measured_in_every_mode(tool: ModuleType) -> None:
    outcomes = checked(tool)
    assert {each.status for each in outcomes} == {"ok"}
    (settings,) = (each.command for each in outcomes if "settings" in each.name)
    assert Path(settings[1]).is_file() and settings[2:5] == ("work/small-dynamic", "--device", "cuda")
    commands = [" ".join(each.command[2:]) for each in outcomes if each.command != settings]
    assert all(line.startswith("s3diff_export ") and line.endswith("--json") for line in commands)
    for mode in LORA_MODES:
        assert any(f"build --demo --lora-mode {mode} " in line for line in commands)
        for engine in ("onnx", *BUILDER_FLAVOURS):
            compared = f"verify work/small-{mode} --demo --engine {engine} --device cuda"
            assert sum(compared in line for line in commands) == 1
            assert engine == "onnx" or any(
                f"engines work/small-{mode} --engine {engine}" in line for line in commands
            )
    for engine in ("onnx", *BUILDER_FLAVOURS):
        assert any("bench latency" in line and f"--engine {engine}" in line for line in commands)
        for batch in "148":
            words = f"--engine {engine} --batch {batch}"
            assert any("bench throughput" in line and words in line for line in commands)
    assert sum("bench latency" in line and "--demo" in line for line in commands) == 1  # PyTorch, once
    assert tool.passed(outcomes)


def test_every_command_is_one_that_exists(tool: ModuleType) -> None:
    for step in tool.plan(Path("work"), "cuda", True):
        if step.command[1:3] != ("-m", "s3diff_export"):
            continue
        command: click.Command = cli
        words = list(step.command[3:])
        while isinstance(command, click.Group):
            _, found, words = command.resolve_command(click.Context(command), words)
            assert found is not None
            command = found
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, step


def test_an_engine_that_is_not_there_is_skipped_with_its_reason(tool: ModuleType) -> None:
    missing = (2, "", "tensorrt is not installed: pip install 's3diff-export[tensorrt]'")
    outcomes = checked(tool, told={"--engine tensorrt --json": missing})
    found = {each.name: each for each in outcomes}
    assert found["small: build tensorrt engines, fused"].reason == missing[2]
    assert found["small: tensorrt against PyTorch in fp32, fused"].status == "skipped"
    assert found["small: tensorrt latency, beside onnx"].reason.startswith("small: build tensorrt engines, ")
    assert found["small: tensorrt-rtx latency, beside onnx"].status == "ok"
    assert tool.passed(outcomes)


def test_a_crash_is_a_finding_and_the_rest_goes_on(tool: ModuleType) -> None:
    outcomes = checked(tool, told={"--engine tensorrt-rtx --device cuda --json": (-11, "", "")})
    found = {each.name: each for each in outcomes}
    crashed = found["small: tensorrt-rtx against PyTorch in fp32, merged"]
    assert crashed.reason == "the process ended with code -11"
    assert found["small: tensorrt-rtx throughput, batch 8"].status == "ok"
    assert not tool.passed(outcomes)


def test_a_step_has_a_limit_of_its_own(tool: ModuleType) -> None:
    commands, steps_given = Commands(), [Step("slow", ("sleep",), limit=5), Step("next", ("true",))]
    with patch.multiple(steps, run_process=commands, monotonic=commands.clock):
        outcomes = run_steps(steps_given, lambda outcomes: None, 1000)
    assert [(each.status, each.reason) for each in outcomes] == [("failed", "out of time"), ("ok", "")]
    assert all(step.limit <= 600 for step in tool.plan(Path("work"), "cuda", True))


def test_nothing_starts_after_the_time_is_up(tool: ModuleType) -> None:
    outcomes = checked(tool, seconds=35)
    assert [each.status for each in outcomes[:4]] == ["ok", "ok", "ok", "failed"]
    assert {each.status for each in outcomes[4:]} == {"skipped"}
    assert outcomes[3].reason == "out of time"
    assert any("35 s" in each.reason for each in outcomes[4:])


def test_nothing_compared_is_no_pass(tool: ModuleType) -> None:
    assert not tool.passed(checked(tool, seconds=5))


def test_a_model_of_full_size_waits_for_its_weights(tool: ModuleType, tmp_path: Path) -> None:
    planned = {step.name: step for step in tool.plan(tmp_path, "cpu", True)}
    built = planned["full size: build merged"]
    assert built.needs == ("full size: make random weights",)
    assert f"--checkpoint={tmp_path / 'full-size' / 's3diff.pkl'}" in built.command


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
    names = [step["name"] for step in report["steps"]]
    assert names[:4] == [
        *(f"small: build {mode}" for mode in LORA_MODES),
        "small: onnx latency, beside PyTorch",
    ]
    assert names[-1] == "full size"
    results = {step["name"]: step["result"] for step in report["steps"]}
    assert results["small: onnx against PyTorch in fp32, fused"] == PARITY
    assert report["steps"][-1]["reason"] == "--small-only"
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-check.json"]


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
    assert found["small: onnx latency, beside PyTorch"] == "small.bundle 0.0123 s, PyTorch tuned 0.05 s"
    assert found["small: onnx against PyTorch in fp32, merged"] == "ε relative 1.0e-03, image 51.0 dB"


def test_settings_of_onnx_runtime_are_timed_side_by_side(tmp_path: Path) -> None:
    """The tool itself, on a CPU, where the settings are not asked for."""
    settings, bundle = loaded("cuda_settings"), write_fake_bundle(tmp_path / "fake.bundle")
    result = CliRunner().invoke(
        settings.main, [str(bundle), "--device", "cpu", "--side", "16", "--seconds", "1"]
    )
    assert result.exit_code == 0, result.output
    tables = {table["name"]: table for table in json.loads(result.stdout)["tables"]}
    assert {row[0] for row in tables["latency"]["rows"]} == settings.VARIANTS.keys()
    assert [row[1] for row in tables["agreement"]["rows"]] == ["as shipped"] * (len(settings.VARIANTS) - 1)


def test_what_the_machine_lacks_is_a_wrong_request(tmp_path: Path) -> None:
    """So that the check skips the step, as those of its other commands."""
    settings, bundle = loaded("cuda_settings"), write_fake_bundle(tmp_path / "fake.bundle")
    result = CliRunner().invoke(settings.main, [str(bundle), "--device", "cuda:99"])
    assert result.exit_code == 2, result.output
    assert "cuda:99" in result.output


def test_every_variant_is_opened_with_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, found = loaded("cuda_settings"), []

    def opened(*_given: object) -> nullcontext[None]:
        side = CudaSide(fake_onnxruntime.module(), 0, exact=False)
        found.append(side.load(Path("unet.onnx"), None)[0].settings)
        return nullcontext()

    monkeypatch.setattr(settings.Upscaler, "open", opened)
    with settings.variants(Path("bundle"), "cuda") as methods:
        assert [each.name for each in methods] == list(settings.VARIANTS)
    for given, asked in zip(found, settings.VARIANTS.values(), strict=True):
        assert {**SETTINGS, **asked}.items() <= given.items()
    assert SETTINGS["cudnn_conv_algo_search"] == "HEURISTIC"
