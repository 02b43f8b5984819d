"""What the real bindings of TensorRT document of their members, to hold our doubles and calls against."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NAMES = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text(encoding="utf-8"))
_PARAMETER = re.compile(r"(\w+): ([\w:]+)( =)?")
_TAKES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "SupportsInt": (int,),
    "str": (str,),
    "bool": (bool,),
    "buffer": (bytes, bytearray, memoryview),
    "Buffer": (bytes, bytearray, memoryview),
    "Dims": (tuple, list),
    "tuple": (tuple,),
    "list": (list,),
}
_ANNOTATED = {"bytes": "Buffer", "Sequence[int]": "Dims"}


def signatures(name: str, member: str, binding: str) -> Iterator[list[tuple[str, str, bool]]]:
    """Name, type and whether it may be left out of each parameter, for every overload in a binding."""
    for signature, bindings in NAMES["signatures"][name].get(member, {}).items():
        if binding in bindings and "property" not in signature:
            for overload in signature.split(" or "):
                listed = overload.partition("(")[2].rpartition(") ->")[0].partition(", ")[2]
                listed = re.sub(r"<[^>]*>", "", listed)  # defaults that are enumerators
                yield [(each[1], each[2], bool(each[3])) for each in _PARAMETER.finditer(listed)]


def is_property(name: str, member: str, binding: str) -> bool | None:
    """Whether the member is one; None where the binding has it not."""
    found = NAMES["signatures"][name].get(member, {})
    described = next((signature for signature, bindings in found.items() if binding in bindings), None)
    return None if described is None else "property" in described


def require_call(name: str, member: str, binding: str, arguments: Sequence[object]) -> None:
    """Raise `TypeError` for a call that no overload of the real member takes."""
    overloads = [*signatures(name, member, binding)]
    if not any(_takes(overload, arguments) for overload in overloads):
        raise TypeError(f"{binding}: {name}.{member} takes {overloads}, got {arguments}")


def _takes(overload: list[tuple[str, str, bool]], arguments: Sequence[object]) -> bool:
    needed = sum(not optional for _, _, optional in overload)
    return needed <= len(arguments) <= len(overload) and all(
        _is(argument, expected) for argument, (_, expected, _) in zip(arguments, overload, strict=False)
    )


def _is(argument: object, expected: str) -> bool:
    known = _TAKES.get(expected)
    if known is not None:
        return isinstance(argument, known) and not (isinstance(argument, bool) and bool not in known)
    return expected.rpartition(":")[2] in {each.__name__ for each in type(argument).__mro__}


def differences(fake: type, binding: str) -> Iterator[str]:
    """How the public members of a double differ from those that a binding documents."""
    name = fake.__name__
    for member, mine in vars(fake).items():
        theirs = None if member.startswith("_") else is_property(name, member, binding)
        if theirs is None:
            continue
        if isinstance(mine, property) != theirs:
            yield f"{name}.{member} is {'a' if theirs else 'no'} property in {binding}"
        elif not theirs:
            listed = [*inspect.signature(mine).parameters.values()][1:]
            given: list[Any] = [str(each.annotation) for each in listed]
            if not any(_alike(given, overload) for overload in signatures(name, member, binding)):
                yield f"{name}.{member} takes other arguments in {binding}"


def _alike(given: list[str], overload: list[tuple[str, str, bool]]) -> bool:
    real = [theirs.replace("SupportsInt", "int").replace("buffer", "Buffer") for _, theirs, _ in overload]
    return len(given) == len(real) and all(
        mine == "object" or _ANNOTATED.get(mine, mine) in (theirs, theirs.rpartition(":")[2])
        for mine, theirs in zip(given, real, strict=True)
    )
