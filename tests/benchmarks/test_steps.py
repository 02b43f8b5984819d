"""Steps: each in a process of its own, with a reason for whatever did not work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from s3diff_benchmarks.steps import Outcome, Step, own_command, run_process, run_steps
from s3diff_runtime.errors import JobError


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def outcomes(*steps: Step, seconds: float = 60) -> list[Outcome]:
    return run_steps(steps, lambda found: None, seconds)


def test_what_a_step_needs_must_have_worked() -> None:
    told: list[list[str]] = []

    def finished(found: Sequence[Outcome]) -> None:
        told.append([each.status for each in found])

    steps = (
        Step("a", python("")),
        Step("b", python("raise SystemExit(3)"), needs=("a",)),
        Step("c", python(""), needs=("a", "b")),
        Step("d", left_out="not asked for"),
        Step("e", python(""), needs=("unknown",)),
    )
    found = run_steps(steps, finished)
    assert [each.status for each in found] == ["ok", "failed", "skipped", "left out", "ok"]
    assert [each.reason for each in found[1:4]] == [
        "the process ended with code 3",
        "b failed",
        "not asked for",
    ]
    assert [len(each) for each in told] == [1, 2, 3, 4, 5], "a summary after every step"
    assert found[3].text == "not measured: not asked for"


def test_our_own_command_needs_no_installed_script() -> None:
    ended = run_process(own_command("--version"), 60)
    assert (ended.code, ended.error) == (0, "")
    assert "s3diff-export" in ended.output


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.stderr.write('error: on fire\\nlast\\n'); sys.exit(1)", "on fire"),
        ("import sys; sys.stderr.write('first\\n\\nlast\\n'); sys.exit(1)", "last"),
        ("raise SystemExit(7)", "the process ended with code 7"),
        ("import os; os.kill(os.getpid(), 11)", "the process ended with code -11"),
    ],
)
def test_a_step_that_fails_has_a_reason(program: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    (found,) = outcomes(Step("a", python(program)))
    assert (found.status, found.reason) == ("failed", reason)
    assert reason in capfd.readouterr().err or "ended" in reason, "what it said is passed on"


def test_only_an_optional_step_may_lack_what_it_needs() -> None:
    command = python("raise SystemExit(2)")
    found = outcomes(Step("a", command), Step("b", command, optional=True))
    assert [each.status for each in found] == ["failed", "skipped"]


@pytest.mark.parametrize(("printed", "result"), [('{"a": 1}', {"a": 1}), ("a text", "a text"), ("", None)])
def test_what_a_step_printed_is_its_result(printed: str, result: object) -> None:
    (found,) = outcomes(Step("a", python(f"print({printed!r})")))
    assert found.result == result


def test_a_step_that_hangs_is_ended() -> None:
    start = time.monotonic()
    (found,) = outcomes(Step("a", ("sleep", "20")), seconds=0.2)
    assert (found.status, found.reason) == ("failed", "out of time")
    assert time.monotonic() - start < 10


def test_a_command_that_is_not_installed_is_told() -> None:
    with pytest.raises(JobError, match=r"cannot run no-such-command: .*check that it is installed"):
        run_process(("no-such-command",), 1)


def test_interruption_ends_the_process_too(tmp_path: Path) -> None:
    # Shells start what runs in the background with interrupts ignored, and Python then leaves them so.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from s3diff_benchmarks.steps import run_process\n"
        "run_process((sys.executable, '-c', 'open(\"asleep\", \"w\"); import time; time.sleep(60)'), 60)"
    )
    process = subprocess.Popen(python(program), cwd=tmp_path, stderr=subprocess.DEVNULL)
    for _ in range(200):
        if (tmp_path / "asleep").exists():
            break
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert children
    for child in map(int, children):
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
