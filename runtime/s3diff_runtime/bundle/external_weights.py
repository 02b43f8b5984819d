"""Which files besides itself an ONNX graph reads weights from, found without loading it.

ONNX Runtime follows the names in a graph to wherever they lead, so they are compared with the manifest first.
Only the messages of onnx.proto that can hold a tensor are looked into, by the wire format of protobuf.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

_NESTED: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "model": {7: "graph", 25: "function"},
        "graph": {1: "node", 5: "tensor", 15: "sparse"},
        "function": {7: "node", 11: "attribute"},
        "node": {5: "attribute"},
        "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
        "sparse": {1: "tensor", 2: "tensor"},
        "tensor": {13: "entry"},
    }
)
"""By message, the fields that lead to tensors and the messages in them (onnx.proto, IR version 13)."""
_KEY, _VALUE = 1, 2  # fields of StringStringEntryProto
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 32
_LONGEST_VARINT = 10


def external_files(graph: bytes) -> set[str]:
    """The locations, relative to its folder, that the tensors of a graph (a serialised ModelProto) name.

    Raises:
        ValueError: for bytes that are no such message.
    """
    return set(_locations(memoryview(graph), "model", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError(f"messages nested deeper than {_DEEPEST}")
    nested = _NESTED[kind]
    for number, content in _fields(message):
        inner = nested.get(number)
        if inner == "entry":
            entry = {number: bytes(text) for number, text in _fields(content)}
            if entry.get(_KEY) == b"location":
                yield entry.get(_VALUE, b"").decode()
        elif inner is not None:
            yield from _locations(content, inner, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message, with their numbers; others hold no messages."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(message, at)
            continue
        if wire == _LENGTH:
            size, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"a field of the wire type {wire}")
        if at + size > len(message):
            raise ValueError("a field that is longer than its message")
        if wire == _LENGTH:
            yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    number = 0
    for shift, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, at + shift + 1
    raise ValueError("a number without an end")
