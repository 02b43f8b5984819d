"""What clients and machines do to a service: each a function that says what became of whom."""

import random
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BytesIO
from time import perf_counter

from PIL import Image

from s3diff_benchmarks.serving.process import LOST, ServiceProcess, Tally, watched_memory
from s3diff_runtime.vocabulary import Pixels

_CALLERS = 8
_HALF_HEAD = b"POST /v1/upscale HTTP/1.1\r\nHo"
_HALF_BODY = b"POST /v1/upscale HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf a picture"
MOST_BYTES = 4 * 2**20
"""Of a body that the service takes."""
_HELD_MIB = 64.0
"""By which it may grow while it refuses bodies: those of all callers up to the limit, and as much again."""


@dataclass(frozen=True)
class Fault:
    """What was done to the service, and whether it bore it."""

    name: str
    done: int
    """Requests, or connections."""
    outcome: str
    seconds: float
    borne: bool


def encodings(pixels: Pixels) -> list[bytes]:
    """A picture as files of five formats."""
    files = []
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "GIF"):
        file = BytesIO()
        Image.fromarray(pixels).save(file, format)
        files.append(file.getvalue())
    return files


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with some of its bytes changed, cut out or doubled, most of them near its beginning."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(min(len(data), chance.choice((64, len(data)))) or 1)
        match chance.randrange(4):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
            case 2:
                del data[at : at + chance.choice((1, 16, 1024))]
            case _:
                data[at:at] = data[at : at + chance.choice((1, 16, 256))]
    return bytes(data)


def mutated_pictures(
    running: ServiceProcess, pixels: Pixels, count: int, callers: int, tell: Callable[[int], None]
) -> Fault:
    """Damaged files of all formats: each is upscaled or refused, and none is an error of the service."""
    chance, whole = random.Random(0), encodings(pixels)
    tally, start = Tally(), perf_counter()

    def send(number: int) -> None:
        tally.ask(running, pictures[number])
        tell(number)

    pictures = [mutated(whole[number % len(whole)], chance) for number in range(count)]
    with ThreadPoolExecutor(callers) as threads:
        list(threads.map(send, range(count)))
    running.require_alive()
    borne = set(tally.statuses) <= {200, 400, 413, 503, 504}  # some become large pictures, which take long
    return Fault("mutated pictures", count, str(tally), perf_counter() - start, borne)


def half_sent(running: ServiceProcess, picture: bytes, count: int) -> Fault:
    """Clients that send half a head, or half a body, and wait: others are served, and they are let go."""
    start = perf_counter()
    with ExitStack() as opened:
        waiting = []
        for number in range(count):
            raw = opened.enter_context(socket.create_connection(("127.0.0.1", running.port), 120))
            raw.sendall(_HALF_HEAD if number % 2 else _HALF_BODY)
            waiting.append(raw)
        status = running.ask(picture)
        served = perf_counter() - start
        ends = [_end_of(raw) for raw in waiting]
    outcome = (
        f"another client had {status} after {served:.2f} s; half heads: closed {ends.count(b'')}; "
        f"half bodies: 408 for {ends.count(b'HTTP/1.1 408')}"
    )
    borne = status == 200 and ends.count(b"") == count // 2 and ends.count(b"HTTP/1.1 408") == -(-count // 2)
    return Fault("half-sent heads and bodies", count, outcome, perf_counter() - start, borne)


def large_bodies(running: ServiceProcess, count: int, mebibytes: int) -> Fault:
    """Bodies far over the limit, in chunks that do not say how many follow."""
    tally, start = Tally(), perf_counter()
    before = running.resident_mib
    with watched_memory(running) as memory, ThreadPoolExecutor(_CALLERS) as threads:
        list(threads.map(lambda _: tally.ask(running, _chunks(mebibytes)), range(count)))
    grown = max(memory) - before
    outcome = f"{tally}; memory grew by {grown:.0f} MiB"
    borne = set(tally.statuses) == {413} and grown < _HELD_MIB
    return Fault(f"bodies of {mebibytes} MiB", count, outcome, perf_counter() - start, borne)


def killed(
    running: ServiceProcess, picture: bytes, count: int, again: Callable[[], ServiceProcess]
) -> Sequence[Fault]:
    """`kill -9` in the middle of requests: nobody waits for ever, and the next process serves at once."""
    tally, start = Tally(), perf_counter()

    def send(number: int) -> None:
        if number == count // 2:
            running.process.kill()
        tally.ask(running, picture, patience=30)

    with ThreadPoolExecutor(_CALLERS) as threads:
        list(threads.map(send, range(count)))
    ended = perf_counter() - start
    tally_after, start = Tally(), perf_counter()
    restarted = again()
    ready = perf_counter() - start
    tally_after.ask(restarted, picture)
    return (
        Fault("kill -9 under load", count, str(tally), ended, tally.statuses[LOST] > 0),
        Fault("the process after it", 1, f"{tally_after}; ready after {ready:.1f} s", ready,
              set(tally_after.statuses) == {200}),
    )  # fmt: skip


def _chunks(mebibytes: int) -> Iterator[bytes]:
    chunk = bytes(2**20)
    for _ in range(mebibytes):
        yield chunk


def _end_of(raw: socket.socket) -> bytes:
    """The beginning of what a connection is told; nothing where it is closed."""
    with suppress(ConnectionError):
        return raw.recv(12)
    return b""
