"""The ten systems of the paper's tables: how each is run, and what it lacks on this machine (`bench peers`).

`data/peers.toml` has the facts, each with where it was read, or why it could not be checked.
"""

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Generic, Self, TypeVar

import click
from pydantic import AfterValidator, model_validator

from s3diff_benchmarks.machine import Gpu, Record, describe_machine
from s3diff_benchmarks.published import METHODS
from s3diff_benchmarks.report.output import wide_console
from s3diff_runtime.options import Options, option
from s3diff_runtime.progress import show_table

T = TypeVar("T")
_CHECKOUT, _PYTHON = "{checkout}", "{python}"
_ENVIRONMENTS = (".venv", "venv")
"""Folders of a checkout that may hold its Python."""
_MISSING_MODULES = (
    "import importlib.util as u, sys; print(*(m for m in sys.argv[1:] if u.find_spec(m) is None), sep='\\n')"
)
_PYTHON_SECONDS = 60.0
_TITLE = "The systems of the paper's tables; of their commands only Real-ESRGAN-ncnn was run by this project"


class Fact(Record, Generic[T]):
    """Something that a repository says of itself, and where; or why that could not be checked."""

    value: T | None = None
    source: str = ""
    unchecked: str = ""

    @model_validator(mode="after")
    def _is_checked_or_not(self) -> Self:
        if bool(self.source) == bool(self.unchecked) or (self.source and self.value is None):
            raise ValueError("expected a value with its source, or why it is unchecked")
        return self


def _published(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"the paper has no row {name}")
    return name


class KnownPeer(Record):
    """A system that the paper compares with."""

    name: str
    published: Annotated[str, AfterValidator(_published)]
    """Its name in the paper's tables."""
    repository: str
    bundle: bool = False
    """Whether its command builds a bundle of ours and is no program for `bench quality --run`."""
    licence: Fact[str]
    weights: Fact[tuple[str, ...]]
    """Files and folders, in the checkout."""
    download: Fact[str]
    command: Fact[str]
    """With placeholders for pictures, the checkout and its Python."""
    packages: Fact[tuple[str, ...]]
    """As Python imports them."""
    gpu: Fact[bool]
    """Whether an NVIDIA GPU must be there."""
    memory: Fact[float] | None = None
    """Of the GPU, in GiB."""
    note: str = ""

    @property
    def unchecked(self) -> dict[str, str]:
        """The facts that could not be checked, and why."""
        return {name: fact.unchecked for name, fact in self if isinstance(fact, Fact) and fact.unchecked}


def known_peers() -> tuple[KnownPeer, ...]:
    """All of the data file, in the paper's order."""
    text = (files("s3diff_benchmarks") / "data" / "peers.toml").read_text(encoding="utf-8")
    return tuple(KnownPeer.model_validate(each) for each in tomllib.loads(text)["peer"])


@dataclass(frozen=True)
class Place:
    """Where the checkout of a peer lies, and the Python that runs it."""

    checkout: Path | None
    """None where nobody said in which folder checkouts lie."""
    python: str

    @classmethod
    def of(cls, peer: KnownPeer, folder: Path | None) -> Self:
        """The place in a folder of checkouts, each under its repository's name, with its .venv or venv."""
        python = "python" if shutil.which("python") else sys.executable
        if folder is None:
            return cls(None, python)
        checkout = (folder / peer.repository.rpartition("/")[2]).resolve()
        own = (checkout / environment / "bin" / "python" for environment in _ENVIRONMENTS)
        return cls(checkout, next((str(path) for path in own if path.exists()), python))

    def fill(self, command: str) -> str:
        """A command with the place in it; the placeholders of pictures stay."""
        if self.checkout is None:
            return command
        places = {_CHECKOUT: str(self.checkout), _PYTHON: self.python}
        for placeholder, path in places.items():
            command = command.replace(placeholder, shlex.quote(path))
        return command

    def missing(self, peer: KnownPeer, gpus: Sequence[Gpu]) -> Iterator[str]:
        """What the peer needs and is not here, as far as one can see without running it."""
        if self.checkout is not None:
            if _CHECKOUT in (peer.command.value or "") and not self.checkout.is_dir():
                yield f"checkout: git clone {peer.repository} {self.checkout}"
            else:
                absent = [name for name in peer.weights.value or () if not (self.checkout / name).exists()]
                if absent:
                    yield f"weights: {', '.join(absent)}"
                yield from self._missing_packages(peer.packages.value or ())
        needed = (peer.memory.value if peer.memory else None) or 0.0
        largest = max((gpu.memory_mib / 1024 for gpu in gpus), default=0.0)
        if peer.gpu.value and (not gpus or largest < needed):
            yield f"an NVIDIA GPU with {needed:g} GiB" if needed else "an NVIDIA GPU"

    def _missing_packages(self, packages: Sequence[str]) -> Iterator[str]:
        if not packages:
            return
        try:
            asked = subprocess.run(
                [self.python, "-c", _MISSING_MODULES, *packages],
                capture_output=True,
                text=True,
                timeout=_PYTHON_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            yield f"executable: {self.python} does not run"
            return
        absent = asked.stdout.split()
        if absent:
            yield f"packages of {self.python}: {', '.join(absent)}"


@dataclass(frozen=True)
class PeersRequest(Options):
    """Where checkouts lie, and how the list is shown."""

    folder: Path | None = option(
        None,
        "Folder of the checkouts, each under its repository's name and with its Python in .venv: tells what "
        "is missing, and fills the commands in.",
    )
    as_json: bool = option(False, "Print everything as JSON, sources included.", flags=("--json",))

    def problems(self) -> Iterator[str]:
        """A folder that is none."""
        if self.folder is not None and not self.folder.is_dir():
            yield f"--folder {self.folder} is no folder; make it, and clone the repositories into it"


def list_peers(request: PeersRequest) -> None:
    """List the ten systems of the paper's tables: licence, weights, needs, what is missing, and commands.

    Each fact was read in the system's own repository; what could not be checked is told. With --folder the
    commands are ready for bench quality --run.

    \b
      s3diff-export bench peers
      s3diff-export bench peers --folder peers --json
    """
    gpus = describe_machine().gpus
    found = []
    for peer in known_peers():
        place = Place.of(peer, request.folder)
        command = place.fill(peer.command.value or "")
        ways = {"build": command} if peer.bundle else {"run": f"{peer.name}={command}"}
        found.append((peer, list(place.missing(peer, gpus)), ways))
    if request.as_json:
        told = [peer.model_dump() | {"missing": missing, **ways} for peer, missing, ways in found]
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    hint = [] if request.folder else ["(--folder looks for its checkout)"]
    rows = (
        (
            peer.name,
            peer.repository.removeprefix("https://"),
            peer.licence.value or "not checked",
            ", ".join(peer.weights.value or ()) or peer.weights.source,
            _needs(peer),
            "; ".join([*missing, *hint]) or "nothing",
        )
        for peer, missing, _ in found
    )
    columns = ("peer", "repository", "licence", "weights", "needs", "missing here")
    show_table(_TITLE, columns, rows, wide_console())
    for peer, _, ways in found:
        click.echo(f"\n{peer.name}: {peer.note}".rstrip(": "))
        click.echo(f"  as in {peer.command.source}")
        for fact, why in peer.unchecked.items():
            click.echo(f"  not checked: {fact}: {why}")
        for way, text in ways.items():
            click.echo(f"  {text}" if way == "build" else f"  --run {shlex.quote(text)}")


def _needs(peer: KnownPeer) -> str:
    """The GPU and the packages."""
    gpu = "an NVIDIA GPU" if peer.gpu.value else "no GPU"
    if peer.memory:
        gpu += f" ({peer.memory.value:g} GiB)" if peer.memory.value else " (memory not checked)"
    return ", ".join([gpu, *(peer.packages.value or ())])
