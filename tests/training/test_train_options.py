"""Options made from a dataclass: names, types, choices, defaults and help follow its fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from s3diff_training.train.options import options_of


@dataclass(frozen=True)
class Sizes:
    """One field of every type."""

    count: int = 3
    rate: float = 0.5
    name: str = "plain"
    folder: Path | None = None
    kind: Literal["round", "square"] = "round"
    deep: bool = False
    widths: tuple[int, ...] = (1, 2)
    limit: int | None = None
    hidden: int = 7


HELP = {
    name: f"The {name}." for name in ("count", "rate", "name", "folder", "kind", "deep", "widths", "limit")
}


@pytest.fixture
def sizes() -> Callable[..., Any]:
    """Run a command with the options of `Sizes`; returns the instance, or the output of a refusal."""
    made: list[Sizes] = []

    @click.command()
    @options_of("sizes", Sizes(count=5, hidden=8), HELP)
    def command(sizes: Sizes) -> None:
        made.append(sizes)

    def call(*arguments: str) -> Any:  # noqa: ANN401
        result = CliRunner().invoke(command, arguments)
        return result.output if result.exit_code or "--help" in arguments else made.pop()

    return call


def test_an_instance_is_made_of_the_options(sizes: Callable[..., Any]) -> None:
    assert sizes() == Sizes(count=5, hidden=8)
    numbers = ["--count", "1", "--rate", "2e-3", "--widths", "16,32,64", "--limit", "9"]
    words = ["--name", "x", "--folder", "a/b", "--kind", "square", "--deep"]
    expected = Sizes(1, 2e-3, "x", Path("a/b"), "square", True, (16, 32, 64), 9, 8)
    assert sizes(*numbers, *words) == expected


def test_help_shows_types_choices_and_defaults_in_order(sizes: Callable[..., Any]) -> None:
    shown = " ".join(sizes("--help").split())
    assert "--hidden" not in shown
    assert "--kind [round|square] The kind. [default: round]" in shown
    assert "--widths INTEGERS The widths. [default: 1,2]" in shown
    assert "--count INTEGER The count. [default: 5]" in shown
    assert "--folder PATH The folder. --kind" in shown  # none is no default to show
    assert [shown.index(f"--{name} ") for name in HELP] == sorted(shown.index(f"--{name} ") for name in HELP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--widths", "1,two"], "'1,two' is not a list of whole numbers"),
        (["--kind", "oval"], "'oval' is not one of 'round', 'square'"),
        (["--count", "1.5"], "'1.5' is not a valid integer"),
    ],
)
def test_values_of_the_wrong_type_are_refused(
    sizes: Callable[..., Any], arguments: list[str], message: str
) -> None:
    assert message in sizes(*arguments)
