"""Damaged files, made of whole ones: bytes changed, and structure where bytes would not get far."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import warnings
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
        return copy.deepcopy(chance.choice(HOSTILE))
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
            node[key] = copy.deepcopy(chance.choice(HOSTILE))  # which later changes may reach into
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
    """The header's JSON or that in its metadata changed, with its right length, or the file damaged."""
    if chance.random() < 0.2:
        return bytes_changed(content, chance)
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    if chance.random() < 0.6:
        tree = json.loads(header)
        name = chance.choice(("config", "config", "config", "provenance", "revision"))
        inner = json_changed(tree["__metadata__"][name].encode(), chance)
        tree["__metadata__"][name] = inner.decode(errors="replace")
        header = json.dumps(tree).encode()
    else:
        header = json_changed(header, chance)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def saved_changed(content: bytes, chance: random.Random) -> bytes:
    """What torch.save wrote with a value, a tensor or a name in it replaced; or `zip_changed`."""
    if chance.random() < 0.5:
        return zip_changed(content, chance)
    import torch

    tree = torch.load(io.BytesIO(content), weights_only=True)
    inner = [each for each in tree.values() if isinstance(each, dict)]
    place = chance.choice([tree, *inner])
    key = chance.choice(list(place))
    match chance.randrange(4):
        case 0:
            place[chance.choice((f"module.{key}", f"{key}.x", "x", 7, None, "", "a" * 9999))] = place.pop(key)
        case 1:
            place[key] = chance.choice(HOSTILE)
        case 2:
            tree = {chance.choice(("params", "state_dict", "x")): tree, "step": 3}
        case _:
            place[key] = chance.choice(hostile_tensors(place[key]))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(tree, file, _use_new_zipfile_serialization=chance.random() < 0.7)
    return file.getvalue()


def hostile_tensors(like: object) -> list[Any]:
    """What a file may hold in the place of a plain tensor; some of the shape of the one it replaces."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape = like.shape if isinstance(like, torch.Tensor) else (3,)
        plain = torch.ones(shape)
        return [
            torch.zeros(1).expand(10**10),
            torch.zeros(1).expand(shape),
            torch.full(shape, float("nan")),
            torch.full(shape, 3e38),
            *(plain.to(kind) for kind in (torch.float64, torch.bfloat16, torch.int8, torch.bool)),
            *(plain.to(kind) for kind in (torch.complex64, torch.float8_e4m3fn, torch.uint16)),
            torch.empty(shape, device="meta"),
            plain.to_sparse(),
            torch.eye(3).to_sparse_csr(),
            torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
            torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            torch.nn.Parameter(plain),
            torch.ones(0),
            torch.tensor(1.0),
            plain.unsqueeze(-1),
            plain.T if plain.ndim == 2 else plain,
        ]


Mutation = Callable[[bytes, random.Random], bytes]
