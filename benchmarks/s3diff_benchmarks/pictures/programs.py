"""Runs other methods' own programs over the images, and times them: `bench quality --run`.

Their programs want different things, which the words of a command say. Most take a folder and write into
one, and load their network once: `{input}` and `{output}`. Others take an image at a time: with
`{input_file}` the program is started for every image, and writes either `{output_file}` or whatever it likes
into `{output}`.
"""

import re
import shlex
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

from PIL import Image

from s3diff_benchmarks.machine import describe_machine
from s3diff_benchmarks.pictures.pairs import (
    SECONDS_NAME,
    Case,
    Peer,
    PeerTimes,
    ProgramRun,
    find_peer,
    images_below,
    read_times,
)
from s3diff_benchmarks.steps import Ended, run_process
from s3diff_runtime.errors import JobError, RequestError, one_line
from s3diff_runtime.files import write_text
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.progress import counted

_INPUT, _OUTPUT, _INPUT_FILE, _OUTPUT_FILE = "{input}", "{output}", "{input_file}", "{output_file}"
_PLACEHOLDER = re.compile(r"\{[a-z_]+\}")
_ALLOWED = ({_INPUT, _OUTPUT}, {_INPUT_FILE, _OUTPUT}, {_INPUT_FILE, _OUTPUT_FILE})
_EXPECTED = "expected NAME='command with {input} and {output}', or {input_file} and {output_file}"


class Program(NamedTuple):
    """Another method's program: the name of its row, and its command with placeholders."""

    name: str
    command: str

    @property
    def words(self) -> list[str]:
        """The command as a program and its arguments."""
        return shlex.split(self.command)

    @property
    def takes_files(self) -> bool:
        """Whether it is started for every image."""
        return _INPUT_FILE in self.command

    def problems(self) -> Iterator[str]:
        """What is wrong with it, and with this machine for it."""
        if not self.name or not self.command.strip():
            yield _EXPECTED
            return
        if "/" in self.name or self.name.startswith("."):
            yield f"the name {self.name!r} cannot be a folder's; expected one without / and a dot in front"
        try:
            words = self.words
        except ValueError as error:
            yield f"the command cannot be read: {str(error).lower()}"
            return
        found = set(_PLACEHOLDER.findall(self.command))
        unknown = found - set().union(*_ALLOWED)
        if unknown:
            yield f"{', '.join(sorted(unknown))} stands for nothing; write what belongs there"
        elif found not in _ALLOWED:
            yield _EXPECTED
        if shutil.which(words[0]) is None:
            yield f"there is no program {words[0]} here; install it, or write its path"


def named_program(text: str) -> Program:
    """The program of NAME=COMMAND. Raises `RequestError` for one that cannot be run."""
    name, _, command = text.partition("=")
    program = Program(name, command)
    problems = "; ".join(program.problems())
    if problems:
        raise RequestError(f"--run {text}: {problems}")
    return program


def run_programs(
    programs: Sequence[Program], cases: Sequence[Case], folder: Path, seconds: float | None
) -> list[Peer]:
    """Let programs restore images, one program after another.

    They are handed what our own network gets, upright 8-bit RGB, as PNG under the names of the cases.

    Args:
        programs: to run.
        cases: the images.
        folder: gets a folder of each program's name, with what it made and `seconds.json`. Seconds that a
            program writes there itself are kept; else they are those from its start to its end, for the
            images in equal shares where it ran once for all.
        seconds: that each may take; None for as long as it likes.

    Raises:
        JobError: when a program fails, takes too long, or leaves out an image or makes one of a wrong size;
            with the last words of the program.
    """
    peers = []
    with TemporaryDirectory() as temporary:
        inputs = {case.name: Path(temporary) / f"{case.name}.png" for case in cases}
        for case in cases:
            Image.fromarray(open_photograph(case.lr).pixels).save(inputs[case.name])
        for program in programs:
            output = (folder / program.name).resolve()
            output.mkdir(parents=True, exist_ok=True)
            ended, times = _run(program, inputs, output, seconds)
            try:
                _write_times(program, times, output)
                peers.append(find_peer(program.name, output, cases))
            except RequestError as error:
                raise JobError(f"{program.name} ended well, but {error}{_last_words(ended)}") from error
    return peers


def _run(
    program: Program, inputs: dict[str, Path], output: Path, limit: float | None
) -> tuple[Ended, dict[str, float]]:
    """Its last process, and the seconds of each image by name."""
    begun, times, total = perf_counter(), dict[str, float](), len(inputs)
    ended = Ended(0, "", "")
    with counted(total, "programs") as tell:

        def watch() -> None:
            made = len(list(images_below(output)))
            tell(min(made, total), f"{program.name}: {made} of {total} images")

        for names in ([name] for name in inputs) if program.takes_files else [list(inputs)]:
            start = perf_counter()
            left = float("inf") if limit is None else limit - (start - begun)
            ended = run_process(_command(program, inputs[names[0]], output), left, watch)
            if ended.code is None:
                made = len(list(images_below(output)))
                raise JobError(
                    f"{program.name} was not done within the {limit:g} s of --run-limit; it had made "
                    f"{made} of {total} images{_last_words(ended)}"
                )
            if ended.code:
                raise JobError(f"{program.name} {_end_of(ended.code)}{_last_words(ended)}")
            times |= dict.fromkeys(names, (perf_counter() - start) / len(names))
    return ended, times


def _command(program: Program, image: Path, output: Path) -> list[str]:
    """The words of a command, with paths in the places of the placeholders."""
    paths = {
        _INPUT: image.parent,
        _OUTPUT: output,
        _INPUT_FILE: image,
        _OUTPUT_FILE: output / image.name,
    }
    return [
        _PLACEHOLDER.sub(lambda found: str(paths.get(found[0], found[0])), word) for word in program.words
    ]


def _write_times(program: Program, seconds: dict[str, float], output: Path) -> None:
    """Write down command and times beside the images. Raises `RequestError` for wrong times of its own."""
    own = read_times(output / SECONDS_NAME)
    times = own or PeerTimes(machine=describe_machine().name, seconds=seconds)
    run = ProgramRun(command=one_line(program.command), images=len(seconds), seconds=sum(seconds.values()))
    text = times.model_copy(update={"run": run}).model_dump_json(indent=2)
    write_text(output / SECONDS_NAME, text + "\n")


def _end_of(code: int) -> str:
    """How a process failed; the kernel ends those by signal 9 that take more memory than there is."""
    if code > 0:
        return f"failed with exit code {code}"
    return f"was ended by signal {-code} ({signal.strsignal(-code)})"


def _last_words(ended: Ended) -> str:
    """What a program said last, on standard error or else on standard output."""
    said = ended.error or (ended.output.strip().splitlines() or [""])[-1]
    return f"; its last words: {said}" if said else "; it said nothing"
