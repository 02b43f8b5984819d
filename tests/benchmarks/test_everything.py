"""`bench all`: parts run apart, a failing one is told, and the index leads to the rest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.benchmarks.reports import HOSTILE, report, table

from s3diff_benchmarks import everything
from s3diff_benchmarks.everything import BENCHMARKS, AllRequest, plan, write_index
from s3diff_benchmarks.report.output import Output, write_report
from s3diff_benchmarks.steps import Outcome
from s3diff_export import cli

STAND_IN = """import sys
from pathlib import Path
name = sys.argv[2] if sys.argv[1] == "bench" else sys.argv[1]
sys.stderr.write(f"working on {name}\\n")
if name == "throughput":
    sys.exit("error: the machine is on fire")
folder = Path(sys.argv[sys.argv.index("-o") + 1])
folder.mkdir(parents=True)
(folder / "report.json").write_text(Path("template.json").read_text().replace("TITLE", name))
(folder / "arguments").write_text("\\n".join(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that writes a report in no time, in the place of s3diff-export."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(everything, "own_command", lambda *words: (sys.executable, str(script), *words))
    monkeypatch.chdir(tmp_path)
    made = report(table(("a", 1.0, 0.9, 1.1, 1.2, 5)), title="TITLE")
    (tmp_path / "template.json").write_text(made.model_dump_json())
    (tmp_path / "some.bundle").mkdir()
    (tmp_path / "lr").mkdir()


def run(*arguments: str) -> int:
    return cli.run(cli.cli, ["bench", "all", *arguments])


def test_a_failing_part_is_told_and_the_others_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("some.bundle", "--lr", "lr", "-o", "out", "--html") == 1
    captured = capfd.readouterr()
    assert "throughput: failed: the machine is on fire" in captured.out
    assert captured.out.endswith("out/index.html\n")
    assert "working on latency" in captured.err
    assert captured.err.endswith("error: failed: throughput; the other reports are in out\n")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    found = {step["name"]: step for step in index["steps"]}
    assert list(found) == list(BENCHMARKS)
    assert [name for name, step in found.items() if step["report"]] == [
        "latency",
        "quality",
        "fidelity",
        "control",
    ]
    markdown = (tmp_path / "out" / "index.md").read_text()
    assert "[control](control/report.md)" in markdown
    assert "the machine is on fire" in markdown
    assert '<a href="control/report.html">control</a>' in (tmp_path / "out" / "index.html").read_text()
    assert "--html" in (tmp_path / "out" / "latency" / "arguments").read_text().splitlines()


def test_without_photographs_quality_is_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("some.bundle", "-o", "out") == 1
    assert "quality: not measured: no photographs; pass --lr FOLDER" in capsys.readouterr().out


def test_demo_is_built_into_the_folder(tmp_path: Path) -> None:
    assert run("--demo", "-o", "out") == 1
    assert (tmp_path / "out" / "demo.bundle" / "arguments").read_text().startswith("build\n--demo\n")
    assert "out/demo.bundle" in (tmp_path / "out" / "latency" / "arguments").read_text().splitlines()


def test_an_index_is_replaced_only_by_force_and_others_never(tmp_path: Path) -> None:
    assert run("some.bundle", "-o", "out") == 1
    (tmp_path / "out" / "quality").mkdir()
    assert run("some.bundle", "-o", "out") == 2
    assert run("some.bundle", "-o", "out", "--force") == 1
    assert not (tmp_path / "out" / "quality").exists(), "an older report is not left beside new ones"
    write_report(report(), Output(tmp_path / "single"))
    assert run("some.bundle", "-o", "single", "--force") == 2
    assert (tmp_path / "single" / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], ["name a BUNDLE, or pass --demo", "name one with --output"]),
        (["some.bundle", "--demo", "-o", "out"], ["one of the two"]),
        (
            ["none.bundle", "--hr", "no", "-o", "out"],
            ["none.bundle is no folder", "no is no folder", "--hr goes"],
        ),
    ],
)
def test_all_that_is_wrong_is_told_at_once(
    capsys: pytest.CaptureFixture[str], arguments: list[str], messages: list[str]
) -> None:
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert all(message in errors for message in messages)


def test_time_is_shared_out(tmp_path: Path) -> None:
    def planned(minutes: float) -> dict[str, tuple[str, ...]]:
        request = AllRequest(demo=True, lr=tmp_path, minutes=minutes, output=Output(tmp_path / "out"))
        return {step.name: step.command for step in plan(request, tmp_path / "out")}

    commands = planned(8)
    assert tuple(commands) == ("build", *BENCHMARKS)
    assert {name for name, command in commands.items() if "--demo" in command} >= {"latency", "fidelity"}
    assert "--limit=6" in commands["quality"]
    assert "--quick" in commands["fidelity"]
    assert "--quick" not in planned(20)["fidelity"]
    assert "--limit=1" in planned(1)["quality"]


def test_nothing_is_measured_of_a_demo_that_could_not_be_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.json").write_text('{"format": "s3diff-bench"}')
    (tmp_path / "out" / "demo.bundle").write_text("in the way")
    assert run("--demo", "-o", "out", "--force") == 1
    captured = capsys.readouterr()
    assert "latency: skipped: build failed" in captured.out
    assert captured.err.endswith("error: failed: build; the other reports are in out\n")


def test_index_escapes_what_steps_say(tmp_path: Path) -> None:
    write_index(tmp_path, HOSTILE, [Outcome("latency", (), "failed", reason=HOSTILE)], html=True)
    assert (tmp_path / "index.html").read_text().count("<script>") == 1
    assert (tmp_path / "index.md").read_text().count("\n## ") == 1
