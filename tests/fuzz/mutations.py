"""Damaged files, made of whole ones: bytes changed, and structure where bytes would not get far."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 1.5, -0.0, 1e30, 1e308, 2**31, 2**63, 10**400, "", "x", "/", ".."),
    *(
        "../outside",
        "/etc/passwd",
        "a" * 10_000,
        "\0",
        "\ud800",
        "ε" * 40,
        [],
        {},
        [[]],
        {"a": {}},
        [None] * 300,
    ),
    *("manifest.json", "onnx/unet.onnx", "shared", float("nan"), float("inf"), "1e999", "nan"),
)


def bytes_changed(content: bytes, chance: random.Random, other: bytes = b"") -> bytes:
    """One to a few changes: bits, bytes, numbers; pieces cut, doubled, moved, taken from elsewhere."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = (
            chance.randrange(len(data) + 1)
            if chance.random() < 0.5
            else chance.randrange(min(len(data), 200) + 1)
        )
        length = chance.choice((1, 2, 4, 8, 64, 1024))
        match chance.randrange(8):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[min(at, len(data) - 1)] = chance.randrange(256)
            case 2:
                number = chance.choice(INTERESTING)
                data[at : at + 4] = struct.pack(chance.choice("<>") + "I", number)
            case 3:
                number = chance.choice(INTERESTING) & 0xFFFF
                data[at : at + 2] = struct.pack(chance.choice("<>") + "H", number)
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
            case 6:
                del data[at:]
            case _:
                source = other or content
                start = chance.randrange(len(source) + 1)
                data[at : at + length] = source[start : start + length]
    return bytes(data)


def json_changed(content: bytes, chance: random.Random) -> bytes:
    """A value, a key, or several, replaced, removed or moved; or the text damaged."""
    if chance.random() < 0.2:
        return bytes_changed(content, chance)
    tree = json.loads(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        tree = _tree_changed(tree, chance)
    if chance.random() < 0.03:
        depth = chance.choice((50, 65, 300, 1100, 100_000))
        return json.dumps(tree).encode().replace(b"null", b"[" * depth + b"]" * depth, 1)
    return json.dumps(tree, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")


def _tree_changed(tree: Any, chance: random.Random) -> Any:  # noqa: ANN401 - JSON
    places: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        places += [(node, key) for key in keys]
        stack += [node[key] for key in keys]
    if not places:
        return chance.choice(HOSTILE)
    node, key = chance.choice(places)
    match chance.randrange(5):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[str(chance.choice(HOSTILE))] = node.pop(key)
        case 2:
            other, place = chance.choice(places)
            try:
                node[key] = other[place]
            except (KeyError, IndexError):
                node[key] = None
            try:
                json.dumps(tree)
            except (ValueError, RecursionError):  # the tree in itself
                node[key] = None
        case _:
            node[key] = chance.choice(HOSTILE)
    return tree


def zip_changed(content: bytes, chance: random.Random) -> bytes:
    """A member of a zip (of torch.save) changed and packed again with its checksum, or the zip damaged."""
    if chance.random() < 0.3:
        return bytes_changed(content, chance)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = [name for name in members if name.endswith("data.pkl")] or list(members)
    name = chance.choice(names if chance.random() < 0.8 else list(members))
    members[name] = bytes_changed(members[name], chance)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return file.getvalue()


def safetensors_changed(content: bytes, chance: random.Random) -> bytes:
    """The header's JSON changed, with its right length, or the file damaged."""
    if chance.random() < 0.3:
        return bytes_changed(content, chance)
    length = int.from_bytes(content[:8], "little")
    header = json_changed(content[8 : 8 + length], chance)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


Mutation = Callable[[bytes, random.Random], bytes]
