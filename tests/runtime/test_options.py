"""Options: what a field says is checked, told apart from its default, and made into a command line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from s3diff_runtime.command_line import takes
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import OptionInfo, Options, argument, group, option


def axes_of(text: str) -> tuple[str, float]:
    """Read `noise=0.3`."""
    name, equals, number = text.partition("=")
    if not equals:
        raise RequestError(f"{text} has no value; expected for example noise=0.3")
    return name, float(number)


@dataclass(frozen=True)
class Brush(Options):
    """Options of a group."""

    width: int = option(4, "Width of the brush.", least=1, most=64)
    opacity: float = option(1.0, "How much covers.", above=0)
    tip: Literal["round", "flat"] = option("round", "Shape of the tip.")
    age: int = option(0, "Nothing that a command line can say.", least=0)

    def problems(self) -> Iterator[str]:
        """A flat tip needs some width."""
        if self.tip == "flat" and self.width < 2:
            yield "a flat tip needs width 2 or more"


@dataclass(frozen=True)
class Paint(Options):
    """One field of every kind."""

    picture: Path = argument("What is painted.")
    output: Path = option(help="Where it goes.", flags=("-o", "--output"))
    count: int = option(3, "How often.", least=1)
    rate: float = option(0.5, "How fast.")
    share: float = option(0.0, "Which part.", least=0, below=1)
    name: str | None = option(None, "What it is called.", env="PAINT_NAME")
    limit: int | None = option(None, "Up to where.", least=0, shown="no limit")
    dry: bool = option(False, "Without paint.")
    frame: bool = option(True, "Put no frame around it.")
    sizes: tuple[int, ...] = option((1, 2), "Widths of the strokes.", least=1)
    tags: tuple[str, ...] = option((), "A word; again for more.", repeated=True)
    scores: tuple[tuple[str, float], ...] = option((), "A score.", parse=axes_of, repeated=True)
    brush: Brush = group(Brush(width=8, age=7), only=("width", "opacity", "tip"))
    kind: Literal["oil", "ink"] = option("oil", "Of the colours.")

    def problems(self) -> Iterator[str]:
        """Two that contradict each other."""
        if self.dry and self.kind == "oil":
            yield "--dry paints with ink alone"
        if self.dry and self.count > 3:
            yield f"--dry lasts for 3 pictures, not {self.count}"


PLACE = ["in.png", "-o", "out.png"]
HERE = (Path("in.png"), Path("out.png"))


@pytest.fixture
def paint() -> Callable[..., Any]:
    """Run a command that takes `Paint`: the instance, click's output, or the refusal's message."""
    made: list[Paint] = []

    @click.command()
    @takes(Paint)
    def command(request: Paint) -> None:
        """Paint."""
        made.append(request)

    def call(*arguments: str) -> Any:  # noqa: ANN401
        result = CliRunner().invoke(command, arguments)
        if isinstance(result.exception, RequestError):
            return str(result.exception)
        return result.output if result.exit_code or "--help" in arguments else made.pop()

    return call


# --- from Python ----------------------------------------------------------------------------------


def test_what_was_asked_for_differs_from_what_is_merely_the_default() -> None:
    assert Brush().given == frozenset()
    assert Brush(4).given == {"width"}
    assert Brush(4, tip="round").given == {"width", "tip"}
    assert Brush(4, tip="round") == Brush()
    assert Paint(*HERE, brush=Brush(width=8)).given == {"picture", "output", "brush"}
    assert copy.deepcopy(Brush(4)).given == {"width"}


def test_a_copy_with_other_values_was_asked_for_no_more() -> None:
    changed = Brush(tip="flat").but(width=9)
    assert changed == Brush(width=9, tip="flat")
    assert changed.given == {"tip"}
    with pytest.raises(RequestError, match="width is 65"):
        Brush().but(width=65)


def test_flags_of_what_was_given_are_those_of_the_command_line() -> None:
    request = Paint(*HERE, frame=False, count=3, sizes=(4,))
    assert request.flags_of() == ["-o", "--count", "--no-frame", "--sizes"]
    assert request.flags_of("sizes", "rate") == ["--sizes"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count is 0, expected 1 or more"),
        ({"rate": float("nan")}, "rate is nan, expected a finite number"),
        ({"rate": float("inf")}, "rate is inf, expected a finite number"),
        ({"share": 1.0}, "share is 1.0, expected 0 or more and less than 1"),
        ({"sizes": (4, 0)}, r"sizes is \(4, 0\), expected 1 or more"),
        ({"kind": "chalk"}, "kind is 'chalk', expected one of oil, ink"),
        ({"count": "5"}, "count is '5', expected a whole number"),
        ({"count": 2.5}, "count is 2.5, expected a whole number"),
        ({"count": None}, "count is None, expected a whole number"),
        ({"count": ()}, r"count is \(\), expected a whole number"),
        ({"rate": True}, "rate is True, expected a number"),
        ({"count": 0, "limit": -1, "kind": "chalk"}, "count is 0.*; limit is -1.*; kind is 'chalk'"),
        ({"dry": True, "count": 4}, "ink alone; --dry lasts for 3 pictures, not 4"),
    ],
    ids=str,
)
def test_all_that_is_wrong_is_told_at_once(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Paint(*HERE, **wrong)


def test_no_limit_is_within_its_range_and_whole_numbers_are_numbers() -> None:
    assert Paint(*HERE, limit=None, rate=2).rate == 2


def test_options_are_recorded_by_their_fields_alone() -> None:
    assert asdict(Brush(width=5)) == {"width": 5, "opacity": 1.0, "tip": "round", "age": 0}
    assert asdict(Paint(*HERE))["brush"] == {"width": 8, "opacity": 1.0, "tip": "round", "age": 7}


# --- from the command line ------------------------------------------------------------------------


def test_without_options_the_defaults_hold(paint: Callable[..., Any]) -> None:
    made = paint(*PLACE)
    assert made == Paint(*HERE)
    assert made.brush == Brush(width=8, age=7)
    assert made.given == {"picture", "output"}
    assert made.brush.given == frozenset()


def test_every_type_is_read(paint: Callable[..., Any]) -> None:
    numbers = ["--count", "5", "--rate", "2e-3", "--limit", "9", "--sizes", "16, 32,64"]
    words = ["--name", "x", "--dry", "--no-frame", "--kind", "ink", "--count", "2"]
    several = ["--tags", "a,b", "--tags", "c", "--scores", "noise=0.5", "--scores", "blur=1"]
    made = paint(*PLACE, *numbers, *words, *several, "--tip", "flat")
    assert (made.count, made.rate, made.limit, made.sizes) == (2, 2e-3, 9, (16, 32, 64))
    assert (made.name, made.dry, made.frame, made.kind) == ("x", True, False, "ink")
    assert made.tags == ("a,b", "c")
    assert made.scores == (("noise", 0.5), ("blur", 1.0))
    assert made.brush == Brush(width=8, tip="flat", age=7)


def test_an_explicit_default_counts_as_given(paint: Callable[..., Any]) -> None:
    made = paint(*PLACE, "--count", "3", "--width", "8")
    assert made == Paint(*HERE)
    assert made.given == {"picture", "output", "count", "brush"}
    assert made.brush.given == {"width"}
    assert made.brush.flags_of() == ["--width"]


def test_the_environment_counts_as_given(paint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAINT_NAME", "from there")
    made = paint(*PLACE)
    assert made.name == "from there"
    assert "name" in made.given
    assert paint(*PLACE, "--name", "typed").name == "typed"


def test_all_that_is_wrong_is_told_at_once_groups_too(paint: Callable[..., Any]) -> None:
    wrong = ["--count", "0", "--width", "99", "--opacity", "0", "--scores", "noise"]
    assert paint(*PLACE, *wrong) == (
        "noise has no value; expected for example noise=0.3; "
        "width is 99, expected from 1 to 64; opacity is 0.0, expected more than 0; "
        "count is 0, expected 1 or more"
    )
    combined = paint(*PLACE, "--dry", "--tip", "flat", "--width", "1")
    assert combined == "a flat tip needs width 2 or more; --dry paints with ink alone"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PLACE, "--sizes", "1,two"], "'two' is not a valid integer"),
        ([*PLACE, "--kind", "chalk"], "'chalk' is not one of 'oil', 'ink'"),
        ([*PLACE, "--count", "1.5"], "'1.5' is not a valid integer"),
        ([*PLACE, "--age", "1"], "No such option '--age'"),
        ([*PLACE, "--frame"], "No such option"),
        (["-o", "out.png"], "Missing argument 'PICTURE'"),
        (["in.png"], "Missing option '-o' / '--output'"),
    ],
)
def test_what_click_can_tell_is_refused_by_click(
    paint: Callable[..., Any], arguments: list[str], message: str
) -> None:
    assert message in paint(*arguments)


def test_help_shows_types_ranges_and_defaults_in_the_order_of_the_fields(paint: Callable[..., Any]) -> None:
    shown = " ".join(paint("--help").split())
    assert "[OPTIONS] PICTURE" in shown
    assert "-o, --output PATH Where it goes. [required]" in shown
    assert "--count INTEGER How often. [1 or more] [default: 3]" in shown
    assert "--share FLOAT Which part. [0 or more and less than 1] [default: 0.0]" in shown
    assert "--name TEXT What it is called. [env: PAINT_NAME]" in shown
    assert "--limit INTEGER Up to where. [0 or more] [default: no limit]" in shown
    assert "--no-frame Put no frame around it. --sizes" in shown  # flags have no default to show
    assert "[1 or more] [default: 1,2]" in shown
    assert "--width INTEGER Width of the brush. [from 1 to 64] [default: 8]" in shown
    assert "--kind [oil|ink] Of the colours. [default: oil]" in shown
    assert "--age" not in shown
    names = ["output", "count", "rate", "dry", "sizes", "scores", "width", "opacity", "tip", "kind"]
    places = [shown.index(f"--{name} ") for name in names]
    assert places == sorted(places)


def test_several_arguments_are_one_field() -> None:
    @dataclass(frozen=True)
    class Many(Options):
        pictures: tuple[Path, ...] = argument("What is painted.")

    made: list[Many] = []

    @click.command()
    @takes(Many)
    def command(request: Many) -> None:
        made.append(request)

    assert CliRunner().invoke(command, ["a", "b"]).exit_code == 0
    assert made == [Many((Path("a"), Path("b")))]
    assert "Missing argument 'PICTURES...'" in CliRunner().invoke(command, []).output


def test_ranges_are_told_in_full() -> None:
    assert OptionInfo("", least=1, most=64_000_000).range_of() == "from 1 to 64000000"
    assert OptionInfo("", above=0, most=86_400).range_of() == "more than 0 and 86400 or less"
    assert OptionInfo("", least=0.5, below=1).range_of() == "0.5 or more and less than 1"
