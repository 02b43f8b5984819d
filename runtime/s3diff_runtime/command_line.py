"""Commands made from functions of one `Options`: every option is a field, and the docstring is the help."""

import functools
import importlib
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from s3diff_runtime.options import OptionInfo, Options, options_of, read

T = TypeVar("T", bound=Options)
_SEPARATOR = "__"
_UNSET = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


class Listed(click.ParamType):
    """Values with commas between them, as a tuple."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind, self.name = kind, f"{kind.name},…"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[object, ...]:
        """Read `16,32,64`."""
        return tuple(self.kind.convert(part.strip(), param, ctx) for part in value.split(","))


def takes(cls: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Give a command the options of a class; it is called with an instance, made of what was typed.

    Below `@click.command()`. Raises `RequestError`, from the command, with all that is wrong.
    """

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(**typed: object) -> None:
            source = click.get_current_context().get_parameter_source
            given = {name: value for name, value in typed.items() if source(name) not in _UNSET}
            command(read(cls, {name.replace(_SEPARATOR, "."): value for name, value in given.items()}))

        with_options.__click_params__ = [  # type: ignore[attr-defined]
            _parameter(path.replace(".", _SEPARATOR), info, default)
            for path, info, default in reversed(list(options_of(cls)))
        ]
        return with_options

    return decorate


@dataclass(frozen=True)
class Member:
    """A command of a `LazyGroup`, without importing it.

    `target` is `module:name` of a function that takes one `Options`, or of a click command; `summary` its
    line in `--help`; `extra` the extras of the distribution (with commas) that install what it needs.
    """

    target: str
    summary: str
    extra: str = ""


class LazyGroup(click.Group):
    """Commands by name, in the order of help, which needs the summaries alone; one is imported to run it."""

    def __init__(self, members: Mapping[str, Member], **named: Any) -> None:  # noqa: ANN401 - click.Group's
        placeholders = [click.Command(name, short_help=member.summary) for name, member in members.items()]
        super().__init__(commands=placeholders, **named)
        self.members = members

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(self.members)

    def work_of(self, name: str) -> Any:  # noqa: ANN401 - a function, or a click command
        """Import what a name stands for."""
        module, _, attribute = self.members[name].target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the real command behind the name in `args`; raises `click.UsageError` for an unknown one."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        if name is None or placeholder is None:
            return name, placeholder, rest
        ctx.invoked_subcommand = name  # known to `invoke` even when the import below fails
        work = self.work_of(name)
        return name, work if isinstance(work, click.Command) else command_of(work, name), rest


def command_of(work: Callable[[T], None], name: str) -> click.Command:
    """The command that calls a function of one `Options`; its docstring, without `Raises`, is the help."""
    (cls,) = (hint for key, hint in get_type_hints(work).items() if key != "return")
    text = (inspect.getdoc(work) or "").partition("\nRaises:")[0]
    return click.command(name, help=text)(takes(cls)(work))


def typed_command() -> str:
    """The command line of this process, as a shell takes it."""
    return shlex.join(["s3diff-export", *sys.argv[1:]])


def _parameter(name: str, info: OptionInfo, default: Any) -> click.Parameter:  # noqa: ANN401
    help_text = _help(info, default)
    if info.type is bool:
        return click.Option([*info.flags, name], is_flag=True, flag_value=default is not True, help=help_text)
    kind = _kind(info)
    shared: dict[str, Any] = {"required": default is MISSING, "metavar": info.metavar}
    if info.positional:
        return click.Argument([name], type=kind, nargs=-1 if info.several else 1, **shared)
    if info.several and not info.repeated and not info.parse:
        kind = Listed(kind)
    return click.Option(
        [*info.flags, name], type=kind, multiple=info.repeated, envvar=info.env, help=help_text, **shared
    )


def _kind(info: OptionInfo) -> click.ParamType:
    if info.parse:
        return click.STRING
    if get_origin(info.item_type) is Literal:
        return click.Choice([str(choice) for choice in get_args(info.item_type)])
    kinds: dict[Any, click.ParamType] = {int: click.INT, float: click.FLOAT, Path: click.Path(path_type=Path)}
    return kinds.get(info.item_type, click.STRING)


def _help(info: OptionInfo, default: Any) -> str:  # noqa: ANN401
    """What it does, where it comes from besides, its range, and its default."""
    shown = info.shown
    if shown is None and isinstance(default, int | float | str | tuple) and not isinstance(default, bool):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    notes = [f"env: {info.env}" if info.env else "", info.range_of(), f"default: {shown}" if shown else ""]
    return " ".join([info.help, *(f"[{note}]" for note in notes if note)])
