"""The service as a process of its own, and a client that notes what became of each request."""

import http.client
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic, perf_counter, sleep
from typing import IO, Any

from s3diff_benchmarks.steps import own_command
from s3diff_runtime.errors import JobError
from s3diff_runtime.memory import process_memory

_START_SECONDS = 300.0
LOST = 0
"""The status of a request whose connection broke."""


@dataclass
class ServiceProcess:
    """A running service."""

    process: subprocess.Popen[str]
    port: int

    def ask(self, body: Any = None, path: str = "/v1/upscale", patience: float = 120.0) -> int:  # noqa: ANN401
        """The status of an answer that was read to its end; `LOST` where the connection broke.

        Args:
            body: of a POST: bytes, or an iterable of them, sent in chunks; None asks for the path.
            path: asked for.
            patience: seconds without a byte, after which the service counts as hanging.

        Raises:
            JobError: when it hangs.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except TimeoutError as error:
            raise JobError(f"the service did not answer within {patience:g} s") from error
        except (OSError, http.client.HTTPException):
            return LOST
        finally:
            connection.close()

    @property
    def resident_mib(self) -> float:
        """Memory that the process holds; 0 once it has ended."""
        return process_memory("VmRSS", self.process.pid) / 2**20

    def require_alive(self) -> None:
        """Raise `JobError` when the process has ended."""
        if self.process.poll() is not None:
            raise JobError(f"the service ended with exit code {self.process.returncode}; see its log")


@contextmanager
def service(bundle: Path, log: IO[str], options: list[str]) -> Iterator[ServiceProcess]:
    """Start the service on a free port, wait until it is ready, and kill it with the block.

    Raises:
        JobError: when it does not become ready.
    """
    command = own_command("serve", str(bundle), "--port", "0", *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("http://"):
            raise JobError("the service did not start; s3diff-export serve says why")
        running = ServiceProcess(process, int(line.split()[0].rpartition(":")[2]))
        deadline = monotonic() + _START_SECONDS
        while running.ask(path="/readyz") != http.client.OK:
            running.require_alive()
            if monotonic() > deadline:
                raise JobError(f"the service was not ready after {_START_SECONDS:g} s")
            sleep(0.05)
        yield running
    finally:
        process.kill()
        process.communicate()


@dataclass
class Tally:
    """What became of requests, from several threads."""

    statuses: Counter[int] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    """Seconds of each that was answered 200."""
    slowest_refusal: float = 0.0
    """Seconds of a 503."""
    _lock: Lock = field(default_factory=Lock)

    def ask(self, running: ServiceProcess, body: Any, patience: float = 120.0) -> None:  # noqa: ANN401
        """Ask, and note what comes."""
        start = perf_counter()
        status = running.ask(body, patience=patience)
        seconds = perf_counter() - start
        with self._lock:
            self.statuses[status] += 1
            if status == http.client.OK:
                self.accepted.append(seconds)
            elif status == http.client.SERVICE_UNAVAILABLE:
                self.slowest_refusal = max(self.slowest_refusal, seconds)

    @property
    def total(self) -> int:
        """All requests."""
        return self.statuses.total()

    def __str__(self) -> str:
        """Statuses and how often each came, for tables."""
        names = {LOST: "connection broke"}
        found = sorted(self.statuses.items())
        return ", ".join(f"{count} × {names.get(status, status)}" for status, count in found)


@contextmanager
def watched_memory(running: ServiceProcess) -> Iterator[list[float]]:
    """Samples of a service's memory, in MiB, every fifth of a second of a block."""
    samples, ended = [running.resident_mib], Event()

    def watch() -> None:
        while not ended.wait(0.2):
            samples.append(running.resident_mib)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
        samples.append(running.resident_mib)
