"""Options: frozen dataclasses whose fields carry type, range, default and help, each written once.

```
@dataclass(frozen=True)
class Tiling(Options):
    tile: int = option(128, "Input pixels of a tile's side; 0 never cuts.", least=0)
    mode: Literal["fast", "exact"] = option("fast", "How tiles are blended.")
```

The field says what may be asked for, from Python as `Tiling(tile=64)` and on the command line as `--tile 64`
(`command_line.takes` makes it). Everything that is out of range is told in one error. What was asked for is
told apart from what is merely the default: `Tiling(tile=128).given` is `{"tile"}`, `Tiling().given` is empty.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from s3diff_runtime.errors import RequestError, refuse

T = TypeVar("T", bound="Options")
F = TypeVar("F", bound=Callable[..., Any])
_KEY = "option"
_NUMBERS = {int: "a whole number", float: "a number"}
LONGEST_QUOTE = 100
"""Characters of a text that is no number, in what its sender is told."""


@dataclass(frozen=True)
class OptionInfo:
    """What a field says of itself besides its default."""

    help: str
    flags: tuple[str, ...] = ()
    """On the command line; `--field-name` by default, `--no-field-name` for what is on by default."""
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    """Exclusive, as `below`."""
    below: float = math.inf
    shown: str | None = None
    """The default as `--help` shows it, where that says more than the value."""
    parse: Callable[[str], Any] | None = None
    """Reads the text of the command line, where the field has another type; raises `RequestError`."""
    metavar: str | None = None
    positional: bool = False
    repeated: bool = False
    """Whether a tuple comes from an option that is given several times; else from one text with commas."""
    env: str | None = None
    type: Any = None
    """Of the field, without None; `infos_of` fills it in."""
    optional: bool = False
    """Whether the field may be None; as `type`."""

    @property
    def several(self) -> bool:
        """Whether the field is a tuple."""
        return get_origin(self.type) is tuple

    @property
    def item_type(self) -> Any:  # noqa: ANN401
        """The type of a value, or of each in a tuple."""
        return get_args(self.type)[0] if self.several else self.type

    def value_of(self, name: str, text: str) -> object:
        """What a text means for the field `name`; raises `RequestError` for no number where one must be."""
        try:
            return self.type(text) if self.type in _NUMBERS else text
        except ValueError:
            quoted = repr(text[:LONGEST_QUOTE])
            raise RequestError(f"{name} is {quoted}, expected {_NUMBERS[self.type]}") from None

    def range_of(self) -> str:
        """The range in words; empty where every number will do."""
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"from {self.least:.12g} to {self.most:.12g}"
        words = {
            "{:.12g} or more": self.least,
            "more than {:.12g}": self.above,
            "{:.12g} or less": self.most,
            "less than {:.12g}": self.below,
        }
        return " and ".join(text.format(end) for text, end in words.items() if math.isfinite(end))

    def holds(self, number: float) -> bool:
        """Whether a number is finite and in the range."""
        within = self.least <= number <= self.most and self.above < number < self.below
        return within and math.isfinite(number)


def option(default: Any = MISSING, help: str = "", **info: Any) -> Any:  # noqa: ANN401 - takes a field's place
    """A field of `Options`: required without a default. `info` are more fields of `OptionInfo`."""
    return field(default=default, metadata={_KEY: OptionInfo(help, **info)})


def argument(help: str, default: Any = MISSING, **info: Any) -> Any:  # noqa: ANN401
    """A field of `Options` that the command line takes by its place; see `option`."""
    return option(default, help, positional=True, **info)


def group(default: Options | type[Options], only: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """A field that holds other `Options`, whose options stand among this class's own on the command line.

    Their defaults are those of an instance, or of a class. `only` names the fields that are options, others
    keep their defaults; none named: all.
    """
    made: Any = default() if isinstance(default, type) else default
    made.__dict__["given"] = frozenset()
    return field(default=made, metadata={_KEY: tuple(only)})


@dataclass(frozen=True)
class Options:
    """Base of frozen dataclasses made of `option` fields.

    Raises:
        RequestError: on construction, naming every field that is out of range and every combination that
            does not fit (`problems`), at once.
    """

    def __new__(cls, *values: object, **named: object) -> Self:
        """Remember what was given."""
        made = super().__new__(cls)
        names = [each.name for each in fields(cls)] if values else []
        made.__dict__["given"] = frozenset([*names[: len(values)], *named])
        return made

    def __post_init__(self) -> None:
        """Check every field, then what no single one shows."""
        wrong = list(_range_problems(self))
        refuse(wrong or self.problems())

    @property
    def given(self) -> frozenset[str]:
        """Names of the fields that were asked for; a group counts where one of its options was."""
        given: frozenset[str] = self.__dict__["given"]
        return given

    def problems(self) -> Iterator[str]:
        """What is wrong with the fields together, each alone being in range; for subclasses."""
        return iter(())

    def but(self, **changes: Any) -> Self:  # noqa: ANN401 - values of fields
        """The same with other values, which count as given only where they did before."""
        values = {each.name: getattr(self, each.name) for each in fields(self)} | changes
        return _constructed(type(self), values, self.given)

    def flags_of(self, *names: str) -> list[str]:
        """How the command line calls those of the fields that were given; all of them where none is named."""
        infos = infos_of(type(self))
        return [
            infos[name].flags[0]
            for name in infos
            if name in self.given and (not names or name in names) and infos[name].flags
        ]


def _once(function: F) -> F:
    """Ask a class once: options are made on every call of an upscaler. (mypy takes no class for hashable.)"""
    return cast(F, cache(function))


@_once
def infos_of(cls: type[Options]) -> Mapping[str, OptionInfo]:
    """The options of a class by field, with their types and the flags that the command line has for them."""
    found, hints = {}, get_type_hints(cls)
    for each in fields(cls):
        info, hint = each.metadata.get(_KEY), hints[each.name]
        if isinstance(info, OptionInfo):
            no = "no-" if each.default is True else ""
            usual = () if info.positional else (f"--{no}{each.name.replace('_', '-')}",)
            found[each.name] = dataclasses.replace(
                info,
                flags=info.flags or usual,
                type=_without_none(hint),
                optional=types.NoneType in get_args(hint),
            )
    return found


def options_of(
    cls: type[Options], default: Options | None = None, prefix: str = "", only: Sequence[str] = ()
) -> Iterator[tuple[str, OptionInfo, Any]]:
    """Every option of a class in the order of its fields, those of a group where it stands.

    Args:
        cls: its fields.
        default: an instance whose values are the defaults; None takes the class's own.
        prefix: of the names.
        only: the fields that are options; none named: all.

    Yields:
        Its name as `read` takes it, what is known of it, and its default (`MISSING` without one).
    """
    infos = infos_of(cls)
    for each in fields(cls):
        value = each.default if default is None else getattr(default, each.name)
        if isinstance(value, Options):
            yield from options_of(type(value), value, f"{prefix}{each.name}.", each.metadata[_KEY])
        elif each.name in infos and (not only or each.name in only):
            yield prefix + each.name, infos[each.name], value


def read(cls: type[T], values: Mapping[str, object], default: T | None = None, prefix: str = "") -> T:
    """Make options of what a command line gave, groups and all; tells everything that is wrong at once.

    Args:
        cls: to make.
        values: of what was given alone, by field; of a group's options by `group.field`.
        default: an instance whose values stand for what was not given; None takes the class's own.
        prefix: of the names in `values`.
    """
    made = {} if default is None else {each.name: getattr(default, each.name) for each in fields(cls)}
    given: set[str] = set()
    problems: list[str] = []
    for each in fields(cls):
        name, path = each.name, prefix + each.name
        if path in values:
            given.add(name)
            with _noting(problems):
                made[name] = _parsed(each.metadata[_KEY], values[path])
        elif any(key.startswith(f"{path}.") for key in values):
            given.add(name)
            own = made.get(name, each.default)
            with _noting(problems):
                made[name] = read(type(own), values, own, f"{path}.")
    if any(each.default is MISSING and each.name not in made for each in fields(cls)):
        refuse(problems)  # of what must be there, and was given and cannot be read
    with _noting(problems):
        options = _constructed(cls, made, given)
    refuse(problems)
    return options


def _constructed(cls: type[T], values: Mapping[str, Any], given: Iterable[str]) -> T:
    """An instance of which only some fields count as given; `problems` sees that, too."""
    made = cls.__new__(cls, **dict.fromkeys(given))
    made.__init__(**values)  # type: ignore[misc]
    return made


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Note a wrong request and go on."""
    try:
        yield
    except RequestError as error:
        problems.append(str(error))


def _parsed(info: OptionInfo, value: Any) -> Any:  # noqa: ANN401
    if info.parse is None:
        return value
    return tuple(map(info.parse, value)) if info.repeated else info.parse(value)


def _without_none(hint: object) -> object:
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not types.NoneType]
        return parts[0] if len(parts) == 1 else hint
    return hint


def _range_problems(options: Options) -> Iterator[str]:
    for name, info in infos_of(type(options)).items():
        value = getattr(options, name)
        if value is None and info.optional:
            continue
        several = info.several and isinstance(value, tuple)
        for one in value if several else (value,):
            if expected := _expected(info, info.item_type if several else info.type, one):
                yield f"{name} is {value if isinstance(value, tuple) else repr(one)}, expected {expected}"
                break


def _expected(info: OptionInfo, hint: Any, value: object) -> str:  # noqa: ANN401
    """What a value should have been; empty where it is right."""
    if get_origin(hint) is Literal:
        return "" if value in get_args(hint) else f"one of {', '.join(map(str, get_args(hint)))}"
    if hint not in _NUMBERS:
        return "a value" if value is None else ""
    if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
        return _NUMBERS[hint]
    return "" if info.holds(value) else info.range_of() or "a finite number"
