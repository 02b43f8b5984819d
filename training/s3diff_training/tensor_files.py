"""Files of named tensors, as safetensors or by `torch.save`: told apart by content, checked whole, bounded.

A file is hostile until it is read: nothing in it is run, what it claims to hold may not take more memory than
its size allows, and only dense finite tensors of known types come out. Every failure is a `CheckpointError`.
"""

from __future__ import annotations

import logging
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from s3diff_runtime.errors import CheckpointError, RequestError, first_line

log = logging.getLogger(__name__)

_NAMED = 3
"""How many of many an error names."""
_LONGEST_REASON = 300
_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
_KNOWN_TYPES = ", ".join(_DTYPES.values())
_EXPECTED = "expected safetensors, or tensors as torch.save writes them"
_KINDS = {
    b"version https://git-lfs": "a Git LFS pointer, which stands for the weights",
    b"<": "a web page",
    b"PK": "a zip archive, and none that torch.save made",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
}
"""What a file is that begins so."""
_ADVICE = {
    "LFS": "fetch them with `git lfs pull`, or download the file itself",
    "web page": "download the file itself (on the Hub: /resolve/ in the address, not /blob/)",
    "archive": "unpack it, and pass the file of weights inside",
    "empty": "download or save it again",
    "zeros": "download or save it again",
}
"""What to do about a kind whose name has that word."""
_PLAIN = re.compile(
    r"collections\.OrderedDict|(__builtin__|builtins)\.set"
    r"|torch\.(\w+Storage|Size|device|u?int\d+|b?float\d+|bool)"
    r"|torch\._utils\.(_rebuild_tensor_v2|_rebuild_parameter)"
)
"""What a pickle of plain tensors names."""
_SHARED_TUPLES = 16
"""How often a pickle may use a tuple again: each may double what hashing or showing it takes."""
_ODD = {
    "_rebuild_sparse_tensor": "sparse tensors",
    "_rebuild_qtensor": "quantised tensors",
    "_rebuild_meta_tensor_no_storage": "meta tensors, which have no values",
    "_rebuild_nested_tensor": "nested tensors",
}
COUNTERS = "position_ids"
"""The end of names of tensors that only count from 0, which old files of text encoders hold."""
_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""How files begin, after the pickles' protocol, that torch.save wrote before it wrote zips."""
_LEGACY_PICKLES = 5
"""What they hold: this magic number, protocol, system, content, keys; then raw bytes."""
_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "net", "generator", "weights")
"""Names under which programs put the tensors of a file, in the order of BasicSR."""
_PREFIXES = re.compile(
    r"(?:(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_model\.model)"
    r"|^(?:model|net|network|generator|net_g|netG|de_net))\."
)
"""What data parallelism, compilation, peft and training programs put before names of layers."""
_ADAPTER = re.compile(r"(lora_[AB])\.[^.]+(?=\.weight$)")


@dataclass
class TensorFile:
    """The content of a file, of which nothing is checked yet but that it is data."""

    path: Path
    content: Mapping[Any, object]
    metadata: Mapping[str, str] | None = None
    """Of a safetensors file."""
    claimed: int = 0
    """Bytes of the tensors that `named_tensors` came upon, which the file's size bounds."""

    @cached_property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def named_tensors(self, content: Mapping[Any, object] | None = None) -> dict[str, Tensor]:
        """The tensors of the file, or of one mapping in it, float32 and contiguous, by their layers' names.

        What other programs wrap around them or write before their names is taken off, and so are the names
        of peft's adapters.

        Raises:
            CheckpointError: for anything but plain finite tensors, and more of them than the file can hold.
        """
        mapping = unwrapped(self.content if content is None else content)
        tensors: dict[str, Tensor] = {}
        given: dict[str, str] = {}
        for name, tensor in mapping.items():
            if not (isinstance(name, str) and name.isprintable() and isinstance(tensor, Tensor)):
                shown = repr(name[:80]) if isinstance(name, str) else f"what a {type(name).__name__} names"
                raise CheckpointError(
                    f"{self.path} holds more than tensors: {shown} is a {type(tensor).__name__}"
                )
            plain = _ADAPTER.sub(r"\1", _PREFIXES.sub("", name))
            if plain.endswith(COUNTERS):
                continue
            if plain in given:
                raise CheckpointError(
                    f"{self.path} holds {plain} twice, as {given[plain]} and {name}; "
                    "save one adapter or network alone"
                )
            given[plain] = name
            tensors[plain] = self._plain(name, tensor)
        return tensors

    def _plain(self, name: str, tensor: Tensor) -> Tensor:
        shown = f"the tensor {name[:80]} of {self.path}"
        if tensor.dtype not in _DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{shown} is of type {kind}, expected {_KNOWN_TYPES}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{shown} is {tensor.layout} on {tensor.device.type}, expected dense values"
            )
        self.claimed += tensor.numel() * tensor.itemsize
        if self.claimed > 2 * self.size:  # some programs write one tensor under two names, none does more
            raise CheckpointError(
                f"{self.path} claims to hold more than its {self.size} bytes can (at {name[:80]}, "
                f"{list(tensor.shape)}); it is damaged, or made to exhaust the memory"
            )
        copied = tensor.detach().float().clone(memory_format=torch.contiguous_format)
        if not copied.isfinite().all():
            raise CheckpointError(f"{shown} has values that are not finite")
        return copied


def open_tensor_file(path: Path) -> TensorFile:
    """Read a file of tensors without running what it may carry.

    Raises:
        CheckpointError: when it is missing, not of tensors, unsafe or damaged.
    """
    try:
        if not path.is_file():
            what = "is no regular file" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {what}; expected a file of weights")
        with path.open("rb") as file:
            head = file.read(512)
        if head[8:9] == b"{":
            return _read_safetensors(path)
        if not head.startswith((b"PK", b"\x80")):
            raise CheckpointError(f"{path} {_what_it_is(head)}")
        return _read_pickle(path, head)
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes fail in whatever way they lead the reader
        raise CheckpointError(
            f"{path} is damaged or not a whole file of tensors ({reason(error)}); download or save it again"
        ) from error


def unwrapped(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """What programs put around the tensors of a file (`params`, `state_dict`, …) taken off.

    Raises:
        TypeError: where a file has something else than a mapping.
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"a {type(content).__name__} where tensors by name are expected")
    for _ in _WRAPPERS:
        inner = (content[key] for key in _WRAPPERS if key in content)
        content = next((each for each in inner if isinstance(each, Mapping)), content)
    return content


def difference(wanted: Mapping[str, Sequence[int]], given: Mapping[str, Tensor]) -> str:
    """How tensors differ from the wanted shapes: counts, and the first names; empty where they do not."""
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "mis-shaped": [
            f"{name} {list(given[name].shape)} for {list(shape)}"
            for name, shape in wanted.items()
            if name in given and tuple(given[name].shape) != tuple(shape)
        ],
    }
    return "; ".join(f"{len(names)} {kind} ({first_few(names)})" for kind, names in faults.items() if names)


def shapes_of(module: nn.Module, prefix: str = "") -> dict[str, Sequence[int]]:
    """The shapes of a module's state by name."""
    return {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}


def first_few(names: Iterable[str]) -> str:
    """The first few of many names, for an error message; one that shows nothing is put into quotes."""
    listed = ["".join(c if c.isprintable() else "?" for c in name[:200]) for name in names]
    listed = [name if name.strip() else repr(name) for name in listed]
    return ", ".join(listed[:_NAMED]) + (", …" if len(listed) > _NAMED else "")


def reason(error: BaseException) -> str:
    """The first sentence of an error's text, without libraries' advice; its type where there is none."""
    return first_line(error).split(". ")[0].rstrip(".")[:_LONGEST_REASON]


@contextmanager
def refusing(path: Path, fault: str, expected: str) -> Iterator[None]:
    """Raise `CheckpointError` for what damaged content leads the block to: `fault`, why, and `expected`.

    A `RequestError` keeps its words: the content is sound, and asks for what cannot be.
    """
    try:
        yield
    except CheckpointError:
        raise
    except RequestError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{fault} ({reason(error)}); expected {expected}") from error


def _what_it_is(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.strip(b"\0"):
        what = "full of zeros" if head else "empty"
    elif head[257:262] == b"ustar":
        what = "a tar archive"
    else:
        text = head.isascii() and all(byte > 31 or byte in b"\t\r\n" for byte in head)
        shown = start.split(b"\n")[0][:60].decode("ascii", "replace")
        unknown = f"a text that begins with {shown!r}" if text else "of no format that is read here"
        what = next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), unknown)
    advice = next((advice for word, advice in _ADVICE.items() if word in what), _EXPECTED)
    return f"is {what}, no file of weights; {advice}"


def _read_safetensors(path: Path) -> TensorFile:
    if path.suffix != ".safetensors":
        log.warning("%s is a safetensors file, whatever its name says", path)
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        for name in names:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _DTYPES.values() and not name.endswith(COUNTERS):
                raise CheckpointError(
                    f"the tensor {name[:80]!r} of {path} is of type {dtype}, expected {_KNOWN_TYPES}"
                )
        return TensorFile(path, {name: file.get_tensor(name) for name in names}, file.metadata() or {})


def _read_pickle(path: Path, head: bytes) -> TensorFile:
    zipped, legacy = head.startswith(b"PK"), head[2:].startswith(_LEGACY)
    with path.open("rb") as file:
        program = _program(path, zipfile.ZipFile(file)) if zipped else file
        names = {name for _ in range(_LEGACY_PICKLES if legacy else 1) for name in _globals(program)}
    foreign = sorted(name for name in names if not _PLAIN.fullmatch(name))
    odd = [_ODD[name.rpartition(".")[2]] for name in foreign if name.rpartition(".")[2] in _ODD]
    if odd:
        raise CheckpointError(f"{path} holds {', '.join(odd)}; expected dense ones")
    if foreign:
        raise CheckpointError(
            f"{path} holds other objects than tensors ({first_few(foreign)}); expected the tensors alone, as "
            "torch.save(model.state_dict(), ...) writes them, and none that runs code"
        )
    if not zipped and not legacy:
        raise CheckpointError(f"{path} is a pickle that torch.save did not write; {_EXPECTED}")
    if path.suffix == ".safetensors":  # by which torch.load would go
        raise CheckpointError(f"{path} is a pickle of torch.save, whatever its name says; rename it to .pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Mapped, a storage cannot reach beyond the file, whatever it claims.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    return TensorFile(path, content)


def _program(path: Path, archive: zipfile.ZipFile) -> IO[bytes]:
    members = archive.infolist()
    if sum(each.file_size for each in members) > path.stat().st_size:
        raise CheckpointError(f"{path} unpacks to more than it is; torch.save does not compress")
    programs = [each for each in members if each.filename.rpartition("/")[2] == "data.pkl"]
    if len(programs) != 1:
        raise CheckpointError(f"{path} {_what_it_is(b'PK')}")
    return archive.open(programs[0])


def _globals(file: IO[bytes]) -> Iterator[str]:
    """The objects that one pickle names, none of which is made here."""
    texts: list[str] = []
    tuples: set[object] = set()
    shared, before = 0, ""
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]
        elif "PUT" in code.name and before.startswith("TUPLE"):
            tuples.add(argument)
        elif "GET" in code.name and argument in tuples:
            shared += 1
        if shared > _SHARED_TUPLES:
            raise ValueError("tuples within tuples")
        before = code.name
