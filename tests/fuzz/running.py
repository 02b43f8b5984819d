"""Reads mutated files in a process of its own, and notes what each came to."""

from __future__ import annotations

import logging
import multiprocessing
import resource
import signal
import tempfile
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

import click
from tests.fuzz.targets import TARGETS, mutated

from s3diff_runtime.errors import S3DiffError

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 10.0
"""Seconds of work that one file may take."""
BLOCKED = 50.0
"""Seconds that may pass meanwhile, on a machine that others share."""
MEMORY = 6 * 2**30
"""Bytes of address space that a worker may have; torch alone maps several GiB."""


class Hang(BaseException):
    """A file took too long; not an Exception, so that no handler of the product takes it for one."""


def _hang(_number: int, _frame: FrameType | None) -> None:
    raise Hang


def _watch() -> None:
    """Let both timers of `outcome` end what takes too long."""
    signal.signal(signal.SIGALRM, _hang)
    signal.signal(signal.SIGPROF, _hang)


def outcome(kind: str, path: Path, folder: Path) -> str:
    """What reading a file came to: `result`, `refused`, or what should not have happened."""
    signal.setitimer(signal.ITIMER_REAL, BLOCKED)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        TARGETS[kind].read(path, folder)
    except S3DiffError as error:
        text = str(error)
        if "\n" in text or not text.strip() or text.rstrip().endswith(("()", ": ")):
            return f"message without reason, or of several lines: {text!r}"
        return "refused"
    except Hang:
        return f"no end after {LONGEST:.0f} s of work, or {BLOCKED:.0f} s"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "result"


def _worker(kind: str, seed: int, numbers: range, pipe: Connection) -> None:
    _watch()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seeds = TARGETS[kind].seeds(folder)
        for number in numbers:
            name, content = mutated(TARGETS[kind], seeds, number, seed)
            path = folder / f"mutated{Path(name).suffix}" if Path(name).suffix else folder / f"{name}.json"
            path.write_bytes(content)
            pipe.send((number, None))
            pipe.send((number, outcome(kind, path, folder)))
            if (
                kind == "checkpoint" and number % 25 == 0
            ):  # torch may have read what another file is made with
                TARGETS[kind].read(folder / "ours.safetensors", folder)


def fuzz(kind: str, seed: int, first: int, count: int, findings: Path) -> Counter[str]:
    """Read `count` mutated files from number `first` on; how many came to what."""
    found: Counter[str] = Counter()
    number, end = first, first + count
    context = multiprocessing.get_context("spawn")
    while number < end:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_worker, args=(kind, seed, range(number, end), sender))
        worker.start()
        sender.close()
        while True:
            try:
                number, result = (
                    receiver.recv() if receiver.poll(LONGEST * 6) else (number, "killed: no answer")
                )
            except EOFError:
                worker.join()
                if worker.exitcode == 0:
                    return found
                result = f"the process ended with {worker.exitcode}"
            if result is None:
                continue
            found[result if result in ("result", "refused") else "finding"] += 1
            if result not in ("result", "refused"):
                _keep(kind, seed, number, result, findings)
            if worker.exitcode is not None or result.startswith(("killed", "the process ended")):
                worker.kill()
                worker.join()
                number += 1
                break
    return found


def _keep(kind: str, seed: int, number: int, result: str, findings: Path) -> None:
    """Write the file of a finding, and say what it did."""
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        target = TARGETS[kind]
        name, content = mutated(target, target.seeds(Path(scratch)), number, seed)
    path = findings / f"{kind}-{seed}-{number}-{name}"
    path.write_bytes(content)
    click.echo(f"{path}: {result}", err=True)


def read_again(kind: str, path: Path) -> str:
    """What one file comes to, read in this process."""
    _watch()
    with tempfile.TemporaryDirectory() as scratch:
        TARGETS[kind].seeds(Path(scratch))
        return outcome(kind, path, Path(scratch))
