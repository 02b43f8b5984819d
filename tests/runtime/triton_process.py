"""A running Triton server and its client, for tests."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tools.triton_server import CLIENT_PYTHON, server_command, server_environment

CLIENT = Path(__file__).with_name("triton_client.py")
_PROTOCOLS = ("http", "grpc", "metrics")
_AS_THEY_ARE = ("protocol", "model", "outputs", "timeout", "after", "gone_after")
_SECONDS_TO_START = 60


@dataclass(frozen=True)
class Ask:
    """A request."""

    protocol: str
    inputs: Mapping[str, np.ndarray]
    """uint8, by name."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    """None named: all."""
    model: str = "plain"
    timeout: int | None = None
    """Microseconds in the queue."""
    after: float = 0
    """Seconds to wait before it is sent."""
    gone_after: float | None = None
    """Seconds after which the client hangs up; over gRPC."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    status: str = ""
    """Of an error: 400 over HTTP, `StatusCode.INVALID_ARGUMENT` over gRPC."""
    message: str = ""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    ports: Mapping[str, int]
    log: Path
    server: subprocess.Popen[bytes]
    client: subprocess.Popen[str]

    def ask(self, *asks: Ask) -> list[Answer]:
        """Send requests at the same time and wait for all answers."""
        requests = [
            {
                "url": f"127.0.0.1:{self.ports[ask.protocol]}",
                "inputs": {name: _packed(array) for name, array in ask.inputs.items()},
                **{name: getattr(ask, name) for name in _AS_THEY_ARE},
                "parameters": dict(ask.parameters),
            }
            for ask in asks
        ]
        assert self.client.stdin is not None and self.client.stdout is not None
        self.client.stdin.write(json.dumps(requests) + "\n")
        self.client.stdin.flush()
        return [
            Answer(
                {name: _unpacked(*packed) for name, packed in answer.get("outputs", {}).items()},
                answer.get("status", ""),
                answer.get("message", ""),
            )
            for answer in json.loads(self.client.stdout.readline())
        ]

    def get(self, path: str, protocol: str = "http", post: bool = False) -> tuple[int, str]:
        """Status and text of an address."""
        url = f"http://127.0.0.1:{self.ports[protocol]}/{path}"
        try:
            with urllib.request.urlopen(url, data=b"{}" if post else None, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def count(self, metric: str, **labels: str) -> float:
        """The sum of our counters of this name that have the labels."""
        lines = re.findall(rf"^{metric}{{(.*)}} (\S+)$", self.get("metrics", "metrics")[1], re.MULTILINE)
        wanted = {f'{name}="{value}"' for name, value in labels.items()}
        return sum(float(value) for found, value in lines if wanted <= set(found.split(",")))

    def model_memory(self) -> int:
        """Bytes that the processes of the models hold together."""
        tasks = Path(f"/proc/{self.server.pid}/task").glob("*/children")
        children = [child for task in tasks for child in task.read_text().split()]
        statuses = [Path(f"/proc/{child}/status").read_text() for child in children]
        return sum(int(kib) * 1024 for text in statuses for kib in re.findall(r"RssAnon:\s+(\d+)", text))


@contextmanager
def running(repository: Path, models: str) -> Iterator[Running]:
    """Start a server with some models of a repository, wait until it is ready, and stop it in the end."""
    ports = dict(zip(_PROTOCOLS, _free_ports(len(_PROTOCOLS)), strict=True))
    options = [f"--{protocol}-port={port}" for protocol, port in ports.items()]
    options += ["--model-control-mode=explicit", f"--load-model={models}", "--exit-timeout-secs=5"]
    log = repository.with_suffix(".log")
    with ExitStack() as stack, log.open("wb") as output:
        command = server_command(repository, *options)
        process = subprocess.Popen(command, env=server_environment(), stdout=output, stderr=output)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        client = subprocess.Popen(
            [CLIENT_PYTHON, CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(client.wait, 30)
        stack.callback(client.terminate)
        found = Running(ports, log, process, client)
        _wait(found)
        yield found


def _wait(server: Running) -> None:
    until = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < until and server.server.poll() is None:
        try:
            if server.get("v2/health/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{server.log.read_text(errors='replace')[-4000:]}")


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _packed(array: np.ndarray) -> tuple[tuple[int, ...], str]:
    return array.shape, base64.b64encode(array.tobytes()).decode()


def _unpacked(shape: list[int], dtype: str, data: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape)


def failures(answers: list[Answer]) -> list[str]:
    """The codes of those that are errors."""
    return [answer.status for answer in answers if answer.status]
