"""All of `s3diff-export serve`: opens the bundle, and serves it until it is told to stop."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import click
import uvicorn

from s3diff_runtime.batch.fleet import Fleet, FleetOptions
from s3diff_runtime.errors import JobError, RequestError
from s3diff_runtime.options import Options, argument, group, option
from s3diff_runtime.pictures.photograph import MAX_PIXELS
from s3diff_runtime.pictures.reading import every_size_allowed
from s3diff_runtime.serving.app import Site
from s3diff_runtime.serving.bodies import Mailroom
from s3diff_runtime.serving.exchange import JsonLines
from s3diff_runtime.serving.metrics import Metrics
from s3diff_runtime.serving.protocol import ImpatientProtocol
from s3diff_runtime.serving.service import Service

_STOPPING_SECONDS = 10
"""Beyond the time limit of a picture, until a client that does not listen is left."""
TOKEN_VARIABLE = "S3DIFF_TOKEN"
_logger = logging.getLogger("s3diff_runtime.serving")


@dataclass(frozen=True)
class ServeRequest(Options):
    """Everything that `s3diff-export serve` can be asked for."""

    bundle: str = argument(
        "Made by s3diff-export build: a folder, OWNER/NAME[@REVISION] on the Hub, or a URL."
    )
    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for every network.")
    port: int = option(8000, "0 takes a free one.", least=0, most=65535)
    queue: int = option(
        16, "Pictures that wait or are worked on at a time; further ones are answered 503.", least=1
    )
    timeout: float = option(
        60.0, "Seconds for a picture to arrive, and as many until it is answered.", above=0, most=86400
    )
    max_bytes: int = option(32 * 2**20, "Larger files are refused.", least=1)
    max_pixels: int = option(4_000_000, "Larger pictures are refused.", least=1, most=MAX_PIXELS)
    token: str | None = option(
        None, "That clients must show as Authorization: Bearer TOKEN.", env=TOKEN_VARIABLE
    )
    run: FleetOptions = group(FleetOptions)

    def problems(self) -> Iterator[str]:
        """A token that no client could show."""
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            yield "token holds what no header can, or nothing; expected printable ASCII"
        if self.token is None and os.environ.get(TOKEN_VARIABLE) == "":
            yield f"{TOKEN_VARIABLE} is set and empty; give it a token, or unset it to let everybody in"


def run_serve(request: ServeRequest) -> None:
    """Serve BUNDLE over HTTP: a page for photographers at /, and an API, described at /docs.

    Ctrl-C or SIGTERM stops it: what was taken in is still answered.

    \b
      s3diff-export serve demo.bundle
      curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/upscale -o photo-x4.jpg

    Raises:
        RequestError: for a request that cannot be met, an address that is taken or is not this machine's.
        BundleError: for a damaged bundle.
        JobError: when the network fails before it was ready.
    """
    _log_json_lines()
    with _listening(request.host, request.port) as listener:
        fleet = request.run.fleet(request.bundle)
        with fleet, every_size_allowed():  # --max-pixels holds, and answers are larger
            _serve(request, fleet, listener)


def _serve(request: ServeRequest, fleet: Fleet, listener: socket.socket) -> None:
    metrics, failures = Metrics(), list[BaseException]()

    def give_up(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    service = Service(fleet, request.queue, request.max_pixels, metrics)
    mailroom = Mailroom(request.max_bytes, request.queue * request.max_bytes, request.timeout)
    site = Site(service, mailroom, request.timeout, request.token, give_up)
    server = uvicorn.Server(
        uvicorn.Config(
            site.app(metrics),
            http=ImpatientProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(request.timeout) + _STOPPING_SECONDS,
        )
    )
    listener.listen()  # who comes from now on waits until the server is up
    host, port = listener.getsockname()[:2]
    runs = {"engine": fleet.engine, "device": fleet.device, "precision": fleet.precision}
    _logger.info("listening", extra={"host": host, "port": port, **runs})
    if request.token is None and not _is_loopback(host):
        _logger.warning("everybody who reaches %s can use this service: --token asks for one", host)
    click.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C stops it)")
    previous = signal.getsignal(signal.SIGTERM)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        if not server.started:
            raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    if failures:
        raise failures[0] if isinstance(failures[0], Exception) else JobError(str(failures[0]))


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens, so that an address that is taken is told before the bundle is opened."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise RequestError(f"--host {host} is no address here: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno) if error.errno else error
        raise RequestError(f"cannot listen on {host}, port {port}: {reason}; choose another") from error
    return listener


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")


def _log_json_lines() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("s3diff_runtime").setLevel(logging.INFO)
