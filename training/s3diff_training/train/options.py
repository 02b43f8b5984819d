"""Command-line options made from a frozen dataclass, so that names, types and defaults are written once."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Command = TypeVar("Command", bound=Callable[..., Any])


class Integers(click.ParamType):
    """Whole numbers with commas between them, as a tuple."""

    name = "integers"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read `16,32,64`."""
        try:
            return tuple(int(number) for number in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers; expected for example 16,32,64", param, ctx)


def options_of(
    name: str, default: DataclassInstance, help_texts: Mapping[str, str]
) -> Callable[[Command], Command]:
    """Give a command one option for every field in `help_texts`, and an instance made of their values.

    The field `lambda_lpips` becomes `--lambda-lpips`. Its annotation decides the type: int, float, str, Path,
    bool (a flag), a Literal (its choices) or tuple[int, ...] (with commas), each of them perhaps or None.

    Args:
        name: of the command's argument that takes the instance.
        default: holds the options' defaults, and the values of the fields that are no options.
        help_texts: by field.
    """
    hints = get_type_hints(type(default))

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_instance(**given: object) -> object:
            values = {field: given.pop(field) for field in help_texts}
            return command(**given, **{name: replace(default, **values)})

        for field in reversed(list(help_texts)):
            option = _option(field, hints[field], getattr(default, field), help_texts[field])
            with_instance = option(with_instance)
        return with_instance  # type: ignore[return-value]

    return decorate


def _option(field: str, hint: object, default: object, help_text: str) -> Callable[[Command], Command]:
    flag = f"--{field.replace('_', '-')}"
    if hint is bool:
        return click.option(flag, is_flag=True, default=default, help=help_text)
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    shown = default is not None
    return click.option(flag, type=_type_of(hint), default=default, show_default=shown, help=help_text)


def _type_of(hint: object) -> Any:  # noqa: ANN401 - click takes types and instances of its ParamType alike
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if get_origin(hint) is tuple:
        return Integers()
    return click.Path(path_type=Path) if hint is Path else hint
