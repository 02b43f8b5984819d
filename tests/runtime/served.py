"""The real service, as a process of its own, and a client that says what it got."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Answered:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """In lower case, as the service sends them."""
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclass
class Served:
    """A running service."""

    process: subprocess.Popen[str]
    port: int
    log: Path
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self,
        path: str,
        body: Any = None,  # noqa: ANN401 - bytes, or an iterable of them, sent in chunks
        method: str | None = None,
        **headers: str,
    ) -> Answered:
        connection = self.connection()
        try:
            sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
            response = connection.getresponse()
            return Answered(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.ask("/metrics").body.decode().splitlines()
        values = [
            float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == f"s3diff_{name}"
        ]
        assert values, f"no metric {name}"
        return sum(values)

    def logged(self, **facts: str) -> dict[str, Any]:
        """The line of the log that has these facts, which may be written after the answer came."""
        deadline = time.monotonic() + 10
        while True:
            text = self.log.read_text().rpartition("\n")[0]
            for line in map(json.loads, text.splitlines()):
                if facts.items() <= line.items():
                    return dict(line)
            assert time.monotonic() < deadline, text
            time.sleep(0.02)

    def until(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        deadline = time.monotonic() + 30
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, expected {value}"
            time.sleep(0.02)

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def served(bundle: Path, log: Path, *options: str, wait: bool = True, **env: str) -> Iterator[Served]:
    """Start the service on a free port, wait until it is ready, and end it with the block."""
    command = [sys.executable, "-m", "s3diff_export", "serve", str(bundle), "--port", "0", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | env
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # told when it listens
        assert line.startswith("http://"), log.read_text()
        service = Served(process, int(line.split()[0].rpartition(":")[2]), log)
        deadline = time.monotonic() + 60
        while wait and service.ask("/readyz").status != 200:
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield service
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
