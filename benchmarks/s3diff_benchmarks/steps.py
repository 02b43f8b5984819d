"""Runs commands one after another, each in a process of its own: one that fails or crashes is a finding."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from threading import Thread
from time import monotonic
from typing import IO, Any, Literal, NamedTuple

from s3diff_runtime.errors import JobError

Status = Literal["ok", "failed", "skipped", "left out"]

_ERROR = "error: "
"""How the command line begins the line that says what went wrong."""
_WRONG_REQUEST = 2
"""Its exit code where the machine or the request lacks what the command needs."""
_BEAT_SECONDS = 0.5
"""Between two looks at a running process."""
_STOP_SECONDS = 20.0
"""That a stopped process has for tidying up."""
_LAST_WORDS_SECONDS = 2.0
"""That are waited for what an ended process said; its own children may keep the pipe open."""
_LONGEST_REASON = 400


@dataclass(frozen=True)
class Step:
    """One command to run."""

    name: str
    command: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """The steps without whose success this one is skipped."""
    limit: float = math.inf
    """Seconds that it may take."""
    optional: bool = False
    """Whether a wrong request skips it: this machine lacks what it needs, which is no failure."""
    left_out: str = ""
    """Why it is not run, where that is settled before."""


@dataclass(frozen=True)
class Outcome:
    """What became of a step. All fields are JSON types."""

    name: str
    command: tuple[str, ...]
    status: Status
    seconds: float = 0.0
    reason: str = ""
    """Why it failed, was skipped or left out; one line."""
    result: Any = field(default=None, repr=False)
    """What the command printed: JSON where it is, else its text."""

    @property
    def text(self) -> str:
        """What became of it, for people."""
        if self.status == "ok":
            return f"{self.seconds:.3g} s"
        return f"{'not measured' if self.status == 'left out' else self.status}: {self.reason}"


class Ended(NamedTuple):
    """What a process came to."""

    code: int | None
    """None where it ran out of time."""
    output: str
    error: str
    """Its own word on what went wrong: the last line of standard error that says so, or its last line."""


def run_steps(
    steps: Sequence[Step],
    finished: Callable[[Sequence[Outcome]], None],
    seconds: float = math.inf,
) -> list[Outcome]:
    """Run all steps in their order.

    Args:
        steps: to run; one names only earlier ones as needed.
        finished: told all outcomes so far, after every step.
        seconds: for all together; what is not begun by then is skipped.
    """
    start, outcomes = monotonic(), dict[str, Outcome]()
    for step in steps:
        begun = monotonic()
        needed = [outcomes[name] for name in step.needs if name in outcomes]
        missing = next((each for each in needed if each.status != "ok"), None)
        if step.left_out:
            outcome = Outcome(step.name, step.command, "left out", reason=step.left_out)
        elif missing is not None:
            reason = f"{missing.name} {missing.status}"
            outcome = Outcome(step.name, step.command, "skipped", reason=reason)
        elif begun - start >= seconds:
            reason = f"the {seconds:.0f} s for all steps are used up"
            outcome = Outcome(step.name, step.command, "skipped", reason=reason)
        else:
            ended = run_process(step.command, min(step.limit, start + seconds - begun))
            outcome = _judged(step, ended, monotonic() - begun)
        outcomes[step.name] = outcome
        finished(list(outcomes.values()))
    return list(outcomes.values())


def run_process(command: Sequence[str], seconds: float, watching: Callable[[], None] = lambda: None) -> Ended:
    """Run a command, and pass on what it tells on standard error; an interruption ends it too.

    It reads nothing, and ends with all the processes that it started.

    Args:
        command: the program and its arguments; no shell reads them.
        seconds: that it may take; then it is ended.
        watching: called twice a second while it runs, and once when it has ended.

    Raises:
        JobError: when there is no such command.
    """
    with TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,
            )
        except OSError as problem:
            reason = f"{problem.strerror}; check that it is installed"
            raise JobError(f"cannot run {command[0]}: {reason}") from problem
        said: list[str] = []
        listener = Thread(target=_listen, args=(process.stderr, said), daemon=True)
        listener.start()
        code, end = None, monotonic() + seconds
        try:
            while code is None and monotonic() < end:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(min(_BEAT_SECONDS, end - monotonic()))
                watching()
        finally:  # also what it started, which may have outlived it
            _signal_group(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            _signal_group(process, signal.SIGKILL)
            process.wait()
            listener.join(_LAST_WORDS_SECONDS)
        output.seek(0)
        return Ended(code, output.read().decode(errors="replace"), _last_word(said))


def own_command(*words: str) -> tuple[str, ...]:
    """A command of s3diff-export, whether it is installed or only found by Python."""
    return (sys.executable, "-m", "s3diff_export", *words)


def _judged(step: Step, ended: Ended, seconds: float) -> Outcome:
    status: Status = "failed" if ended.code else "ok"
    reason = (ended.error or f"the process ended with code {ended.code}") if ended.code else ""
    if ended.code is None:
        status, reason = "failed", "out of time"
    elif ended.code == _WRONG_REQUEST and step.optional:
        status = "skipped"
    return Outcome(step.name, step.command, status, seconds, reason, _parsed(ended.output))


def _parsed(output: str) -> Any:  # noqa: ANN401 - whatever a command prints
    try:
        return json.loads(output)
    except ValueError:
        return output.strip() or None


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # all of them have ended
        os.killpg(process.pid, number)


def _listen(stream: IO[str], said: list[str]) -> None:
    with stream:
        for line in stream:
            sys.stderr.write(line)
            if line.strip():
                said.append(line.strip())


def _last_word(said: Sequence[str]) -> str:
    errors = [line.removeprefix(_ERROR) for line in said if line.startswith(_ERROR)]
    return (errors or said or [""])[-1][:_LONGEST_REASON]
